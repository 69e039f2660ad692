"""The catalogue says what the classes say, and docs/methods.md is what it says now."""

import re
import sys
import types
from pathlib import Path
from typing import Literal

import pytest

from tokred import METHODS, Assignment, Method
from tokred.catalogue import (
    COMMAND,
    TUNING,
    cost_class,
    markdown,
    options,
    overview,
    own_macs,
    paragraphs,
    reads,
    section,
    table,
    text,
)
from tokred.sweeps.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
# one that does not say how it was trained is somebody's own, on trial here
OWN = [cls for cls in METHODS if cls.__module__.startswith("tokred.methods.") and "tuning" in vars(cls)]
NAMES = [cls.name for cls in OWN]


def test_the_page_is_what_the_classes_say():
    assert PAGE.read_text() == markdown(OWN), f"docs/methods.md is out of date; run: {COMMAND}"


def test_none_of_tokreds_own_methods_is_left_out():
    assert len(OWN) >= 25 and {"vid_tldr", "tome", "random_drop", "none"} <= set(NAMES)


def test_the_command_prints_the_page(capsys):
    assert main(["list", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed == markdown(METHODS)
    assert printed.startswith("# The methods\n") and printed.endswith("\n") and not printed.endswith("\n\n")


def test_every_method_has_a_row_and_a_section():
    page = markdown(OWN)
    assert re.findall(r"^\| \[(\w+)\]\(#\w+\)", page, re.MULTILINE) == NAMES
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_of_tokreds_own_methods_declares_how_it_was_trained(name):
    assert METHODS[name].__dict__.get("tuning") in TUNING


@pytest.mark.parametrize("name", NAMES)
def test_each_of_tokreds_own_methods_declares_paper_and_code_or_is_a_control(name):
    cls = METHODS[name]
    if re.search(r"\b\d{4}\b", cls.paper):
        assert "code" in cls.__dict__
    else:
        assert "arXiv" not in (sys.modules[cls.__module__].__doc__ or "")  # its file names no paper either
        assert not cls.code


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_is_that_of_the_files_first_line(name):
    cls = METHODS[name]
    numbers = re.findall(r"arXiv ([\d.]+\d)", (sys.modules[cls.__module__].__doc__ or "").split("\n")[0])
    assert all(number in cls.paper for number in numbers)


# What is read off a class


class Hostile(Method):
    """| a | b |
    |---|---|
    # no heading <script>alert(1)</script> [link](javascript:alert) ``code | with_pipe`` and an odd one

    - no *list*, no _emphasis_
    - at all

    1. nor a number
    """

    name = "hostile"
    paper = "Someone | and\nsomeone else, <b>2020</b>"
    code = "owner/name\n\n# @0000000"
    tuning = "on | pipes"
    varies = True

    def __init__(self, mode: Literal["a|b", "c"] = "a|b", width: float = 0.1, must: int = 3, flag: bool = False):
        super().__init__()
        self.statistics = ("map", "cls_row") if flag else ()
        self.needs_cls = flag

    def assign(self, tokens, attention, keep) -> Assignment:
        return attention.k_BHND + tokens.x_BNC

    def macs(self, num_tokens, keep, at):
        return num_tokens**3


def test_nothing_in_a_class_can_break_the_table_of_all():
    lines = markdown([Hostile, METHODS["none"]]).split("\n")
    rows = [line for line in lines if line.startswith("| ")]
    of_all = rows[: rows.index(next(row for row in rows if row.startswith("| option")))]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in of_all] == [len(overview(Hostile)) + 2] * 4


def test_nothing_in_a_class_can_break_its_table_of_options():
    (found,) = options(Hostile)
    assert found.split("\n")[2:] == [
        r"| `mode` | `a\|b`, `c` | `a\|b` |",
        "| `width` | float | `0.1` |",
        "| `must` | int | `3` |",
        "| `flag` | bool | `False` |",
    ]


def test_nothing_in_a_docstring_is_markup():
    found = paragraphs(Hostile.__doc__)
    assert len(found) == 3 and not any("\n" in line for line in found)
    assert found[0].startswith("| a | b | |---|---| # no heading")  # one line: no table, no heading
    assert "&lt;script>" in found[0] and r"[link\](javascript" in found[0] and "`code | with_pipe`" in found[0]
    assert found[1] == r"\- no \*list\*, no \_emphasis\_ - at all"
    assert found[2] == r"1\. nor a number"


def test_no_fact_of_a_class_takes_more_than_a_line():
    lines = section(Hostile).split("\n")
    assert "- paper: Someone | and someone else, &lt;b>2020&lt;/b>" in lines
    assert "- official code: owner/name # @0000000" in lines
    assert [line for line in lines if line.startswith("#")] == ["## hostile"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("``x_BNC`` and a_b", r"`x_BNC` and a\_b"),
        ("one ` alone", "one ' alone"),
        ("# 1", r"\# 1"),
        ("2) two", r"2\) two"),
        ("a & b < c", "a &amp; b &lt; c"),
        (r"back\slash", r"back\\slash"),
        ("~~~", r"\~~~"),
        ("2-3 of 2.5.", "2-3 of 2.5."),
        ("[600, 200]", "[600, 200]"),
        ("[a][b] [c]: d", r"[a\][b] [c\]: d"),
        ("", ""),
    ],
)
def test_text_is_shown_as_it_is(words, shown):
    assert text(words) == shown


def test_a_cell_is_one_line_and_ends_where_it_should():
    assert table(["a"], [["x | y\nz"]]) == "| a |\n| --- |\n| x \\| y z |"


def test_a_method_without_a_docstring_has_a_section():
    Bare = type("Bare", (Method,), {"name": "bare", "assign": lambda *_: None, "__doc__": None})
    assert "## bare" in section(Bare)


def test_what_an_option_changes_is_named():
    found = section(Hostile)
    assert "- needs: nothing; with `flag=True`: class token" in found
    assert "- attention: fused; with `flag=True`: whole maps" in found


def test_the_cost_class_is_that_of_the_dearest_statistic():
    method = Hostile()
    classes = {}
    for statistics in (
        (),
        ("cls_row",),
        ("received", "cls_row"),
        ("row_entropy",),
        ("head_mean", "received"),
        ("map",),
    ):
        method.statistics = statistics
        classes[statistics] = cost_class(method)
    assert list(classes.values()) == [
        "fused",
        "fused + one row",
        "map in chunks",
        "map in chunks",
        "whole map",
        "whole maps",
    ]


def test_own_macs_are_a_share_of_a_layer_and_a_power_of_n():
    layer = 12 * 197 * 768**2 + 2 * 197**2 * 768
    assert own_macs(Hostile()) == f"{100 * 197**3 / layer:.2g} %, N^3"
    assert own_macs(METHODS["tome"]()) == f"{100 * 99 * 98 * 64 / layer:.2g} %, N^2"
    assert own_macs(METHODS["top_k"]()) == "0"


def test_what_a_method_reads_is_in_its_file():
    assert reads(METHODS["tome"], METHODS["tome"]()) == ["keys"]
    assert reads(METHODS["vid_tldr"], METHODS["vid_tldr"]()) == ["entropy of attention paid", "features"]
    assert reads(METHODS["random_drop"], METHODS["random_drop"]()) == ["nothing"]


@pytest.mark.parametrize("module", [types.ModuleType("no_file"), None])
def test_a_class_without_a_file_is_read_by_its_statistics_alone(module, monkeypatch):
    if module is not None:
        monkeypatch.setitem(sys.modules, "no_file", module)
    Typed = type("Typed", (Method,), {"name": "typed", "assign": lambda *_: None, "__module__": "no_file"})
    assert reads(Typed, Typed()) == ["nothing"]
    assert section(Typed).startswith("## typed\n\nTyped\n")
