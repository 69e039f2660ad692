"""The report of a run: what it claims, what it does with hostile names, and that it is the same from run to run."""

import csv
import html
import io
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rich.console import Console

from tests.records import new_run
from tests.reports import (
    HOSTILE,
    INTERVAL,
    RUNS,
    Page,
    bare_claims,
    compares,
    has_all,
    hostile_run,
    page_of,
    strings_in,
)
from tokred.analysis.figures import draw_all
from tokred.analysis.front import accuracies_drawn
from tokred.analysis.look import MARKERS, UNREDUCED
from tokred.analysis.report import write_report
from tokred.analysis.report.chart import SHAPES, chart_of, scripts
from tokred.analysis.report.content import content_of, not_compared
from tokred.analysis.report.how import OF_ONE_RUN
from tokred.analysis.report.page import MOST_SVG, picture
from tokred.analysis.rows import rows, write_csv
from tokred.analysis.speeds import speeds
from tokred.analysis.table import print_left_out, print_metrics, print_table
from tokred.record import Store
from tokred.sealed import write_arrays
from tokred.sweeps.cli import main
from tokred.terminal import plain


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory) -> Store:
    """Each with its report; one with its figures, as those take a while."""
    store = RUNS[request.param](tmp_path_factory.mktemp(request.param))
    write_report(store, None if request.param == "few" else [])
    return store


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Store:
    store = hostile_run(tmp_path_factory.mktemp("hostile"))
    write_report(store)
    return store


# Claims


def test_no_sentence_or_row_claims_without_interval_n_and_number_of_comparisons(run):
    assert bare_claims(page_of(run.folder / "report.html")) == []


def test_what_explains_how_to_read_names_no_method(run):
    page, labels = page_of(run.folder / "report.html"), {row.method for row in rows(run)} - {"none"}
    assert [text for text in page.explained if any(re.search(rf"\b{label}\b", text) for label in labels)] == []


def test_page_and_markdown_tell_alike_how_to_read_them(run):
    page, lines = html.unescape((run.folder / "report.html").read_text()), (run.folder / "report.md").read_text()
    assert all(term.meaning in page and term.meaning in lines.replace("\\", "") for term in OF_ONE_RUN)


@pytest.mark.parametrize("name", ["report.md", "tables/claims.md", "tables/results.md"])
def test_no_line_of_markdown_claims_without_all_that_it_rests_on(name, run):
    path = run.folder / name
    lines = path.read_text().replace("\\", "").splitlines() if path.is_file() else []
    heading = ""
    for line, following in zip(lines, [*lines[1:], ""]):
        heading = line if following.startswith(("| :-", "| -")) else heading
        if compares(line):
            columns = " n " in heading and "comparisons" in heading
            assert has_all(line) or (line.startswith("|") and columns and INTERVAL.search(line)), line


def test_no_line_of_the_terminal_claims_anything(run):
    file = io.StringIO()
    print_table(rows(run), Console(file=file, width=100))
    print_metrics(rows(run, every_metric=True), Console(file=file, width=100))
    print_left_out(speeds(run), Console(file=file, width=100))
    assert file.getvalue() and [line for line in file.getvalue().splitlines() if compares(line)] == []


@pytest.mark.parametrize("name", ["claims.tex", "results.tex"])
def test_no_line_of_latex_claims_without_all_that_it_rests_on(name, run):
    path = run.folder / "tables" / name
    lines = re.sub(r"[{}\\]", "", path.read_text()).splitlines() if path.is_file() else []
    heading = next((line for line in lines if " & " in line), "")
    for line in lines:
        assert not compares(line) or (" n &" in heading and "comparisons" in heading and INTERVAL.search(line)), line


@pytest.mark.parametrize(
    "planted",
    [
        "<p>tome beats evit.</p>",
        "<p>tome is better by 1.0 [0.5, 1.5] (n = 100)</p>",
        "<table><tr><th>method</th><th>n</th></tr><tr><td>tome, the best</td><td>3</td></tr></table>",
    ],
)
def test_a_bare_claim_is_found_by_these_tests(planted):
    assert bare_claims(Page(planted))


def test_every_claim_of_the_analysis_is_told(run):
    page, content = page_of(run.folder / "report.html"), content_of(run)
    assert [claim.sentence() for claim in content.claims if claim.sentence() not in page.texts] == []


def test_each_cell_without_a_result_stands_with_its_reason(run):
    page = page_of(run.folder / "report.html")
    for row in rows(run):
        if row.status != "done":
            assert any(row.label in text and f"{row.status}: {row.reason}" in text for text in page.texts)
            assert any(one.get("status") == f"{row.status}: {row.reason}" for one in page.rows)


def test_every_cell_is_a_row_of_the_table(run):
    shown = [row for row in page_of(run.folder / "report.html").rows if "status" in row]
    assert [(one["method"], one["schedule"]) for one in shown] == [(row.label, row.schedule) for row in rows(run)]


def test_what_could_not_be_compared_stands_with_its_reason(tmp_path):
    write_report(RUNS["apart"](tmp_path), [])
    (text,) = [
        one
        for one in page_of(tmp_path / "report.html").texts
        if one.startswith("mini_cls: tome and vid_tldr were run at")
    ]
    assert "at least 50 % are needed" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "retrieval",
            ["Methods are compared by T2V R@1 alone; the tables have the values of V2T R@5, mean R, ITC T2V R@1"],
        ),
        ("differing", []),  # with refused cells, which have no metric
    ],
)
def test_metrics_that_are_not_compared_are_named(name, said, tmp_path):
    assert not_compared(content_of(RUNS[name](tmp_path))) == said


def test_unreadable_predictions_are_one_line_that_names_them(tmp_path, capsys):
    store = RUNS["equal"](tmp_path / "run")
    path = next(store.cells.glob("*.npz"))
    path.write_bytes(b"PK\x03\x04 no archive")
    assert main(["report", str(store.folder)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} is not a readable record")


@pytest.mark.parametrize(
    "changed",
    [
        {"label": None},
        {"index": np.arange(3)},
        {"prediction": np.zeros((400, 2), int)},
        {"label": np.full(400, np.nan)},
        {"cluster": np.arange(3)},
    ],
)
def test_predictions_of_another_kind_are_one_line_that_names_them(changed, tmp_path, capsys):
    store = RUNS["equal"](tmp_path / "run")
    key = next(iter(store.plan()["keys"]))
    arrays = store.predictions(key) | changed
    write_arrays(store.predictions_path(key), {name: array for name, array in arrays.items() if array is not None})
    assert main(["report", str(store.folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {store.predictions_path(key)} is not a readable record") and error.count("\n") == 1


# Figures and the chart


def test_every_figure_is_in_the_page_with_what_is_said_of_it(tmp_path):
    store = RUNS["few"](tmp_path)
    drawn = draw_all(store)
    write_report(store, drawn)
    page = page_of(tmp_path / "report.html")
    images = [one.attributes for one in page.elements if one.tag == "img"]
    assert len(drawn) > 0 and [image["src"] for image in images] == [picture(one.svg, one.png) for one in drawn]
    assert all(one.title in image["alt"] and one.about in image["alt"] for one, image in zip(drawn, images))


def test_of_a_large_figure_the_png_is_taken(tmp_path):
    for kind, size in (("svg", MOST_SVG + 1), ("png", 10)):
        (tmp_path / f"a.{kind}").write_bytes(b"x" * size)
    assert picture(tmp_path / "a.svg", tmp_path / "a.png").startswith("data:image/png;base64,")


def test_every_marker_has_a_shape_in_the_chart():
    assert {*MARKERS, UNREDUCED.marker} <= SHAPES.keys()


def test_the_chart_has_every_cell_that_has_a_place(tmp_path):
    store = RUNS["differing"](tmp_path)
    chart = chart_of(rows(store), accuracies_drawn(store))
    drawn = [one for panel in chart.panels for one in panel["specs"]["gmacs"]["data"]["values"]]
    expected = [(row.label, row.gmacs, 100 * row.value) for row in rows(store) if row.status == "done"]
    assert sorted((one["label"].replace("unreduced", "none"), one["x"], one["y"]) for one in drawn) == sorted(expected)


# Hostile names


def elements(store):
    return page_of(store.folder / "report.html").elements


def test_no_name_becomes_a_part_of_the_page(hostile):
    found = elements(hostile)
    assert [one for one in found if any(name.startswith("on") for name in one.attributes)] == []
    assert [
        one.attributes["src"] for one in found if one.tag == "img" and not one.attributes["src"].startswith("data:")
    ] == []
    assert [one.attributes for one in found if one.tag == "script"] == [
        {"type": "application/json", "id": "chart-data"},
        {},
        {},
    ]
    assert [
        one.attributes["href"] for one in found if one.tag == "a" and not one.attributes["href"].startswith("#")
    ] == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_whole_in_the_page_and_in_its_data(name, hostile):
    page, expected = page_of(hostile.folder / "report.html"), plain(HOSTILE[name])
    assert expected in page.whole
    assert any(expected in text for text in strings_in(page.data))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_whole_in_markdown(name, hostile):
    for path in ("report.md", "tables/results.md", "tables/claims.md"):
        text = html.unescape(re.sub(r"\\(.)", r"\1", (hostile.folder / path).read_text()))
        assert plain(HOSTILE[name]) in text, path


def test_no_name_becomes_markup_or_a_column_in_markdown(hostile):
    for path in ("report.md", "tables/results.md", "tables/claims.md"):
        lines = (hostile.folder / path).read_text().splitlines()
        unescaped = [re.sub(r"\\.", "", line) for line in lines]
        assert not [line for line in unescaped if re.search(r"[<>`$\[\]]", line)]
        tables = re.findall(r"(?:^\|.*\n?)+", "\n".join(unescaped), re.MULTILINE)
        assert tables and all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_whole_in_latex(name, hostile):
    spoken = {"textbackslash": "\\", "textless": "<", "textgreater": ">", "textbar": "|", "textquotedbl": '"'}
    spoken |= {"textasciicircum": "^", "textasciitilde": "~", "textasciigrave": "`"}
    for path in ("tables/results.tex", "tables/claims.tex"):
        text = re.sub(r"(?<!\\)\{([\[\]*])\}", r"\1", (hostile.folder / path).read_text())
        text = re.sub(r"\\(text\w+)\{\}|\\([{}$&#_%])", lambda one: spoken[one[1]] if one[1] else one[2], text)
        assert plain(HOSTILE[name]) in text, path


def test_no_name_becomes_a_command_in_latex(hostile):
    known = {"begin", "end", "toprule", "midrule", "bottomrule", "textbackslash", "textless", "textgreater", "textbar"}
    known |= {"textquotedbl", "textasciicircum", "textasciitilde", "textasciigrave"}
    for path in ("tables/results.tex", "tables/claims.tex"):
        comment, *lines = (hostile.folder / path).read_text().splitlines()
        assert comment.startswith("% ") and not [line for line in lines if re.search(r"(?<!\\)[%$#^~]", line)]
        text = "\n".join(lines)
        assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= known
        columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in lines if line.endswith(r"\\"))
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")


def test_no_cell_of_a_csv_begins_as_a_formula(hostile):
    write_csv(rows(hostile), hostile.folder / "results.csv")
    for path in [hostile.folder / "results.csv", *(hostile.folder / "figures").glob("*.csv")]:
        cells = [cell for line in csv.reader(io.StringIO(path.read_text())) for cell in line]
        assert [
            cell for cell in cells if cell[:1] in "=+-@\uff1d" and cell and not re.fullmatch(r"-[\d.e-]+", cell)
        ] == []


def test_no_name_becomes_an_element_of_an_svg(hostile):
    paths = list((hostile.folder / "figures").glob("*.svg"))
    for path in paths:
        found = list(ElementTree.parse(path).iter())
        assert [one.tag for one in found if one.tag.endswith(("}script", "}foreignObject", "}a"))] == []
        assert [one for one in found if any(name.startswith("on") for name in one.attrib)] == []
    assert paths


def test_no_name_steers_a_terminal(hostile):
    file = io.StringIO()
    print_table(rows(hostile), Console(file=file, width=100))
    assert all(char.isprintable() or char == "\n" for char in file.getvalue())


# One file that needs nothing else


def test_the_page_allows_its_own_scripts_and_nothing_from_elsewhere(run):
    page = page_of(run.folder / "report.html")
    (policy,) = [one.attributes["content"] for one in page.elements if one.attributes.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "http" not in policy
    named = [
        value for one in page.elements for name, value in one.attributes.items() if name in ("src", "href", "action")
    ]
    assert [value for value in named if not value.startswith(("#", "data:"))] == []


def test_headings_rise_by_one_and_every_table_has_a_caption_and_scopes(run):
    found = elements(run)
    levels = [int(one.tag[1]) for one in found if re.fullmatch(r"h\d", one.tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    tags = [one.tag for one in found]
    assert tags.count("table") == tags.count("caption") > 0
    assert all(one.attributes.get("scope") in ("col", "row") for one in found if one.tag == "th")
    assert {"header", "nav", "main"} <= set(tags)


def test_the_same_run_makes_the_same_bytes(tmp_path):
    store = RUNS["differing"](tmp_path / "a" / "run")
    shutil.copytree(store.folder, tmp_path / "b" / "run")
    names = [
        "report.html",
        "report.md",
        *(f"tables/{name}.{kind}" for name in ("results", "claims") for kind in ("md", "tex")),
    ]
    written = []
    for folder in (tmp_path / "a" / "run", tmp_path / "b" / "run"):
        write_report(Store(folder), [])
        written.append([(folder / name).read_bytes() for name in names])
    assert written[0] == written[1]


def test_the_scripts_of_the_chart_cannot_end_their_place_in_the_page():
    assert "vegaEmbed" in scripts() and "</script" not in scripts().lower()


# The command


def test_the_command_writes_the_report_and_says_where(tmp_path, capsys):
    store = RUNS["few"](tmp_path / "run")
    assert main(["report", str(store.folder)]) == 0
    assert capsys.readouterr().out == f"report: {store.folder / 'report.html'}\n"
    assert (store.folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "tokred report takes one run folder, or two and out=FILE"),
        (["no/such"], "a report needs the folder of a run; there is no folder no/such"),
        (["{tmp}"], "{tmp} is not the folder of a run: it holds no plan.json"),
        (["{tmp}/failed"], "no cell of {tmp}/failed is done (of 1 cells 1 have a record): out of memory"),
        (["{tmp}/broken"], "{tmp}/broken/plan.json is not a readable record"),
    ],
)
def test_a_mistake_is_one_line(words, said, tmp_path, capsys):
    failed = new_run(tmp_path / "failed")
    failed.add("tome", status="failed", reason="out of memory")
    failed.finish()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("{")
    assert main(["report", *(word.format(tmp=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said.format(tmp=tmp_path)}") and error.count("\n") == 1


def test_a_report_is_json_safe_where_a_value_is_missing(tmp_path):
    """No NaN in the data of the chart: browsers refuse it."""
    write_report(RUNS["retrieval"](tmp_path), [])
    assert json.loads(page_of(tmp_path / "report.html").data, parse_constant=lambda one: pytest.fail(one))
