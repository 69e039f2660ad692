"""Likeness of features beside accuracy: what is correlated, and when nothing is claimed."""

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from tests.traces import made, made_trace
from tokred.analysis.agreement import Pair
from tokred.analysis.cka import cosine, debiased_cka
from tokred.analysis.likeness import Likeness, below_one, correlations, draw_likeness, likenesses, save_likeness
from tokred.analysis.statistics import Estimate
from tokred.analysis.traces import over_samples

STATE = [[0, 0, 2, 3]] * 8
FEATURES = np.random.RandomState(0).randn(3, 8, 5)


def traced(feature_SC):
    return made_trace(STATE, feature_SC=feature_SC)


def like(method, cosine, value, *, setting="budget 0.5", **more):
    named = {
        "backbone": "b",
        "weights": "w",
        "data": "d",
        "options": "",
        "schedule": setting,
        "shape": "",
        "status": "done",
    }
    spread = {"cosine_low": cosine, "cosine_high": cosine}
    return Likeness(**named | spread | {"method": method, "value": value, "cosine": cosine, "setting": setting} | more)


def of(what, found, pairs=(), **named):
    return [
        one
        for one in correlations(found, pairs)
        if one.what == what and all(getattr(one, k) == v for k, v in named.items())
    ]


MANY = [
    like(f"m{place}", x, y) for place, (x, y) in enumerate([(0.9, 0.8), (0.7, 0.5), (0.8, 0.9), (0.6, 0.6), (0.5, 0.4)])
]


def test_features_are_compared_with_the_unreduced_models():
    none, own, _ = FEATURES
    (found,) = likenesses([made("none", traced(none), setting="unreduced"), made("tome", traced(own))])
    assert found.cosine == pytest.approx(cosine(own, none).mean())
    assert found.cka == pytest.approx(debiased_cka(own, none))


def test_of_several_seeds_it_is_the_mean():
    none, *seeds = FEATURES
    (found,) = likenesses([made("none", traced(none)), made("random_drop", *map(traced, seeds))])
    assert found.cosine == pytest.approx(np.mean([cosine(seed, none) for seed in seeds]))
    assert found.cka == pytest.approx(np.mean([debiased_cka(seed, none) for seed in seeds]))


def test_without_the_unreduced_model_there_is_nothing_to_be_like():
    assert likenesses([made("tome", traced(FEATURES[0]))]) == []


def test_correlations_are_spearmans_and_kendalls():
    (found,) = of("cosine", MANY)
    x, y = [one.cosine for one in MANY], [one.value for one in MANY]
    assert found.num_rows == 5
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic)
    assert (found.kendall, found.p) == pytest.approx(tuple(kendalltau(x, y)))


def test_of_four_rows_nothing_is_claimed():
    (found,) = of("cosine", MANY[:4])
    assert (found.spearman, found.kendall, found.p) == (None, None, None)
    assert found.note == "too few: 4 rows, 5 are the least"


def test_settings_mixed_have_no_p():
    other = [like(one.method, one.cosine, one.value, setting="budget 0.3") for one in MANY]
    (found,) = of("cosine", [*MANY, *other], setting="all settings")
    assert found.num_rows == 10 and found.spearman is not None and found.p is None
    assert found.note.startswith("no p")


def test_several_rows_of_one_method_have_no_p():
    (found,) = of("cosine", [*MANY, like("m0", 0.3, 0.3, options="a=1")])
    assert found.spearman is not None and found.p is None and "one method" in found.note


def test_where_all_are_the_same_there_is_no_order():
    (found,) = of("cosine", [like(f"m{place}", 0.9, 0.1 * place) for place in range(5)])
    assert found.spearman is None and "no order" in found.note


def test_agreement_with_an_anchor_is_correlated_over_the_others():
    some = [*MANY, like("m5", 0.4, 0.7)]
    rands = [0.1, 0.5, 0.2, 0.4, 0.3]
    others = [
        Pair("b", "w", "d", "budget 0.5", "m5", one.method, 8, rand=rand) for one, rand in zip(MANY, rands, strict=True)
    ]
    (found,) = of("rand", some, others, anchor="m5")
    assert found.num_rows == 5
    assert found.spearman == pytest.approx(spearmanr(rands, [one.value for one in MANY]).statistic)


def test_pairs_of_another_setting_do_not_count():
    others = [Pair("b", "w", "d", "budget 0.3", "m0", one.method, 8, rand=0.1) for one in MANY[1:]]
    assert {one.num_rows for one in of("rand", MANY, others)} == {0}


def test_the_panel_shows_every_row_that_has_both_numbers():
    ax = draw_likeness([*MANY, like("m9", None, 0.5)])
    assert len(ax.containers) == len(MANY)


def test_a_row_that_is_the_same_as_the_unreduced_one_has_a_place():
    ax = draw_likeness([like("tome", 1.0, 0.9), like("evit", 0.9, 0.8)])
    places = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() not in ("None", "|")]
    assert min(places) > 0


def test_files_are_the_figure_and_the_correlations(tmp_path):
    paths = save_likeness(MANY, [], tmp_path)
    assert [path.name for path in paths] == ["likeness.png", "likeness.svg", "likeness.csv", "correlations.csv"]
    assert save_likeness([], [], tmp_path) == []


@pytest.mark.parametrize("half", [0.001, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("value", [-0.4, 0.3, 0.9, 0.9999999])
def test_an_interval_near_one_holds_its_value_and_ends_where_likeness_does(value, half):
    found = below_one(Estimate(value, value - half, value + half))
    assert found.low <= value <= found.high <= 1
    assert found.low >= min(-1.0, value - half)


def test_on_its_scale_an_interval_holds_the_mean_of_skewed_distances_more_often():
    """Of 32 lognormal distances: 91 % of 5,000 draws against 88 % for one of equal arms; 95 % it is not, as the caption says."""
    apart_RS = np.random.default_rng(0).lognormal(0.0, 1.0, (5000, 32)) / 1000
    truth, holds = 1 - np.exp(0.5) / 1000, {"own": 0, "equal": 0}
    for apart_S in apart_RS:
        equal = over_samples(1 - apart_S)
        own = below_one(equal)
        holds["own"] += own.low <= truth <= own.high
        holds["equal"] += equal.low <= truth <= equal.high
    assert holds["own"] / 5000 == pytest.approx(0.91, abs=0.015)  # 3.5 standard errors
    assert holds["equal"] / 5000 == pytest.approx(0.88, abs=0.016)
