"""The kernels of merging: in Triton's interpreter and, where there is a GPU, on it, against the plain operations."""

import importlib.util

import pytest
import torch

from tests.interpreted import interpret

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# What a kernel gives, and the same in float64 or by torch's own operations. Values of few digits, so that there are ties.


def nearest_odd(num, first, dtype, device, channels=96):
    from tokred.merge_kernels import nearest_odd

    x_BNC = torch.randn(2, num, channels, generator=torch.Generator().manual_seed(num)).to(dtype)
    x_BNC[:, 5] = x_BNC[:, 3]  # two destinations that are equally near to all
    best_BA, partner_BA = nearest_odd(x_BNC.to(device), first)
    x_BNC = torch.nn.functional.normalize(x_BNC.double(), dim=-1)
    expected_BA, place_BA = (x_BNC[:, ::2] @ x_BNC[:, 1::2].mT)[..., first:].max(-1)
    assert float((best_BA.cpu() - expected_BA).abs().max()) < 1e-6  # sums of 96 products in float32
    assert torch.equal(partner_BA.cpu(), place_BA + first)


def joined(num_even, num_tokens, r, sort, device):
    from tokred import matching
    from tokred.merge_kernels import join

    generator = torch.Generator().manual_seed(r)
    best_BA = (20 * torch.rand(2, num_even, generator=generator)).round()
    best_BA[0, 0] = -torch.inf
    partner_BA = torch.randint(num_tokens // 2, (2, num_even), generator=generator)
    found_BN = join(best_BA.to(device), partner_BA.to(device), r, num_tokens, sort=sort)
    order_BA = best_BA.argsort(dim=-1, descending=True, stable=True)
    assert torch.equal(found_BN.cpu(), matching.join(order_BA, partner_BA, r, num_tokens, sort=sort))


def merged_rows(num, num_groups, dtype, device, channels=80, normalize=True):
    from tokred.merge_kernels import merged_rows

    generator = torch.Generator().manual_seed(num)
    x_BNC = torch.randn(2, num, channels, generator=generator).to(dtype)
    group_BN = torch.randint(-1, num_groups - 1, (2, num), generator=generator)  # the last group is empty
    weight_BN, mass_BN = torch.rand(2, 2, num, generator=generator)
    given = (value.to(device) for value in (x_BNC, group_BN, weight_BN, mass_BN))
    found_BKC, size_BK = merged_rows(*given, num_groups, normalize=normalize)
    one_hot_BKN = (group_BN[:, None] == torch.arange(num_groups)[:, None]).double()
    share_BKN = one_hot_BKN * weight_BN[:, None]
    expected_BKC = share_BKN @ x_BNC.double()
    if normalize:
        expected_BKC /= share_BKN.sum(-1, keepdim=True).clamp_min(1e-30)
    rounding = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    assert float((found_BKC.cpu() - expected_BKC).abs().max()) < rounding * float(expected_BKC.abs().max())
    torch.testing.assert_close(size_BK.cpu(), (one_hot_BKN @ mass_BN[..., None].double())[..., 0].float())


def contrast(num, r, prefix, device):
    from tokred import matching
    from tokred.merge_kernels import contrast_of_sources

    generator = torch.Generator().manual_seed(num)
    score_BN = (torch.rand(num, 4, generator=generator) - 6).T
    score_BN[1] = -6.123  # no contrast at all
    score_BN[2, -1] = torch.nan
    group_BN = matching.bipartite_matching(torch.randn(4, num, 8, generator=generator), r, prefix=prefix)
    found_BN = contrast_of_sources(score_BN.to(device), group_BN.T.contiguous().T.to(device), r, prefix, 1e-5)
    expected_BN = matching.contrast_of_sources(score_BN, group_BN, r, prefix=prefix)
    assert int((expected_BN == 1).sum()) == int((found_BN == 1).sum()) >= 4 * (num - r)
    assert int(expected_BN.isnan().sum()) == r
    torch.testing.assert_close(found_BN.cpu(), expected_BN, rtol=0, atol=1e-5, equal_nan=True)


def totals(num_parts, num, device):
    from tokred.kernels import _totals

    part_PBN = torch.rand(num_parts, 3, num, generator=torch.Generator().manual_seed(num))
    torch.testing.assert_close(_totals(part_PBN.to(device)).cpu(), part_PBN.double().sum(0).float())


CASES = {
    "nearest": lambda device: nearest_odd(101, 0, torch.float16, device),
    "nearest in parts": lambda device: nearest_odd(531, 1, torch.float16, device),
    "nearest, rows of 180 bytes": lambda device: nearest_odd(301, 0, torch.float16, device, channels=90),
    "nearest, odd rows at 8 of 16 bytes": lambda device: nearest_odd(38, 0, torch.float16, device, channels=92),
    "nearest of few": lambda device: [nearest_odd(num, 0, torch.float16, device) for num in (6, 7)],
    "nearest behind a prefix": lambda device: nearest_odd(37, 3, torch.float16, device),
    "joined in order of place": lambda device: joined(51, 101, 20, True, device),
    "joined by falling similarity": lambda device: joined(50, 100, 50, False, device),
    "one joined": lambda device: joined(5, 9, 1, True, device),
    "joined of several blocks": lambda device: joined(301, 601, 140, True, device),
    "none joined": lambda device: joined(5, 9, 0, True, device),
    "merged": lambda device: merged_rows(101, 40, torch.float16, device),
    "merged, of several blocks": lambda device: merged_rows(401, 60, torch.float32, device, channels=16),
    "merged in float32": lambda device: merged_rows(7, 3, torch.float32, device),
    "merged, into sums": lambda device: merged_rows(70, 3, torch.float32, device, normalize=False),
    "merged, of more channels than a block": lambda device: merged_rows(7, 3, torch.float32, device, channels=1100),
    "contrast": lambda device: contrast(101, 40, 0, device),
    "contrast behind a class token": lambda device: contrast(50, 24, 1, device),
    "contrast, of several blocks": lambda device: contrast(2052, 1000, 0, device),
    "totals": lambda device: totals(5, 41, device),
    "totals, of several blocks": lambda device: totals(130, 70, device),
}
INTERPRETED = """
from tests.test_merge_kernels import CASES

for case in CASES.values():
    case("cpu")
"""


@needs_triton
def test_interpreted_kernels_give_what_plain_operations_give():
    interpret(INTERPRETED)


@pytest.mark.gpu
@gpu
@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_kernels_on_a_gpu_give_what_plain_operations_give(case):
    CASES[case]("cuda")


@pytest.mark.gpu
@gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_clip_s_tokens_on_a_gpu(dtype):
    nearest_odd(1752, 0, dtype, "cuda")
    merged_rows(1752, 1552, dtype, "cuda")
    joined(876, 1752, 200, True, "cuda")


@pytest.mark.gpu
@gpu
@needs_triton
def test_merged_rows_on_a_gpu_have_the_same_bits_each_time():
    from tokred.merge_kernels import merged_rows

    x_BNC = torch.randn(8, 785, 768, device="cuda", dtype=torch.bfloat16)
    weight_BN, mass_BN = torch.rand(2, 8, 785, device="cuda")
    group_BN = torch.randint(-1, 20, (8, 785), device="cuda")  # some forty members each
    first, second = (merged_rows(x_BNC, group_BN, weight_BN, mass_BN, 20) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
