"""How many tokens each layer reads and leaves: the staircase of every schedule, methods with the same one drawn once.

``stairs`` gives the numbers, from records alone, ``draw_stairs`` draws a panel, and ``save_staircase`` makes the files.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokred.analysis.figure import new_figure, panel_title, save_figure
from tokred.analysis.look import looks, printable
from tokred.analysis.rows import OfMethod, Row, grouped, rows_with_records
from tokred.analysis.traces import few_of, settings
from tokred.record import Record, Store

# where in its layer a method takes tokens away: attention is the first half, the MLP the second
DROPS_AT = {"input": 0.0, "before_attention": 0.0, "queries": 0.25, "attention": 0.25, "after_mlp": 1.0, "output": 1.0}
ALIKE = 0.02  # of the input: schedules of one budget that differ by less, for what their methods cost, are drawn as one
SHARED_COLOUR = "0.3"
PANEL_INCHES, LINE_INCHES = (3.9, 3.1), 0.145
MOST = 3  # panels of a backbone


@dataclass(frozen=True)
class Stair(OfMethod):
    """One layer of one row. ``tokens_in`` reach it and ``tokens_out`` leave it, class token included; means over the samples
    where counts differ, with the standard deviation. ``drops_at``: where in the layer they go, 0 (start) to 1 (end). ``row``: the
    place of the row, as two may look alike."""

    backbone: str
    weights: str
    data: str
    setting: str
    method: str
    options: str
    gmacs_share: float | None
    layer: int
    tokens_in: float
    tokens_out: float
    tokens_sd: float | None = None
    drops_at: float = 0.5
    row: int = 0


def stairs(store: Store) -> list[Stair]:
    """Of all reduced rows of the latest plan that are done, layer by layer; seeds have the same."""
    both = rows_with_records(store)
    found: list[Stair] = []
    named = settings([row for row, _ in both])
    for place, ((row, records), setting) in enumerate(zip(both, named, strict=True)):
        if row.method != "none" and row.status == "done":
            found += [replace(stair, row=place) for stair in _of_row(row, setting, records[0])]
    return found


def draw_stairs(panel: Sequence[Stair], ax: Axes | None = None, *, given: dict | None = None) -> Axes:
    """``panel``: the rows of one backbone and setting. A band holds those of one staircase within 2 % of the input."""
    given = given or looks((stair.method, stair.options) for stair in panel)
    ax = ax or new_figure(*PANEL_INCHES).subplots()
    for number, alike in enumerate(_alike(panel)):
        _draw_alike(ax, alike, given, number)
    depth, most = 1 + max(stair.layer for stair in panel), max(stair.tokens_in for stair in panel)
    ax.set_xlim(0, depth)
    ax.set_ylim(0, 1.04 * most)
    step = -(-depth // 12)
    ax.set_xticks([layer + 0.5 for layer in range(0, depth, step)], [str(layer) for layer in range(0, depth, step)])
    for layer in range(1, depth):
        ax.axvline(layer, color="0.92", linewidth=0.8, zorder=0)
    ax.grid(visible=False, axis="x")
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel("layer: attention, then MLP")
    ax.set_ylabel("tokens")
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
    ax.legend(**below, frameon=False, fontsize=7.5, handlelength=2.2, labelspacing=0.3)
    return ax


def save_staircase(store: Store, folder: str | Path) -> list[Path]:
    """``staircase`` as png, svg, and csv with all settings; of more than three of a backbone three are drawn."""
    found = stairs(store)
    return save_figure(partial(_figure, found), found, Path(folder) / "staircase") if found else []


def _of_row(row: Row, named: str, record: Record) -> list[Stair]:
    tokens, spread = record.result["tokens"], record.result.get("tokens_sd")
    reaching = [record.result["num_input_tokens"], *tokens[:-1]]
    place = (*row.group, named, row.method, row.options, row.gmacs_share)
    drops_at = DROPS_AT.get(record.result.get("site", ""), 0.5)
    return [
        Stair(*place, layer, reaching[layer], tokens[layer], spread[layer] if spread else None, drops_at)
        for layer in range(len(tokens))
    ]


def _alike(panel: Sequence[Stair]) -> list[list[list[Stair]]]:
    """The rows by staircase, those that many share first. A row joins the first one that it is like."""
    found: list[list[list[Stair]]] = []
    for row in grouped(panel, lambda stair: (stair.label, stair.row)):
        home = next((some for some in found if _is_like(some[0], row)), None)
        if home is None:
            found.append([row])
        else:
            home.append(row)
    return sorted(found, key=lambda some: -len(some))


def _is_like(one: Sequence[Stair], other: Sequence[Stair]) -> bool:
    near = ALIKE * one[0].tokens_in
    same_place = one[0].drops_at == other[0].drops_at and bool(one[0].tokens_sd) == bool(other[0].tokens_sd)
    return same_place and all(abs(a.tokens_out - b.tokens_out) <= near for a, b in zip(one, other, strict=True))


def _draw_alike(ax: Axes, alike: Sequence[Sequence[Stair]], given: dict, number: int) -> None:
    """The line of the first; the band reaches over all of them, and over a standard deviation where counts differ."""
    first = alike[0]
    colour = given[first[0].method, first[0].options].colour if len(alike) == 1 else SHARED_COLOUR
    x = [place for stair in first for place in (stair.layer, stair.layer + stair.drops_at) for _ in range(2)][1:]
    x = [*x, first[-1].layer + 1]
    ends = [_ends(row) for row in alike]
    low, high = ([end(values) for values in zip(*(one[side] for one in ends))] for side, end in ((0, min), (1, max)))
    middle = [value for stair in first for value in (stair.tokens_in, stair.tokens_out)]
    low, middle, high = (_stepped(values, x) for values in (low, middle, high))
    width = 1.6 if len(alike) == 1 else 2.4
    ax.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)
    ax.plot(
        x, middle, color=colour, linewidth=width, label=_label(alike), zorder=3, linestyle=("-", "--", ":")[number % 3]
    )


def _label(alike: Sequence[Sequence[Stair]]) -> str:
    """Those drawn as one, in lines that a panel has room for."""
    names = ", ".join(printable(row[0].label, width=30) for row in alike)
    return textwrap.fill(names, 46, break_long_words=False)


def _ends(row: Sequence[Stair]) -> tuple[list[float], list[float]]:
    """Lowest and highest of what reaches and leaves each layer."""
    spread = [0.0, *(stair.tokens_sd or 0.0 for stair in row)]
    pairs = [(stair.tokens_in, spread[at], stair.tokens_out, spread[at + 1]) for at, stair in enumerate(row)]
    low = [end for num, sd, left, left_sd in pairs for end in (num - sd, left - left_sd)]
    return low, [end for num, sd, left, left_sd in pairs for end in (num + sd, left + left_sd)]


def _stepped(values: Sequence[float], x: Sequence[float]) -> list[float]:
    """Two values a layer, each held over its part of it."""
    return [value for value in values for _ in range(2)][: len(x)]


def _figure(found: Sequence[Stair]) -> Figure:
    groups = list(dict.fromkeys(stair.group for stair in found))
    by_group = [_drawn([stair for stair in found if stair.group == group]) for group in groups]
    num_columns = max(map(len, by_group))
    num_lines = [max(map(_num_lines, drawn)) for drawn in by_group]
    heights = [PANEL_INCHES[1] + LINE_INCHES * num for num in num_lines]
    figure = new_figure(PANEL_INCHES[0] * num_columns, sum(heights))
    panels = figure.subplots(len(groups), num_columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    given = looks((stair.method, stair.options) for stair in found)
    for row, group, drawn in zip(panels, groups, by_group, strict=True):
        for ax, panel in zip(row, drawn, strict=False):
            draw_stairs(panel, ax, given=given)
            ax.set_title(
                f"{panel_title(group, groups)}\n{printable(panel[0].setting)}\n{_spent(panel)}".rstrip(), size=9
            )
        for ax in row[len(drawn) :]:
            ax.remove()
    num_settings = max(len({stair.setting for stair in found if stair.group == group}) for group in groups)
    if note := few_of(num_columns, num_settings).removeprefix("; "):
        figure.supxlabel(note, size="small")
    return figure


def _num_lines(panel: Sequence[Stair]) -> int:
    """Of its legend."""
    return sum(_label(alike).count("\n") + 1 for alike in _alike(panel))


def _drawn(of_group: Sequence[Stair]) -> list[list[Stair]]:
    """A panel for each setting, the dearest first; of many the two ends and the middle."""
    panels = sorted(grouped(of_group, lambda stair: stair.setting), key=lambda panel: -_mean_share(panel))
    if len(panels) <= MOST:
        return panels
    return [panels[0], panels[len(panels) // 2], panels[-1]]


def _mean_share(panel: Sequence[Stair]) -> float:
    shares = [stair.gmacs_share for stair in panel if stair.gmacs_share is not None]
    return sum(shares) / len(shares) if shares else 0.0


def _spent(panel: Sequence[Stair]) -> str:
    shares = [100 * stair.gmacs_share for stair in panel if stair.gmacs_share is not None]
    if not shares:
        return ""
    ends = dict.fromkeys(f"{share:.1f}" for share in (min(shares), max(shares)))
    return f"{' to '.join(ends)} % of the MACs"
