"""tokred.rows: whole rows of a batch, gathered and summed."""

import pytest
import torch

from tokred.rows import gather_rows, sum_rows


@pytest.fixture
def x_BNC():
    return torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))


def test_each_sample_gives_its_own_rows(x_BNC):
    index_BK = torch.tensor([[6, 0], [1, 1], [3, 2]])
    expected = [[x_BNC[b, place].tolist() for place in places] for b, places in enumerate(index_BK.tolist())]
    assert gather_rows(x_BNC, index_BK).tolist() == expected


def test_sums_are_those_of_a_loop_and_dropped_rows_are_in_none(x_BNC):
    group_BN = torch.tensor([[0, 1, -1, 1, 2, 0, 0], [-1, -1, -1, -1, -1, -1, 2], [2, 2, 2, 2, 2, 2, 2]])
    expected = torch.zeros(3, 3, 5)
    for b, groups in enumerate(group_BN.tolist()):
        for place, group in enumerate(groups):
            if group >= 0:
                expected[b, group] += x_BNC[b, place]  # in the same order, so that the bits agree
    assert torch.equal(sum_rows(x_BNC, group_BN, 3), expected)


def test_rows_that_are_a_view_of_others_are_read_right(x_BNC):
    index_BK = torch.tensor([[1, 0]] * 3)
    assert torch.equal(gather_rows(x_BNC[:, ::2, 1:3], index_BK), x_BNC[:, [2, 0], 1:3])


def test_gradients_reach_the_rows_that_were_summed(x_BNC):
    x_BNC.requires_grad_()
    sum_rows(x_BNC, torch.tensor([[0, 1, -1, 1, 0, 0, 0]] * 3), 2).sum().backward()
    assert x_BNC.grad[:, 2].abs().sum() == 0 and torch.equal(x_BNC.grad[:, 0], torch.ones(3, 5))
