"""The squares of the heat-map against rows made by hand, and the structure of what is drawn."""

import csv
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.patches import Rectangle

from tests.records import new_run
from tokred.analysis.heatmap import UNDETECTED, draw_squares, save_heatmaps, squares
from tokred.analysis.rows import rows

SHAPES = ("constant", "decreasing", "front")


def budget(share, *, shape="constant", layers=None):
    return {"kind": "budget", "amount": share, "shape": shape, "layers": layers}


def add(run, method, share, accuracy=0.9, *, status="done", reason=None, backbone="mini_cls", **where):
    schedule = budget(share, **where)
    run.add(
        method,
        share=share,
        accuracy=accuracy,
        schedule=schedule,
        status=status,
        reason=reason,
        backbone=backbone,
    )


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Two methods, three shapes, two budgets. tome at 0.5 loses nothing, some or much; evit cannot be run in front."""
    run = new_run(tmp_path_factory.mktemp("run"))
    run.add("none", accuracy=0.9)
    for share in (0.8, 0.5):
        for shape, accuracy in zip(SHAPES, (0.9, 0.8, 0.3), strict=True):
            add(run, "tome", share, accuracy, shape=shape)
            refused = {"status": "refused", "reason": "evit cannot spend 0.5 here"} if shape == "front" else {}
            add(run, "evit", share, shape=shape, **refused)
    return rows(run.finish())


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    run = new_run(tmp_path_factory.mktemp("run"))
    for backbone in ("mini_cls", "timm/vit"):
        run.add("none", accuracy=0.9, backbone=backbone)
        for where in ([3], [0, 1, 2, 5]):
            add(run, "tome", 0.8, 0.85, layers=where, backbone=backbone)
    return rows(run.finish())


def of(found, method):
    return [square for square in found if square.method == method]


def faces(ax):
    return [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_fill()]


def texts(ax):
    return [text.get_text() for text in ax.texts]


# Squares


def test_every_method_has_a_square_for_each_amount_and_place(shapes):
    expected = [(f"budget {share}", shape) for share in (0.8, 0.5) for shape in SHAPES]
    for method in ("tome", "evit"):
        assert [(square.amount, square.where) for square in of(squares(shapes), method)] == expected


def test_squares_are_judged_together_by_benjamini_and_hochberg(shapes):
    """The largest p that is at most its rank / m of 5 %, and all below it."""
    judged = [square for square in squares(shapes) if square.p is not None]
    order = sorted(square.p for square in judged)
    cut = max((p for rank, p in enumerate(order, start=1) if p <= 0.05 * rank / len(order)), default=-1.0)
    assert [square.detected for square in judged] == [square.p <= cut for square in judged]
    assert {square.num_judged for square in judged} == {len(judged)} == {10}
    assert [square.detected for square in of(squares(shapes), "tome")] == [False, True, True] * 2


def test_a_p_is_below_5_percent_where_the_interval_leaves_out_zero(shapes):
    for square in (square for square in squares(shapes) if square.p is not None):
        assert (square.p < 0.05) == (square.difference_high < 0 or square.difference_low > 0)


def test_what_can_be_detected_is_of_the_order_of_the_formula(shapes):
    """2.8 sqrt(d / N), d the share of discordant samples (Miller 2024), where the difference itself is small beside d."""
    (square, *_) = of(squares(shapes), "tome")
    num = square.num_samples
    spread = (square.difference_high - square.difference_low) / 2 / 1.96 * (num + 2)  # Agresti and Min's standard error
    discordant = (spread**2 + (square.difference * num) ** 2 / (num + 2) - 1) / num
    assert square.smallest == pytest.approx(2.8 * np.sqrt(discordant / num), rel=0.1)


def test_a_refused_cell_is_a_square_with_its_reason(shapes):
    refused = [square for square in squares(shapes) if square.status == "refused"]
    assert [(square.where, square.reason, square.mark) for square in refused] == [
        ("front", "evit cannot spend 0.5 here", "x")
    ] * 2


def test_the_unreduced_model_has_no_square(shapes):
    assert of(squares(shapes), "none") == []


def test_where_only_one_shape_was_run_there_is_no_square(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    for share in (0.8, 0.5):
        add(run, "tome", share)
    assert squares(rows(run.finish())) == []


def test_an_unreduced_model_is_no_shape_of_its_own(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    add(run, "tome", 0.8)
    assert squares(rows(run.finish())) == []


def test_layers_are_written_as_runs_and_leave_the_amount(layers):
    assert [(square.where, square.amount) for square in squares(layers)] == [
        ("3", "budget 0.8"),
        ("0-2,5", "budget 0.8"),
    ] * 2


def test_where_both_differ_a_place_is_layers_and_shape(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    for where in ([3], [4, 5]):
        for shape in ("constant", "decreasing"):
            add(run, "tome", 0.8, layers=where, shape=shape)
    places = [square.where for square in squares(rows(run.finish()))]
    assert places == ["3 constant", "3 decreasing", "4,5 constant", "4,5 decreasing"]


def test_what_was_asked_of_another_method_only_is_a_marked_square(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    for shape in ("constant", "front"):
        add(run, "tome", 0.8, shape=shape)
    add(run, "evit", 0.8, shape="front")
    found = {square.where: (square.status, square.mark) for square in of(squares(rows(run.finish())), "evit")}
    assert found == {"front": ("done", ""), "constant": ("not asked", "-")}


def test_seeds_that_failed_do_not_hide_those_that_did_not(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    for seed, status in enumerate(("done", "failed", "done")):
        run.add("random_drop", share=0.8, schedule=budget(0.8), seed=seed, status=status, reason="memory")
    run.add("random_drop", share=0.8, schedule=budget(0.8, shape="front"), seed=0)
    assert [square.status for square in squares(rows(run.finish()))] == ["done", "done"]


def test_backbones_without_a_choice_are_left_out(tmp_path):
    run = new_run(tmp_path)
    for backbone in ("mini_cls", "mini_mean"):
        run.add("none", backbone=backbone)
        add(run, "tome", 0.8, backbone=backbone)
    add(run, "tome", 0.8, shape="front")
    assert {square.backbone for square in squares(rows(run.finish()))} == {"mini_cls"}


# What is drawn


def test_a_square_holds_its_difference_in_points(shapes):
    panel = of(squares(shapes), "tome")
    assert texts(draw_squares(panel)) == [f"{100 * square.difference + 0.0:+.1f}" for square in panel]


def test_what_is_not_detected_is_grey_and_hatched(shapes):
    panel = of(squares(shapes), "tome")
    for square, face in zip(panel, faces(draw_squares(panel)), strict=True):
        assert same_color(face.get_facecolor(), UNDETECTED) == (not square.detected) == bool(face.get_hatch())


def test_a_refused_square_is_empty_and_marked(shapes):
    panel = of(squares(shapes), "evit")
    ax = draw_squares(panel)
    empty = [face for square, face in zip(panel, faces(ax), strict=True) if square.status == "refused"]
    assert all(same_color(face.get_facecolor(), "white") and not face.get_hatch() for face in empty)
    assert [text for text in texts(ax) if text == "x"] == ["x"] * len(empty) != []


def test_losses_are_red_gains_are_blue_and_of_equal_depth(tmp_path):
    run = new_run(tmp_path)
    run.add("none", accuracy=0.5)
    for shape, accuracy in (("constant", 0.2), ("front", 0.8)):
        add(run, "tome", 0.8, accuracy, shape=shape)
    lost, gained = (face.get_facecolor() for face in faces(draw_squares(squares(rows(run.finish())))))
    assert lost[0] > lost[2] + 0.2 and gained[2] > gained[0] + 0.2


def test_panels_share_their_colours_where_they_are_told_to(shapes):
    panel = of(squares(shapes), "tome")
    alone, shared = (faces(draw_squares(panel, largest=largest))[1].get_facecolor() for largest in (None, 1.0))
    assert sum(alone[:3]) < sum(shared[:3])  # the same difference is paler on a wider scale


def test_numbers_stand_out_from_their_squares(shapes):
    ax = draw_squares(of(squares(shapes), "tome"))
    for face, text in zip(faces(ax), ax.texts, strict=True):
        luminance = np.dot(face.get_facecolor()[:3], (0.2126, 0.7152, 0.0722))
        ink = np.dot(matplotlib.colors.to_rgb(text.get_color()), (0.2126, 0.7152, 0.0722))
        assert abs(luminance - ink) > 0.4


def test_budgets_are_in_percent_with_the_largest_on_top(shapes):
    ax = draw_squares(of(squares(shapes), "tome"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["80", "50"]
    assert ax.yaxis_inverted() and [label.get_text() for label in ax.get_xticklabels()] == list(SHAPES)


def test_a_panel_says_what_can_be_detected_in_it(shapes):
    panel = of(squares(shapes), "tome")
    ends = sorted(100 * square.smallest for square in panel)
    assert draw_squares(panel).get_title() == f"tome\n80 % power: {ends[0]:.1f} to {ends[-1]:.1f}"


def test_an_axes_that_is_given_is_drawn_on(shapes):
    ax = matplotlib.figure.Figure().subplots()
    assert draw_squares(of(squares(shapes), "tome"), ax) is ax


def test_no_squares_make_an_empty_panel():
    assert not texts(draw_squares([]))


# Files


def test_each_backbone_has_its_figure_and_the_squares_that_were_drawn(layers, tmp_path):
    paths = save_heatmaps(layers, tmp_path / "figures")
    assert [path.name for path in paths] == [
        f"heatmap-{backbone}.{kind}" for backbone in ("mini_cls", "timm-vit") for kind in ("png", "svg", "csv")
    ]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    with open(paths[2], newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["where"], line["detected"]) for line in lines] == [("3", "True"), ("0-2,5", "True")]


def test_the_reason_of_a_refusal_is_in_the_csv(shapes, tmp_path):
    (path,) = [path for path in save_heatmaps(shapes, tmp_path) if path.suffix == ".csv"]
    with open(path, newline="") as file:
        assert {line["reason"] for line in csv.DictReader(file)} == {"", "evit cannot spend 0.5 here"}


def words_of(path):
    """A text in an SVG stands in a comment above its shapes."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return [
        element.text.strip() for element in ElementTree.parse(path, parser).iter() if element.tag is ElementTree.Comment
    ]


def test_labels_say_unit_and_direction_and_the_key_what_squares_mean(shapes, tmp_path):
    words = " ".join(words_of(save_heatmaps(shapes, tmp_path)[1]))
    for text in (
        "points (higher is better)",
        "budget, % of the unreduced MACs",
        "shape of the schedule",
        "hatched: not told from zero",
        "exploratory: of the 10 squares, those told from zero are expected to be false in 5 % (Benjamini-Hochberg)",
        "80 % power: a true difference of so many points is found in 4 of 5 draws of n = 400 samples",
        "x   refused, for the reason in the csv",
    ):
        assert text in words, text


def test_of_layers_the_axis_says_where_they_are_counted_from(layers, tmp_path):
    assert "layers that reduce, from 0" in " ".join(words_of(save_heatmaps(layers, tmp_path)[1]))


def test_nothing_is_written_where_nothing_differs(tmp_path):
    assert save_heatmaps([], tmp_path / "figures") == [] and not (tmp_path / "figures").exists()


def test_a_figure_is_the_same_file_from_run_to_run(shapes, tmp_path):
    one, other = save_heatmaps(shapes, tmp_path / "one"), save_heatmaps(shapes, tmp_path / "other")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_two_sets_of_weights_of_a_backbone_make_two_figures(tmp_path):
    run = new_run(tmp_path / "run")
    for data in ({"name": "one"}, {"name": "two"}):
        run.add("none", data=data)
        for shape in ("constant", "front"):
            run.add("tome", share=0.8, schedule=budget(0.8, shape=shape), data=data)
    names = {path.stem for path in save_heatmaps(rows(run.finish()), tmp_path)}
    assert names == {"heatmap-mini_cls", "heatmap-mini_cls--2"}
