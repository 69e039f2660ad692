"""A figure on its way to its files: one theme, panels' titles, and the same bytes from run to run."""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tokred.analysis.look import printable
from tokred.analysis.rows import write_csv, write_whole

NAME_LENGTH = 50  # of a file's name, which has 255 bytes at most: 4 a letter
DPI = 200  # 9 inches are a README's 900 pixels wide at 100 an inch


def new_figure(width: float, height: float) -> Figure:
    """In inches. Not known to pyplot, so that nothing has to be closed."""
    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08))


def save_figure(draw: Callable[[], Figure], items: Sequence[Any], stem: Path) -> list[Path]:
    """``stem`` with .png, .svg and .csv, the last with ``items``, which were drawn. The settings of matplotlib are put back."""
    with matplotlib.rc_context(_theme()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box; the csv has the name
        pictures = _rendered(draw())
    paths = [write_whole(stem.parent / f"{stem.name}.{kind}", picture) for kind, picture in pictures.items()]
    return [*paths, write_csv(items, stem.parent / f"{stem.name}.csv")]


def legend_below(figure: Figure, handles: Sequence[Artist], *, note: str = "") -> None:
    """Below the panels, in as many columns as the labels leave room for; ``note`` stands above it."""
    columns = _legend_columns(handles, figure.get_figwidth())
    named: dict[str, Any] = {"title": _folded(note, figure.get_figwidth()), "title_fontsize": 8} if note else {}
    figure.legend(handles=handles, ncols=columns, loc="outside lower center", frameon=False, fontsize=9, **named)


def legend_inches(handles: Sequence[Artist], width: float, *, note: str = "") -> float:
    """How high ``legend_below`` is on a figure of ``width`` inches."""
    num_rows = -(-len(handles) // _legend_columns(handles, width)) if handles else 0
    return 0.15 + 0.19 * num_rows + 0.16 * len(_folded(note, width).splitlines())


def _folded(note: str, width: float) -> str:
    """Lines of 8 points that ``width`` inches have room for."""
    return "\n".join(textwrap.fill(line, int(72 * width / 4.6)) for line in note.splitlines())


def _legend_columns(handles: Sequence[Artist], width: float) -> int:
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    return max(1, min(len(handles), int(72 * width / (5.2 * longest + 40))))


def name_squares(ax: Axes, names: Sequence[str]) -> None:
    """Rows and columns of a matrix of squares of side 1, the first at the top."""
    ax.set_xlim(0, len(names))
    ax.set_ylim(len(names), 0)
    ax.set_aspect("equal")
    middles, shown = [place + 0.5 for place in range(len(names))], [printable(name, width=28) for name in names]
    ax.set_xticks(middles, shown, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(middles, shown)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)


def panel_title(group: tuple[str, ...], groups: Sequence[tuple[str, ...]]) -> str:
    """The backbone, and a line for whatever else tells these rows from the others."""
    differs = [len({other[axis] for other in groups}) > 1 for axis in range(len(group))]
    return "\n".join(printable(name) for axis, name in enumerate(group) if axis == 0 or differs[axis])


def file_stems(name: str, groups: Sequence[tuple[str, ...]]) -> list[str]:
    """``name-BACKBONE`` for each group, cut to what a file system takes; a number tells apart those that are the same."""
    stems: list[str] = []
    for group in groups:
        stem = f"{name}-" + re.sub(r"[^\w.-]+", "-", group[0])[:NAME_LENGTH]
        number = sum(one == stem or one.startswith(f"{stem}--") for one in stems)
        stems.append(f"{stem}--{number + 1}" if number else stem)
    return stems


def _theme() -> dict:
    style = seaborn.axes_style("ticks", {"axes.grid": True, "grid.color": "0.92"})
    # the font comes with matplotlib, and the salt keeps the names inside an SVG: so a file is the same from run to run
    own = {"font.sans-serif": ["DejaVu Sans"], "svg.hashsalt": "tokred"}
    return style | seaborn.plotting_context("paper", font_scale=1.1) | own


def _rendered(figure: Figure) -> dict[str, bytes]:
    """Laid out once and drawn twice; ``savefig`` would lay out twice and draw four times."""
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    figure.set_layout_engine("none")  # everything stays where the first drawing put it
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
