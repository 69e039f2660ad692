"""What keeps a panel with many points readable: places side by side, pale colours, a floor, and names beside points."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.transforms import ScaledTranslation

FONT = 8.5  # in points, as are the offsets below
BAND_COLOUR = "0.965"


class Name(NamedTuple):
    """``shift``: how far to the right of ``x``, in points, its marker stands."""

    x: float
    y: float
    text: str
    colour: str
    shift: float = 0.0


def pale(colour: str) -> str:
    """Towards white, the hue still to be seen.

    >>> pale("#0072B2")
    '#94c4df'
    """
    red, green, blue = (1 - 0.42 * (1 - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))


def floor(values: Sequence[float]) -> float | None:
    """The lowest of ``values`` (0..1) that an axis should reach down to, so that some that are far below leave room for the
    others; None where none are.

    Far below is under the median by more than three times what the best is above it, and by more than 10 points.
    """
    if not values:
        return None
    middle = median(values)
    far = middle - max(0.1, 3 * (max(values) - middle))
    return min(value for value in values if value >= far) if min(values) < far else None


def side_by_side(x: Sequence[float], ax: Axes) -> list[float]:
    """How far to move each of ``x``, in typographic points, so that those that are ``_together`` stay apart."""
    shifts, together = [0.0] * len(x), _together(x)
    room = _room(x, together, ax)
    for places in together:
        step = min(4.5, room / len(places))  # a marker is 5.5 wide; all together stay near their place
        for rank, place in enumerate(places):
            shifts[place] = step * (rank - (len(places) - 1) / 2)
    return shifts


def draw_bands(ax: Axes, x: Sequence[float], shifts: Sequence[float]) -> None:
    """Behind points that are ``_together`` a band, as wide as they stand apart."""
    for places in _together(x):
        width = 10 + max(shifts[place] for place in places) - min(shifts[place] for place in places)
        if len(places) > 1:
            ax.axvline(x[places[0]], color=BAND_COLOUR, linewidth=width, zorder=0.5, solid_capstyle="butt")


def write_names(ax: Axes, names: Sequence[Name], *, side: int) -> None:
    """Each above its point, to the left (``side`` -1) or to the right (1), with a thin line to it; clear of one another.

    The limits of ``ax`` must be final: what is clear is reckoned on it.
    """
    to_points = 72 / ax.figure.dpi
    taken: list[tuple[float, float, float, float]] = []
    for name in sorted(names, key=lambda name: name.y):
        x, y = (float(part) * to_points for part in ax.transData.transform((name.x, name.y)))
        left, right = (float(part) * to_points for part in ax.bbox.intervalx)
        x, width = x + name.shift, 0.58 * FONT * len(name.text)
        way = side if left < x + side * (width + 8) < right else -side
        rise = next(rise for rise in range(7, 400, 3) if _clear(_box(x, y, width, way, rise), taken))
        taken.append(_box(x, y, width, way, rise))
        ax.annotate(
            name.text,
            (name.x, name.y),
            xycoords=ax.transData + ScaledTranslation(name.shift / 72, 0, ax.figure.dpi_scale_trans),
            xytext=(6 * way, rise),
            textcoords="offset points",
            ha="right" if way < 0 else "left",
            va="bottom",
            size=FONT,
            color=name.colour,
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.4},
            arrowprops={"arrowstyle": "-", "color": name.colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3},
        )


def _box(x: float, y: float, width: float, way: int, rise: float) -> tuple[float, float, float, float]:
    """Left, right, bottom, top."""
    ends = sorted((x + 6 * way, x + (6 + width) * way))
    return ends[0], ends[1], y + rise, y + rise + 1.25 * FONT


def _clear(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    return all(box[1] < a or b < box[0] or box[3] < c or d < box[2] for a, b, c, d in taken)


def _together(x: Sequence[float]) -> list[list[int]]:
    """The places of neighbours less than 1 % of the largest apart, but of no stretch over 3 %; each in the order of ``x``."""
    near, found = 0.01 * max(x, default=0.0), list[list[int]]()
    for place in sorted(range(len(x)), key=x.__getitem__):
        if found and x[place] - x[found[-1][-1]] <= near and x[place] - x[found[-1][0]] <= 3 * near:
            found[-1].append(place)
        else:
            found.append([place])
    return [sorted(places) for places in found]


def _room(x: Sequence[float], together: Sequence[Sequence[int]], ax: Axes) -> float:
    """Typographic points that those of equal cost may fill, 20 at least: two thirds of the way from one crowd to the next."""
    most = max(map(len, together), default=0)
    crowds = [places for places in together if 3 * len(places) >= most]  # a few in between may be overrun
    starts = [x[places[0]] for places in (crowds if len(crowds) > 1 else together)]
    apart = min((high - low for low, high in pairwise(starts)), default=0.0)
    width = 72 * ax.bbox.width / ax.figure.dpi
    return max(20.0, 0.66 * apart / (1.2 * (max(x) - min(x))) * width) if apart else 20.0
