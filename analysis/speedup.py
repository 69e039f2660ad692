"""Does time go with the MACs? The measured speed-up over the one that the MACs promise, a panel for each measurement.

``predicted`` gives the points, from ``tokred.analysis.speeds``, ``draw_speed`` draws a panel of them, and ``save_speed`` makes
the files. Modes and batch sizes are measurements of their own.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from tokred.analysis.crowd import side_by_side
from tokred.analysis.figure import legend_below, legend_inches, new_figure, panel_title, save_figure
from tokred.analysis.look import Look, looks, printable
from tokred.analysis.rows import grouped
from tokred.analysis.speeds import Speed

PANEL_INCHES, COLUMNS = (4.0, 3.9), 2
BAND_COLOUR = "0.92"


def predicted(speeds: Sequence[Speed]) -> list[Speed]:
    """The reduced models that were timed and whose MACs are known; of the seeds of one configuration, which do the same work,
    the first that was timed."""
    known = [one for one in speeds if one.method != "none" and None not in (one.speedup, one.speedup_by_macs)]
    return [same[0] for same in grouped(known, lambda one: (one.group, one.mode, one.batch_size, one.label, one.shape))]


def draw_speed(
    panel: Sequence[Speed], ax: Axes | None = None, *, given: Mapping[tuple[str, str], Look] | None = None
) -> Axes:
    """``panel``: one backbone in one mode at one batch size."""
    given = given or looks((one.method, one.options) for one in panel)
    ax = ax or new_figure(*PANEL_INCHES).subplots()
    ends = _ends(panel)
    ax.plot(ends, ends, color="0.35", linewidth=1.0, zorder=1)
    if resolution := max((one.resolution or 0.0 for one in panel), default=0.0):
        ax.axhspan(1 - resolution, 1 + resolution, color=BAND_COLOUR, zorder=0, linewidth=0)
    ax.set_xlim(ends)
    ax.set_ylim(ends)
    shifts = side_by_side([one.speedup_by_macs or 0.0 for one in panel], ax)
    for one, shift in zip(panel, shifts, strict=True):
        look, x, y = given[one.method, one.options], one.speedup_by_macs or 0.0, one.speedup or 0.0
        aside = ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans)
        if shift:  # what its MACs promise, as the line is a little off where it stands
            ax.plot([x], [x], marker="_", markersize=6, color="0.35", transform=aside, zorder=2)
        bars = [[max(0.0, y - (one.speedup_low or y))], [max(0.0, (one.speedup_high or y) - y)]]
        bar: dict[str, Any] = {"ecolor": (look.colour, 0.55), "elinewidth": 1.1, "transform": aside}
        ax.errorbar([x], [y], yerr=bars, marker=look.marker, markersize=5.5, color=look.colour, zorder=3, **bar)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    note = "\nthose of equal MACs stand side by side,\ndashes mark what is promised to them" if any(shifts) else ""
    ax.set_xlabel(f"speed-up if time went with the MACs{note}")
    ax.set_ylabel("measured speed-up (higher is better)")
    return ax


def save_speed(speeds: Sequence[Speed], folder: str | Path) -> list[Path]:
    """``speed`` as png, svg and csv; nothing where no reduced model was timed."""
    found = predicted(speeds)
    return save_figure(partial(_figure, found), found, Path(folder) / "speed") if found else []


def _ends(panel: Sequence[Speed]) -> tuple[float, float]:
    """Of both axes: all points with their intervals, and 1."""
    values = [1.0]
    for one in panel:
        values += [end for end in (one.speedup_by_macs, one.speedup, one.speedup_low, one.speedup_high) if end]
    room = 0.06 * (max(values) - min(values)) or 0.1
    return min(values) - room, max(values) + room


def _figure(found: Sequence[Speed]) -> Figure:
    panels = grouped(found, lambda one: (one.group, one.mode, one.batch_size))
    groups, given = list(dict.fromkeys(one.group for one in found)), looks((one.method, one.options) for one in found)
    num_columns = min(COLUMNS, len(panels))
    num_rows, width, handles = -(-len(panels) // num_columns), PANEL_INCHES[0] * num_columns, _handles(given)
    figure = new_figure(width, PANEL_INCHES[1] * num_rows + legend_inches(handles, width))
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for panel, ax in zip(panels, axes, strict=False):
        draw_speed(panel, ax, given=given)
        ax.set_title(f"{panel_title(panel[0].group, groups)}\n{_measured(panel)}", size=9)
    for ax in axes[len(panels) :]:
        ax.remove()
    legend_below(figure, handles)
    return figure


def _measured(panel: Sequence[Speed]) -> str:
    first = panel[0]
    rounds = f", {first.num_rounds} rounds" if first.num_rounds else ""
    device = f"{printable(first.device, width=40)}\n" if first.device else ""
    noise = "" if first.resolution is None else f"\nunder {100 * first.resolution:.1f} % from 1: below resolution"
    return f"{device}{printable(first.mode)}, batch {first.batch_size}{rounds}{noise}"


def _handles(given: Mapping[tuple[str, str], Look]) -> list[Line2D | Patch]:
    methods = [
        Line2D(
            [], [], color=look.colour, marker=look.marker, linestyle="none", label=printable(" ".join(name).rstrip())
        )
        for name, look in given.items()
    ]
    line = Line2D([], [], color="0.35", linewidth=1.0, label="as the MACs promise")
    return [*methods, line, Patch(color=BAND_COLOUR, label="below resolution")]
