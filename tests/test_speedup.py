"""Measured and promised speed-ups against the records, and the structure of what is drawn."""

import pytest

from tests.records import full_run, new_run
from tests.test_heatmap import words_of
from tokred.analysis.speeds import speeds
from tokred.analysis.speedup import draw_speed, predicted, save_speed


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return predicted(speeds(full_run(tmp_path_factory.mktemp("run")).finish()))


def test_the_promised_speed_up_is_the_ratio_of_the_macs(found):
    for one in found:
        assert one.speedup_by_macs == pytest.approx(1 / one.budget)


def test_seeds_of_a_configuration_are_one_point(found):
    assert len([one for one in found if one.method == "random_drop"]) == 2 * 4  # backbones, budgets


def test_the_unreduced_model_is_no_point(found):
    assert all(one.method != "none" for one in found)


def test_a_panel_has_the_line_of_equals_and_bars_of_the_measured(found):
    panel = [one for one in found if one.backbone == "mini_cls"]
    ax = draw_speed(panel)
    assert list(ax.lines[0].get_xdata()) == list(ax.lines[0].get_ydata())
    assert ax.get_xlim() == ax.get_ylim()
    assert len(ax.collections) == len(panel)
    low, high = ax.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((panel[0].speedup_low, panel[0].speedup_high))


def test_what_is_below_resolution_is_a_band_around_one(found):
    (band,) = draw_speed([one for one in found if one.backbone == "mini_cls"]).patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.99, 1.01))


def test_modes_and_batch_sizes_have_panels_of_their_own(tmp_path):
    run = new_run(tmp_path / "run")
    run.add("none")
    key = run.add("tome", share=0.5)
    for mode, batch_size in (("eager", 1), ("eager", 8), ("compiled", 8)):
        run.time({key: 1.5}, mode=mode, batch_size=batch_size)
    words = words_of(save_speed(speeds(run.finish()), tmp_path)[1])
    for said in ("eager, batch 1, 30 rounds", "eager, batch 8, 30 rounds", "compiled, batch 8, 30 rounds"):
        assert said in words


def test_without_a_timing_there_is_no_figure(tmp_path):
    assert save_speed([], tmp_path) == []
