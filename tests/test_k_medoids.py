"""K-Medoids against TokenReduction's, against slow loops of the paper's update, and by hand.

The authors gave no code. TokenReduction's ``KMedoidsVisionTransformer`` (@88fe07e, timm 0.5.4) was run unchanged on the tiny DeiTs of
``golden/token_reduction.json``, reducing at the start of blocks 2 and 4, which is the end of layers 1 and 3 here; ``functions``: its
``k_medoids_fit``. In float64 it takes the same medoids and clusters.
"""

import functools
import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import tokred
from tests.golden.weights import fill_, inputs
from tokred import Assignment, Attention, Tokens
from tokred.reduction import create_method

GOLDEN = json.loads((Path(__file__).parent / "golden" / "token_reduction.json").read_text())
CASES = [name for name, case in GOLDEN["cases"].items() if case["method"] == "k_medoids"]
FUNCTIONS = GOLDEN["functions"]["k_medoids"]


@functools.cache
def run(name: str) -> tuple[Tensor, list[Assignment]]:
    """Logits, and what each call of ``assign`` gave."""
    seed = GOLDEN["cases"][name]["seed"]
    model = fill_(timm.create_model(GOLDEN["model"]["name"], **GOLDEN["model"]["kwargs"]).eval(), seed)
    reduced = tokred.reduce(model, "k_medoids", tokens=[65, 45, 45, 32, 32, 32], update="token_reduction")
    made, assign = [], reduced.method.assign

    def recorded(*given):
        made.append(assign(*given))
        return made[-1]

    reduced.method.assign = recorded
    with torch.no_grad():
        return reduced(inputs(GOLDEN["input_shape"], seed)), made


def medoids(made: Assignment, prefix: int = 0) -> list[list[int]]:
    """Of each cluster, by slot: the place of its one member that counts."""
    found = []
    for group_N, weight_N in zip(made.group_BN[:, prefix:], made.weight_BN[:, prefix:], strict=True):
        (place_K,) = weight_N.nonzero(as_tuple=True)
        found.append(place_K[group_N[place_K].argsort()].tolist())
    return found


def cluster(x_BNC: Tensor, received_BN: Tensor, keep: int, **options) -> Assignment:
    nothing = torch.zeros(x_BNC.shape[0], 1, x_BNC.shape[1], 1)
    attention = Attention(nothing, nothing, nothing, 1.0, found={"received": received_BN})
    return create_method("k_medoids", **options).assign(Tokens(x_BNC), attention, keep)


# TokenReduction


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_token_reduction(name):
    logits, official = run(name)[0], torch.tensor(GOLDEN["cases"][name]["logits"])
    # its float32 is within 4e-6 of its float64
    assert (logits - official).abs().max() < 2e-5 * official.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_the_medoids_are_those_of_token_reduction_in_its_order(name):
    assert [medoids(made, prefix=1) for made in run(name)[1]] == GOLDEN["cases"][name]["kept"]


@pytest.mark.parametrize("name", CASES)
def test_every_token_joins_the_cluster_it_does_in_token_reduction(name):
    groups = [(made.group_BN[:, 1:] - 1).tolist() for made in run(name)[1]]  # behind the class token
    assert groups == GOLDEN["cases"][name]["groups"]


@pytest.mark.parametrize("entry", FUNCTIONS, ids=lambda e: f"{e['num_clusters']}_clusters_{e['iterations']}_iterations")
def test_the_function_gives_what_token_reductions_does(entry):
    weight_BN = inputs(entry["weights"]["shape"] + [1], entry["weights"]["seed"]).abs()[..., 0]
    made = cluster(
        inputs(**entry["x"]),
        weight_BN,
        entry["num_clusters"],
        iterations=entry["iterations"],
        update="token_reduction",
    )
    assert medoids(made) == entry["medoids"]
    assert made.group_BN.tolist() == entry["groups"]


# The paper's update, by loops


def slow(x_NC: Tensor, weight_N: Tensor, num: int, iterations: int) -> tuple[list[int], list[int]]:
    places = range(len(x_NC))

    def apart(i: int, j: int) -> float:
        return (x_NC[i] - x_NC[j]).norm().item()

    def joined(centres: list[int]) -> list[int]:
        return [
            centres.index(i) if i in centres else min(range(num), key=lambda c: apart(i, centres[c])) for i in places
        ]

    def error(inside, i):
        return sum(weight_N[j].item() * apart(i, j) for j in inside)

    centres = sorted(places, key=lambda i: -weight_N[i].item())[:num]
    for _ in range(iterations):
        group = joined(centres)
        members = [[i for i in places if group[i] == c] for c in range(num)]
        centres = [min(inside, key=partial(error, inside)) for inside in members]
    return centres, joined(centres)


@pytest.mark.parametrize(("num", "iterations"), [(6, 1), (6, 3), (13, 3), (25, 2)])
def test_the_papers_update_is_that_of_slow_loops(num, iterations):
    x_BNC, weight_BN = inputs([2, 30, 6], num), inputs([2, 30], iterations).abs()
    made = cluster(x_BNC, weight_BN, num, iterations=iterations)
    expected = [slow(x, w, num, iterations) for x, w in zip(x_BNC.double(), weight_BN, strict=True)]
    assert medoids(made) == [centres for centres, _ in expected]
    assert made.group_BN.tolist() == [group for _, group in expected]


# By hand

TRIPLES = torch.tensor([0.0, 1, 2, 10, 11, 12])[None, :, None]
ENDS = torch.tensor([[1.1, 1, 1, 1, 1, 1.1]])  # where it begins


def test_of_two_triples_the_paper_takes_the_middles():
    assert sorted(medoids(cluster(TRIPLES, ENDS, 2))[0]) == [1, 4]


def test_of_two_triples_token_reduction_takes_the_ends_that_face():  # so does its own code, run on these six numbers
    assert sorted(medoids(cluster(TRIPLES, ENDS, 2, update="token_reduction"))[0]) == [2, 3]


def test_a_member_that_is_looked_at_draws_the_medoid():
    looked_at_BN = torch.tensor([[9.0, 1, 1, 1, 1, 9]])
    assert sorted(medoids(cluster(TRIPLES, looked_at_BN, 2))[0]) == [0, 5]


def test_without_iterations_the_most_looked_at_tokens_are_the_medoids_in_that_order():
    received_BN = torch.tensor([[0.1, 0.5, 0.2, 0.3, 0.6, 0.4]])
    assert medoids(cluster(TRIPLES, received_BN, 3, iterations=0)) == [[4, 1, 5]]


def test_a_new_token_is_the_medoid_itself_and_stands_for_its_cluster():
    merged = Tokens(TRIPLES).reduce(cluster(TRIPLES, ENDS, 2))
    assert sorted(merged.x_BNC.flatten().tolist()) == [1, 11]
    assert merged.size_BN.tolist() == [[3, 3]]


def test_the_mean_of_a_cluster_is_weighted_by_attention_received():
    received_BN = torch.tensor([[3.0, 1, 0, 1, 1, 1]])
    merged = Tokens(TRIPLES).reduce(cluster(TRIPLES, received_BN, 2, centres="mean"))
    assert sorted(merged.x_BNC.flatten().tolist()) == pytest.approx([0.25, 11])


def test_the_mean_of_a_cluster_that_nobody_looks_at_is_plain():
    received_BN = torch.tensor([[0.0, 0, 0, 1, 1, 1]])
    merged = Tokens(TRIPLES).reduce(cluster(TRIPLES, received_BN, 4, centres="mean", iterations=0))
    assert merged.x_BNC.flatten().tolist() == pytest.approx([10, 11, 12, 1])


def test_equal_tokens_keep_a_cluster_each():
    same_BNC, received_BN = torch.ones(1, 6, 3), torch.arange(6.0)[None]
    for update in ("paper", "token_reduction"):
        made = cluster(same_BNC, received_BN, 4, update=update)
        assert sorted(set(made.group_BN[0].tolist())) == [0, 1, 2, 3]


# What it costs


@pytest.mark.parametrize(("counts", "gmacs"), [((137, 96, 67), 2.878), ((98, 49, 24), 2.147)])  # keep rates 0.7 and 0.5
def test_deit_small_reduced_after_layers_2_5_8_costs_what_it_does_before_3_6_9(counts, gmacs):
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224").eval()
    left = [197, 197] + [1 + n for n in counts for _ in range(3)] + [1 + counts[-1]]
    cost = tokred.reduce(model, "k_medoids", tokens=left).cost()
    assert round(cost.gmacs - cost.gmacs_reduction, 3) == gmacs
    assert cost.gmacs_reduction == pytest.approx((196**2 + counts[0] ** 2 + counts[1] ** 2) * 384 / 1e9)


def test_negative_iterations_are_refused():
    with pytest.raises(ValueError, match="iterations must be 0 or more; got -1"):
        create_method("k_medoids", iterations=-1)
