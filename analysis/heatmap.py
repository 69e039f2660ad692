"""Which layers reduce, or with which shape of schedule, and by how much: what each choice costs, a panel for each method.

``squares`` gives the numbers, ``draw_squares`` draws one method's panel of them, and ``save_heatmaps`` makes the files.
"""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tokred.analysis.claims import LEVEL, benjamini_hochberg
from tokred.analysis.figure import file_stems, new_figure, panel_title, save_figure
from tokred.analysis.look import ink, printable
from tokred.analysis.rows import Row, grouped, spanned
from tokred.analysis.statistics import least_detectable, p_of_interval

COLOURS = "RdBu"  # of ColorBrewer, safe for the colour-blind: red loses, blue gains
UNDETECTED = "0.88"
MARKS = {"refused": "x", "failed": "!", "invalid": "!", "not asked": "-"}
SQUARE_INCHES, AROUND_INCHES, MAX_WIDTH = (0.46, 0.36), (1.7, 1.2), 10.8
KEY_INCHES, SLANTED_INCHES = 0.21, 0.45
AMOUNTS = {
    "budget": "budget, % of the unreduced MACs",
    "keep_rate": "share of the tokens kept",
    "r": "tokens removed",
    "tokens": "tokens left",
    "as": "as the methods' own options say",
}


@dataclass(frozen=True)
class Square(Row):
    """A row with its place in the figure: ``where`` tokens go (layers, shape or both), and the ``amount``.

    ``p`` belongs to the interval of the difference to the unreduced model; ``adjusted_p`` is Benjamini and Hochberg's over the
    ``num_judged`` squares of the backbone: of those ``detected``, at 5 % or less, one in twenty is expected to lose nothing. That
    is for exploring. ``smallest``: the true difference that 80 % of draws of as many samples would show at 5 %.
    """

    where: str = ""
    amount: str = ""
    smallest: float | None = None
    p: float | None = None
    adjusted_p: float | None = None
    num_judged: int = 0
    detected: bool = False

    @property
    def is_small(self) -> bool:
        """Whether the difference is one that so many samples need not have shown."""
        return self.smallest is not None and abs(self.difference or 0.0) < self.smallest

    @property
    def mark(self) -> str:
        """What stands in its place where it has no number."""
        return "" if self.difference is not None else MARKS.get(self.status, "?")


def squares(rows: Sequence[Row]) -> list[Square]:
    """Of backbones on which reduced models differ in layers or in shape: every method x amount x where, once.

    What did not run has its status and reason; what is there for another method only has the status "not asked".
    """
    made = []
    for group in grouped((row for row in rows if row.method != "none"), lambda row: row.group):
        wheres = _in_order(map(_where, group))
        if len(wheres) > 1:
            made += _of_group(group, wheres)
    return made


def draw_squares(panel: Sequence[Square], ax: Axes | None = None, *, largest: float | None = None) -> Axes:
    """``panel``: the squares of one method on one backbone. ``largest``: the difference at the ends of the colours, where
    several panels share them."""
    ax = ax or new_figure(4.0, 3.0).subplots()
    wheres, amounts = _in_order(s.where for s in panel), _in_order(s.amount for s in panel)
    largest = _largest(panel) if largest is None else largest
    for square in panel:
        _draw_square(ax, square, wheres.index(square.where), amounts.index(square.amount), largest)
    ax.set_xlim(0, max(1, len(wheres)))
    ax.set_ylim(max(1, len(amounts)), 0)  # the first amount on top
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    turn = slanted if _are_slanted(wheres) else {}
    ax.set_xticks([place + 0.5 for place in range(len(wheres))], list(map(printable, wheres)), **turn)
    ax.set_yticks([place + 0.5 for place in range(len(amounts))], [printable(_number(text)) for text in amounts])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.set_title(_panel_title(panel), size=9)
    return ax


def save_heatmaps(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """``heatmap-BACKBONE`` for each backbone on which layers or shapes differ, as png, svg and the csv that was drawn."""
    found = grouped(squares(rows), lambda square: square.group)
    groups = [some[0].group for some in found]
    stems = file_stems("heatmap", groups)
    paths: list[Path] = []
    for stem, some in zip(stems, found, strict=True):
        title = panel_title(some[0].group, groups)
        paths += save_figure(partial(_figure, some, title), some, Path(folder) / stem)
    return paths


def _of_group(group: Sequence[Row], wheres: Sequence[str]) -> list[Square]:
    """Rows of one backbone; of a random method some seeds of which failed, those that did not."""
    amounts, made = _in_order(map(_amount, group)), []
    for of_method in grouped(group, lambda row: row.label):
        found = {(_amount(row), _where(row)): row for row in sorted(of_method, key=lambda row: row.status == "done")}
        for amount, where in product(amounts, wheres):
            row = found.get((amount, where)) or _not_asked(of_method[0], amount, where)
            made.append(_square(row, where, amount, group))
    return _judged(made)


def _judged(made: Sequence[Square]) -> list[Square]:
    """All squares of a backbone as one family."""
    adjusted = iter(benjamini_hochberg([square.p for square in made if square.p is not None]))
    num = sum(square.p is not None for square in made)
    return [
        square
        if square.p is None
        else replace(square, adjusted_p=(p := next(adjusted)), num_judged=num, detected=p <= LEVEL)
        for square in made
    ]


def _square(row: Row, where: str, amount: str, group: Sequence[Row]) -> Square:
    place: dict[str, Any] = {"where": _shown(where, group), "amount": amount}
    low, high = row.difference_low, row.difference_high
    if low is None or high is None:
        return Square(**asdict(row), **place)
    assert row.num_samples is not None  # there is a difference
    smallest = least_detectable(low, high, row.num_samples, row.num_clusters)
    return Square(**asdict(row), **place, smallest=smallest, p=p_of_interval(low, high, row.num_clusters))


def _not_asked(like: Row, amount: str, where: str) -> Row:
    names = {name: getattr(like, name) for name in ("backbone", "weights", "data", "method", "options")}
    layers, shape = where.split("\n")
    return Row(**names, schedule=amount, shape=shape, layers=layers, status="not asked")


def _where(row: Row) -> str:
    return f"{row.layers}\n{row.shape}"


def _shown(where: str, group: Sequence[Row]) -> str:
    """Of layers and shape, what differs: ``0-2,5``, ``front``, ``3 front``."""
    parts = list(zip(*(_where(row).split("\n") for row in group), strict=True))
    layers, shape = where.split("\n")
    shown = [_runs(layers) if len(set(parts[0])) > 1 else "", shape if len(set(parts[1])) > 1 else ""]
    return " ".join(filter(None, shown)) or "any"


def _runs(layers: str) -> str:
    """
    >>> _runs("0,1,2,5,6")
    '0-2,5,6'
    """
    runs: list[list[int]] = []
    for number in (int(layer) for layer in layers.split(",") if layer):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _amount(row: Row) -> str:
    """The schedule without its layers: ``budget 0.7``."""
    return row.schedule.replace(f" at {row.layers}", "", 1) if row.layers else row.schedule


def _number(amount: str) -> str:
    """``budget 0.7`` as 70, and others without their kind, which stands on the axis."""
    kind, _, rest = amount.partition(" ")
    if amount.startswith("as its options say"):
        return "own"
    try:
        return f"{100 * float(rest):g}" if kind == "budget" else rest
    except ValueError:  # with more in it: the method whose MACs are matched
        return rest


def _in_order(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _largest(some: Sequence[Square]) -> float:
    return max((abs(square.difference or 0.0) for square in some), default=0.0) or 0.01


def _draw_square(ax: Axes, square: Square, column: int, row: int, largest: float) -> None:
    text, face, hatch = square.mark, (1.0, 1.0, 1.0, 1.0), None
    if square.difference is not None:
        text = f"{round(100 * square.difference, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"
        # white is no difference, and both sides reach equally far, so that a colour's depth means the same on both
        place = 0.5 + square.difference / (2 * largest)
        face = colormaps[COLOURS](place) if square.detected and not square.is_small else to_rgba(UNDETECTED)
        hatch = None if square.detected else "////"
    ax.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="white", hatch=hatch, linewidth=0))
    ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="0.75" if square.mark else "white", linewidth=1))
    colour = ink(face) if square.detected and not square.is_small else "0.3"
    ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, size="small")


def _are_slanted(wheres: Iterable[str]) -> bool:
    return max(map(len, wheres), default=0) > 6


def _panel_title(panel: Sequence[Square]) -> str:
    name = printable(panel[0].label, width=28) if panel else ""
    found = sorted(100 * square.smallest for square in panel if square.smallest is not None)
    if not found:
        return name
    ends = _in_order(f"{end:.1f}" for end in (found[0], found[-1]))
    return f"{name}\n80 % power: {' to '.join(ends)}"


def _figure(some: Sequence[Square], title: str) -> Figure:
    """The panels of one backbone."""
    panels = grouped(some, lambda square: square.label)
    num_wheres, num_amounts = (len({getattr(s, axis) for s in some}) for axis in ("where", "amount"))
    width, height = SQUARE_INCHES[0] * max(4, num_wheres) + 0.25, SQUARE_INCHES[1] * num_amounts + 0.55
    num_rows = -(-len(panels) // max(1, int((MAX_WIDTH - AROUND_INCHES[0]) / width)))
    num_columns = -(-len(panels) // num_rows)
    around = AROUND_INCHES[1] + KEY_INCHES * len(_key(some)) + SLANTED_INCHES * _are_slanted(s.where for s in some)
    figure = new_figure(width * num_columns + AROUND_INCHES[0], height * num_rows + around)
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    largest = _largest(some)
    for place, (panel, ax) in enumerate(zip(panels, axes, strict=False)):
        draw_squares(panel, ax, largest=largest)
        at_bottom = place + num_columns >= len(panels)
        ax.tick_params(labelleft=place % num_columns == 0, labelbottom=at_bottom)
        ax.set_xlabel(textwrap.fill(_across(some), int(12.5 * width)) if at_bottom else "")
    for ax in axes[len(panels) :]:
        ax.remove()
    _label(figure, axes[: len(panels)], some, title, largest)
    return figure


def _label(figure: Figure, axes: list[Axes], some: Sequence[Square], title: str, largest: float) -> None:
    metric = next((square.metric for square in some if square.metric), "accuracy")
    bar = figure.colorbar(
        ScalarMappable(Normalize(-100 * largest, 100 * largest), COLOURS), ax=axes, fraction=0.04, aspect=25, pad=0.02
    )
    bar.set_label(f"{metric}: difference\nto the unreduced model,\npoints (higher is better)")
    bar.outline.set_visible(False)
    ends = [0.0, *(100 * square.difference for square in some if square.difference is not None)]
    bar.ax.set_ylim(min(ends), max(*ends, min(ends) + 1))  # the part of the colours that is there
    figure.suptitle(title, size="large")
    kinds = _in_order(square.amount.partition(" ")[0] for square in some)
    said = "; ".join(AMOUNTS.get(kind, kind) for kind in kinds)
    figure.supylabel(textwrap.fill(said, int(6 * figure.get_figheight())), size="medium")
    figure.legend(handles=_key(some), loc="outside lower center", frameon=False, handlelength=1.6)


def _across(some: Sequence[Square]) -> str:
    shapes = _in_order(square.shape for square in some if square.shape)
    if len({square.layers for square in some}) == 1:
        return "shape of the schedule"
    return "layers that reduce, from 0" + (", and shape" if len(shapes) > 1 else "")


def _key(some: Sequence[Square]) -> list[Patch]:
    """What squares without a colour mean, only those that are there; and how sure the others are."""
    handles = []
    if any(square.difference is not None and not square.detected for square in some):
        said = "hatched: not told from zero"
        handles.append(Patch(facecolor=UNDETECTED, edgecolor="white", hatch="////", label=said))
    if any(square.detected and square.is_small for square in some):
        said = "grey: told from zero, but below the smallest difference that is found at 80 % power"
        handles.append(Patch(facecolor=UNDETECTED, edgecolor="white", label=said))
    if num := max(square.num_judged for square in some):
        said = f"exploratory: of the {num} squares, those told from zero are expected to be false in 5 % (Benjamini-Hochberg)"
        handles.append(Patch(facecolor="none", edgecolor="none", label=said))
    if counts := {square.num_samples for square in some if square.num_samples}:
        said = (
            f"80 % power: a true difference of so many points is found in 4 of 5 draws of n = {spanned(counts)} samples"
        )
        handles.append(Patch(facecolor="none", edgecolor="none", label=said))
    called = {
        "x": "refused, for the reason in the csv",
        "!": "failed",
        "-": "not asked for",
        "?": "no difference known",
    }
    marks = _in_order(square.mark for square in some if square.mark)
    return handles + [Patch(facecolor="none", edgecolor="none", label=f"{mark}   {called[mark]}") for mark in marks]
