"""All figures of a run, each with what to say of it: what the sweep's end, the report and the notebooks show."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from tokred.analysis.curves import Curve, on_shared_samples, readable_curves, shared_budgets
from tokred.analysis.difference import save_difference
from tokred.analysis.forest import save_forest
from tokred.analysis.front import accuracies_drawn
from tokred.analysis.heatmap import save_heatmaps
from tokred.analysis.kept import save_kept
from tokred.analysis.pairwise import save_pairwise
from tokred.analysis.pareto import save_pareto
from tokred.analysis.performance import save_profile
from tokred.analysis.rows import Row, grouped, rows, spanned
from tokred.analysis.seeds import save_seeds
from tokred.analysis.speeds import Speed, speeds
from tokred.analysis.speedup import save_speed
from tokred.analysis.variance import can_be_decomposed, save_variance
from tokred.record import Store

FOLDER = "figures"  # in the run folder
HELD = 256  # predictions at a time; of 50,000 samples they are a megabyte each
MOST_BUDGETS = 3  # at which the variance is taken apart
_ABOUT = {  # by what a file's name begins with, in the order of a report
    "pareto_gmacs": (
        "Accuracy and compute",
        "Up and to the left is better: more accuracy for fewer multiply-adds. The step line joins what nothing else "
        "dominates in these samples, the unreduced model included; a marker is filled where that holds in 95 % of draws "
        "of the samples. Bars are 95 % intervals of each accuracy, n = {samples} samples.",
    ),
    "pareto_speedup": (
        "Accuracy and measured speed",
        "Up and to the right is better; line and filled markers as above, with speed as measured, and speed-ups no "
        "further apart than the resolution taken for the same. Upright bars are 95 % intervals of the accuracy, n = "
        "{samples} samples; level ones those of the median speed-up over {rounds} rounds.",
    ),
    "difference": (
        "Differences at equal compute, along all budgets",
        "Each line is a method minus the one named in its title, at the same MACs; above 0 is better. A band holds the "
        "whole true line in 95 % of draws of the samples, each band by itself; n = {samples} samples.",
    ),
    "forest": (
        "Differences at fixed budgets",
        "Each marker is a method minus the one named above its row of panels, at the same MACs; to the right is "
        "better. Bars are paired 95 % intervals, each alone: they show how much, and claim nothing; what holds after "
        "Holm's correction is said in the comparisons. n = {samples} samples.",
    ),
    "pairwise": (
        "Every pair of methods at equal compute",
        "Above the diagonal the row's method minus the column's in points, the mean over the budgets that both reach; "
        "positive and blue: the row's is higher. A star: still there after Holm's correction over all pairs and "
        "backbones. Below the diagonal the smallest difference that so many samples would have shown; n = {samples} samples.",
    ),
    "performance": (
        "Over all backbones",
        "How many of the backbones a method loses no more than so much on; higher, and further to the right, is "
        "better. Bands are 95 % intervals over draws of the samples of these backbones, n = {samples} samples; of other "
        "backbones they say nothing.",
    ),
    "seeds": (
        "Seeds of random methods",
        "Each marker is one seed; to the right is better. The bar is the 95 % interval of their mean over samples and "
        "seeds, SD the standard deviation between seeds; n = {samples} samples for each.",
    ),
    "variance": (
        "What the difference to the unreduced model comes from",
        "The share of the variance between configurations at equal MACs that goes with each factor, none of them "
        "better or worse for being long. Bars are 95 % intervals over draws of the samples, n = {samples} samples.",
    ),
    "speed": (
        "Measured speed-up and MACs",
        "On the line the time goes with the MACs; below it a method gains less than its MACs promise, above 1 it is "
        "faster than the unreduced model. Bars are 95 % intervals of the median over {rounds} rounds.",
    ),
    "heatmap": (
        "Layers and amounts",
        "The difference to the unreduced model in points by where and how much is reduced; higher (blue) is better. "
        "For exploring: coloured is what Benjamini and Hochberg's procedure tells from zero at 5 % and what is not "
        "below the smallest detectable difference; n = {samples} samples.",
    ),
    "staircase": (
        "Tokens by layer",
        "How many tokens reach and leave each layer; fewer is cheaper, and neither direction is better by itself. "
        "Bands hold methods of nearly the same staircase, and a standard deviation over the samples where counts "
        "differ by sample (n = {samples} samples).",
    ),
    "agreement": (
        "Agreement of methods",
        "How much two methods agree, in %, on which tokens they keep and which they merge; 100 is the same choice, 0 "
        "that of chance for the Rand index. Means over n = {traced} samples; intervals are in the csv.",
    ),
    "likeness": (
        "Likeness to the unreduced model",
        "To the right the features are more like the unreduced model's, up its accuracy is kept; bars are 95 % "
        "intervals, of the accuracy over n = {samples} samples, and of the likeness over n = {traced}, where they are "
        "approximate: distances are skewed.",
    ),
    "foreground": (
        "Objects and background",
        "What share of the object's tokens (solid) and of the background's (dashed) is left after each layer; a solid "
        "line above its dashed one keeps objects. Bands are 95 % intervals over n = {traced} samples.",
    ),
    "overlays": (
        "What is kept, on frames",
        "The same clips for all methods, among them some that were lost or gained against the unreduced model; single "
        "clips out of n = {samples} samples, which prove nothing by themselves.",
    ),
}


@dataclass(frozen=True)
class Drawn:
    """A figure in its files. ``about``: how to read it, in a plain sentence or two."""

    name: str
    title: str
    about: str
    svg: Path
    png: Path
    csv: Path


def draw_all(store: Store, folder: str | Path | None = None) -> list[Drawn]:
    """Those that the run has the data for, in the order of a report; by default in the run's own ``figures``.

    Where records of a backbone make no curves, a warning says why, and what needs them is drawn without it.
    """
    folder = store.folder / FOLDER if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    store = _ReadOnce(store)
    found, timed = rows(store), speeds(store)
    paths = [
        *save_pareto(found, folder, accuracies_drawn(store)),
        *_save_compared(_curves(store), folder),
        *save_seeds(store, folder),
    ]
    paths += [*save_speed(timed, folder), *save_heatmaps(found, folder), *save_kept(store, folder)]
    return _drawn([path.with_suffix("") for path in paths if path.suffix == ".svg"], _counts(store, found, timed))


class _ReadOnce(Store):
    """Many figures are drawn from the same records."""

    def __init__(self, store: Store):
        super().__init__(store.folder)
        self.keep_to(store.plan())
        self.get = cache(super().get)  # type: ignore[method-assign]
        self.predictions = lru_cache(HELD)(super().predictions)  # type: ignore[method-assign]


def _curves(store: Store) -> list[Curve]:
    found, problems = readable_curves(store)
    for problem in problems:
        warnings.warn(f"figures that compare methods at equal compute leave out {problem}", stacklevel=3)
    return found


def _save_compared(some: Sequence[Curve], folder: Path) -> list[Path]:
    paths = [*save_difference(some, folder), *save_forest(some, folder), *save_pairwise(some, folder)]
    return [*paths, *save_profile(some, folder), *_save_variances(some, folder)]


def _save_variances(some: Sequence[Curve], folder: Path) -> list[Path]:
    """Of the first data set on which several factors vary: a sum of squares is over the same samples."""
    for same in grouped(some, lambda curve: (curve.data, curve.identity.get("data"), curve.cluster_N is None)):
        if can_be_decomposed(same):
            shared = on_shared_samples(same)
            budgets = shared_budgets([curve for curve in shared if curve.method != "none"])
            few = np.unique(np.linspace(0, len(budgets) - 1, MOST_BUDGETS).round().astype(int))
            return save_variance(shared, folder, [budgets[place] for place in few])
    return []


def _counts(store: Store, found: Sequence[Row], timed: Sequence[Speed]) -> dict[str, str]:
    """What a sentence says of n."""
    known = {
        "samples": {row.num_samples for row in found if row.num_samples},
        "traced": _num_traced(store),
        "rounds": {one.num_rounds for one in timed if one.num_rounds},
    }
    return {name: spanned(counts) if counts else "unknown" for name, counts in known.items()}


def _num_traced(store: Store) -> set[int]:
    """Those spread over the data; what was picked for being lost or gained is shown and not counted."""
    traces = (store.trace(record.key, ["num_spread"]) for record in store.planned())
    return {int(arrays["num_spread"]) for arrays in traces if arrays}


def _drawn(stems: Sequence[Path], counts: Mapping[str, str]) -> list[Drawn]:
    made = []
    for begins, (title, about) in _ABOUT.items():
        for stem in stems:
            if stem.name == begins or stem.name.startswith(f"{begins}-"):
                files = (stem.parent / f"{stem.name}.{kind}" for kind in ("svg", "png", "csv"))
                made.append(Drawn(stem.name, title, about.format(**counts), *files))
    return made
