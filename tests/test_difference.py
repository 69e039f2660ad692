"""Lines of differences against sums by hand, and the structure of what is drawn."""

import csv

import numpy as np
import pytest

from tests.records import made_curve
from tokred.analysis.compare import band
from tokred.analysis.difference import MOST, _figure, against_first, along, draw_difference, save_difference
from tokred.analysis.look import looks, named


@pytest.fixture(scope="module")
def some():
    """tome, and two that are worse; on another backbone only the last two."""
    made = []
    for backbone, names in (("a", ("tome", "top_k", "random_drop")), ("b", ("top_k", "random_drop"))):
        made.append(made_curve("none", shares=(1.0,), accuracies=(0.85,), backbone=backbone))
        made += [
            made_curve(name, accuracies=np.array([0.7, 0.75, 0.8]) - 0.1 * place, seed=place, backbone=backbone)
            for place, name in enumerate(names)
        ]
    return made


def of(found, backbone, label):
    return [one for one in found if one.backbone == backbone and one.label == label]


def test_the_baseline_is_the_first_reduced_method_of_each_backbone(some):
    pairs = [(curve.backbone, curve.label, baseline.label) for curve, baseline in against_first(some)]
    assert pairs == [("a", "top_k", "tome"), ("a", "random_drop", "tome"), ("b", "random_drop", "top_k")]


def test_at_a_budget_that_was_run_the_line_is_the_difference_of_the_shares_right(some):
    line, first, second = of(along(some), "a", "top_k"), some[2].right_SKN[0], some[1].right_SKN[0]
    ends = [first[place].mean() - second[place].mean() for place in (0, -1)]
    assert [line[0].value, line[-1].value] == pytest.approx(ends)


def test_the_band_is_the_one_for_all_budgets_at_once(some):
    line, expected = of(along(some), "a", "top_k"), band(some[2], some[1])
    assert [(one.low, one.high) for one in line] == list(zip(expected.low_F, expected.high_F, strict=True))


def test_markers_stand_where_the_method_was_run(some):
    line = of(along(some), "a", "top_k")
    assert [one.budget for one in line if one.is_run] == pytest.approx([0.4, 0.6, 0.8], rel=0.02)


def test_only_budgets_that_both_reach_are_there():
    some = [made_curve("tome", shares=(0.4, 0.6, 0.8)), made_curve("top_k", shares=(0.5, 0.7, 0.9), seed=1)]
    line = along(some)
    assert (line[0].budget, line[-1].budget) == pytest.approx((0.5, 0.8))


def test_of_one_budget_within_half_a_percent_there_is_one_point():
    some = [made_curve("tome", shares=(0.5,)), made_curve("top_k", shares=(0.501,), seed=1)]
    assert len(along(some)) == 1


def test_methods_that_share_no_budget_have_no_line():
    assert along([made_curve("tome", shares=(0.4, 0.5)), made_curve("top_k", shares=(0.6, 0.7))]) == []


def test_one_method_alone_makes_no_figure(tmp_path):
    assert save_difference([made_curve("tome")], tmp_path) == [] and not list(tmp_path.iterdir())


def test_a_panel_has_a_line_at_zero_and_a_band_for_each_method(some):
    panel = [one for one in along(some) if one.backbone == "a"]
    ax = draw_difference(panel)
    assert list(ax.lines[0].get_ydata()) == [0, 0]
    assert len(ax.collections) == 2


def test_a_line_has_the_colour_and_the_marker_of_its_method(some):
    line = of(along(some), "a", "top_k")
    drawn = draw_difference(line).lines[-1]
    look = looks([("top_k", "")])["top_k", ""]
    assert (drawn.get_color(), drawn.get_marker()) == (look.colour, look.marker)


def test_the_curves_of_one_method_differ_in_their_style():
    shapes = [
        made_curve(f"tome {shape}", method="tome", shape=shape, seed=n) for n, shape in enumerate(("front", "stages"))
    ]
    ax = draw_difference(along([made_curve("top_k", seed=9), *shapes]))
    assert {line.get_linestyle() for line in ax.lines if line.get_marker() == "o"} == {"-", "--"}


def test_in_every_panel_a_line_has_the_style_that_the_legend_names():
    """Where the curves of a method begin in one panel and go on in the next."""
    made = [made_curve("top_k", seed=9)]
    for method in ("tome", "evit"):
        made += [made_curve(f"{method} {n}", method=method, shape=f"s{n}", seed=n) for n in range(MOST - 1)]
    given = looks(named(curve.method) for curve in made)
    figure = _figure(along(made), given)
    wanted = [(handle.get_color(), handle.get_linestyle()) for handle in figure.legends[0].legend_handles]
    panels = [ax for ax in figure.axes if ax.lines]
    markers = {look.marker for look in given.values()}
    lines = [line for ax in panels for line in ax.lines if line.get_marker() in markers]
    assert len(panels) == 2 and [(line.get_color(), line.get_linestyle()) for line in lines] == wanted


def test_axes_say_unit_and_direction(some):
    ax = draw_difference(along(some)[:33])
    assert "%" in ax.get_xlabel() and "points" in ax.get_ylabel() and "higher is better" in ax.get_ylabel()


def test_many_methods_are_drawn_a_few_in_a_panel(tmp_path):
    some = [made_curve(f"m{n}", seed=n, num_samples=60) for n in range(MOST + 3)]
    paths = save_difference(some, tmp_path)
    with open(paths[2], newline="") as file:
        assert len({line["label"] for line in csv.DictReader(file)}) == MOST + 2
    assert paths[1].read_text().count("<!-- minus m0 -->") == 2
