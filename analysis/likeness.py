"""Whether what methods keep tells how good they are: features and partitions beside accuracy, over the cells of a backbone.

``likenesses`` compares the features of each reduced row with the unreduced model's, ``correlations`` ranks rows by that, and by
how far they agree with each other, against their accuracy (as Haurum et al. 2023, arXiv 2308.04657); ``draw_likeness`` draws a
panel, ``save_likeness`` makes the files.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import kendalltau, spearmanr

from tokred.analysis.agreement import Pair
from tokred.analysis.cka import cosine, debiased_cka, jackknife
from tokred.analysis.figure import new_figure, panel_title, save_figure
from tokred.analysis.look import Look, looks, printable
from tokred.analysis.rows import OnBackbone, Row, grouped, write_csv
from tokred.analysis.statistics import Estimate
from tokred.analysis.traces import Traced, over_samples, spread

FEWEST = 5  # rows: of four no order can have a two-sided p under 0.05 (2 / 4! = 0.083)
MEASURES = {"cosine": "cosine of the features", "cka": "debiased linear CKA of the features"}
ALL = "all settings"
MOST_FACTOR = 30.0  # as a logarithm: where little is known, an interval reaches all the way down and no further
FINEST = 1e-5  # of the axis: features are kept in float16


@dataclass(frozen=True)
class Likeness(Row):
    """A row with the likeness of its features, the class token or else the mean of the tokens after the final norm, to those of
    the unreduced model on ``num_traced`` samples: the mean cosine, and debiased linear CKA, both 1 where nothing differs."""

    setting: str = ""
    num_traced: int = 0
    cosine: float | None = None
    cosine_low: float | None = None
    cosine_high: float | None = None
    cka: float | None = None
    cka_low: float | None = None
    cka_high: float | None = None


@dataclass(frozen=True)
class Correlation(OnBackbone):
    """Over ``num_rows`` rows of a backbone, of ``what`` with the accuracy: Spearman's rho, Kendall's tau-b, and the p of tau.

    ``what``: cosine or cka, the likeness to the unreduced model; or overlap, rand or order, the agreement with ``anchor`` of the
    others at its setting. ``note`` says why a number is missing: below 5 rows both correlations, and p where rows are not
    separate trials, being of several settings or several of one method. Not corrected for how many there are.
    """

    backbone: str
    weights: str
    data: str
    setting: str
    what: str
    anchor: str
    num_rows: int
    spearman: float | None = None
    kendall: float | None = None
    p: float | None = None
    note: str = ""


def likenesses(traced: Sequence[Traced]) -> list[Likeness]:
    """Of the reduced rows whose unreduced model was traced too."""
    found = []
    for group in grouped(traced, lambda one: one.row.group):
        unreduced = next((one for one in group if one.row.method == "none"), None)
        if unreduced is not None:
            found += [_likeness(one, unreduced) for one in group if one is not unreduced]
    return found


def correlations(found: Sequence[Likeness], of_pairs: Sequence[Pair]) -> list[Correlation]:
    """By backbone: for each setting and for all together those of the features, and of each method as the anchor."""
    made: list[Correlation] = []
    for group in grouped(found, lambda one: one.group):
        settings = grouped(group, lambda one: one.setting)
        for what in MEASURES:
            for some in [*settings, *([group] if len(settings) > 1 else [])]:
                named = some[0].setting if some is not group else ALL
                made.append(_correlation(some, [getattr(one, what) for one in some], named, what, ""))
        for some in settings:
            made += _of_anchors(some, [pair for pair in of_pairs if _belongs(pair, some[0])])
    return made


def draw_likeness(
    panel: Sequence[Likeness], measure: str = "cosine", ax: Axes | None = None, *, given: dict | None = None
) -> Axes:
    """``panel``: rows of one backbone; ``measure``: cosine or cka. ``given``: the looks, where other panels hold more."""
    given = given or looks((one.method, one.options) for one in panel)
    ax = ax or new_figure(4.6, 3.7).subplots()
    known = [one for one in panel if getattr(one, measure) is not None and _height(one) is not None]
    nearest = max(
        FINEST, min((1 - getattr(one, measure) for one in known if getattr(one, measure) < 1), default=1.0) / 3
    )
    for one in known:
        look, y = given[one.method, one.options], _height(one) or 0.0
        far, x, near = (max(nearest, 1 - getattr(one, measure + end)) for end in ("_low", "", "_high"))
        dots: dict[str, Any] = {"marker": look.marker, "color": look.colour, "ecolor": (look.colour, 0.35)}
        ax.errorbar([x], [y], xerr=[[x - near], [far - x]], yerr=_bars(one), markersize=5.5, elinewidth=1.0, **dots)
    ax.set_xscale("log")  # most are near 1, and to be told apart
    ax.invert_xaxis()
    ax.xaxis.set_major_formatter(lambda apart, _: f"{1 - apart:.6g}")
    ax.xaxis.set_minor_formatter("")
    ax.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 2):g}")
    ax.set_xlabel(f"{MEASURES[measure]}\nwith the unreduced model's (1: the same)")
    ax.set_ylabel(f"{panel[0].metric if panel else 'accuracy'}: difference, points")
    ax.margins(0.08)
    return ax


def save_likeness(found: Sequence[Likeness], of_pairs: Sequence[Pair], folder: str | Path) -> list[Path]:
    """``likeness`` as png, svg and csv, and ``correlations.csv``; nothing where no reduced row was traced."""
    if not found:
        return []
    made = correlations(found, of_pairs)
    written = save_figure(partial(_figure, found, made), found, Path(folder) / "likeness")
    return [*written, write_csv(made, Path(folder) / "correlations.csv")]


def below_one(estimate: Estimate | None) -> Estimate | None:
    """With the interval that it has on the scale of log(1 - x): what is apart is skewed where most is near 1, and an interval of
    equal arms reaches beyond 1 and too seldom far enough down."""
    if estimate is None or not estimate.low < estimate.value < 1:
        return estimate
    apart = 1 - estimate.value
    factor = math.exp(min((estimate.value - estimate.low) / apart, MOST_FACTOR))
    return Estimate(estimate.value, max(1 - apart * factor, min(-1.0, estimate.low)), 1 - apart / factor)


def _height(one: Likeness) -> float | None:
    return one.value if one.difference is None else one.difference


def _bars(one: Likeness) -> list[list[float]] | None:
    if one.difference is None or one.difference_low is None or one.difference_high is None:
        return None
    return [[one.difference - one.difference_low], [one.difference_high - one.difference]]


def _likeness(one: Traced, unreduced: Traced) -> Likeness:
    reference_SC = unreduced.traces[0].feature_SC
    features = [trace.feature_SC for trace in one.traces]
    like = over_samples(np.mean([cosine(own_SC, reference_SC) for own_SC in features], axis=0))

    def cka(reference_SC: np.ndarray, *features: np.ndarray) -> float:
        return float(np.mean([debiased_cka(own_SC, reference_SC) for own_SC in features]))

    aligned = jackknife(cka, reference_SC, *features)
    about: dict[str, Any] = {**spread("cosine", below_one(like)), **spread("cka", below_one(aligned))}
    return Likeness(**asdict(one.row), setting=one.setting, num_traced=len(reference_SC), **about)


def _belongs(pair: Pair, row: Likeness) -> bool:
    return pair.group == row.group and pair.setting == row.setting


def _of_anchors(some: Sequence[Likeness], of_setting: Sequence[Pair]) -> Iterator[Correlation]:
    """``some``: the rows of one setting. Those most like the anchor are expected to be as good as it."""
    by_label = {one.label: one for one in some}
    for what in ("overlap", "rand", "order"):
        for anchor in by_label:
            like = {
                (pair.b if pair.a == anchor else pair.a): getattr(pair, what)
                for pair in of_setting
                if anchor in (pair.a, pair.b) and pair.a != pair.b
            }
            others = [by_label[label] for label in like if label in by_label]
            values = [like[one.label] for one in others]
            yield _correlation(others or some[:0], values, some[0].setting, what, anchor, like=some[0])


def _correlation(
    some: Sequence[Likeness],
    values: Sequence[float | None],
    named: str,
    what: str,
    anchor: str,
    *,
    like: Likeness | None = None,
) -> Correlation:
    known = [(one, value) for one, value in zip(some, values, strict=True) if None not in (value, one.value)]
    made = Correlation(*(like or some[0]).group, named, what, anchor, len(known))
    return _with_numbers(made, known)


def _with_numbers(made: Correlation, known: Sequence[tuple[Likeness, float | None]]) -> Correlation:
    about = {**asdict(made)}
    if len(known) < FEWEST:
        return Correlation(**about | {"note": f"too few: {len(known)} rows, {FEWEST} are the least"})
    x, y = [value for _, value in known], [one.value for one, _ in known]
    if len(set(x)) == 1 or len(set(y)) == 1:
        return Correlation(**about | {"note": "no order: all are the same"})
    tau = kendalltau(x, y)
    about |= {"spearman": float(spearmanr(x, y).statistic), "kendall": float(tau.statistic)}
    if made.setting == ALL:
        return Correlation(**about | {"note": "no p: settings are mixed, and a smaller one lowers both"})
    if len({one.method for one, _ in known}) < len(known):
        return Correlation(**about | {"note": "no p: rows of one method are no separate trials"})
    return Correlation(**about | {"p": float(tau.pvalue)})


def _figure(found: Sequence[Likeness], made: Sequence[Correlation]) -> Figure:
    groups = list(dict.fromkeys(one.group for one in found))
    given = looks((one.method, one.options) for one in found)
    longest = max(len(printable(" ".join(name).rstrip())) for name in given)
    num_columns = max(2, int(72 * 9.2 / (5.2 * longest + 40)))
    legend = 0.35 + 0.2 * -(-len(given) // num_columns)
    figure = new_figure(9.2, 3.9 * len(groups) + legend)
    panels = figure.subplots(len(groups), len(MEASURES), squeeze=False, sharey="row")
    for row, group in zip(panels, groups, strict=True):
        for ax, measure in zip(row, MEASURES, strict=True):
            draw_likeness([one for one in found if one.group == group], measure, ax, given=given)
            said = _said([one for one in made if one.group == group and one.what == measure])
            ax.set_title(f"{panel_title(group, groups)}\n{said}", size=9)
        row[1].set_ylabel("")
    handles = [_handle(name, look) for name, look in sorted(given.items())]
    figure.legend(handles=handles, ncols=num_columns, loc="outside lower center", frameon=False)
    return figure


def _handle(name: tuple[str, str], look: Look) -> Line2D:
    label = printable(" ".join(name).rstrip())
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle="none", label=label)


def _said(made: Sequence[Correlation]) -> str:
    """Of each setting how its rows are ordered, a line; of many settings that of all together."""
    if len(made) > 4:
        made = [one for one in made if one.setting == ALL]
    told = grouped(made, lambda one: "too few" if one.spearman is None and one.num_rows < FEWEST else one.setting)
    names = ["each setting alone" if len(some) > 1 else printable(some[0].setting) for some in told]
    return "\n".join(f"{name}: {_told(some[0])}" for name, some in zip(names, told, strict=True))


def _told(one: Correlation) -> str:
    if one.spearman is None:
        return f"fewer than {FEWEST} rows to order" if one.num_rows < FEWEST else one.note.split(",")[0]
    p = "" if one.p is None else f", p = {one.p:.2g}"
    return f"rho {one.spearman:+.2f}, tau {one.kendall:+.2f}, n = {one.num_rows}{p}"
