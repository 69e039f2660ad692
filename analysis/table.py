"""The table at the end of a sweep, in a terminal; ``write_csv`` of ``tokred.analysis.rows`` has the same numbers in full."""

import re
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tokred.analysis.columns import COLUMNS, percent, with_content
from tokred.analysis.notes import failures, not_timed, reading, timing_notes
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
    for note in [*failures(rows), *reading(done), *timing_notes(done), *left_out]:
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
    for line in not_timed(speeds):
        console.print(Text(line))


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
    names = [name for name in ("method", "schedule", "shape") if name in with_content([cell[0] for cell in cells])]
    for name in names:
        table.add_column(COLUMNS[name].title, max_width=_WORDS_WIDTH, overflow="fold")
    for metric in metrics:
        table.add_column(Text(metric), justify="right", no_wrap=True)
    for cell in cells:
        by_name = {row.metric: _short(row) for row in cell}
        words = [COLUMNS[name].cell(cell[0]) for name in names]
        table.add_row(*map(Text, words), *(Text(by_name.get(metric, "")) for metric in metrics))
    return table


def _short(row: Row) -> str:
    if row.value is None:
        return ""
    if row.low is None or row.high is None:
        return percent(row.value)
    return f"{percent(row.value)} [{100 * row.low:.0f},{100 * row.high:.0f}]"


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
    columns, left_out = with_content(done), []
    for name, instead, called in _IF_NARROW:
        table = _table(done, columns, _widths(done, columns))
        if Measurement.get(console, console.options.update(width=1000), table).maximum <= console.width:
            break
        if name in columns:
            swapped = [instead if column == name else column for column in columns]
            columns = [column for column in swapped if column is not None]
            left_out.append(called)
    return columns, [f"Left out at a width of {console.width}: {', '.join(left_out)}."] if left_out else []


def _widths(done: Sequence[Row], columns: Sequence[str]) -> dict[str, int]:
    """So wide that the tables of several backbones stand in line."""
    lines = {name: [line for text in _texts(done, name) for line in text.splitlines()] for name in columns}
    return {name: min(_WORDS_WIDTH, max(map(cell_len, lines[name]), default=0)) for name in columns}


def _table(group: Sequence[Row], columns: Sequence[str], widths: dict[str, int]) -> Table:
    table = _empty_table()
    metric = next((row.metric for row in group), "")
    for name in columns:
        column = COLUMNS[name]
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
        return [COLUMNS[name].cell(row) for row in group]
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
