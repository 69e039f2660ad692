"""The walk over many models: each gets what it gets alone, bit for bit; what they have in common is run once; few states wait."""

import math
import weakref

import pytest
import torch

from tokred import ReducedModel, create_backbone, list_methods
from tokred.reduction import create_method, plan_schedule
from tokred.tree import Tree

SMALL = {"depth": 4, "embed_dim": 24, "patch_size": 16}  # 64 tokens a clip
BACKBONES = {name: create_backbone(name, weights="random", **SMALL).eval() for name in ("mini_mean", "mini_cls")}
CLIPS = torch.randn(2, *BACKBONES["mini_mean"].sample_shape, generator=torch.Generator().manual_seed(0))
AMOUNTS = [
    {"r": 8},
    {"r": [0, 8, 8, 0]},
    {"r": [0, 8, 4, 4]},
    {"r": [0, 0, 0, 20]},
    {"keep_rate": 0.6, "layers": [1, 3]},
    {"budget": 0.7},
    {},  # as the method's own options say; nothing, where it has none
]


def made(method, backbone="mini_mean", **amount):
    """The reduced model; None where the method cannot do that."""
    backbone = BACKBONES[backbone]
    try:
        return ReducedModel(backbone, method, plan_schedule(backbone, method, **amount)).eval()
    except ValueError:
        return None


def all_methods():
    """By name, at each place where they can work."""
    for name in list_methods():
        method = create_method(name)
        for site in (method.site, *method.other_sites):
            yield create_method(name, **({"site": site} if method.other_sites else {}))


@torch.inference_mode()
def walked(tree, inputs=CLIPS):
    return {arrived.model: arrived.outcome for arrived in tree.walk(inputs)}


def same(found, expected):
    return (found is None) == (expected is None) and (found is None or torch.equal(found, expected))


@pytest.mark.parametrize(
    ("backbone", "precision"), [("mini_mean", "float32"), ("mini_cls", "float32"), ("mini_cls", "bfloat16")]
)
def test_every_method_gets_the_tokens_it_gets_alone(backbone, precision):
    models = [made(method, backbone, **amount) for method in all_methods() for amount in AMOUNTS]
    models = [model for model in models if model is not None]
    tree = Tree(models)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        found = walked(tree)
        assert len(found) == len(models) > 100 and tree.num_halves < 0.75 * tree.num_alone
        for number, model in enumerate(models):
            counts: list[torch.Tensor] = []
            with torch.inference_mode():
                alone = model.run(CLIPS, counts=counts)
                tokens, num_BL = found[number]
                name = f"{model.method.name} {model.method.site} {model.schedule.tokens}"
                for part in ("x_BNC", "size_BN", "valid_BN"):
                    assert same(getattr(tokens, part), getattr(alone, part)), (name, part)
                assert torch.equal(model.backbone.head(tokens), model.backbone.head(alone)), name
                assert torch.equal(num_BL, torch.stack(counts, 1)), name


def test_draws_are_those_of_each_method_alone():
    models = [made(create_method("random_drop", seed=seed), r=r) for seed in (0, 1) for r in (8, [0, 8])]
    found = walked(Tree(models))
    with torch.inference_mode():
        logits = [model(CLIPS) for model in models]
        heads = [models[number].backbone.head(found[number][0]) for number in range(4)]
    assert all(map(torch.equal, heads, logits))
    assert not any(torch.equal(logits[0], other) for other in logits[1:])


# What is run once


def test_layers_that_models_have_in_common_are_run_once():
    tome = create_method("tome")
    models = [
        made(create_method("none")),
        made(tome, tokens=[64, 60, 56, 56]),
        made(tome, tokens=[64, 60, 50, 50]),
    ]
    # layer 0 and the attention of layer 1 for all: 3 halves. Its MLP with and without merging: 2. Of the unreduced model the
    # layers 2 and 3: 4. Of the merged ones the attention of layer 2 together: 1; then apart, two times 3.
    tree = Tree(models)
    assert (tree.num_halves, tree.num_alone) == (3 + 2 + 4 + 1 + 2 * 3, 3 * 8)
    ran, embed = [], []
    for model in models:
        model.embedded = noted(model.embedded, embed)
        model.attended = noted(model.attended, ran)
        model.fed = noted(model.fed, ran)
    walked(tree)
    assert (len(ran), len(embed)) == (tree.num_halves, 1)


def noted(function, calls):
    def run(*arguments):
        calls.append(1)
        return function(*arguments)

    return run


def test_the_same_schedule_is_run_once():
    method = create_method("tome")
    assert Tree([made(method, r=8), made(method, r=8)]).num_halves == 8


def test_methods_are_the_same_where_they_are_one_object():
    one = create_method("tome", matching="kth")
    other = create_method("tome")
    assert Tree([made(one, r=8), made(other, r=8)]).num_halves == 1 + 2 * 7


def test_methods_that_ask_for_the_same_statistics_share_the_attention():
    plain = [made(create_method(name), r=8) for name in ("tome", "random_drop")]
    entropy = [made(create_method("vid_tldr"), r=r) for r in (8, 4)]
    assert Tree(plain).num_halves == 1 + 2 * 7
    assert Tree([*plain, *entropy]).num_halves == 2 + 4 * 7


def test_a_tree_of_no_models_is_walked_at_once():
    assert walked(Tree([])) == {} and Tree([]).num_halves == 0


# Memory


@pytest.mark.parametrize("leaving", ["one_by_one", "in_halves"])
def test_few_states_wait_at_any_time(leaving):
    """Of as many models as there are, the branch with most of them is run last, when what it starts from is let go."""
    tome = create_method("tome")
    if leaving == "one_by_one":  # in each layer one model begins to merge
        plans = [[0] * layer + [4] * (4 - layer) for layer in range(5)]
    else:  # in each layer the models part in two
        plans = [[2 + (number >> layer) % 2 for layer in range(4)] for number in range(16)]
    models = [made(tome, r=plan) for plan in plans]
    alive, most = [], [0]

    def watched(function):
        def run(layer, tokens, attention, inputs):
            alive.append(weakref.ref(tokens.x_BNC))
            most[0] = max(most[0], len({id(x) for ref in alive if (x := ref()) is not None}))
            return function(layer, tokens, attention, inputs)

        return run

    for model in models:
        model.fed = watched(model.fed)
    walked(Tree(models))
    assert most[0] <= 1 + math.log2(len(models))  # the one that is run, and those that wait


# What goes wrong


def fail(*_):
    raise RuntimeError("out of memory")


def test_an_error_ends_those_that_share_the_half_it_is_in():
    tome, random = create_method("tome"), create_method("random_drop")
    models = [made(create_method("none")), made(tome, r=[4, 4]), made(tome, r=[4, 8]), made(random, r=4)]
    for model in models:
        model.method.reduce = fail if model.method is tome else model.method.reduce
    found = walked(Tree(models))
    assert [isinstance(found[number], RuntimeError) for number in range(4)] == [False, True, True, False]


def test_an_error_of_the_embedding_ends_all(monkeypatch):
    monkeypatch.setattr(type(BACKBONES["mini_mean"]), "embed", fail)
    found = walked(Tree([made(create_method("tome"), r=r) for r in (2, 4)]))
    assert {type(outcome) for outcome in found.values()} == {RuntimeError} and len(found) == 2


def test_an_interrupt_is_no_error_of_a_model():
    def interrupt(*_):
        raise KeyboardInterrupt

    model = made(create_method("tome"), r=2)
    model.fed = interrupt
    with pytest.raises(KeyboardInterrupt):
        walked(Tree([model]))
