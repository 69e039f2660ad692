"""Made-up runs for the tests of reports, and what a page, Markdown and LaTeX say as texts."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

from tests.records import add_retrieval, full_run, new_run
from tokred.record import Store

HOSTILE = {
    "markup": "<img src=x onerror=window.pwned=1>",
    "script": "</script><script>window.pwned=1</script>",
    "mathematics": r"$\foo$",
    "underscore": "_x",
    "formula": "=cmd|' /C calc'!A0",
    "line": "a|b\nc",
    "zero": "a\x00b",
    "alike": "a\r\nb",
    "long": "long" * 1250,
    "template": "{{7*7}}",
    "turned": "ab\u202ecd",
    "link": "[a](javascript:window.pwned=1)",
    "command": r"\input{x}%&#^~\\[2em]*",
    "comment": "<!-- <script> ]]>",
}
COMPARATIVE = re.compile(r"\b(better|best|beats?|wins?|winners?|outperforms?|superior|worse)\b", re.IGNORECASE)
DIRECTION = re.compile(r"\((?:higher|lower) is better\)")  # of an axis, not of a method
INTERVAL = re.compile(r"\[[+-]?\d+(\.\d+)?, [+-]?\d+(\.\d+)?\]")


def hostile_run(folder: Path) -> Store:
    """Names from elsewhere, wherever a record has one."""
    run = new_run(folder)
    place = {"backbone": HOSTILE["markup"], "data": {"name": HOSTILE["script"]}}
    first = run.add("none", accuracy=0.95, **place)
    for number, name in enumerate(HOSTILE.values()):
        run.add("tome", accuracy=0.9 - 0.05 * number, share=0.5, options={"fuse": name}, **place)
        run.add("evit", share=0.5, options={"fuse": name}, status="failed", reason=name, **place)
    run.add(HOSTILE["formula"], accuracy=0.8, share=0.7, **place)
    record = run.store.get(first)
    assert record is not None
    broken = [[name, name] for name in HOSTILE.values()]
    about = {"identity": {"data": HOSTILE["script"]}, "broken": broken, "metric": "accuracy"}
    run.store.add(replace(record, result=record.result | about, conditions={HOSTILE["markup"]: HOSTILE["script"]}))
    return run.finish()


def equal_run(folder: Path) -> Store:
    """Two methods that are right on the same samples, but for noise."""
    run = new_run(folder)
    run.add("none", accuracy=0.9)
    for method in ("tome", "vid_tldr"):
        for share in (0.4, 0.8):
            run.add(method, accuracy=0.85, share=share)
    return run.finish()


def few_samples(folder: Path) -> Store:
    run = new_run(folder)
    run.add("none", accuracy=0.9, num_samples=8)
    for method, accuracy in (("tome", 0.9), ("vid_tldr", 0.4)):
        run.add(method, accuracy=accuracy, share=0.5, num_samples=8)
    return run.finish()


def retrieval_run(folder: Path) -> Store:
    """Texts that share a video; several metrics."""
    run = new_run(folder)
    for seed, (method, share) in enumerate((("none", 1.0), ("tome", 0.6), ("vid_tldr", 0.6))):
        add_retrieval(run, method, share=share, seed=seed)
    return run.finish()


def far_apart(folder: Path) -> Store:
    """Two methods that share no budgets, and one metric that has none."""
    run = new_run(folder)
    run.add("none")
    for method, shares in (("tome", (0.3, 0.4)), ("vid_tldr", (0.8, 0.9))):
        for share in shares:
            run.add(method, accuracy=0.8, share=share)
    return run.finish()


RUNS = {
    "differing": lambda folder: full_run(folder).finish(),
    "equal": equal_run,
    "few": few_samples,
    "retrieval": retrieval_run,
    "apart": far_apart,
}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]


class Page(HTMLParser):
    """``elements`` of a page; ``texts``: of each element that holds a sentence its text, a row of a table as its cells by heading
    apart in ``rows``. What only explains how to read (class explains) is in ``explained``."""

    BLOCKS = (
        "p",
        "li",
        "caption",
        "dt",
        "dd",
        "h1",
        "h2",
        "h3",
        "figcaption",
        "summary",
        "legend",
        "label",
        "th",
        "td",
    )
    VOID = ("meta", "link", "img", "input", "br", "path")

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[Element] = []
        self.texts: list[str] = []
        self.explained: list[str] = []
        self.rows: list[dict[str, str]] = []
        self.data = ""
        self._open: list[Element] = []
        self._block: list[list[str]] = []
        self._headings: list[str] = []
        self._cells: list[str] = []
        self.feed(text)
        self.close()

    @property
    def whole(self) -> str:
        return "\n".join([*self.texts, *self.explained, *("\n".join(row.values()) for row in self.rows)])

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)
        if tag in self.BLOCKS:
            self._block.append([])
        if tag == "table":
            self._headings = []
        if tag == "tr":
            self._cells = []

    def handle_endtag(self, tag):
        if tag in self.BLOCKS:
            self._end_block(tag, " ".join("".join(self._block.pop()).split()))
        if tag == "tr" and not self._headings:
            self._headings = [re.sub(r"[^\w\])]+$", "", cell) for cell in self._cells]
        elif tag == "tr":
            self.rows.append(dict(zip(self._headings, self._cells, strict=True)))
        while self._open and self._open.pop().tag != tag:
            pass

    def _end_block(self, tag, text):
        if tag in ("th", "td"):
            self._cells.append(text)
        elif self._block:  # within another, to whose text it belongs
            self._block[-1].append(text)
        else:
            (self.explained if self._explains() else self.texts).append(text)

    def _explains(self):
        return any("explains" in (one.attributes.get("class") or "").split() for one in self._open)

    def handle_data(self, data):
        tag = self._open[-1].tag if self._open else ""
        if tag == "script":
            if self._open[-1].attributes.get("type") == "application/json":
                self.data = data
        elif tag != "style" and self._explains():
            self.explained.append(data)
        elif tag != "style" and self._block:
            self._block[-1].append(data)


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def strings_in(data: str) -> Iterator[str]:
    """All texts of a JSON document."""
    waiting = [json.loads(data)] if data else []
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one


def has_all(sentence: str) -> bool:
    """An interval, n, and the number of comparisons."""
    counted = re.search(r"Holm over \d+ comparisons|the only comparison", sentence)
    return bool(INTERVAL.search(sentence) and re.search(r"\bn = \d", sentence) and counted)


def compares(text: str) -> bool:
    return bool(COMPARATIVE.search(DIRECTION.sub("", text)))


def bare_claims(page: Page) -> list[str]:
    """What says that one is better, without all that it rests on."""
    found = [text for text in [*page.texts, *strings_in(page.data)] if compares(text) and not has_all(text)]
    for row in page.rows:
        whole = INTERVAL.search(" ".join(row.values())) and row.get("n") and row.get("comparisons")
        found += [str(row)] if compares(" ".join(row.values())) and not whole else []
    return found
