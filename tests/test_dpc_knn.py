"""DPC-KNN against the official code, a slow loop and cases made by hand.

Official: TokenReduction's ``DPCKNNVisionTransformer`` (@88fe07e, timm 0.5.4, ``equal_weight``), run unchanged on the tiny DeiTs of
``golden/token_reduction.json``, reducing at the start of blocks 2 and 4; its ``torch.rand`` was handed our draw of seed 0, by
which alone the second of its reductions is decided (densities there are far below 1e-6). In float64 it takes the same centres and
groups. ``functions``: its ``cluster_dpc_knn`` on tensors where five draws of its own noise gave the same, as did TCFormer's
(@1ea72a8, mmcv stubbed).
"""

import functools
import json
import math
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tests.golden.weights import fill_, inputs
from tokred import Assignment, Tokens, matching
from tokred.reduction import create_method

GOLDEN = json.loads((Path(__file__).parent / "golden" / "token_reduction.json").read_text())
CASES = [name for name, case in GOLDEN["cases"].items() if case["method"] == "dpc_knn"]
FUNCTIONS = GOLDEN["functions"]["dpc_knn"]


@functools.cache
def run(name: str) -> tuple[Tensor, list[Assignment]]:
    """Logits, and what each call of ``assign`` gave."""
    seed = GOLDEN["cases"][name]["seed"]
    model = fill_(timm.create_model(GOLDEN["model"]["name"], **GOLDEN["model"]["kwargs"]).eval(), seed)
    reduced = tokred.reduce(model, "dpc_knn", tokens=[65, 65, 45, 45, 32, 32])
    made, assign = [], reduced.method.assign

    def recorded(*given):
        made.append(assign(*given))
        return made[-1]

    reduced.method.assign = recorded
    with torch.no_grad():
        return reduced(inputs(GOLDEN["input_shape"], seed)), made


def cluster(x_BNC: Tensor, keep: int, **options) -> Assignment:
    key_B = torch.arange(x_BNC.shape[0]) + 17
    return create_method("dpc_knn", **options).assign(Tokens(x_BNC, key_B=key_B), None, keep)


# The official code


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_official_ones(name):
    logits, official = run(name)[0], torch.tensor(GOLDEN["cases"][name]["logits"])
    # the official float32 is within 4e-6 of its float64
    assert (logits - official).abs().max() < 2e-5 * official.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_every_token_joins_the_official_cluster_in_the_official_order(name):
    groups = [(made.group_BN[:, 1:] - 1).tolist() for made in run(name)[1]]  # behind the class token
    assert groups == GOLDEN["cases"][name]["groups"]


@pytest.mark.parametrize("entry", FUNCTIONS, ids=lambda entry: f"k{entry['k']}_to_{entry['num_centres']}")
def test_the_function_gives_the_official_clusters_under_any_draw(entry):
    for seed in range(3):
        made = cluster(inputs(**entry["x"]), entry["num_centres"], k=entry["k"], seed=seed)
        assert made.group_BN.tolist() == entry["groups"]


@pytest.mark.parametrize("entry", FUNCTIONS, ids=lambda entry: f"k{entry['k']}_to_{entry['num_centres']}")
def test_centres_come_in_the_official_order(entry):
    group_BN = cluster(inputs(**entry["x"]), entry["num_centres"], k=entry["k"]).group_BN
    slots = group_BN.gather(1, torch.tensor(entry["centres"]))
    assert slots.tolist() == [list(range(entry["num_centres"]))] * len(slots)


# The formulas, by loops


def test_density_and_peaks_are_those_of_slow_loops():
    x_NC = inputs([12, 5], 8).double()
    n, k = len(x_NC), 4
    apart = [[(a - b).norm().item() / math.sqrt(5) for b in x_NC] for a in x_NC]
    density = [math.exp(-sum(d**2 for d in sorted(row)[:k]) / k) for row in apart]
    largest = max(map(max, apart))
    peaks = [
        density[i] * min([apart[i][j] for j in range(n) if density[j] > density[i]], default=largest) for i in range(n)
    ]
    distance_BNN = matching.distances(x_NC[None]) / math.sqrt(5)
    density_BN = matching.knn_density(distance_BNN, k)
    assert density_BN[0].tolist() == pytest.approx(density, rel=1e-5)
    assert matching.density_peaks(distance_BNN, density_BN)[0].tolist() == pytest.approx(peaks, rel=1e-5)


def test_distances_hold_far_from_the_origin():
    # |x|^2 is 1e6 C here: without centring, float32 loses the squares of distances below 0.3
    near_NC = inputs([1, 40, 16], 3) * 0.1
    assert matching.distances(near_NC + 1000).sub(torch.cdist(near_NC.double(), near_NC.double())).abs().max() < 1e-3


def test_distances_stay_float32_under_autocast():
    x_BNC = inputs([2, 30, 16], 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matching.distances(x_BNC), matching.distances(x_BNC.clone()))
        under = matching.distances(x_BNC)
    assert under.dtype == torch.float32 and torch.equal(under, matching.distances(x_BNC))


# By hand

TWO_HEAPS = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 5.3])[None, :, None]


def test_two_heaps_become_two_tokens_at_their_means():
    tokens = Tokens(TWO_HEAPS, key_B=torch.tensor([1]))
    merged = tokens.reduce(create_method("dpc_knn", k=3).assign(tokens, None, 2))
    assert sorted(merged.x_BNC.flatten().tolist()) == pytest.approx([0.1, 5.15])
    assert sorted(merged.size_BN.flatten().tolist()) == [3, 4]


def test_members_count_alike_whatever_their_size():
    size_BN = torch.tensor([[9.0, 1, 1, 1, 1, 1, 1]])
    tokens = Tokens(TWO_HEAPS, size_BN=size_BN, key_B=torch.tensor([1]))
    merged = tokens.reduce(create_method("dpc_knn", k=3).assign(tokens, None, 2))
    assert sorted(merged.x_BNC.flatten().tolist()) == pytest.approx([0.1, 5.15])
    assert sorted(merged.size_BN.flatten().tolist()) == [4, 11]


def test_more_neighbours_than_tokens_are_all_of_them():  # the official code: "selected index k out of range"
    assert torch.equal(cluster(TWO_HEAPS, 2, k=50).group_BN, cluster(TWO_HEAPS, 2, k=7).group_BN)


def test_no_neighbour_is_refused():
    with pytest.raises(ValueError, match="k must be 1 or more"):
        create_method("dpc_knn", k=0)


def test_the_seed_decides_where_all_are_alike():
    same_BNC = torch.ones(1, 30, 4)
    kept = {str(cluster(torch.eye(30)[None] * 20, 5, seed=seed).group_BN.tolist()) for seed in range(4)}
    assert len(kept) == 4  # all as far apart: no density above 0, so that the draw is all there is
    assert cluster(same_BNC, 5).group_BN.unique().tolist() == [0, 1, 2, 3, 4]


# What it costs


@pytest.mark.parametrize(("counts", "gmacs"), [((137, 96, 67), 2.878), ((98, 49, 24), 2.147)])  # keep rates 0.7 and 0.5
def test_deit_small_costs_what_it_does_where_layers_3_6_9_begin_with_fewer_tokens(counts, gmacs):
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224").eval()
    left = [197] * 3 + [1 + n for n in counts for _ in range(3)]
    cost = tokred.reduce(model, "dpc_knn", tokens=left).cost()
    assert round(cost.gmacs - cost.gmacs_reduction, 3) == gmacs
    pairs = 196**2 + counts[0] ** 2 + counts[1] ** 2
    assert cost.gmacs_reduction == pytest.approx(pairs * 384 / 1e9)


def test_the_distances_are_seen_by_a_counter():
    with FlopCounterMode(display=False) as counter:
        matching.distances(torch.randn(2, 40, 16))
    assert counter.get_total_flops() == 2 * 2 * 40 * 40 * 16  # 2 samples, 2 per multiply-add; torch.cdist counts as 0
