"""Merging, dropping, fusing, pooling and soft assignment of four tokens that can be reckoned by hand."""

import pytest
import torch

from tokred.tokens import Assignment, Tokens

X_14C = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [5.0, 5.0]]])


def group(*places: int) -> torch.Tensor:
    return torch.tensor([places])


def rows(x_BNC: torch.Tensor) -> list[list[float]]:
    return x_BNC[0].tolist()


def test_a_group_without_members_is_zeros_and_not_nan():
    tokens = Tokens(torch.ones(1, 3, 2))
    valid_BK = torch.tensor([[True, False]])
    after = tokens.reduce(Assignment(torch.zeros(1, 3, dtype=torch.long), 2, valid_BK=valid_BK))
    assert after.x_BNC.tolist() == [[[1.0, 1.0], [0.0, 0.0]]]


def test_a_merged_token_is_the_mean_of_its_members():
    merged = Tokens(X_14C).reduce(Assignment(group(0, 0, 1, 1), 2))
    assert rows(merged.x_BNC) == [[2, 0], [2.5, 3.5]]


def test_a_merged_token_has_the_size_of_its_members_together():
    merged = Tokens(X_14C).reduce(Assignment(group(0, 1, 1, 1), 2))
    assert merged.size_BN.tolist() == [[1, 3]]


def test_sizes_weigh_the_next_merge():
    first = Tokens(X_14C).reduce(Assignment(group(0, 0, 1, 2), 3))
    second = first.reduce(Assignment(group(0, 1, 0), 2))
    assert rows(second.x_BNC) == [pytest.approx([(2 * 2 + 5) / 3, 5 / 3]), [0, 2]]
    assert second.size_BN.tolist() == [[3, 1]]


def test_the_order_of_the_groups_is_the_order_of_the_tokens():
    assert rows(Tokens(X_14C).reduce(Assignment(group(3, 2, 1, 0), 4)).x_BNC) == rows(X_14C.flip(1))


def test_a_dropped_token_leaves_nothing():
    left = Tokens(X_14C).traced().reduce(Assignment(group(0, -1, 1, 0), 2))
    assert rows(left.x_BNC) == [[3, 2.5], [0, 2]]
    assert left.size_BN.tolist() == [[2, 1]]
    assert left.source_BM.tolist() == [[0, -1, 1, 0]]


def test_select_keeps_tokens_in_the_given_order_and_drops_the_others():
    plan = Assignment.select(torch.tensor([[2, 0]]), 4)
    assert plan.group_BN.tolist() == [[1, -1, 0, -1]]
    assert rows(Tokens(X_14C).reduce(plan).x_BNC) == [[0, 2], [1, 0]]


def test_weights_take_the_place_of_sizes_in_the_mean():
    plan = Assignment(group(0, 0, 1, 1), 2, weight_BN=torch.tensor([[3.0, 1.0, 1.0, 0.0]]))
    merged = Tokens(X_14C).reduce(plan)
    assert rows(merged.x_BNC) == [[1.5, 0], [0, 2]]
    assert merged.size_BN.tolist() == [[2, 2]]  # what weighs nothing is there all the same


def test_mass_is_the_share_of_its_size_that_a_token_brings():
    tokens = Tokens(X_14C, size_BN=torch.tensor([[1.0, 4.0, 2.0, 1.0]]))
    merged = tokens.reduce(Assignment(group(0, 0, 1, 1), 2, mass_BN=torch.tensor([[1.0, 0.5, 0.0, 1.0]])))
    assert merged.size_BN.tolist() == [[3, 1]]
    assert rows(merged.x_BNC)[0] == pytest.approx([13 / 5, 0])  # features go by size all the same


def test_without_normalisation_a_group_is_the_weighted_sum():
    plan = Assignment(group(0, 1, 1, 1), 2, weight_BN=torch.tensor([[1.0, 0.5, 2.0, 0.1]]), normalize=False)
    assert rows(Tokens(X_14C).reduce(plan).x_BNC)[1] == pytest.approx([2.0, 4.5])


def test_a_soft_assignment_gives_each_new_token_its_weighted_mean():
    matrix = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 2.0]]])
    soft = Tokens(X_14C).traced().reduce(Assignment(None, 2, matrix_BKN=matrix))
    assert rows(soft.x_BNC) == [[2, 0], [13 / 4, 3]]


def test_a_soft_assignment_without_normalisation_is_a_product():
    matrix = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 2.0]]])
    soft = Tokens(X_14C).reduce(Assignment(None, 2, matrix_BKN=matrix, normalize=False))
    assert rows(soft.x_BNC) == [[4, 0], [13, 12]]


def test_a_soft_assignment_shares_the_size_of_each_token_among_the_groups():
    matrix = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 3.0, 1.0, 2.0]]])
    soft = Tokens(X_14C, size_BN=torch.tensor([[1.0, 4.0, 1.0, 1.0]])).reduce(Assignment(None, 2, matrix_BKN=matrix))
    assert soft.size_BN.tolist() == [[2, 5]]


def test_a_soft_assignment_traces_a_token_to_the_group_that_takes_most_of_it():
    matrix = torch.tensor([[[1.0, 0.4, 0.0, 0.0], [0.0, 0.6, 1.0, 1.0]]])
    assert Tokens(X_14C).traced().reduce(Assignment(None, 2, matrix_BKN=matrix)).source_BM.tolist() == [[0, 1, 1, 1]]


def test_sources_follow_through_two_reductions():
    tokens = Tokens(X_14C).traced().reduce(Assignment(group(1, 0, 1, 2), 3))
    assert tokens.reduce(Assignment(group(-1, 0, 0), 1)).source_BM.tolist() == [[0, -1, 0, 0]]


def test_sources_are_not_followed_where_nobody_asked():
    assert Tokens(X_14C).reduce(Assignment(group(0, 0, 1, 1), 2)).source_BM is None


def test_samples_of_a_batch_are_reduced_each_in_its_own_way():
    two = Tokens(torch.cat([X_14C, 10 * X_14C])).reduce(Assignment(torch.tensor([[0, 0, 1, 1], [1, 0, -1, 1]]), 2))
    assert two.x_BNC.tolist() == [[[2, 0], [2.5, 3.5]], [[30, 0], [30, 25]]]


def test_valid_groups_are_the_real_tokens_afterwards():
    valid_BK = torch.tensor([[True, False]])
    assert (
        Tokens(X_14C).reduce(Assignment(group(0, 0, 0, 0), 2, normalize=False, valid_BK=valid_BK)).valid_BN is valid_BK
    )


def test_reduce_leaves_prefix_grid_and_key_as_they_are():
    tokens = Tokens(X_14C, prefix=1, grid=(1, 1, 3), key_B=torch.tensor([5]))
    after = tokens.reduce(Assignment(group(0, 1, 1, 1), 2))
    assert (after.prefix, after.grid, after.key_B) == (tokens.prefix, tokens.grid, tokens.key_B)


def test_features_keep_their_precision_and_sizes_stay_in_float32():
    merged = Tokens(X_14C.bfloat16()).reduce(Assignment(group(0, 0, 1, 1), 2))
    assert merged.x_BNC.dtype == torch.bfloat16
    assert merged.size_BN.dtype == torch.float32


def test_a_large_group_in_bfloat16_is_the_mean_to_its_precision():
    num = 1000  # above 256, where bfloat16 cannot count on by ones
    x_BNC = torch.linspace(0, 2, num)[None, :, None]
    merged = Tokens(x_BNC.bfloat16()).reduce(Assignment(torch.zeros(1, num, dtype=torch.long), 1))
    # 8 bits of mantissa: 0.4 % for the value itself, as much again for its parts
    assert merged.x_BNC.item() == pytest.approx(1.0, rel=0.01)


def test_a_large_group_in_float16_does_not_overflow():
    x_BNC, size_BN = (
        torch.full((1, 4, 2), 100.0).half(),
        torch.full((1, 4), 1000.0),
    )  # its sum is 400,000; float16 ends at 65,504
    merged = Tokens(x_BNC, size_BN=size_BN).reduce(Assignment(torch.zeros(1, 4, dtype=torch.long), 1))
    assert rows(merged.x_BNC) == [[100, 100]]


def test_unmerge_gives_each_token_the_features_of_its_group():
    plan = Assignment(group(1, 0, 1, -1), 2)
    assert rows(plan.unmerge(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))) == [[3, 4], [1, 2], [3, 4], [0, 0]]


def test_unmerge_of_a_soft_assignment_takes_from_each_group_by_its_share():
    matrix = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 3.0, 1.0, 2.0]]])
    back = Assignment(None, 2, matrix_BKN=matrix).unmerge(torch.tensor([[[4.0], [8.0]]]))
    assert rows(back) == [[4], [7], [8], [8]]


def test_unmerge_undoes_a_merge_of_equal_tokens():
    x_BNC = X_14C[:, [0, 1, 0, 1]]
    plan = Assignment(group(1, 0, 1, 0), 2)
    assert torch.equal(plan.unmerge(Tokens(x_BNC).reduce(plan).x_BNC), x_BNC)


def test_log_sizes_are_there_after_the_first_reduction_only():
    tokens = Tokens(X_14C)
    assert tokens.log_size_BN() is None
    merged = tokens.reduce(Assignment(group(0, 1, 1, 1), 2))
    assert merged.log_size_BN().exp().tolist()[0] == pytest.approx([1, 3])


@pytest.mark.parametrize(("by_size", "skip_prefix", "expected"), [
    (False, True, [8 / 3, 7 / 3]),
    (False, False, [9 / 4, 7 / 4]),
    (True, True, [(3 * 4 + 0 + 5) / 6, (2 + 5) / 6]),
    (True, False, [(1 + 12 + 5) / 7, 7 / 7]),
])  # fmt: skip
def test_mean_pool(by_size, skip_prefix, expected):
    tokens = Tokens(X_14C, prefix=1, size_BN=torch.tensor([[1.0, 4.0, 1.0, 1.0]]))
    assert tokens.mean_pool(by_size=by_size, skip_prefix=skip_prefix)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("by_size", [False, True])
def test_mean_pool_leaves_out_tokens_that_are_not_real(by_size):
    padded = Tokens(X_14C, prefix=1, valid_BN=torch.tensor([[True, True, True, False]]))
    assert torch.equal(padded.mean_pool(by_size=by_size), Tokens(X_14C[:, :3], prefix=1).mean_pool(by_size=by_size))


def test_an_assignment_needs_groups_or_a_matrix():
    with pytest.raises(ValueError, match="either group_BN or matrix_BKN"):
        Assignment(None, 2)
    with pytest.raises(ValueError, match="exactly one"):
        Assignment(group(0, 0, 1, 1), 2, matrix_BKN=torch.ones(1, 2, 4))


def test_tokens_without_a_key_say_how_to_get_one():
    with pytest.raises(ValueError, match="set `random = True` on the method"):
        Tokens(X_14C).key()


def test_the_gradient_of_a_mean_is_shared_among_its_members():
    x_BNC = X_14C.clone().requires_grad_()
    Tokens(x_BNC).reduce(Assignment(group(0, 0, 0, -1), 1)).x_BNC.sum().backward()
    assert x_BNC.grad[0, :, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
