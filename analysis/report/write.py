"""The report of one run: a page, Markdown, and tables for a paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokred.analysis.figures import Drawn, draw_all
from tokred.analysis.front import accuracies_drawn
from tokred.analysis.notes import not_timed, reading, timing_notes
from tokred.analysis.report.chart import Chart, chart_of, scripts
from tokred.analysis.report.content import (
    MOST_SENTENCES,
    Content,
    content_of,
    not_compared,
    opening,
    verdict,
    without_result,
)
from tokred.analysis.report.how import FRONT, OF_ONE_RUN
from tokred.analysis.report.page import picture, render
from tokred.analysis.report.papers import latex, markdown, markdown_text
from tokred.analysis.report.tables import Table, claims_table, metrics_table, pairs_table, results_table, speeds_table
from tokred.analysis.rows import write_whole
from tokred.record import Store


def write_report(store: Store, drawn: Sequence[Drawn] | None = None) -> Path:
    """``report.html`` in the run folder, whose path is returned; beside it ``report.md``, and ``tables/`` in Markdown and LaTeX.

    ``drawn``: the figures, where they are drawn already. Raises ValueError where the folder holds no finished cell.
    """
    content = content_of(store)
    drawn = draw_all(store) if drawn is None else drawn
    tables = _tables(content)
    for name in ("results", "claims"):
        if name in tables:
            write_whole(store.folder / "tables" / f"{name}.md", markdown(tables[name]).encode())
            write_whole(store.folder / "tables" / f"{name}.tex", latex(tables[name]).encode())
    write_whole(store.folder / "report.md", _markdown(content, tables).encode())
    chart = chart_of(content.rows, accuracies_drawn(store))
    return write_whole(store.folder / "report.html", _page(content, tables, chart, drawn).encode())


def _tables(content: Content) -> dict[str, Table]:
    """By name; those that have lines."""
    several = len(content.every_metric) > len(content.rows)
    conditions = [(name, ", ".join(values)) for name, values in content.conditions.items()]
    made = [
        results_table(content.rows),
        metrics_table(content.every_metric if several else []),
        claims_table(content.claims),
        speeds_table(content.speeds),
        pairs_table("broken", "Files that could not be read; no cell counts them.", ("file", "reason"), content.broken),
        pairs_table("conditions", "What was asked for, and where it ran.", ("what", "as recorded"), conditions),
    ]
    return {table.name: table for table in made if table.lines}


def _page(content: Content, tables: dict[str, Table], chart: Chart | None, drawn: Sequence[Drawn]) -> str:
    figures = [{"about": one, "source": picture(one.svg, one.png)} for one in drawn]
    said = _said(content) | {
        "tables": tables,
        "chart": chart,
        "figures": figures,
        "front": FRONT.meaning,
        "how": OF_ONE_RUN,
    }
    return render("report.html", said, scripts=(scripts(),) if chart else ())


def _said(content: Content) -> dict[str, Any]:
    differing = [claim.sentence() for claim in content.differing]
    return {
        "name": content.name,
        "opening": opening(content),
        "verdict": verdict(content),
        "differing": differing[:MOST_SENTENCES],
        "more": differing[MOST_SENTENCES:],
        "alike": [claim.sentence() for claim in content.alike],
        "not_compared": not_compared(content),
        "without_result": without_result(content),
        "warnings": content.warnings,
        "reading": reading(content.done),
        "timing": [*timing_notes(content.done), *not_timed(content.speeds)],
    }


def _markdown(content: Content, tables: dict[str, Table]) -> str:
    said = _said(content)
    parts = {
        "Differences": [*said["differing"], *said["more"]],
        "No detectable difference": said["alike"],
        "Not compared": said["not_compared"],
        "Cells without a result": said["without_result"],
        "To be read with care": said["warnings"],
    }
    lines = [f"# Report: {markdown_text(content.name)}", "", *_items([*said["opening"], said["verdict"]])]
    for title, texts in parts.items():
        if texts:
            lines += [f"\n## {title}\n", *_items(texts)]
    for title, name, notes in (
        ("Results", "results", said["reading"]),
        ("All metrics", "metrics", []),
        ("Comparisons", "claims", []),
        ("Speed", "speeds", said["timing"]),
        ("Files that could not be read", "broken", []),
        ("Conditions", "conditions", []),
    ):
        if name in tables:
            lines += [f"\n## {title}\n", markdown(tables[name]), *_items(notes)]
    lines += ["\n## How to read it\n", *(f"- **{term.name}.** {markdown_text(term.meaning)}" for term in OF_ONE_RUN)]
    return "\n".join(lines) + "\n"


def _items(texts: Sequence[str]) -> list[str]:
    return [f"- {markdown_text(text)}" for text in texts]
