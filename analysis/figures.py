"""All figures of a run, each with what to say of it: what the sweep's end, the report and the notebooks show."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokred.analysis.heatmap import save_heatmaps
from tokred.analysis.kept import save_kept
from tokred.analysis.pareto import save_pareto
from tokred.analysis.rows import rows
from tokred.record import Store

FOLDER = "figures"  # in the run folder
_ABOUT = {  # by what a file's name begins with, in the order of a report
    "pareto_gmacs": (
        "Accuracy and compute",
        "Up and to the left is better; the step line joins what nothing else dominates.",
    ),
    "pareto_speedup": ("Accuracy and measured speed", "Up and to the right is better."),
    "heatmap": ("Layers and amounts", "The difference to the unreduced model, by where and how much is reduced."),
    "staircase": ("Tokens by layer", "How many tokens leave each layer."),
    "agreement": ("Agreement of methods", "How much two methods agree on what they keep and merge."),
    "likeness": (
        "Likeness to the unreduced model",
        "How like the pooled features are to those of the unreduced model.",
    ),
    "foreground": ("Objects and background", "What share of the object's and of the background's tokens is left."),
    "overlays": ("What is kept, on frames", "The same clips for all methods, and images that were lost or gained."),
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
    """Those that the run has the data for, in the order of a report; by default in the run's own ``figures``."""
    folder = store.folder / FOLDER if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = rows(store)
    paths = [*save_pareto(found, folder), *save_heatmaps(found, folder), *save_kept(store, folder)]
    return _drawn([path.with_suffix("") for path in paths if path.suffix == ".svg"])


def _drawn(stems: Sequence[Path]) -> list[Drawn]:
    made = []
    for begins, (title, about) in _ABOUT.items():
        for stem in stems:
            if stem.name == begins or stem.name.startswith(f"{begins}-"):
                files = (stem.parent / f"{stem.name}.{kind}" for kind in ("svg", "png", "csv"))
                made.append(Drawn(stem.name, title, about, *files))
    return made
