"""Fronts and areas against slow searches, and draws of samples against their law."""

import numpy as np
import pytest

from tests.records import full_run, made_curve
from tokred.analysis import bootstrap
from tokred.analysis.bootstrap import bootstrap_means
from tokred.analysis.curves import Curve, curves
from tokred.analysis.front import DEPTH, accuracies_drawn, area, hypervolume, hypervolume_difference, members, on_front
from tokred.analysis.pareto import over_gmacs
from tokred.analysis.rows import rows

SAMPLES = np.arange(400)


def flat(label, shares, right_KN, **more):
    return Curve(label, np.array(shares), np.asarray(right_KN)[None], np.arange(len(right_KN[0])), **more)


def test_the_front_is_what_no_other_point_beats():
    draw = np.random.default_rng(0)
    cost_K, value_RK = draw.choice(np.linspace(0.2, 1, 6), 14), draw.integers(0, 8, (30, 14)) / 8
    found = on_front(cost_K, value_RK)
    for row, value_K in enumerate(value_RK):
        for k in range(14):
            beaten = any(
                cost_K[j] <= cost_K[k]
                and value_K[j] >= value_K[k]
                and (cost_K[j] < cost_K[k] or value_K[j] > value_K[k])
                for j in range(14)
            )
            assert found[row, k] == (not beaten)


def test_the_front_and_its_chances_are_those_of_the_figure(tmp_path):
    store = full_run(tmp_path).finish()
    points = over_gmacs(rows(store), accuracies_drawn(store, num_draws=50))
    shown = {(p.backbone, p.label, round(p.gmacs, 6)): p for p in points if p.method != "none"}
    for backbone in ("mini_cls", "mini_mean"):
        some = [curve for curve in curves(store) if curve.backbone == backbone]
        found = members(some, num_draws=50)
        assert len({one.probability for one in found}) > 2
        for one in found:
            if (point := shown.get((backbone, one.label, round(one.gmacs, 6)))) is not None:
                assert (point.on_front, point.front_probability) == (one.on_front, one.probability)


def test_a_chance_is_the_share_of_draws_in_which_a_point_is_on_the_front():
    """Of two points the dearer is on it where more samples are drawn that it alone has right than that the cheaper alone has."""
    cheap, dear = SAMPLES % 10 > 0, (SAMPLES % 10 > 0) ^ (SAMPLES < 12)
    found = members([flat("a", [0.5], [cheap]), flat("b", [0.8], [dear])], num_draws=4000)
    won, lost = int(np.sum(dear & ~cheap)), int(np.sum(cheap & ~dear))
    draws = np.random.default_rng(9).poisson((won, lost), (200_000, 2))
    assert found[0].probability == 1.0
    assert found[1].probability == pytest.approx(np.mean(draws[:, 0] > draws[:, 1]), abs=0.025)  # 3 standard errors


def test_of_equal_points_the_dearer_is_never_on_the_front():
    right_N = SAMPLES % 3 > 0
    found = members([flat("a", [0.5], [right_N]), flat("b", [0.8], [right_N])])
    assert [one.probability for one in found] == [1.0, 0.0]


def test_equal_points_of_several_seeds_tie_in_every_draw():
    """Thirds are no whole numbers: sums are compared, not means of them."""
    right_SKN = np.random.default_rng(0).random((3, 1, 400)) < 0.6
    some = [Curve(name, np.array([0.5]), right_SKN, SAMPLES) for name in "ab"]
    assert [one.probability for one in members(some)] == [1.0, 1.0]


def test_a_cheaper_model_that_is_as_good_over_its_seeds_takes_the_dearer_one_off_the_front():
    """Thirds of sums over other draws are the same numbers but for rounding."""
    right_N = np.random.default_rng(1).random(400) < 0.9
    cheap = Curve("a", np.array([0.8]), np.stack([right_N[None]] * 3), SAMPLES)
    assert [one.probability for one in members([cheap, flat("none", [1.0], [right_N])])] == [1.0, 0.0]


def test_a_point_far_ahead_is_surely_on_the_front():
    found = members([made_curve(accuracies=(0.6, 0.7, 0.9)), made_curve("evit", accuracies=(0.3, 0.4, 0.5))])
    assert [one.is_sure for one in found] == [True] * 3 + [False] * 3


def test_means_over_draws_spread_as_the_samples_say():
    values = np.random.default_rng(0).random((3, 500))
    found = bootstrap_means(values, num_draws=20_000)
    assert found.mean(axis=0) == pytest.approx(values.mean(axis=1), abs=4 * 0.013 / np.sqrt(20_000))
    assert np.cov(found.T) == pytest.approx(np.cov(values) / 500, rel=0.05, abs=2e-6)


def test_means_over_draws_of_videos_take_all_of_a_video_or_nothing():
    cluster_N = np.repeat(np.arange(100), 5)
    ease_N = np.repeat(np.random.default_rng(1).random(100), 5)
    found = bootstrap_means(ease_N[None], cluster_N=cluster_N, num_draws=20_000)
    assert found.std() == pytest.approx(ease_N.std() / np.sqrt(100), rel=0.05)


def test_how_many_weights_are_held_at_a_time_does_not_hang_on_the_samples(monkeypatch):
    held = []
    draw = np.random.default_rng(0)

    class Watched:
        def poisson(self, mean, shape):
            held.append(shape[0] * shape[1])
            return draw.poisson(mean, shape)

    monkeypatch.setattr(bootstrap.np.random, "default_rng", lambda seed: Watched())
    monkeypatch.setattr(bootstrap, "AT_ONCE", 10_000)
    bootstrap_means(np.ones((2, 3000)), num_draws=100)
    assert max(held) <= 10_000
    assert sum(held) == 3000 * 100


def test_the_same_seed_gives_the_same_bytes():
    values = np.random.default_rng(0).random((3, 50_000))
    assert (
        bootstrap_means(values, num_draws=100, seed=4).tobytes()
        == bootstrap_means(values, num_draws=100, seed=4).tobytes()
    )
    assert (
        bootstrap_means(values, num_draws=100, seed=4).tobytes()
        != bootstrap_means(values, num_draws=100, seed=5).tobytes()
    )


# Areas


def test_the_area_is_that_of_the_squares_of_a_fine_grid():
    draw = np.random.default_rng(3)
    for _ in range(5):
        cost_K, value_K = draw.integers(1, 120, 6) / 100, draw.integers(40, 100, 6) / 100
        corners = np.stack(np.meshgrid(np.arange(100) + 0.5, np.arange(50, 100) + 0.5), -1).reshape(-1, 2) / 100
        below = (corners[:, None, 0] > cost_K) & (corners[:, None, 1] < value_K)
        expected = below.any(axis=1).sum() / 100**2  # to the left of cost 1, above value 0.5
        assert area(cost_K, value_K[None], (1.0, 0.5)) == pytest.approx([expected])


def test_a_model_as_good_at_half_the_cost_has_half_the_area():
    right_N = SAMPLES % 5 > 0
    unreduced = flat("none", [1.0], [right_N])
    found = hypervolume(flat("tome", [0.5], [right_N]), unreduced)
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high


def test_what_is_further_below_the_unreduced_model_than_the_reference_has_no_area():
    unreduced = made_curve(shares=(1.0,), accuracies=(0.9,))
    assert hypervolume(made_curve(accuracies=(0.5, 0.6, 0.9 - DEPTH - 0.05)), unreduced).value == 0


def test_areas_of_unequally_many_points_are_not_compared():
    unreduced = made_curve(shares=(1.0,), accuracies=(0.9,))
    with pytest.raises(ValueError, match="tome and evit have 3 and 2"):
        hypervolume_difference(made_curve(), made_curve("evit", shares=(0.4, 0.8)), unreduced)


def test_the_difference_of_areas_is_drawn_on_the_same_samples():
    unreduced = made_curve(shares=(1.0,), accuracies=(0.8,))
    found = hypervolume_difference(made_curve(), made_curve("evit"), unreduced)  # the same but for the label
    assert (found.value, found.low, found.high) == (0, 0, 0)
