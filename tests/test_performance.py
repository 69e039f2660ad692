"""Profiles over backbones against counts by hand, and the structure of what is drawn."""

import numpy as np
import pytest

from tests.records import made_curve
from tokred.analysis.performance import draw_profile, profiles, save_profile

LOSS = {"tome": [0.00, 0.02, 0.05, 0.10, 0.15], "top_k": [0.2, 0.2, 0.2, 0.2, 0.2]}


def backbone(number, methods=tuple(LOSS)):
    none = made_curve("none", shares=(1.0,), accuracies=(0.9,), backbone=f"b{number}")
    reduced = [
        made_curve(name, accuracies=np.full(3, 0.9 - LOSS[name][number]), seed=number + 7, backbone=f"b{number}")
        for name in methods
    ]
    return [none, *reduced]


@pytest.fixture(scope="module")
def some():
    return [curve for number in range(5) for curve in backbone(number)]


def score(some, number, label):
    """The window's mean, by the trapezoid rule in ln MACs over the three that were run."""
    none, curve = (next(c for c in some if (c.backbone, c.label) == (f"b{number}", name)) for name in ("none", label))
    lost_K = curve.right_SKN.mean(axis=(0, 2)) - none.right_SKN.mean()
    x_K = np.log(curve.share_K)
    return np.trapezoid(lost_K, x_K) / (x_K[-1] - x_K[0])


def test_a_step_is_the_share_of_backbones_that_lose_no_more(some):
    steps = profiles(some)
    for label in LOSS:
        scores = np.array([score(some, number, label) for number in range(5)])
        for step in (step for step in steps if step.label == label):
            assert step.share == np.mean(scores >= step.difference - 1e-9)


def test_every_line_begins_at_the_lowest_difference_of_all(some):
    steps = profiles(some)
    starts = {label: min(step.difference for step in steps if step.label == label) for label in LOSS}
    assert starts["tome"] == starts["top_k"]
    assert {step.share for step in steps if step.difference == starts["tome"]} == {1.0}


def test_the_interval_holds_the_share(some):
    assert all(step.low <= step.share <= step.high for step in profiles(some))


def test_of_four_backbones_there_is_no_profile(some):
    assert profiles([curve for curve in some if curve.backbone != "b0"]) == []


def test_a_method_that_one_backbone_has_not_is_left_out(some):
    without = [curve for curve in some if curve.backbone != "b4"] + backbone(4, ("tome",))
    assert {step.label for step in profiles(without)} == {"tome"}


def test_a_panel_has_a_step_line_and_a_band_for_each_method(some):
    ax = draw_profile(profiles(some))
    assert [line.get_drawstyle() for line in ax.lines] == ["steps-pre"] * 2
    assert len(ax.collections) == 2
    assert "5 backbones" in ax.get_ylabel() and "points" in ax.get_xlabel()


def test_files_are_written(some, tmp_path):
    assert [path.name for path in save_profile(some, tmp_path)] == [f"performance.{k}" for k in ("png", "svg", "csv")]
