"""What varies: against the textbook's sums of squares, loops over orders, and made-up truths; and the figure."""

import csv
from itertools import permutations

import numpy as np
import pytest

from tests.records import full_run, made_curve
from tokred.analysis.curves import Curve, curves
from tokred.analysis.variance import decompose, draw_variance, save_variance

NUM = 4000
METHODS, SHAPES = (0.0, 0.04, 0.08), (0.0, 0.02)


QUICK = {"num_draws": 50}  # where intervals do not matter


def curve(loss, *, method="m0", shape="s0", backbone="b", seed=0, num_seeds=1, own=0.0):
    """All cells are right on the easiest samples, so that the noise of the samples is small."""
    draw, ease_N = np.random.default_rng(seed), (np.arange(NUM) + 0.5) / NUM
    right_SKN = ease_N + own * draw.standard_normal((num_seeds, 1, NUM)) < 0.9 - np.reshape(loss, (-1, 1, 1))
    label = f"{method} {shape} {backbone}"
    return Curve(label, np.array([0.5]), right_SKN, np.arange(NUM), method=method, shape=shape, backbone=backbone)


def unreduced(backbone="b"):
    right_N = np.arange(NUM) < 0.9 * NUM
    return Curve("none", np.ones(1), right_N[None, None], np.arange(NUM), method="none", backbone=backbone)


def design(together=0.0):
    losses = [[m + s + together * (m > 0.05 and s > 0) for s in SHAPES] for m in METHODS]
    cells = [(loss, f"m{m}", f"s{s}") for m, row in enumerate(losses) for s, loss in enumerate(row)]
    return np.array(losses), [unreduced(), *(curve(loss, method=m, shape=s) for loss, m, s in cells)]


def shares(parts):
    return {part.factor: part.share for part in parts}


def test_a_balanced_design_has_the_textbooks_sums_of_squares():
    loss_MS, some = design(together=0.03)
    method, shape = loss_MS.mean(1) - loss_MS.mean(), loss_MS.mean(0) - loss_MS.mean()
    total = np.sum((loss_MS - loss_MS.mean()) ** 2)
    expected = {"method": 2 * np.sum(method**2) / total, "shape": 3 * np.sum(shape**2) / total}
    expected["interplay"] = 1 - sum(expected.values())
    assert shares(decompose(some, 0.5, **QUICK)) == pytest.approx(expected, abs=0.02)  # less the noise of 4,000 samples


def test_with_a_cell_missing_a_factor_has_its_mean_over_all_orders():
    loss_MS, some = design()
    some, losses = some[:-1], loss_MS.ravel()[:-1]
    columns = {"method": np.repeat(range(3), 2)[:-1], "shape": np.tile(range(2), 3)[:-1]}

    def explained(names):
        design_matrix = np.column_stack([np.ones(5), *(columns[n][:, None] == np.unique(columns[n]) for n in names)])
        fitted = design_matrix @ np.linalg.lstsq(design_matrix, losses, rcond=None)[0]
        return np.sum((fitted - losses.mean()) ** 2)

    adds = {"method": [], "shape": []}
    for order in permutations(adds):
        for place, name in enumerate(order):
            adds[name].append(explained(order[: place + 1]) - explained(order[:place]))
    found = shares(decompose(some, 0.5, **QUICK))
    for name, parts in adds.items():
        assert found[name] == pytest.approx(np.mean(parts) / np.sum((losses - losses.mean()) ** 2), abs=0.02)


def test_the_parts_are_the_whole():
    assert sum(shares(decompose(design(together=0.03)[1], 0.5, **QUICK)).values()) == pytest.approx(1)


def test_factors_with_one_level_have_no_part():
    assert shares(decompose(design()[1], 0.5, **QUICK)).keys() == {"method", "shape", "interplay"}


def test_a_backbone_on_which_more_is_lost_has_a_part():
    some = [unreduced("a"), unreduced("b")]
    some += [curve(m + (0.06 if b == "b" else 0), method=f"m{m}", backbone=b) for m in (0.01, 0.02) for b in "ab"]
    parts = decompose(some, 0.5, **QUICK)
    assert parts[0].factor == "backbone"
    assert parts[0].share > 0.9


def test_seeds_that_move_all_samples_have_a_part_and_a_samples_own_luck_has_none():
    moved = [unreduced(), curve(0.02), curve([0.0, 0.05, 0.1], method="drop", num_seeds=3)]
    lucky = [unreduced(), curve(0.02), curve([0.05] * 3, method="drop", num_seeds=3, own=0.05)]
    assert shares(decompose(moved, 0.5, **QUICK))["seed"] > 0.3
    assert shares(decompose(lucky, 0.5, **QUICK))["seed"] < 0.05


def test_a_method_counts_once_whatever_its_seeds():
    once = [unreduced(), *(curve(loss, method=f"m{loss}", shape=s) for loss in (0.02, 0.06) for s in ("a", "b"))]
    often = [*once[:3], *(curve([0.06] * 4, method="m0.06", shape=s, num_seeds=4) for s in ("a", "b"))]
    assert shares(decompose(often, 0.5, **QUICK))["method"] == pytest.approx(
        shares(decompose(once, 0.5, **QUICK))["method"], abs=1e-6
    )


def test_where_nothing_differs_every_part_is_zero():
    some = [unreduced(), *(curve(0.03, method=f"m{m}", shape=f"s{s}") for m in range(3) for s in range(2))]
    assert set(shares(decompose(some, 0.5, **QUICK)).values()) == {0.0}


def test_intervals_narrow_with_samples():
    widths = []
    for num in (200, 5_000):
        some = [made_curve("none", shares=(1.0,), accuracies=(0.9,), num_samples=num, method="none")]
        some += [
            made_curve(
                f"m{m}",
                shares=(0.5,),
                accuracies=(0.9 - m - s,),
                num_samples=num,
                shape=f"s{s}",
                seed=int(1000 * (m + s)),
            )
            for m in METHODS
            for s in SHAPES
        ]
        widths.append({part.factor: part.high - part.low for part in decompose(some, 0.5)}["method"])
    assert widths[1] < widths[0] / 2


def test_curves_that_do_not_reach_the_budget_are_counted():
    some = [made_curve("none", shares=(1.0,), method="none"), made_curve(), made_curve("evit", seed=2)]
    parts = decompose([*some, made_curve("drop", shares=(0.7, 0.8))], 0.5)
    assert {(part.num_curves, part.num_left_out) for part in parts} == {(2, 1)}


def test_a_budget_that_fewer_than_two_reach_is_refused():
    with pytest.raises(ValueError, match="1 of 1 curves reach 50 % of the MACs; two are needed"):
        decompose([unreduced(), curve(0.1)], 0.5)


def test_a_backbone_without_its_unreduced_model_is_refused():
    with pytest.raises(ValueError, match="b has no unreduced model"):
        decompose([curve(0.1), curve(0.2, method="m1")], 0.5)


def test_curves_on_other_samples_are_refused():
    other = made_curve("evit", backbone="b", index_N=np.arange(1, 301))
    with pytest.raises(ValueError, match="are over other samples"):
        decompose([made_curve("none", shares=(1.0,), method="none"), made_curve(), other], 0.5)


def test_the_same_seed_gives_the_same_bytes():
    some = design(together=0.03)[1]
    assert repr(decompose(some, 0.5, seed=2, **QUICK)) == repr(decompose(some, 0.5, seed=2, **QUICK))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    some = curves(full_run(tmp_path_factory.mktemp("run")).finish())
    return save_variance(some, tmp_path_factory.mktemp("figures"), (0.4, 0.7))


def test_the_figure_has_a_table_of_what_was_drawn(saved):
    with open(saved[-1]) as file:
        lines = list(csv.DictReader(file))
    assert [path.name for path in saved] == ["variance.png", "variance.svg", "variance.csv"]
    assert {float(line["budget"]) for line in lines} == {0.4, 0.7}
    assert {line["factor"] for line in lines} == {"method", "backbone", "interplay", "seed"}


def test_bars_are_named_with_their_levels_and_the_largest_is_on_top():
    parts = decompose(design(together=0.03)[1], 0.5, **QUICK)
    ax = draw_variance(parts)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["method (3)", "shape (2)", "interplay"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([100 * part.share for part in parts])
