"""Schedules from every way to ask for one, and the solver on every method, shape and a few models."""

from functools import cache

import pytest
import timm
import torch

import tokred
from tokred import METHODS, Backbone
from tokred.reduction import as_backbone, create_method, plan_schedule
from tokred.schedule import (
    BUDGET_TOLERANCE,
    SHAPES,
    Schedule,
    Stage,
    from_keep_rate,
    from_r,
    from_tokens,
    own_counts,
    reducing,
    removed_per_layer,
    shape_amounts,
    solve_budget,
    unreduced,
)


def stage(depth: int = 4, num_tokens: int = 21, prefix: int = 1, fewest=None) -> Stage:
    """Of 21 tokens 20 can go, but for one; half of them at once with ``fewest=halves``."""
    return Stage(depth, num_tokens, prefix, fewest or (lambda num: prefix + 1), "it")


def halves(num: int) -> int:
    return num - (num - 1) // 2


# r


@pytest.mark.parametrize(
    ("r", "tokens"),
    [
        (0, (21, 21, 21, 21)),
        (3, (18, 15, 12, 9)),
        (3.0, (18, 15, 12, 9)),  # a whole float is a number of tokens
        ([5, 0, 2], (16, 16, 14, 14)),  # padded with zeros
        ([], (21, 21, 21, 21)),
        (0.25, (16, 12, 9, 7)),  # int(share of what is there)
        ([0.5, 1], (11, 10, 10, 10)),  # 1 is one token, .5 a share
        ((4, -1), (13, 8, 6, 6)),  # 8, 5, 2, 0
        ((4, 0), (17, 13, 9, 5)),
    ],
)
def test_r(r, tokens):
    assert from_r(r, stage(), allow_clip=False).tokens == tokens


def test_a_pair_is_a_tuple_and_a_list_is_by_layer():
    assert removed_per_layer((4, -1), 4) != removed_per_layer([4, 1], 4) == [4, 1, 0, 0]


def test_a_pair_for_one_layer_is_its_low_end():
    assert removed_per_layer((4, -1), 1) == [8]  # the official parse_r divides by zero there


@pytest.mark.parametrize(
    ("r", "message"),
    [
        (-1, "r must be a whole number of tokens, or a share of them below 1; got -1"),
        (2.5, "got 2.5"),
        (True, "got True"),
        ([3, 1.5], "got 1.5"),
        ([1, 2, 3, 4, 5], "r has 5 entries, but the backbone has 4 layers; give at most 4"),
        ([8, -1], r"r must not be negative; got \[8, -1\] \(a pair of r and inflection is a tuple"),
        ((4, 2), r"the inflection must lie in -1..1; got \(r, inflection\) = \(4, 2\)"),
    ],
)
def test_an_r_that_cannot_be_is_refused(r, message):
    with pytest.raises(ValueError, match=message):
        from_r(r, stage(), allow_clip=False)


def test_more_than_the_method_can_do_is_refused_with_what_it_can():
    message = (
        "r=8 asks it to leave 5 of the 13 tokens that reach layer 1; it can leave no fewer than 7 there; lower the amount, "
        "or pass allow_clip=True"
    )
    with pytest.raises(ValueError, match=message):
        from_r(8, stage(fewest=halves), allow_clip=False)


def test_allow_clip_stops_at_what_is_possible_and_records_what_was_asked():
    plan = from_r(8, stage(fewest=halves), allow_clip=True)
    assert plan.tokens == (13, 7, 4, 3)
    assert plan.requested == (13, 5, -1, -4)
    assert plan.clipped


def test_a_schedule_that_was_met_is_not_clipped():
    assert not from_r(3, stage(), allow_clip=True).clipped


# keep_rate


def test_keep_rate_rounds_up_and_counts_without_the_prefix():
    assert from_keep_rate(0.7, [0, 2], stage(prefix=1), allow_clip=False).tokens == (
        15,
        15,
        11,
        11,
    )  # 14, then ceil(9.8)


def test_keep_rate_keeps_what_the_method_adds_as_well():
    assert from_keep_rate(0.7, [0, 2], stage(), num_extra=1, allow_clip=False).tokens == (
        16,
        16,
        13,
        13,
    )  # ceil(.7 * 20) + 1, ceil(.7 * 15) + 1


def test_keep_rate_adds_nothing_where_it_keeps_all():
    assert from_keep_rate([1, 0.99, 0.5, 1], None, stage(), num_extra=1, allow_clip=False).tokens == (21, 21, 12, 12)


def test_keep_rates_by_layer_and_at_layers_are_the_same():
    by_layer = from_keep_rate([1, 0.5, 1, 0.7], None, stage(), allow_clip=False)
    assert from_keep_rate([0.5, 0.7], [1, 3], stage(), allow_clip=False).tokens == by_layer.tokens == (21, 11, 11, 8)


def test_layers_may_come_in_any_order():
    assert from_keep_rate([0.7, 0.5], [3, 1], stage(), allow_clip=False).tokens == (21, 11, 11, 8)


@pytest.mark.parametrize(
    ("keep_rate", "layers", "message"),
    [
        (0, [1], "keep_rate must lie above 0 and at most at 1; got 0"),
        (1.5, [1], "got 1.5"),
        (0.5, None, r"keep_rate needs layers=\[...\] \(0-based\), or one rate for each layer"),
        ([0.5, 0.5], None, "keep_rate must be one rate, or one for each of the 4 layers; got 2"),
        ([0.5, 0.5, 0.5], [0, 1], "keep_rate has 3 rates for 2 layers"),
        (0.5, [4], r"layers must be different numbers from 0 to 3; got \[4\]"),
        (0.5, [-1], r"got \[-1\]"),
        (0.5, [1, 1], r"got \[1, 1\]"),
        (0.5, [], r"got \[\]"),
    ],
)
def test_a_keep_rate_that_cannot_be_is_refused(keep_rate, layers, message):
    with pytest.raises(ValueError, match=message):
        from_keep_rate(keep_rate, layers, stage(), allow_clip=False)


# tokens


def test_tokens_are_the_schedule():
    assert from_tokens([20, 20, 9, 3], stage(), allow_clip=False).tokens == (20, 20, 9, 3)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([20, 10], r"tokens must name one count for each of the 4 layers; got 2: \[20, 10\]"),
        ([22, 20, 20, 20], r"tokens\[0\] is 22, but only 21 tokens reach layer 0; lower it"),
        ([20, 10, 11, 9], r"tokens\[2\] is 11, but only 10 tokens reach layer 2; lower it"),
        ([20, 10, 1, 1], "leave 1 of the 10 tokens that reach layer 2; it can leave no fewer than 2"),
    ],
)
def test_tokens_that_cannot_be_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        from_tokens(tokens, stage(), allow_clip=False)


# Schedules


def test_reducing_layers_are_those_in_which_tokens_go():
    assert from_tokens([20, 20, 9, 9], stage(), allow_clip=False).reducing_layers == (0, 2)
    assert unreduced(stage()).reducing_layers == ()


def test_a_schedule_says_what_it_was_made_from():
    specs = (
        from_r((4, -1), stage(), allow_clip=False),
        from_keep_rate(0.5, [1, 2], stage(), allow_clip=False),
        from_tokens([20, 20, 9, 9], stage(), allow_clip=False),
        unreduced(stage()),
    )
    assert [plan.spec for plan in specs] == [
        "r=(4, -1)",
        "keep_rate=0.5 at layers [1, 2]",
        "tokens=[20, 20, 9, 9]",
        "none",
    ]


@pytest.mark.parametrize(
    ("shape", "amounts"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("decreasing", [7, 6, 5, 4, 3, 2, 1, 0]),
        ("increasing", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("front", [1, 1, 0, 0, 0, 0, 0, 0]),
        ("stages", [0, 0, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_the_shapes(shape, amounts):
    assert shape_amounts(shape, 8) == amounts


def test_layers_take_the_place_of_those_of_the_shape():
    assert shape_amounts("stages", 6, [0, 5]) == [1, 0, 0, 0, 0, 1]
    assert shape_amounts("decreasing", 6, [1, 3, 5]) == [0, 2, 0, 1, 0, 0]


def test_one_layer_takes_all():
    for shape in SHAPES:
        assert shape_amounts(shape, 4, [2]) == [0, 0, 1, 0]


def test_a_list_is_a_shape_padded_with_zeros():
    assert shape_amounts([600, 200], 4) == [600, 200, 0, 0]


@pytest.mark.parametrize("shape", [[], [0, 0], [1, -1], [1] * 9, ["a"]])
def test_a_list_that_is_no_shape_is_refused(shape):
    with pytest.raises(ValueError, match="a shape that is a list says how much each of the 8 layers removes"):
        shape_amounts(shape, 8)


def test_an_unknown_shape_is_refused_with_the_list():
    with pytest.raises(ValueError, match="no schedule shape 'linear'; there are constant, decreasing"):
        shape_amounts("linear", 4)


# The solver


def quadratic(tokens) -> int:
    return sum(100 * num + num * num for num in tokens)


def test_a_budget_of_1_removes_nothing():
    assert solve_budget(1, stage(), quadratic).tokens == (21, 21, 21, 21)


@pytest.mark.parametrize("budget", [0, -0.5, 1.01, 60])
def test_a_budget_is_a_share(budget):
    with pytest.raises(
        ValueError, match=f"budget is a share of the unreduced MACs, above 0 and at most 1; got {budget:g}"
    ):
        solve_budget(budget, stage(), quadratic)


def test_a_budget_that_cannot_be_reached_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"it cannot spend 0.05 .* the shape 'constant' here; the nearest it reaches is 0\.080"
    ):
        solve_budget(0.05, stage(), quadratic)


@cache
def model(name: str) -> Backbone:
    with torch.device("meta"):
        if name.startswith("mini"):
            return tokred.create_backbone(name, weights="random")
        if name.startswith("umt"):
            return tokred.create_backbone(name)
        return as_backbone(timm.create_model(name))


MODELS = ("deit_small_patch16_224", "mini_mean", "mini_cls", "umt_base_patch16_224")


def solved(name: str, method: str, budget: float, shape: str, **options) -> tuple[float, Schedule]:
    """The share of the MACs that the schedule really costs, and the schedule."""
    backbone, chosen = model(name), create_method(method, **options)
    plan = plan_schedule(backbone, chosen, budget=budget, shape=shape)
    reduced = tokred.ReducedModel(backbone, chosen, plan)
    return reduced.cost().macs / reduced.unreduced_cost().macs, plan


def options_for(name: str, method: str) -> dict:
    return {"scores": "received"} if METHODS[method]().needs_cls and not model(name).has_cls else {}


# of the others the counts are in the samples, or no MACs of the encoder are left to save
REDUCING = [
    name for name in METHODS.names() if name != "none" and not METHODS[name]().varies and METHODS[name].site != "output"
]
COMPARED = [
    (name, method) for name in MODELS for method in REDUCING if "deit" not in name or not METHODS[method].needs_frames
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "method"), COMPARED)
def test_the_solver_meets_every_budget_of_a_comparison(name, method, shape):
    # 0.7 and 0.9 are within reach of every shape: a third of the layers, halving at most, leaves an eighth of the tokens
    for budget in (0.7, 0.9):
        share, _ = solved(name, method, budget, shape, **options_for(name, method))
        assert abs(share / budget - 1) <= BUDGET_TOLERANCE


@pytest.mark.parametrize(("name", "method"), COMPARED)
def test_the_solver_meets_a_budget_of_a_half_in_the_default_shape(name, method):
    share, _ = solved(name, method, 0.5, "constant", **options_for(name, method))
    assert abs(share / 0.5 - 1) <= BUDGET_TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_a_solved_schedule_has_its_shape(shape):
    _, plan = solved("deit_small_patch16_224", "random_drop", 0.8, shape)
    before = (plan.num_input_tokens, *plan.tokens[:-1])
    removed = [num - keep for num, keep in zip(before, plan.tokens, strict=True)]
    amounts = shape_amounts(shape, 12)
    assert not any(gone for gone, amount in zip(removed, amounts, strict=True) if amount == 0)
    if shape == "stages":  # shares of what is there
        removed = [gone / (num - 1) for gone, num in zip(removed, before, strict=True)]
        assert max(removed) - min(gone for gone in removed if gone) < 0.03  # a few tokens of 80
    else:  # numbers, within rounding and the few tokens that the last correction moves from layer to layer
        unit = sum(removed) / sum(amounts)
        assert max(abs(gone - unit * amount) for gone, amount in zip(removed, amounts, strict=True)) <= 3


def test_a_solved_schedule_counts_the_work_of_the_method():
    _, matched = solved("umt_base_patch16_224", "vid_tldr", 0.6, "front")
    _, drawn = solved("umt_base_patch16_224", "random_drop", 0.6, "front")
    assert matched.tokens[-1] < drawn.tokens[-1]


def test_a_method_that_removes_nothing_has_no_budget():
    with pytest.raises(ValueError, match=r"none cannot spend 0.5 .* the nearest it reaches is 1.000"):
        solved("mini_mean", "none", 0.5, "constant")


def test_layers_restrict_the_solver():
    backbone = model("deit_small_patch16_224")
    plan = plan_schedule(backbone, create_method("top_k"), budget=0.6, layers=[3, 6, 9])
    assert plan.reducing_layers == (3, 6, 9)
    assert plan.spec == "budget=0.6, constant at layers [3, 6, 9]"


@pytest.mark.parametrize("budget", [0.36, 0.4, 0.66, 0.74])
def test_where_macs_come_in_blocks_more_than_single_tokens_are_moved(budget):
    """Bisection and single tokens alone do not meet these: a token more or less stays within its block of 32."""

    def macs(tokens) -> int:
        return sum(32 * 100 * -(-num // 32) + 60 * num for num in tokens)

    plan = solve_budget(budget, stage(num_tokens=201), macs)
    assert macs(plan.tokens) / macs((201,) * 4) == pytest.approx(budget, rel=BUDGET_TOLERANCE)


@pytest.mark.parametrize("budget", [0.5, 0.7, 0.9])
def test_where_single_tokens_do_the_shape_is_not_bent(budget):
    plan = solve_budget(budget, stage(num_tokens=201), quadratic)
    before = (201, *plan.tokens[:-1])
    removed = [num - keep for num, keep in zip(before, plan.tokens, strict=True)]
    assert max(removed) - min(removed) <= 3  # of 201; a move by 4 or 16 would show
    assert quadratic(plan.tokens) / quadratic((201,) * 4) == pytest.approx(budget, rel=BUDGET_TOLERANCE)


# Counts that differ by sample


def test_a_method_with_its_own_counts_works_in_all_layers_and_may_leave_all():
    plan = own_counts(stage(), None)
    assert plan.tokens == plan.requested == (21, 21, 21, 21)
    assert plan.reducing_layers == plan.own_layers == (0, 1, 2, 3)
    assert plan.spec == "as many as it says" and not plan.clipped


def test_a_method_with_its_own_counts_works_in_the_layers_that_are_named():
    assert own_counts(stage(), [3, 1]).reducing_layers == (1, 3)


@pytest.mark.parametrize("layers", [[4], [-1], [1, 1], []])
def test_own_counts_in_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="layers must be different numbers from 0 to 3"):
        own_counts(stage(), layers)


def test_layers_reduce_where_fewer_leave_than_come():
    assert reducing(21, (21, 20, 20, 5)) == (1, 3)


def test_own_layers_reduce_beside_those_of_the_counts():
    assert Schedule(21, (21, 15, 15, 15), (21, 15, 15, 15), "by hand", own_layers=(3,)).reducing_layers == (1, 3)
