"""What backbones around other libraries' models share."""

import pytest
import torch
from torch import nn

from tokred.foreign import evaluating, expect_close, linear_macs


def test_each_part_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert (model.training, model[0].training, model[1].training, model[1][0].training) == (True, True, False, False)


def test_the_modes_come_back_after_an_error():
    model = nn.Dropout()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training


def test_rounding_is_no_difference_and_a_branch_left_out_is_one():
    before, branch = torch.full((4,), 1000.0), torch.ones(4)
    whole = before + branch
    expect_close(whole * (1 + 1e-7), whole, "a block", library="some 1.0", before=before)
    with pytest.raises(
        ValueError, match=r"a block run in two halves .*; it is not supported \(some 1.0; constraints.txt"
    ):
        expect_close(before, whole, "a block", library="some 1.0", before=before)


def test_what_is_not_finite_proves_nothing():
    expect_close(torch.zeros(2), torch.tensor([0.0, torch.inf]), "a block", library="some 1.0")


def test_the_macs_are_those_of_all_linear_maps():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 5, bias=False)))
    assert linear_macs(model) == 3 * 4 + 4 * 5 and linear_macs(None) == 0
