"""The columns of a table of rows, each with its title, how a row reads in it, and what it is sorted by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokred.analysis.rows import Row


@dataclass(frozen=True)
class Column:
    """``of``: the field of a row that the column shows, and by which a table can be sorted."""

    title: str  # {metric} is filled in
    cell: Callable[[Row], str]
    of: str
    words: bool = False  # text, which may wrap; numbers never do


def with_content(done: Sequence[Row]) -> list[str]:
    """The names of the columns in which some row has something."""
    empty = {"value_alone", "difference_alone", "speedup_alone"}
    if all(row.speedup is None for row in done):
        empty.add("speedup")
    if all(row.reduction_time_share is None for row in done):
        empty.add("reduction")
    if all(row.num_seeds == 1 for row in done):
        empty.add("seeds")
    if len(shapes(done)) < 2:
        empty.add("shape")
    return [name for name in COLUMNS if name not in empty]


def shapes(done: Sequence[Row]) -> list[str]:
    """Of the schedules that meet a budget."""
    return sorted({row.shape for row in done if row.shape})


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def ratio(speedup: float) -> str:
    return f"{speedup:.2f}"


def three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 999.5 else f"{number:#.3g}".rstrip(".")


def _bracketed(form: Callable[[float], str], value: str, prefix: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        middle, low, high = (getattr(row, name) for name in (value, f"{prefix}low", f"{prefix}high"))
        if middle is None:
            return ""
        return form(middle) if low is None else f"{form(middle)} [{form(low)}, {form(high)}]"

    return cell


def _number(form: Callable[[float], str], name: str) -> Callable[[Row], str]:
    return lambda row: "" if getattr(row, name) is None else form(getattr(row, name))


def _marked(cell: Callable[[Row], str]) -> Callable[[Row], str]:
    return lambda row: f"~{cell(row)}" if row.verdict == "below resolution" else cell(row)


def _seeds(row: Row) -> str:
    return str(row.num_seeds) if row.seed_sd is None else f"{row.num_seeds} ({percent(row.seed_sd)})"


_DIFFERENCE = _bracketed(points, "difference", "difference_")
_SPEEDUP = _bracketed(ratio, "speedup", "speedup_")
COLUMNS = {
    "method": Column("method", lambda row: row.label, "label", words=True),
    "schedule": Column("schedule", lambda row: row.schedule, "schedule", words=True),
    "shape": Column("shape", lambda row: row.shape, "shape", words=True),
    "value": Column("{metric}\n% [95 %]", _bracketed(percent, "value", ""), "value"),
    "value_alone": Column("{metric}\n%", _number(percent, "value"), "value"),
    "difference": Column("difference\npoints [95 %]", _DIFFERENCE, "difference"),
    "difference_alone": Column("difference\npoints", _number(points, "difference"), "difference"),
    "seeds": Column("seeds\n(SD)", _seeds, "num_seeds"),
    "gmacs": Column("GMACs\n", _number(three_digits, "gmacs"), "gmacs"),
    "share": Column("MACs\n%", _number(percent, "gmacs_share"), "gmacs_share"),
    "tokens": Column("tokens\nleft", _number("{:.4g}".format, "num_tokens"), "num_tokens"),
    "speedup": Column("speed-up\nx [95 %]", _marked(_SPEEDUP), "speedup"),
    "speedup_alone": Column("speed-up\nx", _marked(_number(ratio, "speedup")), "speedup"),
    "reduction": Column("reduction\n% of time", _number(percent, "reduction_time_share"), "reduction_time_share"),
}
