"""VisionZip against the official code (``tests/golden/visionzip.json``), and what its options do."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.weights import inputs
from tokred import METHODS, Attention, Tokens
from tokred.attention import measure
from tokred.methods.visionzip import every_step

CASES = json.loads((Path(__file__).parent / "golden" / "visionzip.json").read_text())["cases"]


def of_case(case) -> tuple[Tokens, Attention]:
    """Features, queries and keys as the official code was given them."""
    B, N, H, D = case["shape"]
    x_BNC, (q_BHND, k_BHND) = (
        inputs((B, N, H * D), case["seed"]),
        (inputs((B, N, H, D), case["seed"] + i).transpose(1, 2) for i in (1, 2)),
    )
    return Tokens(x_BNC, prefix=1), measure(q_BHND, k_BHND, scale=D**-0.5, statistics=("cls_row", "received"))


def by_hand(cls_row: list[float], key: list[list[float]], prefix: int = 1) -> tuple[Tokens, Attention]:
    """Tokens whose features are their places, squared; one head."""
    k_BHND = torch.tensor(key)[None, None]
    x_BNC = torch.arange(len(key)).float().square()[None, :, None]
    found = {"cls_row": torch.tensor([cls_row])}
    return Tokens(x_BNC, prefix=prefix), Attention(k_BHND, k_BHND, k_BHND, 1.0, found=found)


RIGHT, UP = [1.0, 0.0], [0.0, 1.0]


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_official_tokens_in_the_official_order(name):
    case = CASES[name]
    tokens, attention = of_case(case)
    keep = case["dominant"] + case["contextual"]
    method = METHODS["visionzip"](contextual=case["contextual"] / keep)
    official = torch.tensor(case["out"])
    ours = method.reduce(tokens, attention, keep).x_BNC
    assert (
        ours - official
    ).abs().max() < 1e-6 * official.abs().max()  # sums of up to 60 float32 values, written with 7 digits


@pytest.mark.parametrize(("keep", "contextual"), [(64, 10), (128, 20), (192, 30)])
def test_the_default_share_gives_the_published_counts(keep, contextual):
    assert METHODS["visionzip"]().num_contextual(keep, prefix=1) == contextual


def test_a_contextual_token_is_its_target_plus_the_mean_of_those_that_join():
    # 2 is dominant; of 1, 3, 4, 5, 6 the targets are 1 and 4 (step 5 // 2 = 2: first and third of them)
    tokens, attention = by_hand([0.0, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1], [UP, RIGHT, UP, RIGHT, UP, UP, UP])
    merged = METHODS["visionzip"](contextual=0.5).reduce(tokens.traced(), attention, 4)
    assert merged.x_BNC.flatten().tolist() == [0, 4, 1 + 9, 16 + (25 + 36) / 2]
    assert merged.source_BM.tolist() == [[0, 2, 1, 2, 3, 3, 3]]
    assert merged.sizes().tolist() == [[1, 1, 2, 3]]


def test_a_target_that_nobody_joins_stays_as_it_is():
    tokens, attention = by_hand([0.0, 0.1, 0.9, 0.1, 0.1, 0.1], [UP, RIGHT, UP, UP, UP, UP])
    merged = METHODS["visionzip"](contextual=0.5).reduce(tokens, attention, 4)
    assert merged.x_BNC.flatten().tolist() == [0, 4, 1, 16 + (9 + 25) / 2]


def test_with_no_contextual_tokens_it_drops_the_others():
    tokens, attention = by_hand([0.0, 0.1, 0.3, 0.9, 0.2], [UP, RIGHT, UP, UP, UP])
    left = METHODS["visionzip"](contextual=0.0).reduce(tokens.traced(), attention, 3)
    assert left.x_BNC.flatten().tolist() == [0, 4, 9]
    assert left.source_BM.tolist() == [[0, -1, 1, 2, -1]]


def test_a_small_share_still_leaves_one_contextual_token():
    method = METHODS["visionzip"](contextual=0.01)
    assert method.num_contextual(10, prefix=1) == 1
    assert method.conserves_mass


def test_with_received_scores_the_dominant_tokens_are_those_looked_at_most():
    tokens, attention = of_case(CASES["one_contextual"])
    tokens = Tokens(tokens.x_BNC)
    plan = METHODS["visionzip"](scores="received").assign(tokens, attention, 8)
    order_BN = attention.received_BN.argsort(dim=1, descending=True)
    assert (plan.group_BN.gather(1, order_BN[:, :7]).sort(1).values == torch.arange(7)).all()
    assert (plan.group_BN.gather(1, order_BN[:, 7:]) == 7).all()


def test_tokens_that_are_all_alike_are_merged_without_a_nan():
    tokens, attention = by_hand([0.2] * 5, [[0.0, 0.0]] * 5, prefix=0)
    merged = METHODS["visionzip"](contextual=0.5).reduce(tokens, attention, 2)
    assert merged.x_BNC.flatten().tolist() == pytest.approx([0, 1 + (4 + 9 + 16) / 3])  # ties go to the first place


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="contextual is a share"):
        METHODS["visionzip"](contextual=10)


def every_step_in_a_loop(num_places: int, num: int) -> tuple[list[int], list[int]]:
    step = num_places // num
    taken = [place for place in range(num_places) if place % step == 0][:num]
    return taken, [place for place in range(num_places) if place not in taken]


@pytest.mark.parametrize("num_places", range(2, 14))
def test_every_step_takes_places_from_the_first_on(num_places):
    place_BR: Tensor = torch.arange(num_places)[None]
    for num in range(1, num_places):
        taken_BT, others_BA = every_step(place_BR, num)
        assert (taken_BT[0].tolist(), others_BA[0].tolist()) == every_step_in_a_loop(num_places, num)
