"""``oracle_slice``: the first tokens, by a view."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tokred
from tests.golden.weights import inputs
from tokred import Tokens
from tokred.model import SITES
from tokred.reduction import create_method
from tokred.testing import tiny_models

MODEL = tiny_models()["class_token"]
VIEWED = ("input", "before_attention", "after_attention", "after_mlp", "output")


class Called(TorchDispatchMode):
    """The names of the operators that were called."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_result_is_a_view_of_what_was_given_and_no_operator_but_a_slice_ran():
    tokens = Tokens(inputs((2, 10, 3), 0), size_BN=torch.ones(2, 10), valid_BN=torch.ones(2, 10, dtype=torch.bool))
    with Called() as called:
        left = create_method("oracle_slice").reduce(tokens, None, 4)
    assert left.x_BNC.data_ptr() == tokens.x_BNC.data_ptr() and set(called.names) <= {"slice", "alias"}
    assert torch.equal(left.x_BNC, tokens.x_BNC[:, :4])


def test_everything_tokens_carry_follows():
    carried = {name: inputs((2, 10), seed) for seed, name in enumerate(("size_BN", "place_BN", "valid_BN"))}
    tokens = Tokens(inputs((2, 10, 3), 0), before_mlp_BNC=inputs((2, 10, 3), 1), **carried).traced()
    left = create_method("oracle_slice").reduce(tokens, None, 4)
    assert all(torch.equal(getattr(left, name), value[:, :4]) for name, value in carried.items())
    assert torch.equal(left.before_mlp_BNC, tokens.before_mlp_BNC[:, :4])
    assert left.source_BM.tolist() == [[0, 1, 2, 3] + [-1] * 6] * 2


@pytest.mark.parametrize("site", VIEWED)
def test_reduce_does_what_assign_says(site):
    method, tokens = create_method("oracle_slice", site=site), Tokens(inputs((2, 10, 3), 0), prefix=1).traced()
    sliced, selected = method.reduce(tokens, None, 4), tokens.reduce(method.assign(tokens, None, 4))
    assert torch.equal(sliced.x_BNC, selected.x_BNC) and torch.equal(sliced.source_BM, selected.source_BM)


@pytest.mark.parametrize("site", SITES)
def test_it_works_at_every_site_and_costs_what_the_schedule_costs(site):
    once = {"input": 0, "output": MODEL.depth - 1}
    r = [5 if layer == once.get(site, layer) else 0 for layer in range(MODEL.depth)]
    reduced = tokred.reduce(MODEL, "oracle_slice", r=r, site=site)
    with torch.no_grad():
        trace = reduced.trace(inputs((2, *MODEL.sample_shape), 0))
    assert trace.tokens == reduced.schedule.tokens and bool(trace.logits.isfinite().all())
    assert reduced.cost().gmacs_reduction == 0


def test_no_method_is_cheaper_on_its_schedule():
    cost = tokred.reduce(MODEL, "oracle_slice", r=2).cost().macs
    assert all(cost <= tokred.reduce(MODEL, name, r=2).cost().macs for name in ("tome", "random_drop", "top_k"))
