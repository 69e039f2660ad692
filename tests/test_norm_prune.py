"""Norm pruning against slow loops and a case made by hand. It has no official code."""

import pytest
import torch

from tests.golden.weights import inputs
from tokred import Tokens
from tokred.reduction import create_method

# of these tokens the first is longest by l1, the second by linf, the third by l2
X_BNC = torch.tensor([[[2.0, 2, 2, 2], [3.5, 0, 0, 0], [3.0, 3, 0, 0], [0.1, 0, 0, 0]]])
SLOW = {
    "l1": lambda x: sum(abs(v) for v in x),
    "l2": lambda x: sum(v * v for v in x),
    "linf": lambda x: max(abs(v) for v in x),
}


def kept(x_BNC, keep, prefix=0, **options):
    tokens = Tokens(x_BNC, prefix=prefix)
    group_BN = create_method("norm_prune", **options).assign(tokens, None, keep).group_BN
    return [(row >= 0).nonzero().flatten().tolist() for row in group_BN]


@pytest.mark.parametrize(("norm", "longest"), [("l1", 0), ("linf", 1), ("l2", 2)])
def test_each_norm_has_its_own_longest_token(norm, longest):
    assert kept(X_BNC, 1, norm=norm) == [[longest]]


@pytest.mark.parametrize("norm", SLOW)
def test_the_longest_tokens_of_each_sample_stay(norm):
    x_BNC = inputs([3, 20, 5], 6)
    longest = [sorted(sorted(range(20), key=lambda n: -SLOW[norm](x[n]))[:7]) for x in x_BNC.tolist()]
    assert kept(x_BNC, 7, norm=norm) == longest


def test_tokens_that_stay_keep_their_order():
    tokens = Tokens(X_BNC)
    after = tokens.reduce(create_method("norm_prune").assign(tokens, None, 2))
    assert torch.equal(after.x_BNC, X_BNC[:, [0, 2]])


def test_a_prefix_stays_however_short_it_is():
    short_first_BNC = X_BNC.flip(1)
    assert kept(short_first_BNC, 2, prefix=1) == [[0, 1]]


def test_of_tokens_of_one_length_the_first_stay():
    assert kept(torch.ones(1, 6, 3), 4) == [[0, 1, 2, 3]]


def test_norms_of_half_precision_do_not_overflow():
    large_BNC = torch.tensor([[[3e4] * 4, [6e4] * 4, [1.0] * 4]], dtype=torch.float16)  # squares are above 65504
    assert kept(large_BNC, 1) == [[1]]


# By place


def kept_places(keep, *, height, width, frames=1, norm="l2"):
    tokens = Tokens(torch.zeros(1, frames * height * width, 3), grid=(frames, height, width)).placed()
    group_BN = create_method("norm_prune", norm=norm, of="place").assign(tokens, None, keep).group_BN
    return (group_BN[0] >= 0).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("norm", "keep"), [("l1", 60), ("l1", 112), ("l2", 96), ("l2", 140), ("linf", 64), ("linf", 100)]
)
def test_the_official_pattern_stays_where_it_has_as_many_places(norm, keep):
    # TokenReduction's prep_pattern_stage_subset (@88fe07e): distances on a linspace from -7 to 7 over 14 places a side
    side = [-7 + 14 * place / 13 for place in range(14)]
    far = {14 * i + j: SLOW[norm]((side[i], side[j])) for i in range(14) for j in range(14)}
    radius = sorted(far.values())[keep - 1]
    within = [place for place, distance in far.items() if distance <= radius + 1e-9]
    assert len(within) == keep
    assert kept_places(keep, height=14, width=14, norm=norm) == within


def test_every_frame_keeps_its_middle():
    assert kept_places(8, frames=2, height=4, width=4) == [5, 6, 9, 10, 21, 22, 25, 26]


def test_of_places_as_far_out_the_first_stay():
    assert kept_places(5, height=4, width=4) == [1, 5, 6, 9, 10]


def test_by_place_a_model_without_a_grid_is_refused():
    tokens = Tokens(torch.zeros(1, 4, 3)).placed()
    with pytest.raises(ValueError, match="reads the grid of patches, which this backbone does not say"):
        create_method("norm_prune", of="place").assign(tokens, None, 2)
