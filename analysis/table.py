"""The table at the end of a sweep, in a terminal; ``write_csv`` of ``tokred.analysis.rows`` has the same numbers in full."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tokred.analysis.rows import Row, grouped
from tokred.analysis.speeds import Speed


def print_table(rows: Sequence[Row], console: Console) -> None:
    """A table for each backbone, then what failed, how to read the intervals, and whether the timing can be trusted.

    Where the console is narrow, columns are left out and a note says which.
    """
    done = [row for row in rows if row.status == "done"]
    columns, left_out = _fitting(done, console)
    for group in grouped(done, lambda row: row.group):
        first = group[0]
        console.print(Text(f"{first.backbone}, {first.weights} weights, on {first.data}", style="bold"))
        console.print(_table(group, columns, _widths(done, columns)))
        console.print()
    for note in [*_failures(rows), *_reading(done), *_timing_notes(done), *left_out]:
        console.print(Text(note))


def print_metrics(rows: Sequence[Row], console: Console) -> None:
    """Tables of all metrics, where there are several: a column each, as many side by side as the console has room for.

    ``rows``: those of ``rows(store, every_metric=True)``.
    """
    for group in grouped((row for row in rows if row.status == "done"), lambda row: row.group):
        metrics = list(dict.fromkeys(row.metric for row in group))
        cells = grouped(group, lambda row: (row.label, row.schedule, row.shape))
        blocks = _blocks(cells, metrics, console) if len(metrics) > 1 else []
        if blocks:
            first = group[0]
            title = f"All metrics of {first.backbone}, {first.weights} weights, on {first.data}: % [95 %]"
            console.print(Text(title, style="bold"))
        for block in blocks:
            console.print(_metrics_table(cells, block))
            console.print()


def print_left_out(speeds: Sequence[Speed], console: Console) -> None:
    """What was not timed, with its reason; all of one measurement in one line where they share it."""
    left_out = [speed for speed in speeds if speed.reason]
    for same in grouped(left_out, lambda one: (one.backbone, one.mode, one.batch_size, one.reason)):
        first = same[0]
        labels = "" if len(same) > 1 else f", {first.label}"
        place = f"{first.backbone}, {first.mode}, batch {first.batch_size}{labels}"
        console.print(Text(f"Not timed: {place}: {first.reason}"))


def _blocks(cells: Sequence[Sequence[Row]], metrics: Sequence[str], console: Console) -> list[list[str]]:
    """The metrics, cut where a table would be too wide."""
    blocks: list[list[str]] = []
    for metric in metrics:
        wider = [*blocks[-1], metric] if blocks else [metric]
        width = Measurement.get(console, console.options.update(width=1000), _metrics_table(cells, wider)).maximum
        if blocks and width <= console.width and _kind(metric) == _kind(wider[0]):
            blocks[-1] = wider
        else:
            blocks.append([metric])
    return blocks


def _kind(metric: str) -> str:
    """The word in front: the recalls of the joint space alone, ITC, stand apart."""
    return "ITC" if metric.startswith("ITC ") else ""


def _metrics_table(cells: Sequence[Sequence[Row]], metrics: Sequence[str]) -> Table:
    table = _empty_table()
    for name in ("method", "schedule"):
        table.add_column(_COLUMNS[name].title, max_width=_WORDS_WIDTH, overflow="fold")
    for metric in metrics:
        table.add_column(Text(metric), justify="right", no_wrap=True)
    for cell in cells:
        by_name = {row.metric: _short(row) for row in cell}
        first = cell[0]
        table.add_row(Text(first.label), Text(first.schedule), *(Text(by_name.get(metric, "")) for metric in metrics))
    return table


def _short(row: Row) -> str:
    if row.value is None:
        return ""
    if row.low is None or row.high is None:
        return _percent(row.value)
    return f"{_percent(row.value)} [{100 * row.low:.0f},{100 * row.high:.0f}]"


@dataclass(frozen=True)
class _Column:
    title: str  # {metric} is filled in
    cell: Callable[[Row], str]
    words: bool = False  # text, which may wrap; numbers never do


def _bracketed(form: Callable[[float], str], value: str, prefix: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        middle, low, high = (getattr(row, name) for name in (value, f"{prefix}low", f"{prefix}high"))
        if middle is None:
            return ""
        return form(middle) if low is None else f"{form(middle)} [{form(low)}, {form(high)}]"

    return cell


def _number(form: Callable[[float], str], name: str) -> Callable[[Row], str]:
    return lambda row: "" if getattr(row, name) is None else form(getattr(row, name))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def _ratio(speedup: float) -> str:
    return f"{speedup:.2f}"


def _marked(cell: Callable[[Row], str]) -> Callable[[Row], str]:
    return lambda row: f"~{cell(row)}" if row.verdict == "below resolution" else cell(row)


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 999.5 else f"{number:#.3g}".rstrip(".")


def _seeds(row: Row) -> str:
    return str(row.num_seeds) if row.seed_sd is None else f"{row.num_seeds} ({_percent(row.seed_sd)})"


_COLUMNS = {
    "method": _Column("method", lambda row: row.label, words=True),
    "schedule": _Column("schedule", lambda row: row.schedule, words=True),
    "shape": _Column("shape", lambda row: row.shape, words=True),
    "value": _Column("{metric}\n% [95 %]", _bracketed(_percent, "value", "")),
    "value_alone": _Column("{metric}\n%", _number(_percent, "value")),
    "difference": _Column("difference\npoints [95 %]", _bracketed(_points, "difference", "difference_")),
    "difference_alone": _Column("difference\npoints", _number(_points, "difference")),
    "seeds": _Column("seeds\n(SD)", _seeds),
    "gmacs": _Column("GMACs\n", _number(_three_digits, "gmacs")),
    "share": _Column("MACs\n%", _number(_percent, "gmacs_share")),
    "tokens": _Column("tokens\nleft", _number("{:.4g}".format, "num_tokens")),
    "speedup": _Column("speed-up\nx [95 %]", _marked(_bracketed(_ratio, "speedup", "speedup_"))),
    "speedup_alone": _Column("speed-up\nx", _marked(_number(_ratio, "speedup"))),
    "reduction": _Column("reduction\n% of time", _number(_percent, "reduction_time_share")),
}
_IF_NARROW = (  # what goes first where the table is too wide, what stands for it, and what a note calls it
    ("reduction", None, "the reduction's share of the time"),
    ("tokens", None, "tokens left"),
    ("gmacs", None, "GMACs"),
    ("speedup", "speedup_alone", "intervals of the speed-up"),
    ("seeds", None, "seeds"),
    ("value", "value_alone", "intervals of the accuracy"),
    ("difference", "difference_alone", "intervals of the difference"),
    ("share", None, "share of MACs"),
    ("difference_alone", None, "difference"),
)
_METHOD_WIDTH, _WORDS_WIDTH = 17, 24


def _fitting(done: Sequence[Row], console: Console) -> tuple[list[str], list[str]]:
    """The columns that the console has room for, and a note on those it has not."""
    columns, left_out = _with_content(done), []
    for name, instead, called in _IF_NARROW:
        table = _table(done, columns, _widths(done, columns))
        if Measurement.get(console, console.options.update(width=1000), table).maximum <= console.width:
            break
        if name in columns:
            swapped = [instead if column == name else column for column in columns]
            columns = [column for column in swapped if column is not None]
            left_out.append(called)
    return columns, [f"Left out at a width of {console.width}: {', '.join(left_out)}."] if left_out else []


def _with_content(done: Sequence[Row]) -> list[str]:
    empty = {"value_alone", "difference_alone", "speedup_alone"}
    if all(row.speedup is None for row in done):
        empty.add("speedup")
    if all(row.reduction_time_share is None for row in done):
        empty.add("reduction")
    if all(row.num_seeds == 1 for row in done):
        empty.add("seeds")
    if len(_shapes(done)) < 2:
        empty.add("shape")
    return [name for name in _COLUMNS if name not in empty]


def _widths(done: Sequence[Row], columns: Sequence[str]) -> dict[str, int]:
    """So wide that the tables of several backbones stand in line."""
    lines = {name: [line for text in _texts(done, name) for line in text.splitlines()] for name in columns}
    return {name: min(_WORDS_WIDTH, max(map(cell_len, lines[name]), default=0)) for name in columns}


def _table(group: Sequence[Row], columns: Sequence[str], widths: dict[str, int]) -> Table:
    table = _empty_table()
    metric = next((row.metric for row in group), "")
    for name in columns:
        column = _COLUMNS[name]
        table.add_column(
            Text(column.title.format(metric=metric)),
            justify="left" if column.words else "right",
            no_wrap=not column.words,
            overflow="fold",
            min_width=widths[name],
            max_width=_WORDS_WIDTH if column.words else None,
        )
    for texts in zip(*(_texts(group, name) for name in columns), strict=True):
        table.add_row(*map(Text, texts))
    return table


def _empty_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _texts(group: Sequence[Row], name: str) -> list[str]:
    if name != "method":
        return [_COLUMNS[name].cell(row) for row in group]
    return [text for same in grouped(group, lambda row: (row.group, row.label)) for text in _down_the_rows(same)]


def _down_the_rows(same: Sequence[Row]) -> list[str]:
    """A method's name beside its first row, its options beside the next ones; what is left over beside the last."""
    options = _folded(same[0].options, _METHOD_WIDTH - 1)
    lines = [*_folded(same[0].method, _METHOD_WIDTH), *(f" {line}" for line in options)]
    lines += [""] * (len(same) - len(lines))
    return [*lines[: len(same) - 1], "\n".join(lines[len(same) - 1 :])]


def _folded(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters, broken after a space, ``_`` or ``=`` where there is one."""
    lines: list[str] = []
    for piece in re.findall(rf"[^ _=]{{1,{width - 1}}}[ _=]?|[ _=]", text):
        if lines and len(lines[-1] + piece.rstrip()) <= width and not lines[-1].endswith(" "):
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.rstrip() for line in lines]


def _failures(rows: Sequence[Row]) -> list[str]:
    failed = [row for row in rows if row.status != "done"]
    alike = grouped(failed, lambda row: (row.group, row.label, row.status, row.reason))
    num_failed, num_cells = (sum(row.num_seeds for row in some) for some in (failed, rows))
    return [f"{num_failed} of {num_cells} cells have no result:", *map(_failure, alike)] if failed else []


def _failure(alike: Sequence[Row]) -> str:
    first = alike[0]
    schedules = [row.schedule if row.num_seeds == 1 else f"{row.schedule}, {row.num_seeds} seeds" for row in alike]
    reason = first.reason or "no reason given"
    return f"  {first.backbone}, {first.label} ({', '.join(schedules)}): {first.status}: {reason}"


def _reading(done: Sequence[Row]) -> list[str]:
    """n, what the intervals are, broken files."""
    counts = sorted({row.num_samples for row in done if row.num_samples is not None})
    if not counts:
        return []
    num = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines = [
        f"n = {num} samples a cell. In brackets 95 % intervals; differences are paired with the unreduced model on the same "
        "samples. MACs % is the share of the unreduced model's."
    ]
    if any(row.num_clusters is None and row.low is not None for row in done):
        lines.append(
            "Intervals: Wilson's, and for differences Agresti and Min's (3 / n to either side where no sample differs)."
        )
    if videos := sorted({row.num_clusters for row in done if row.num_clusters}):
        counted = " or ".join(map(str, videos))
        lines.append(f"Several samples are of one video: intervals count videos, {counted}, not samples (Student's t).")
    if any(row.metric == "agreement" for row in done):
        lines.append("Agreement is the share of samples on which the prediction is the unreduced model's.")
    if any(row.num_seeds > 1 for row in done):
        lines.append(
            "Of several seeds: their mean, an interval over samples and seeds, in parentheses the seeds' SD in points."
        )
    if len(shapes := _shapes(done)) == 1:
        lines.append(f"Shape of the schedules that meet a budget: {shapes[0]}.")
    if off := _off_budget(done):
        lines.append(
            "A budget of counts that differ by sample is met on calibration samples. On these, more than 2 % off it, in % of the "
            f"MACs: {', '.join(off)}. Compare them at what they spent."
        )
    for group in grouped(done, lambda row: row.data):
        if num_broken := max(row.num_broken for row in group):
            lines.append(f"Broken files in {group[0].data}, not counted: {num_broken}.")
    return lines


def _off_budget(done: Sequence[Row]) -> list[str]:
    """Of each label what was spent and asked for, where that is more than 2 % apart."""
    apart: dict[str, list[str]] = {}
    for row in done:
        if row.budget and row.gmacs_share and abs(row.gmacs_share / row.budget - 1) > 0.02:
            apart.setdefault(row.label, []).append(f"{_percent(row.gmacs_share)} of {100 * row.budget:g}")
    return [f"{label} {', '.join(spent)}" for label, spent in apart.items()]


def _shapes(done: Sequence[Row]) -> list[str]:
    return sorted({row.shape for row in done if row.shape})


def _timing_notes(done: Sequence[Row]) -> list[str]:
    timed = [row for row in done if row.verdict]
    if not timed and done:
        return ["Speed was not measured."]
    notes = [_timing_note(same) for same in grouped(timed, lambda row: (row.group, row.resolution, _setting(row)))]
    if any(row.verdict == "below resolution" for row in timed):
        notes.append("~: the speed-up differs from 1 by no more than the unreduced model does from itself.")
    if any(row.reduction_time_share is not None for row in timed):
        notes.append("Reduction % of time: what the method itself takes, statistics of the attention included.")
    return notes


def _timing_note(same: Sequence[Row]) -> str:
    """Of rows that were timed together."""
    first = same[0]
    noisy = any(row.verdict == "noisy" for row in same)
    least = (
        ""
        if first.resolution is None
        else f"; speed differences under {_percent(first.resolution)} % are below resolution"
    )
    return f"Timing of {first.backbone}, {_setting(first)}: {'noisy' if noisy else 'ok'}{least}."


def _setting(row: Row) -> str:
    return f"{row.timing_mode}, batch {row.timing_batch_size}"
