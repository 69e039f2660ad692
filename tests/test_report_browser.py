"""The report as a reader has it, in a Chromium: nothing is fetched, nothing complains, the keyboard is enough."""

import pytest

from tests.browser import CHROMIUM, Browser
from tests.records import full_run
from tests.reports import hostile_run
from tokred.analysis.report import write_comparison, write_report
from tokred.record import Store

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH; Debian's package chromium is enough")
DRAWN = "document.documentElement.dataset.drawn"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report, one of a run with hostile names, and what changed between a run and itself."""
    full, hostile = full_run(tmp_path_factory.mktemp("full")).finish(), hostile_run(tmp_path_factory.mktemp("hostile"))
    return {
        "full": write_report(full, []),
        "hostile": write_report(hostile, []),
        "changes": write_comparison(full, Store(full.folder)),
    }


def opened(browser, pages, name="full", **how):
    browser.open(pages[name], ready="true" if name == "changes" else f"{DRAWN} === 'gmacs'", **how)
    return browser


@pytest.mark.parametrize("name", ["full", "hostile", "changes"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_page_fetches_nothing_complains_of_nothing_and_fits(name, width, browser, pages):
    opened(browser, pages, name, width=width)
    assert [one for one in browser.requests if not one.startswith("data:")] == [pages[name].as_uri()]
    assert browser.complaints == []
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.evaluate("window.pwned") is None


def test_the_keyboard_sorts_a_table_and_the_heading_says_so(browser, pages):
    opened(browser, pages)
    browser.evaluate("document.querySelectorAll('#results-table thead button')[4].focus()")
    heading = "document.querySelectorAll('#results-table thead th')[4]"
    keys = "[...document.querySelectorAll('#results-table tbody tr')].map((row) => row.cells[4].dataset.key)"
    for expected in ("ascending", "descending"):
        browser.press("Enter")
        assert browser.evaluate(f"{heading}.ariaSort") == expected
        found = browser.evaluate(keys)
        known = [float(key) for key in found if key is not None]
        assert known == sorted(known, reverse=expected == "descending") and len(known) == 34
        assert found[len(known) :] == [None] * (len(found) - len(known))  # cells without a result come last


def test_the_legend_hides_a_method_by_keyboard_and_shows_it_again(browser, pages):
    opened(browser, pages)
    count = "document.querySelector('.chart').querySelectorAll('.mark-symbol path').length"
    before = browser.evaluate(count)
    browser.evaluate("document.querySelector('#legend input').focus()")
    browser.press(" ")
    browser.wait(f"{count} === {before - 4}")  # four budgets
    browser.press(" ")
    browser.wait(f"{count} === {before}")


def test_hide_all_leaves_the_unreduced_model(browser, pages):
    opened(browser, pages)
    browser.evaluate("document.getElementById('hide-all').click()")
    browser.wait("document.querySelector('.chart').querySelectorAll('.mark-symbol path').length === 1")


def test_the_other_axis_is_the_measured_speedup(browser, pages):
    opened(browser, pages)
    browser.evaluate("document.querySelector('#axes input[value=speedup]').click()")
    browser.wait(f"{DRAWN} === 'speedup'")
    assert "measured speed-up" in browser.evaluate("document.querySelector('.chart').textContent")


def test_the_pointer_is_told_which_cell_it_is_on(browser, pages):
    opened(browser, pages)
    browser.evaluate("document.getElementById('chart').scrollIntoView()")
    place = "document.querySelectorAll('.chart .mark-symbol path')[1].getBoundingClientRect()"
    x, y = browser.evaluate(
        f"(() => {{ const box = {place}; return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
    )
    browser.point(x - 1, y)
    browser.point(x, y)
    browser.wait("document.getElementById('vg-tooltip-element')?.classList.contains('visible')")
    said = browser.evaluate("document.getElementById('vg-tooltip-element').textContent")
    assert "budget 0." in said and "GMACs" in said


def test_the_first_stop_of_the_keyboard_skips_to_the_content(browser, pages):
    opened(browser, pages)
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.className") == "skip"
    browser.press("Enter")
    browser.wait("document.activeElement.id === 'content'")


CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("p, a, caption, .quiet, th button")].map((one) => light(getComputedStyle(one).color))
    .map((ink) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_in_light_and_dark(dark, browser, pages):
    opened(browser, pages, "changes", dark=dark)
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    assert min(browser.evaluate(CONTRAST)) >= 4.5  # WCAG 2.2, 1.4.3
