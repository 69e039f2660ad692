"""``spatial_merge`` and ``temporal_merge`` against slow loops of what they promise, against ToMe, and by hand.

There is no official code of either: TESTA's patch and frame merging (RenShuhuai-Andy/TESTA @41b9486) is for divided attention, with the
same number of pairs in every frame, or whole frames; sjpollard/video-how-do-your-tokens-merge @21261a9 gives ToMe the tokens of all
frames at once (VideoMAE, ViViT) or of each frame (TimeSformer).
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tests.golden.weights import inputs
from tokred import Attention, Tokens
from tokred.reduction import create_method
from tokred.testing import tiny_models

MERGES = ("spatial_merge", "temporal_merge")
GRID = (4, 2, 3)


def groups(method: str, key_BND: Tensor, keep: int, *, grid=GRID, prefix: int = 0, place_BN=None, **options):
    """group_BN for tokens with these keys; ``place_BN``: where they are, if not each at its own place."""
    tokens = Tokens(torch.zeros(*key_BND.shape[:2], 1), prefix=prefix, grid=grid).placed()
    if place_BN is not None:
        tokens = Tokens(tokens.x_BNC, prefix=prefix, grid=grid, place_BN=place_BN)
    nothing = torch.empty(0)
    plan = create_method(method, **options).assign(tokens, Attention(nothing, key_BND[:, None], nothing, 1.0), keep)
    assert plan.num_groups == keep
    return plan.group_BN


def pairs(group_BN: Tensor) -> list[set[frozenset[int]]]:
    """Of each sample: the groups of more than one token."""
    found = []
    for group_N in group_BN.tolist():
        members = [frozenset(n for n, own in enumerate(group_N) if own == group) for group in set(group_N)]
        found.append({tokens for tokens in members if len(tokens) > 1})
    return found


def joined(best: dict[int, tuple[int, float, int]], r: int) -> set[frozenset[int]]:
    """Groups where the ``r`` sources of the highest (class, similarity) join their partner."""
    chosen = sorted(best, key=lambda n: best[n][:2], reverse=True)[:r]
    by_partner: dict[int, set[int]] = {}
    for n in chosen:
        by_partner.setdefault(best[n][2], {best[n][2]}).add(n)
    return {frozenset(tokens) for tokens in by_partner.values()}


def slow_spatial(key_ND: Tensor, place_N: list[int], r: int, *, grid, prefix: int) -> set[frozenset[int]]:
    unit, size = [key / key.norm() for key in key_ND.double()], grid[1] * grid[2]
    tokens, best = range(prefix, len(unit)), {}
    for n in tokens:
        if n % 2 == 0:
            frame = place_N[n] // size
            best[n] = max((int(frame == place_N[m] // size), float(unit[n] @ unit[m]), m) for m in tokens if m % 2)
    return joined(best, r)


def slow_temporal(key_ND: Tensor, place_N: list[int], r: int, *, grid, prefix: int) -> set[frozenset[int]]:
    unit, size = [key / key.norm() for key in key_ND.double()], grid[1] * grid[2]
    chain = sorted(range(prefix, len(unit)), key=lambda n: (place_N[n] % size, place_N[n] // size))
    best: dict[int, tuple[int, float, int]] = {}
    for first, (a, b) in enumerate(pairwise(chain)):
        source, target = (b, a) if first % 2 else (a, b)
        pair = (int(place_N[a] % size == place_N[b] % size), float(unit[a] @ unit[b]), target)
        best[source] = max(best.get(source, pair), pair)
    return joined(best, r)


SLOW = {"spatial_merge": slow_spatial, "temporal_merge": slow_temporal}


@pytest.mark.parametrize("r", [1, 5, 9, 12])
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("method", MERGES)
def test_the_pairs_are_those_of_slow_loops(method, prefix, r):
    key_BND = inputs((3, 24 + prefix, 5), 10 * r + prefix)
    found = groups(method, key_BND, 24 + prefix - r, prefix=prefix)
    places = [-1] * prefix + list(range(24))
    assert pairs(found) == [SLOW[method](key, places, r, grid=GRID, prefix=prefix) for key in key_BND]


@pytest.mark.parametrize("r", [1, 3, 6])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", MERGES)
def test_the_pairs_are_those_of_slow_loops_where_only_some_places_are_left(method, seed, r):
    """13 tokens of 24, which no two layers of merging need leave in any order."""
    place_BN = torch.stack([inputs((24,), seed + 50 * b).argsort()[:13] for b in range(2)])
    place_BN = torch.cat([torch.full((2, 1), -1), place_BN], 1)
    key_BND = inputs((2, 14, 5), seed)
    found = groups(method, key_BND, 14 - r, prefix=1, place_BN=place_BN)
    each = zip(key_BND, place_BN.tolist(), strict=True)
    assert pairs(found) == [SLOW[method](key, places, r, grid=GRID, prefix=1) for key, places in each]


@pytest.mark.parametrize("method", MERGES)
def test_the_prefix_comes_first_and_alone(method):
    group_BN = groups(method, inputs((2, 26, 5), 0), 15, prefix=2)
    assert group_BN[:, :2].tolist() == [[0, 1]] * 2 and bool((group_BN[:, 2:] >= 2).all())


@pytest.mark.parametrize("method", MERGES)
def test_every_number_down_to_the_fewest_can_be_met_with_equal_keys(method):
    for prefix in (0, 1):
        num = 24 + prefix
        fewest = create_method(method).fewest(num, prefix)
        assert fewest == prefix + 12
        for keep in range(fewest, num):
            group_BN = groups(method, torch.ones(1, num, 5), keep, prefix=prefix)
            assert set(group_BN.flatten().tolist()) == set(range(keep))


# Where tokens that merge come from, in a model


@pytest.fixture(scope="module")
def video():
    return tiny_models()["mini"]  # 2 times of 4 x 4 patches behind a class token


def merged_places(video, method: str, r: list[int]) -> list[tuple[set[int], set[int]]]:
    """Of each token that leaves the last layer: the times and the places in a frame that are in it."""
    clips = inputs((2, *video.sample_shape), 3)
    with torch.no_grad():
        source_BM = tokred.reduce(video, method, r=r).trace(clips).source_BM[-1][:, video.prefix :]
    size, found = video.grid[1] * video.grid[2], []
    for source_M in source_BM.tolist():
        for token in set(source_M):
            members = [place for place, own in enumerate(source_M) if own == token]
            found.append(({m // size for m in members}, {m % size for m in members}))
    return found


def test_spatial_merge_keeps_frames_apart_over_layers(video):
    found = merged_places(video, "spatial_merge", [3, 3, 3])
    assert all(len(times) == 1 for times, _ in found) and any(len(places) > 1 for _, places in found)


def test_temporal_merge_keeps_places_apart_over_layers(video):
    size = video.grid[1] * video.grid[2]
    found = merged_places(video, "temporal_merge", [size // 2, 0, size // 2])
    assert all(len(places) == 1 for _, places in found) and any(len(times) > 1 for times, _ in found)


# spatial_merge


@pytest.mark.parametrize("kind", ["class_token", "mean", "distilled", "registers"])
def test_spatial_merge_of_an_image_is_tome(kind):
    model = tiny_models()[kind]
    images = inputs((2, *model.sample_shape), 4)
    with torch.no_grad():
        ours, tome = (tokred.reduce(model, name, r=3).trace(images) for name in ("spatial_merge", "tome"))
    assert torch.equal(ours.logits, tome.logits)
    assert all(torch.equal(a, b) for a, b in zip(ours.source_BM, tome.source_BM, strict=True))


def test_spatial_merge_prefers_a_worse_pair_in_the_frame_to_a_better_one_across():
    keys = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1], [1, 0]])[None]  # two frames of two
    assert pairs(groups("spatial_merge", keys, 3, grid=(2, 1, 2))) == [{frozenset({0, 1})}]


def test_where_no_frame_has_a_pair_left_spatial_merge_takes_tomes_next():
    keys = torch.tensor([[1.0, 0], [1, 0.1]])[None]
    assert pairs(groups("spatial_merge", keys, 1, grid=(2, 1, 1))) == [{frozenset({0, 1})}]


# temporal_merge


def test_temporal_merge_joins_even_frames_to_the_more_alike_neighbour_in_time():
    angle = torch.tensor([0.0, 1.0, 1.2, 1.3])  # of one place in four frames: the third is nearer to the fourth
    keys = torch.stack([angle.cos(), angle.sin()], -1)[None]
    assert pairs(groups("temporal_merge", keys, 3, grid=(4, 1, 1))) == [{frozenset({2, 3})}]
    assert pairs(groups("temporal_merge", keys, 2, grid=(4, 1, 1))) == [{frozenset({0, 1}), frozenset({2, 3})}]


def test_of_two_neighbours_equally_alike_the_earlier_is_taken():
    assert pairs(groups("temporal_merge", torch.ones(1, 3, 2), 2, grid=(3, 1, 1))) == [{frozenset({0, 1})}]


def test_temporal_merge_prefers_a_worse_pair_at_a_place_to_a_better_one_beside_it():
    keys = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])[None]  # two frames of two places, alike in each frame
    assert pairs(groups("temporal_merge", keys, 2, grid=(2, 1, 2))) == [{frozenset({0, 2}), frozenset({1, 3})}]


def test_where_every_place_has_one_token_temporal_merge_takes_neighbours_in_space():
    place_BN = torch.tensor([[0, 7, 2, 9]])  # of 2 x 2 x 3: at the places 0, 1, 2 and 3 of a frame
    keys = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 1]])[None]
    found = groups("temporal_merge", keys, 3, grid=(2, 2, 3), place_BN=place_BN)
    assert pairs(found) == [{frozenset({2, 3})}]


def test_temporal_merge_leaves_tokens_in_their_order():
    group_BN = groups("temporal_merge", inputs((2, 24, 5), 1), 15)
    for group_N in group_BN.tolist():
        alone = [group for group in group_N if group_N.count(group) == 1]
        assert alone == sorted(alone) and len(alone) >= 6


def test_temporal_merge_is_refused_on_images():
    with pytest.raises(ValueError, match="temporal_merge compares frames"):
        tokred.reduce(tiny_models()["class_token"], "temporal_merge", r=1)


# Options and costs


@pytest.mark.parametrize("method", MERGES)
def test_proportional_attention_counts_a_merged_token_by_its_size(method, video):
    clips = inputs((2, *video.sample_shape), 3)
    with torch.no_grad():
        on, off = (tokred.reduce(video, method, r=4, proportional_attention=flag) for flag in (True, False))
        assert torch.equal(on.trace(clips).source_BM[0], off.trace(clips).source_BM[0])
        assert not torch.allclose(on(clips), off(clips))


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("method", MERGES)
def test_the_macs_are_those_torch_counts(method, prefix):
    num, keep = 24 + prefix, 15 + prefix
    with FlopCounterMode(display=False) as counter:
        groups(method, inputs((1, num, 5), 0), keep, prefix=prefix)
    macs = create_method(method).macs(num, keep, tokred.Place(prefix, 15, 3))
    assert counter.get_total_flops() == 2 * macs


def test_over_time_one_compares_a_thousandth_of_what_over_space_one_compares():
    at = tokred.Place(0, 768, 12)  # VideoMAE-B, 8 x 14 x 14
    spatial, temporal = (create_method(method).macs(1568, 1500, at) for method in MERGES)
    assert (spatial, temporal) == (784 * 784 * 64, 1567 * 64)
