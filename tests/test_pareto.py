"""The points of the Pareto figures against a slow search, and the structure of what is drawn."""

import io
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import same_color
from matplotlib.lines import Line2D

from tests.records import full_run, new_run
from tokred.analysis.crowd import pale
from tokred.analysis.look import COLOURS, MARKERS, UNREDUCED, WELL_KNOWN, Look, looks, printable
from tokred.analysis.pareto import draw_gmacs, draw_speedup, over_gmacs, over_speedup, save_pareto
from tokred.analysis.rows import Row, rows
from tokred.registry import METHODS

NASTY = ["$\\foo$", "$", "_hidden", "a" * 200, "<b>&\x00\n", "名前", "^_{x}"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return rows(full_run(tmp_path_factory.mktemp("run")).finish())


def made_row(method="tome", *, value=0.8, gmacs=1.0, speedup=None, options="", **more):
    named = {"backbone": "b", "weights": "w", "data": "d", "schedule": "r 1", "shape": "", "status": "done"}
    return Row(
        method=method, options=options, value=value, gmacs=gmacs, speedup=speedup, metric="accuracy", **named | more
    )


def of_one_backbone(points):
    return [point for point in points if point.backbone == "mini_cls"]


def markers(ax):
    return [line for line in ax.lines if line.get_marker() not in ("", "None", None) and len(line.get_xdata()) == 1]


@pytest.mark.parametrize(("points", "cost"), [(over_gmacs, "gmacs"), (over_speedup, "speedup")])
def test_the_front_is_what_no_other_cell_beats(full, points, cost):
    for point in points(full):
        beaten = False
        for other in full:
            if other.group != point.group or other.value is None or getattr(other, cost) is None:
                continue
            mine, theirs = (getattr(one, cost) ** (1 if cost == "gmacs" else -1) for one in (point, other))
            cheaper, near = mine - theirs, 0.005 if cost == "gmacs" else max(0.005, point.resolution)
            cheaper = 0 if abs(cheaper) <= near * mine else cheaper
            better = other.value - point.value
            beaten |= cheaper >= 0 and better >= 0 and (cheaper > 0 or better > 0)
        assert point.on_front == (not beaten)


def test_of_equal_accuracies_the_cheaper_is_on_the_front():
    points = over_gmacs([made_row(gmacs=2.0), made_row(gmacs=1.0)])
    assert [point.on_front for point in points] == [False, True]


def test_equal_cells_are_both_on_the_front():
    assert all(point.on_front for point in over_gmacs([made_row(), made_row("evit")]))


def test_a_cost_that_is_lower_by_less_than_budgets_are_met_with_puts_no_worse_cell_on_the_front():
    points = over_gmacs([made_row(gmacs=1.0, value=0.9), made_row("evit", gmacs=0.998, value=0.8)])
    assert [point.on_front for point in points] == [True, False]


def test_backbones_do_not_dominate_each_other():
    assert all(point.on_front for point in over_gmacs([made_row(value=0.9), made_row(backbone="c")]))


def test_failed_and_untimed_cells_have_no_point(full):
    assert {point.status for point in over_gmacs(full)} == {"done"}
    assert over_speedup([made_row()]) == []


@pytest.mark.parametrize(("points", "draw"), [(over_gmacs, draw_gmacs), (over_speedup, draw_speedup)])
def test_every_point_and_its_interval_is_in_view(full, points, draw):
    ax = draw(of_one_backbone(points(full)))
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for point in of_one_backbone(points(full)):
        cost = point.gmacs if draw is draw_gmacs else point.speedup
        assert left < cost < right and bottom < point.low < point.high < top


@pytest.mark.parametrize(("points", "draw"), [(over_gmacs, draw_gmacs), (over_speedup, draw_speedup)])
def test_the_unreduced_model_is_a_labelled_black_cross(full, points, draw):
    ax = draw(of_one_backbone(points(full)))
    (cross,) = [line for line in markers(ax) if line.get_marker() == "x"]
    assert same_color(cross.get_color(), "black")
    legend = ax.figure.legends[0].get_texts()
    assert "unreduced" in [text.get_text() for text in [*ax.texts, *legend]]


def test_only_those_surely_on_the_front_are_filled():
    """Of 100 draws the dearer cell is the more accurate in 95, and in 94."""
    cheap, dear = made_row(gmacs=1.0, value=0.8), made_row("evit", gmacs=2.0, value=0.9)
    for wins in (95, 94):
        drawn = {cheap: np.full(100, 0.8), dear: np.where(np.arange(100) < wins, 0.9, 0.7)}
        points = over_gmacs([cheap, dear], drawn)
        assert [point.front_probability for point in points] == [1.0, wins / 100]
        hollow = [same_color(line.get_markerfacecolor(), "white") for line in markers(draw_gmacs(points))]
        assert hollow == [False, wins < 95]


def test_without_draws_no_place_on_the_front_is_sure():
    points = over_gmacs([made_row(), made_row("evit", gmacs=2.0, value=0.9)], {made_row(): np.ones(3)})
    assert [(point.on_front, point.front_probability, point.is_sure) for point in points] == [(True, None, False)] * 2


def test_the_front_is_a_step_line_from_the_cheapest_to_the_dearest(full):
    points = of_one_backbone(over_gmacs(full))
    (front,) = [line for line in draw_gmacs(points).lines if line.get_drawstyle() == "steps-post"]
    x, y = map(list, front.get_data())
    assert x == sorted(x) and y == sorted(y)
    assert x[0] == min(point.gmacs for point in points if point.on_front)
    assert x[-1] == max(point.gmacs for point in points)


def test_the_front_over_speed_falls(full):
    points = of_one_backbone(over_speedup(full))
    (front,) = [line for line in draw_speedup(points).lines if line.get_drawstyle() == "steps-pre"]
    x, y = map(list, front.get_data())
    assert x == sorted(x) and y == sorted(y, reverse=True)


def test_axes_say_unit_and_direction(full):
    over_macs, over_speed = (draw(of_one_backbone(points(full))) for draw, points in PANELS)
    assert "GMACs per sample (lower is better)" in over_macs.get_xlabel()
    assert over_speed.get_xlabel() == "measured speed-up (higher is better)"
    assert over_macs.get_ylabel() == over_speed.get_ylabel() == "accuracy, % (higher is better)"


PANELS = [(draw_gmacs, over_gmacs), (draw_speedup, over_speedup)]


def test_a_noisy_timing_is_said_in_the_figure(full):
    points = [point for point in over_speedup(full) if point.backbone == "mini_mean"]
    assert "noisy: differences under 8.0 % are below resolution" in draw_speedup(points).get_xlabel()


def test_an_axes_that_is_given_is_drawn_on(full):
    ax = matplotlib.figure.Figure().subplots()
    assert draw_gmacs(of_one_backbone(over_gmacs(full)), ax) is ax


@pytest.mark.parametrize(("draw", "points"), PANELS)
def test_no_points_make_an_empty_panel(draw, points):
    assert not markers(draw(points([])))


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_an_accuracy_at_the_end_of_its_range_is_drawn(tmp_path, accuracy):
    run = new_run(tmp_path)
    run.add("none", accuracy=1.0)
    run.add("tome", share=0.5, accuracy=accuracy, num_samples=3)
    assert len(markers(draw_gmacs(over_gmacs(rows(run.finish()))))) == 2


def test_equal_costs_are_drawn_apart():
    ax = draw_gmacs(over_gmacs([made_row("tome", value=0.80), made_row("evit", value=0.81)]))
    ax.figure.canvas.draw()
    one, other = (line.get_transform().transform(line.get_xydata())[0] for line in markers(ax))
    assert abs(one[0] - other[0]) > 5
    assert "side by side" in ax.get_xlabel()


def test_many_cells_of_one_cost_stay_inside_the_panel():
    table = [made_row(value=0.7 + 0.002 * n, gmacs=gmacs, schedule=f"r {n}") for n in range(40) for gmacs in (1.0, 1.3)]
    ax = draw_gmacs(over_gmacs([*table, made_row("none", gmacs=2.0)]))
    ax.figure.savefig(io.BytesIO())  # which lays out the axes
    places = [line.get_transform().transform(line.get_xydata())[0, 0] for line in markers(ax)]
    assert ax.bbox.x0 < min(places) and max(places) < ax.bbox.x1


def test_figures_are_saved_with_the_points_that_were_drawn(full, tmp_path):
    paths = save_pareto(full, tmp_path / "figures")
    names = [f"pareto_{cost}.{kind}" for cost in ("gmacs", "speedup") for kind in ("png", "svg", "csv")]
    assert [path.name for path in paths] == names == sorted(names, key=names.index)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(paths[1])
    assert len(paths[2].read_text().splitlines()) == 1 + len(over_gmacs(full))


def test_a_figure_is_the_same_file_from_run_to_run(full, tmp_path):
    one, other = save_pareto(full[:6], tmp_path / "one"), save_pareto(full[:6], tmp_path / "other")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_without_a_timing_there_is_no_speed_figure(tmp_path):
    run = new_run(tmp_path / "run")
    run.add("none")
    run.add("tome", share=0.5)
    paths = save_pareto(rows(run.finish()), tmp_path)
    assert [path.name for path in paths] == ["pareto_gmacs.png", "pareto_gmacs.svg", "pareto_gmacs.csv"]


def test_with_nothing_but_failures_no_figure_is_written(tmp_path):
    run = new_run(tmp_path / "run")
    run.add("none")
    run.add("tome", status="failed", reason="x", share=0.5)
    assert save_pareto(rows(run.finish()), tmp_path / "figures") == []


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no CJK; the figure is made all the same
def test_nasty_names_are_drawn_and_stand_in_the_legend(tmp_path):
    table = [made_row("none", gmacs=2.0)] + [made_row(name, backbone=f"b{name}") for name in NASTY]
    paths = save_pareto(table, tmp_path)
    ElementTree.parse(paths[1])
    for name in NASTY:
        label = draw_gmacs(over_gmacs([made_row(name)])).figure.legends[0].get_texts()[0].get_text()
        assert label == printable(name) and not label.startswith("_") and len(label) <= 45


def test_nothing_is_left_on_pyplot(full):
    draw_gmacs(of_one_backbone(over_gmacs(full))).figure.savefig(io.BytesIO())
    assert not Gcf.figs


def test_settings_of_matplotlib_are_put_back(full, tmp_path):
    before = dict(matplotlib.rcParams)
    save_pareto(full[:6], tmp_path)
    assert dict(matplotlib.rcParams) == before


# Many methods

MANY = [made_row("none", value=0.96, gmacs=2.0)] + [
    made_row(name, value=0.9 - 0.005 * number, low=0.88 - 0.005 * number, high=0.92 - 0.005 * number)
    for number, name in enumerate(WELL_KNOWN[:12])
]


def test_of_many_methods_those_on_the_front_are_named_where_they_stand():
    texts = [text.get_text() for text in draw_gmacs(over_gmacs(MANY)).texts]
    assert sorted(texts) == [WELL_KNOWN[0], "unreduced"]


def test_of_few_methods_the_legend_alone_names_them():
    assert [text.get_text() for text in draw_gmacs(over_gmacs(MANY[:8])).texts] == ["unreduced"]


def test_of_many_methods_those_off_the_front_are_pale_and_keep_their_marker():
    points = over_gmacs(MANY)
    given = looks([(point.method, point.options) for point in points])
    for point, line in zip(points, markers(draw_gmacs(points)), strict=True):
        look = given[point.method, point.options]
        assert line.get_marker() == look.marker
        full = point.on_front or point.method == "none"
        assert same_color(line.get_color(), look.colour if full else pale(look.colour))


def test_the_legend_shows_many_methods_as_the_panel_does():
    drawn = {row: np.array([row.value]) for row in MANY}
    ax = draw_gmacs(over_gmacs(MANY, drawn))
    (legend,) = ax.figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == WELL_KNOWN[0] and sorted(labels[1:12]) == sorted(WELL_KNOWN[1:12])
    hollow = [same_color(handle.get_markerfacecolor(), "white") for handle in legend.legend_handles[:12]]
    assert hollow == [False] + [True] * 11


def test_what_is_far_below_many_others_stands_on_the_edge_and_is_named_with_its_value():
    ax = draw_gmacs(over_gmacs([*MANY, made_row("tofu", value=0.042, low=0.03, high=0.05)]))
    assert ax.get_xlabel().endswith("on the lower edge, far below, in %: tofu 4")
    bottom, top = ax.get_ylim()
    assert bottom > 0.7 and all(bottom < line.get_ydata()[0] < top for line in markers(ax))


def test_of_few_methods_the_axis_reaches_down_to_the_lowest():
    ax = draw_gmacs(over_gmacs([*MANY[:5], made_row("tofu", value=0.042, low=0.03, high=0.05)]))
    assert ax.get_ylim()[0] < 0.03


def test_every_name_is_inside_a_figure_of_many_methods():
    many = [*MANY, *(made_row(name, value=0.7, gmacs=1.5) for name in WELL_KNOWN[12:])]
    ax = draw_gmacs(over_gmacs(many))
    figure = ax.figure
    figure.savefig(io.BytesIO())  # which lays out the texts
    (legend,) = figure.legends
    extents = [text.get_window_extent() for text in (*legend.get_texts(), *ax.texts)]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in extents)
    assert ax.bbox.height > 0.4 * figure.bbox.height, "the legend leaves room for the panel"


# Looks


def test_every_method_that_comes_with_tokred_has_a_look_of_its_own():
    own = [cls for cls in METHODS if cls.__module__.startswith("tokred.methods.") and "tuning" in vars(cls)]
    built_in = [cls.name for cls in own if cls.name != "none"]
    assert set(built_in) <= set(WELL_KNOWN), "add the new ones at the end of WELL_KNOWN in analysis/look.py"


def test_a_method_looks_the_same_whatever_stands_beside_it():
    alone = looks([("tome", "")])["tome", ""]
    assert looks([(name, "") for name in (*WELL_KNOWN, "mine", "none")])["tome", ""] == alone == Look("#0072B2", "o")


def test_the_first_methods_differ_in_colour_and_in_marker():
    given = looks([(name, "") for name in WELL_KNOWN[:6]]).values()
    assert len({look.colour for look in given}) == len({look.marker for look in given}) == 6


def test_no_two_methods_share_a_look():
    names = [(name, "") for name in WELL_KNOWN] + [(f"mine{i}", "a=1" * (i % 2)) for i in range(66 - len(WELL_KNOWN))]
    given = looks([*names, ("none", "")])
    assert len(set(given.values())) == len(names) + 1
    assert given["none", ""] == UNREDUCED


def test_more_methods_than_looks_are_still_drawn():
    assert len(looks([(f"mine{i}", "") for i in range(len(COLOURS) * len(MARKERS) + 5)])) == 71


def test_options_keep_the_methods_colour():
    given = looks([("tome", ""), ("tome", "proportional_attention=false"), ("vid_tldr", "")])
    plain, with_options = given["tome", ""], given["tome", "proportional_attention=false"]
    assert plain.colour == with_options.colour and plain.marker != with_options.marker


def test_every_marker_is_one_of_matplotlibs():
    assert all(marker in Line2D.markers for marker in (*MARKERS, UNREDUCED.marker))
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in COLOURS)
