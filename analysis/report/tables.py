"""The tables of a report, as texts with what each is sorted by: the page, Markdown and LaTeX write the same ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokred.analysis.claims import Claim, signed
from tokred.analysis.columns import COLUMNS, percent, ratio, with_content
from tokred.analysis.rows import Row, shapes_told
from tokred.analysis.speeds import Speed
from tokred.terminal import plain

Key = str | float | None


@dataclass(frozen=True)
class Cell:
    """``key``: what its column is sorted by; None comes last."""

    text: str
    key: Key


@dataclass(frozen=True)
class Heading:
    """``names``: whether the column names its row; ``words``: text, and not numbers."""

    text: str
    words: bool = False
    names: bool = False


@dataclass(frozen=True)
class Table:
    """``name`` is a word for links and files."""

    name: str
    caption: str
    headings: Sequence[Heading]
    lines: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Column:
    """What ``table`` makes a column from: a title, and of an item its text and its key."""

    title: str
    text: Callable[[Any], str]
    key: Callable[[Any], Key] | None = None  # the text itself
    names: bool = False


def table(name: str, caption: str, columns: Sequence[Column], items: Sequence[Any]) -> Table:
    """A line for each item; columns without any text are left out."""
    texts = {column.title: [plain(column.text(item)) for item in items] for column in columns}
    kept = [column for column in columns if any(texts[column.title])]
    lines = [
        [
            Cell(texts[column.title][place], column.key(item) if column.key else texts[column.title][place])
            for column in kept
        ]
        for place, item in enumerate(items)
    ]
    headings = [Heading(plain(column.title), column.key is None, column.names) for column in kept]
    return Table(name, plain(caption), headings, lines)


def results_table(rows: Sequence[Row]) -> Table:
    """All cells, those without a result with the reason, which then stands where it is seen first. n and what the brackets hold
    is said in the caption."""
    done = [row for row in rows if row.status == "done"]
    metrics = " or ".join(dict.fromkeys(row.metric for row in done)) or "value"
    kept = with_content(done)
    shown = [_of_row(COLUMNS[name].title.format(metric=metrics), name) for name in kept]
    num_first = sum(name in ("method", "schedule", "shape") for name in kept)
    parts = {part: list(dict.fromkeys(getattr(row, part) for row in rows)) for part in ("backbone", "weights", "data")}
    places = [Column(part, _field(part)) for part, names in parts.items() if len(names) > 1]
    constant = ", ".join(f"{part} {names[0]}" for part, names in parts.items() if len(names) == 1)
    n = Column("n", lambda row: "" if row.num_samples is None else f"{row.num_samples:,}", lambda row: row.num_samples)
    timed = " and measured speed-up" if "speedup" in kept else ""
    caption = (
        f"All cells{f' ({constant})' if constant else ''}: {metrics}, difference to the unreduced model on the "
        f"same samples, cost{timed}; in brackets 95 % intervals of n samples, each alone."
    )
    status = Column("status", _status)
    if len(done) == len(rows):
        return table("results", caption, [*places, *shown, n, status], rows)
    return table("results", caption, [*places, *shown[:num_first], status, *shown[num_first:], n], rows)


def metrics_table(rows: Sequence[Row]) -> Table:
    """All metrics of all cells that are done; of ``rows(store, every_metric=True)``."""
    done = [row for row in rows if row.status == "done"]
    shown = [
        Column("backbone", _field("backbone")),
        *(_of_row(COLUMNS[name].title, name) for name in ("method", "schedule", "shape")),
        Column("metric", _field("metric")),
        _of_row("% [95 %]", "value"),
        _of_row("difference points [95 %]", "difference"),
        Column("n", lambda row: "" if row.num_samples is None else f"{row.num_samples:,}", lambda row: row.num_samples),
    ]
    caption = "All metrics of all cells; in brackets 95 % intervals, each alone. Means of metrics have none."
    return table("metrics", caption, shown, shapes_told(done))


def claims_table(claims: Sequence[Claim]) -> Table:
    """Every comparison, with all that it rests on."""
    shown = [
        Column("comparison", lambda one: f"{one.first} minus {one.second}", names=True),
        Column("backbone", lambda one: one.backbone),
        Column("metric", lambda one: one.metric),
        Column("difference, points [95 %]", lambda one: interval(one), lambda one: one.value),
        Column("finding", finding),
        Column(
            "smallest detectable, points",
            lambda one: smallest_points(one.smallest_in_report),
            lambda one: one.smallest_in_report,
        ),
        Column("MACs, %", _window, lambda one: one.window[0]),
        Column("n", _num_samples, lambda one: one.num_samples),
        Column("p", lambda one: f"{one.adjusted_p:.2g}", lambda one: one.adjusted_p),
        Column("comparisons", lambda one: str(one.num_comparisons), lambda one: one.num_comparisons),
    ]
    caption = (
        "Every two methods at equal MACs: the mean difference over the budgets that both reach, paired by sample. p is adjusted "
        "by Holm's correction for the number of comparisons; smallest detectable: the true difference that would have been found "
        "in at least 4 of 5 repetitions. Intervals are each alone: one can leave out 0 where p, so adjusted, is above 0.05."
    )
    return table("claims", caption, shown, claims)


def speeds_table(speeds: Sequence[Speed]) -> Table:
    """Every model in every mode at every batch size, those that were not timed with the reason."""
    shown = [
        *(Column(part, _field(part)) for part in ("backbone", "mode")),
        Column("batch", lambda one: str(one.batch_size), lambda one: one.batch_size),
        Column("method", lambda one: one.label, names=True),
        Column("speed-up x [95 %]", lambda one: _ends(one, "speedup"), lambda one: one.speedup),
        Column("CPU time x [95 %]", lambda one: _ends(one, "cpu_ratio"), lambda one: one.cpu_ratio),
        Column("verdict", _field("verdict")),
        Column("resolution, %", lambda one: _known(percent, one.resolution), lambda one: one.resolution),
        Column("rounds", lambda one: _known(str, one.num_rounds), lambda one: one.num_rounds),
        Column("median ms, this run", lambda one: _known(_ms, _median(one)), lambda one: _median(one)),
        Column("peak MiB", lambda one: _known("{:.0f}".format, one.peak_mib), lambda one: one.peak_mib),
        Column("not timed because", _field("reason")),
    ]
    caption = (
        "Ratios of time to the unreduced model in the same rounds; of method none the unreduced model beside itself, which is "
        "the control."
    )
    return table("speeds", caption, shown, shapes_told(speeds))


def pairs_table(name: str, caption: str, titles: tuple[str, str], pairs: Sequence[tuple[str, str]]) -> Table:
    """Two columns of texts."""
    columns = [
        Column(titles[0], lambda pair: pair[0] or "(none)", names=True),
        Column(titles[1], lambda pair: pair[1] or "no reason given"),
    ]
    return table(name, caption, columns, pairs)


def interval(one: Any) -> str:
    """Of a difference, in points."""
    return f"{signed(one.value)} [{signed(one.low)}, {signed(one.high)}]"


def finding(claim: Claim) -> str:
    """Who beats whom, where that may be said."""
    if claim.better is None:
        return "no detectable difference"
    return f"{claim.better} beats {claim.second if claim.better == claim.first else claim.first}"


def smallest_points(share: float) -> str:
    """Of a difference that could be detected; there is none above 100 points."""
    return "none" if share > 1 else f"{100 * share:.2f}"


def _of_row(title: str, name: str) -> Column:
    column = COLUMNS[name]
    key = None if column.words else lambda row: getattr(row, column.of)
    return Column(title, column.cell, key, names=name == "method")


def _field(name: str) -> Callable[[Any], str]:
    return lambda item: str(getattr(item, name))


def _status(row: Row) -> str:
    return row.status if row.status == "done" else f"{row.status}: {row.reason or 'no reason given'}"


def _window(claim: Claim) -> str:
    low, high = (100 * end for end in claim.window)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _num_samples(claim: Claim) -> str:
    clusters = f" of {claim.num_clusters:,} videos" if claim.num_clusters else ""
    return f"{claim.num_samples:,}{clusters}"


def _ends(speed: Speed, name: str) -> str:
    middle, low, high = (getattr(speed, f"{name}{end}") for end in ("", "_low", "_high"))
    return "" if middle is None else f"{ratio(middle)} [{ratio(low)}, {ratio(high)}]"


def _median(speed: Speed) -> float | None:
    return speed.latency_ms_median_this_run


def _ms(time_ms: float) -> str:
    return f"{time_ms:.1f}"


def _known(form: Callable[[Any], str], value: Any) -> str:
    return "" if value is None else form(value)
