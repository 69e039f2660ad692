"""Merging, dropping, fusing, pooling and soft assignment of four tokens that can be reckoned by hand."""

from dataclasses import replace

import pytest
import torch

from tokred.devices import moved
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


def test_a_group_whose_members_have_no_weight_is_zeros_and_not_nan():
    after = Tokens(X_14C).reduce(Assignment(group(0, 0, 1, 1), 2, weight_BN=torch.tensor([[0.0, 0, 1, 1]])))
    assert rows(after.x_BNC) == [[0, 0], [2.5, 3.5]]


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


def test_logs_of_sizes_are_made_once_and_anew_where_sizes_change():
    tokens = replace(Tokens(X_14C), size_BN=torch.tensor([[1.0, 2.0, 3.0, 4.0]])).logged()
    assert tokens.with_x(2 * X_14C).logged().log_size_BN() is tokens.log_size_BN()
    merged = tokens.reduce(Assignment(group(0, 0, 1, 1), 2))
    assert merged.log_size_BN().exp().tolist()[0] == pytest.approx([3, 7])
    padded = replace(tokens, valid_BN=torch.tensor([[True, True, True, False]]))
    assert padded.log_size_BN().exp().tolist()[0] == pytest.approx([1, 2, 3, 1])
    assert Tokens(X_14C).logged().log_size_BN() is None


def test_tokens_that_move_leave_nothing_behind():
    tokens = replace(Tokens(X_14C).placed(), size_BN=torch.ones(1, 4), key_B=torch.zeros(1)).logged()
    values = vars(moved(tokens, "meta")).values()
    tensors = [x for value in values for x in (value if isinstance(value, tuple) else (value,)) if torch.is_tensor(x)]
    assert len(tensors) == 4 and all(x.is_meta for x in tensors)


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


# Selections with padding


def test_a_selection_with_padding_keeps_what_is_valid():
    valid_BK = torch.tensor([[True, True, False]])
    plan = Assignment.select(torch.tensor([[3, 1, 3]]), 4, valid_BK)
    assert plan.group_BN.tolist() == [[-1, 1, -1, 0]]  # the last place is padding, whatever it names


def test_padding_of_a_selection_has_no_features_and_no_size():
    valid_BK = torch.tensor([[True, True, False]])
    left = Tokens(X_14C).traced().reduce(Assignment.select(torch.tensor([[3, 1, 0]]), 4, valid_BK))
    assert rows(left.x_BNC) == [[5, 5], [3, 0], [0, 0]]
    assert left.size_BN.tolist() == [[1, 1, 0]]
    assert left.source_BM.tolist() == [[-1, 1, -1, 0]]


def test_a_selection_is_the_merge_of_groups_of_one():
    """The gather against the sums that any other assignment takes."""
    generator = torch.Generator().manual_seed(0)
    x_BNC, size_BN = torch.randn(3, 9, 5, generator=generator), torch.rand(3, 9, generator=generator) + 1
    tokens = Tokens(x_BNC, prefix=1, size_BN=size_BN).traced().placed()
    index_BK = torch.stack([torch.randperm(9, generator=generator)[:6] for _ in range(3)])
    valid_BK = torch.arange(6) < torch.tensor([[6], [4], [1]])
    plan = Assignment.select(index_BK, 9, valid_BK)
    ours, sums = tokens.reduce(plan), tokens.reduce(Assignment(plan.group_BN, 6, valid_BK=valid_BK))
    assert torch.allclose(ours.x_BNC, sums.x_BNC, atol=1e-6) and torch.allclose(ours.size_BN, sums.size_BN)
    assert torch.equal(ours.source_BM, sums.source_BM)
    assert torch.equal(ours.place_BN[valid_BK], sums.place_BN[valid_BK])


def test_the_sizes_of_a_selection_before_any_merge_are_not_written_out():
    assert Tokens(X_14C).reduce(Assignment.select(torch.tensor([[2, 0]]), 4)).size_BN is None


def test_the_gradient_of_a_selection_reaches_what_is_kept_alone():
    x_BNC = X_14C.clone().requires_grad_()
    valid_BK = torch.tensor([[True, False]])
    Tokens(x_BNC).reduce(Assignment.select(torch.tensor([[2, 0]]), 4, valid_BK)).x_BNC.sum().backward()
    assert x_BNC.grad[0, :, 0].tolist() == [0, 0, 1, 0]


# The map of attention, merged


def merged_in_loops(map_HNN, group_N, weight_N, num_groups: int) -> torch.Tensor:
    merged = torch.zeros(len(map_HNN), num_groups, num_groups)
    for head, map_NN in enumerate(map_HNN):
        for k in range(num_groups):
            rows_of_k = [n for n, group in enumerate(group_N) if group == k]
            total = sum(weight_N[n] for n in rows_of_k)
            for j in range(num_groups):
                columns_of_j = [n for n, group in enumerate(group_N) if group == j]
                merged[head, k, j] = sum(weight_N[n] / total * map_NN[n, m] for n in rows_of_k for m in columns_of_j)
    return merged


@pytest.mark.parametrize("by", ["size", "weight"])
@pytest.mark.parametrize("drops", [False, True])
def test_a_merged_map_has_mean_rows_and_summed_columns(by, drops):
    generator = torch.Generator().manual_seed(0)
    map_BHNN = torch.randn(2, 3, 7, 7, generator=generator).softmax(-1)
    size_BN, weight_BN = (torch.rand(2, 7, generator=generator) + 0.5 for _ in range(2))
    group_BN = torch.tensor([[0, 1, 1, 2, 3, 2, 2], [3, 0, -1 if drops else 0, 1, 2, 2, 0]])
    plan = Assignment(group_BN, 4, weight_BN=weight_BN if by == "weight" else None)
    used_BN = weight_BN if by == "weight" else size_BN
    expected = [merged_in_loops(map_BHNN[b], group_BN[b].tolist(), used_BN[b], 4) for b in range(2)]
    assert torch.allclose(plan.merge_map(map_BHNN, size_BN), torch.stack(expected), atol=1e-6)


def test_rows_of_a_merged_map_add_up_to_1_where_no_token_is_dropped():
    map_BHNN = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    merged = Assignment(group(0, 1, 1, 0), 2).merge_map(map_BHNN, torch.tensor([[1.0, 4.0, 2.0, 1.0]]))
    assert torch.allclose(merged.sum(-1), torch.ones(1, 2, 2), atol=1e-6)


def test_a_map_of_tokens_that_each_stay_alone_is_left_as_it_is():
    map_BHNN = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert torch.allclose(Assignment(group(0, 1, 2, 3), 4).merge_map(map_BHNN, torch.full((1, 4), 3.0)), map_BHNN)


# Places in the grid


def test_tokens_from_the_input_are_at_their_places_behind_the_prefix():
    assert Tokens(torch.zeros(1, 6, 2), prefix=2).placed().place_BN.tolist() == [[-1, -1, 0, 1, 2, 3]]


def test_a_merged_token_is_at_the_place_of_its_heaviest_member():
    tokens = replace(Tokens(X_14C).placed(), size_BN=torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    assert tokens.reduce(Assignment(group(0, 0, 1, 1), 2)).place_BN.tolist() == [[1, 3]]


def test_of_equally_heavy_members_the_first_gives_the_place():
    assert Tokens(X_14C).placed().reduce(Assignment(group(1, 0, 0, 1), 2)).place_BN.tolist() == [[1, 0]]


def test_places_follow_through_two_reductions():
    tokens = Tokens(X_14C).placed().reduce(Assignment(group(1, 0, 0, 2), 3))  # places 1, 0, 3 of sizes 2, 1, 1
    assert tokens.reduce(Assignment(group(0, -1, 0), 1)).place_BN.tolist() == [[1]]


def test_the_prefix_is_at_no_place_however_it_is_ordered():
    tokens = Tokens(X_14C, prefix=1).placed()
    assert tokens.reduce(Assignment(group(0, 1, 1, 2), 3)).place_BN.tolist() == [[-1, 0, 2]]
    assert tokens.reduce(Assignment.select(torch.tensor([[0, 3, 1]]), 4)).place_BN.tolist() == [[-1, 2, 0]]


def test_padding_is_at_no_place():
    valid_BK = torch.tensor([[True, False]])
    assert Tokens(X_14C).placed().reduce(Assignment(group(0, 0, 0, 0), 2, valid_BK=valid_BK)).place_BN.tolist() == [
        [0, -1]
    ]


def test_a_soft_token_is_at_the_place_of_the_heaviest_token_it_takes_most_of():
    matrix = torch.tensor([[[1.0, 0.4, 0.0, 0.0], [0.0, 0.6, 1.0, 1.0]]])
    tokens = replace(Tokens(X_14C).placed(), size_BN=torch.tensor([[1.0, 1.0, 1.0, 2.0]]))
    assert tokens.reduce(Assignment(None, 2, matrix_BKN=matrix)).place_BN.tolist() == [[0, 3]]


def test_places_agree_with_a_loop_over_many_members():
    generator = torch.Generator().manual_seed(0)
    size_BN = torch.randint(1, 4, (5, 40), generator=generator).float()
    group_BN = torch.randint(-1, 6, (5, 40), generator=generator)
    group_BN[:, 0] = 0
    tokens = replace(Tokens(torch.zeros(5, 40, 2), prefix=1).placed(), size_BN=size_BN)
    found = tokens.reduce(Assignment(group_BN, 6)).place_BN
    for sample in range(5):
        for k in range(1, 6):
            inside = [n for n in range(40) if group_BN[sample, n] == k]
            assert found[sample, k] == max(inside, key=lambda n: (size_BN[sample, n], -n)) - 1
        assert found[sample, 0] == -1  # where the prefix is


def test_tokens_without_places_say_how_to_get_them():
    with pytest.raises(ValueError, match="set `needs_places = True` on the method"):
        Tokens(X_14C).places()


# Padding


THREE_AND_TWO = torch.tensor([[True, True, True, False], [True, True, False, False]])


def padded() -> Tokens:
    x_BNC = torch.cat([X_14C, 2 * X_14C])
    return Tokens(x_BNC, size_BN=torch.tensor([[1.0, 2, 1, 0], [3, 1, 0, 0]]), valid_BN=THREE_AND_TWO).placed()


def test_real_tokens_are_counted_without_the_padding():
    assert padded().num_real().tolist() == [3, 2]
    assert Tokens(X_14C).num_real().tolist() == [4]


def test_padding_that_no_sample_needs_goes():
    cut = padded().trimmed()
    assert cut.num == cut.size_BN.shape[1] == cut.place_BN.shape[1] == 3
    assert torch.equal(cut.valid_BN, THREE_AND_TWO[:, :3]) and torch.equal(cut.x_BNC, padded().x_BNC[:, :3])


def test_where_all_samples_have_as_many_there_is_no_padding_left():
    cut = replace(padded(), valid_BN=THREE_AND_TWO[1:].expand(2, -1)).trimmed()
    assert cut.num == 2 and cut.valid_BN is None


def test_trimming_leaves_tokens_without_padding_as_they_are():
    tokens = Tokens(X_14C)
    assert tokens.trimmed() is tokens


def test_trimming_leaves_sources_as_they_are():
    cut = replace(padded(), source_BM=torch.tensor([[0, 1, 2, -1], [0, 1, 1, 0]])).trimmed()
    assert cut.source_BM.tolist() == [[0, 1, 2, -1], [0, 1, 1, 0]]


def test_log_sizes_of_padding_are_finite():
    log_BN = padded().log_size_BN()
    assert log_BN.isfinite().all() and log_BN[0].exp().tolist() == pytest.approx([1, 2, 1, 1])


@pytest.mark.parametrize("more", [{"weight_BN": torch.ones(1, 3)}, {"mass_BN": torch.ones(1, 3)}, {"normalize": False}])
def test_a_selection_with_weights_is_refused(more):
    with pytest.raises(ValueError, match="a selection leaves tokens as they are"):
        replace(Assignment.select(torch.tensor([[0, 2]]), 3), **more)
