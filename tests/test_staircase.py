"""Staircases: what reaches and leaves each layer, and which methods share a line."""

from dataclasses import replace

import pytest

from tests.records import new_run
from tokred.analysis.staircase import Stair, draw_stairs, save_staircase, stairs


@pytest.fixture
def store(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    for share in (0.9, 0.8, 0.7, 0.6, 0.5):
        for method in ("tome", "evit"):
            run.add(method, share=share)
        for seed in range(2):
            run.add("random_drop", share=share, seed=seed)
    run.add("vid_tldr", share=0.5, status="failed", reason="out of luck")
    return run.finish()


def made(method, *tokens, drops_at=0.5, sd=None):
    reaching = [100, *tokens[:-1]]
    common = {"backbone": "b", "weights": "w", "data": "d", "setting": "r 1", "options": "", "gmacs_share": 0.5}
    return [
        Stair(
            **common,
            method=method,
            layer=layer,
            tokens_in=reaching[layer],
            tokens_out=num,
            drops_at=drops_at,
            tokens_sd=sd,
        )
        for layer, num in enumerate(tokens)
    ]


def curves(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_what_leaves_a_layer_reaches_the_next(store):
    own = [one for one in stairs(store) if one.method == "tome" and one.setting == "budget 0.5"]
    assert own[0].tokens_in == 256
    assert [one.tokens_in for one in own[1:]] == [one.tokens_out for one in own[:-1]]


def test_seeds_are_one_staircase_and_failed_cells_none(store):
    found = {(one.method, one.setting, one.layer) for one in stairs(store)}
    assert len(stairs(store)) == len(found) and "vid_tldr" not in {method for method, _, _ in found}


def test_methods_with_the_same_staircase_share_a_line():
    ax = draw_stairs([*made("tome", 60, 40), *made("evit", 61, 41), *made("sta", 90, 10)])
    assert set(curves(ax)) == {"tome, evit", "sta"}


@pytest.mark.parametrize("other", [{"drops_at": 0.0}, {"sd": 3.0}])
def test_another_place_in_the_layer_or_counts_that_differ_are_another_line(other):
    assert len(curves(draw_stairs([*made("tome", 60, 40), *made("evit", 60, 40, **other)]))) == 2


def test_the_step_is_where_in_the_layer_tokens_go():
    line = curves(draw_stairs(made("tome", 60, 40, drops_at=0.25)))["tome"]
    places = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert places == [(0, 100), (0.25, 100), (0.25, 60), (1, 60), (1, 60), (1.25, 60), (1.25, 40), (2, 40)]


def test_the_band_holds_a_standard_deviation():
    ax = draw_stairs(made("ats", 60, 40, sd=5.0))
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == 35


def test_of_five_settings_three_are_drawn_and_all_written(store, tmp_path):
    paths = save_staircase(store, tmp_path / "out")
    assert [path.name for path in paths] == ["staircase.png", "staircase.svg", "staircase.csv"]
    assert len(paths[2].read_text().splitlines()) == 1 + 5 * 3 * 6


def test_a_run_without_reduced_cells_makes_no_figure(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    assert save_staircase(run.finish(), tmp_path) == []


def test_a_long_name_breaks_no_figure():
    panel = [replace(one, options="a" * 90 + "$_{x}") for one in made("tome", 60, 40)]
    draw_stairs(panel).figure.canvas.draw()


def test_methods_whose_names_look_alike_are_two():
    ax = draw_stairs([*made("tome", 60, 40), *(replace(stair, row=1) for stair in made("tome", 90, 10))])
    assert {10, 40} <= {line.get_ydata()[-1] for line in ax.lines}
