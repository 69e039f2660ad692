"""What keeps many points apart and many names clear, on axes and values made by hand."""

import io

import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure

from tokred.analysis.crowd import Name, draw_bands, floor, pale, side_by_side, write_names
from tokred.analysis.look import COLOURS


def axes():
    ax = Figure(figsize=(9, 4), dpi=100).subplots()
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    return ax


@pytest.mark.parametrize("colour", COLOURS)
def test_a_pale_colour_keeps_its_hue(colour):
    (hue, saturation, _), (pale_hue, pale_saturation, _) = (rgb_to_hsv(to_rgb(name)) for name in (colour, pale(colour)))
    assert pale_hue == pytest.approx(hue, abs=0.02)
    assert 0.2 * saturation < pale_saturation < saturation


def test_pale_colours_differ_from_one_another():
    assert len({pale(colour) for colour in COLOURS}) == len(COLOURS)


def test_values_that_lie_together_have_no_floor():
    assert floor([0.8, 0.85, 0.9, 0.95]) is None
    assert floor([]) is None


def test_the_floor_is_the_lowest_of_those_that_are_not_far_below():
    assert floor([0.95, 0.93, 0.9, 0.88, 0.85, 0.05]) == 0.85


def test_ten_points_below_the_median_are_not_far():
    assert floor([0.95, 0.95, 0.95, 0.86]) is None


def test_equal_costs_stand_side_by_side_around_their_place():
    shifts = side_by_side([1.0, 2.0, 1.0, 1.0], axes())
    assert shifts[1] == 0 and sum(shifts) == pytest.approx(0)
    assert shifts[0] < shifts[2] < shifts[3]


def test_costs_that_nearly_meet_stand_together_wherever_the_first_is():
    shifts = side_by_side([1.0, 0.993, 1.004, 0.986, 2.0], axes())
    assert len(set(shifts)) == 5 and shifts[4] == 0


def test_a_row_of_costs_is_no_single_crowd():
    assert max(map(abs, side_by_side([1 + 0.009 * n for n in range(30)], axes()))) < 10


def test_many_at_one_cost_leave_room_for_the_next_cost():
    ax = axes()
    shifts = side_by_side([0.4] * 60 + [0.6], ax)
    to_next = 72 * ax.bbox.width / 100 * 0.2 / (1.2 * 0.2)  # in points, from the first cost to the second
    assert 20 < shifts[59] - shifts[0] < 0.7 * to_next


def test_a_single_cost_in_between_takes_no_room_from_many():
    many = [0.4] * 12 + [0.6] * 12
    spread = [max(side_by_side(costs, axes())) for costs in (many, [*many, 0.41, 0.59])]
    assert spread[0] == pytest.approx(spread[1])


def test_a_band_is_drawn_behind_equal_costs_and_nowhere_else():
    ax, costs = axes(), [0.2, 0.2, 0.8]
    draw_bands(ax, costs, side_by_side(costs, ax))
    assert [line.get_xdata()[0] for line in ax.lines] == [0.2]


@pytest.mark.parametrize("side", [-1, 1])
def test_names_do_not_lie_on_one_another(side):
    ax = axes()
    write_names(ax, [Name(0.5 + 0.01 * n, 0.4 + 0.01 * n, f"method_{n}", "black") for n in range(6)], side=side)
    ax.figure.savefig(io.BytesIO())  # which lays out the texts
    extents = [text.get_bbox_patch().get_window_extent().padded(-2) for text in ax.texts]  # of the white behind it
    for number, one in enumerate(extents):
        assert not any(one.overlaps(other) for other in extents[:number])


@pytest.mark.parametrize(("x", "side"), [(0.0, -1), (1.0, 1)])
def test_a_name_at_the_edge_turns_to_the_other_side(x, side):
    ax = axes()
    write_names(ax, [Name(x, 0.5, "random_merge", "black")], side=side)
    (text,) = ax.texts
    assert text.get_ha() == ("left" if side < 0 else "right")


def test_a_line_leads_to_where_the_marker_stands():
    ax = axes()
    write_names(ax, [Name(0.5, 0.5, "tome", "black", shift=36)], side=-1)
    x, _ = ax.texts[0].xycoords.transform((0.5, 0.5))
    assert x - ax.transData.transform((0.5, 0.5))[0] == pytest.approx(36 / 72 * 100)
