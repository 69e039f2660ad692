"""Merging on CUDA in a few Triton kernels: who is nearest to whom, and the features of groups; needs triton.

In plain operations the similarities of all pairs, and the features three times over in float32, go to memory and back.

Dimension key: B batch, N tokens now, K groups, C channels, A tokens of even place, D of odd place.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # of features that are merged


def nearest_odd(x_BNC: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Of each token of even place the largest cosine (B, A), float32, to one of odd place, and which (B, A) of these, from the
    ``first`` on; of equals the lowest. Products of half-precision numbers, summed in float32, where they are exact."""
    x = x_BNC if x_BNC.stride(2) == 1 else x_BNC.contiguous()
    B, N, C = x.shape
    num_even, num_odd = N - N // 2, N // 2
    inverse_BN = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).clamp_min_(1e-12).reciprocal_()
    best_BA = inverse_BN.new_empty(B, num_even)
    partner_BA = best_BA.new_empty(B, num_even, dtype=torch.int64)
    with torch.cuda.device_of(x):
        _nearest[(triton.cdiv(num_even, 64), B)](
            *(x, inverse_BN, best_BA, partner_BA, x.stride(0), x.stride(1), N, num_even, num_odd, first, C),
            BLOCK_A=64,
            BLOCK_D=128,
            BLOCK_C=64,
            num_warps=4,
            num_stages=3,
        )
    return best_BA, partner_BA


def join(best_BA: Tensor, partner_BA: Tensor, r: int, num_tokens: int, *, sort: bool) -> Tensor:
    """group_BN as ``matching.join`` gives it, without a prefix, of the ``r`` largest of ``best_BA``; of equals the first."""
    B, num_even = best_BA.shape
    rank_BA = best_BA.new_empty(B, num_even, dtype=torch.int32)
    group_BN = partner_BA.new_empty(B, num_tokens)
    grid, best_BA, partner_BA = (triton.cdiv(num_even, 64), B), best_BA.contiguous(), partner_BA.contiguous()
    with torch.cuda.device_of(best_BA):
        _rank[grid](best_BA, rank_BA, num_even, BLOCK=64, BLOCK_J=128, num_warps=4)
        _join[grid](
            rank_BA, partner_BA, group_BN, num_even, num_tokens, r, SORT=sort, BLOCK=64, BLOCK_J=128, num_warps=4
        )
    return group_BN


def merged_rows(
    x_BNC: Tensor, group_BN: Tensor, weight_BN: Tensor, mass_BN: Tensor, num_groups: int
) -> tuple[Tensor, Tensor]:
    """The weighted means (B, K, C) of groups and their masses (B, K), float32. Tokens of group -1 are left out.

    Sums are made in float32, by atomic additions: in a group of three or more their order is not the same each time.
    """
    x = x_BNC if x_BNC.stride(2) == 1 else x_BNC.contiguous()
    B, N, C = x.shape
    sums = torch.zeros(B * num_groups * (C + 2), device=x.device)
    of_features, of_weights = sums.split([B * num_groups * C, B * num_groups * 2])
    out_BKC, size_BK = x.new_empty(B, num_groups, C), sums.new_empty(B, num_groups)
    rows, block = 16, min(1024, triton.next_power_of_2(C))
    weight_BN, mass_BN, group_BN = (value.contiguous() for value in (weight_BN, mass_BN, group_BN))
    with torch.cuda.device_of(x):
        _add[(triton.cdiv(N, rows), triton.cdiv(C, block), B)](
            *(x, group_BN, weight_BN, mass_BN, of_features, of_weights, x.stride(0), x.stride(1), N, num_groups, C),
            ROWS=rows,
            BLOCK_C=block,
            num_warps=8,
        )
        _divide[(triton.cdiv(num_groups, rows), triton.cdiv(C, block), B)](
            *(of_features, of_weights, out_BKC, size_BK, num_groups, C),
            ROWS=rows,
            BLOCK_C=block,
            num_warps=8,
        )
    return out_BKC, size_BK


@triton.jit
def _nearest(
    X, INVERSE, BEST, PARTNER, x_b, x_n, N, num_even, num_odd, first, C,
    BLOCK_A: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A block of tokens of even place against all of odd place."""
    b = tl.program_id(1).to(tl.int64)
    even = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    row_of_even = 2 * tl.minimum(even, num_even - 1)
    x = X + b * x_b
    best = tl.full([BLOCK_A], float("-inf"), tl.float32)
    partner = tl.zeros([BLOCK_A], tl.int32)
    for start in range(first, num_odd, BLOCK_D):
        odd = start + tl.arange(0, BLOCK_D)
        row_of_odd = 2 * tl.minimum(odd, num_odd - 1) + 1
        score = tl.zeros([BLOCK_A, BLOCK_D], tl.float32)
        for at in range(0, C, BLOCK_C):
            c = at + tl.arange(0, BLOCK_C)
            evens = tl.load(x + row_of_even[:, None] * x_n + c[None, :], c[None, :] < C, other=0.0)
            odds = tl.load(x + row_of_odd[:, None] * x_n + c[None, :], c[None, :] < C, other=0.0)
            score = tl.dot(evens, tl.trans(odds), score)
        score = score * tl.load(INVERSE + b * N + row_of_odd)[None, :]
        score = tl.where((odd < num_odd)[None, :], score, float("-inf"))
        top, place = tl.max(score, 1, return_indices=True)
        partner = tl.where(top > best, start + place, partner)
        best = tl.maximum(best, top)
    at = b * num_even + even
    tl.store(BEST + at, best * tl.load(INVERSE + b * N + row_of_even), even < num_even)
    tl.store(PARTNER + at, partner.to(tl.int64), even < num_even)


@triton.jit
def _rank(BEST, RANK, num_even, BLOCK: tl.constexpr, BLOCK_J: tl.constexpr):
    """How many come before each, by falling value and then by place: a count over all, which needs no sort."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(BEST + b * num_even + i, i < num_even, other=0.0)
    rank = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_even, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        other = tl.load(BEST + b * num_even + j, j < num_even, other=float("-inf"))
        tied_before = (other[None, :] == own[:, None]) & (j[None, :] < i[:, None])
        rank += tl.sum(((other[None, :] > own[:, None]) | tied_before).to(tl.int32), 1)
    tl.store(RANK + b * num_even + i, rank, i < num_even)


@triton.jit
def _join(
    RANK, PARTNER, GROUP, num_even, num_tokens, r,
    SORT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    num_left = num_even - r
    rank = tl.load(RANK + b * num_even + i, i < num_even, other=0)
    slot = rank - r
    if SORT:
        merged_before = tl.zeros([BLOCK], tl.int32)
        for start in range(0, num_even, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            other = tl.load(RANK + b * num_even + j, j < num_even, other=num_even)
            merged_before += tl.sum(((other[None, :] < r) & (j[None, :] < i[:, None])).to(tl.int32), 1)
        slot = i - merged_before
    partner = tl.load(PARTNER + b * num_even + i, i < num_even, other=0).to(tl.int32)
    even = tl.where(rank < r, num_left + partner, slot)
    tl.store(GROUP + b * num_tokens + 2 * i, even.to(tl.int64), i < num_even)
    tl.store(GROUP + b * num_tokens + 2 * i + 1, (num_left + i).to(tl.int64), 2 * i + 1 < num_tokens)


@triton.jit
def _add(
    X, GROUP, WEIGHT, MASS, FEATURES, WEIGHTS, x_b, x_n, N, num_groups, C,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows times their weights, added to those of their groups; the weights and masses themselves once."""
    b = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.load(GROUP + b * N + rows, rows < N, other=-1)
    weight = tl.load(WEIGHT + b * N + rows, rows < N, other=0.0)
    slot = b * num_groups + group
    inside = (group >= 0)[:, None] & (c < C)[None, :]
    x = tl.load(X + b * x_b + rows[:, None] * x_n + c[None, :], inside, other=0.0)
    tl.atomic_add(FEATURES + slot[:, None] * C + c[None, :], x.to(tl.float32) * weight[:, None], inside, sem="relaxed")
    if tl.program_id(1) == 0:
        mass = tl.load(MASS + b * N + rows, rows < N, other=0.0)
        tl.atomic_add(WEIGHTS + slot * 2, weight, group >= 0, sem="relaxed")
        tl.atomic_add(WEIGHTS + slot * 2 + 1, mass, group >= 0, sem="relaxed")


@triton.jit
def _divide(FEATURES, WEIGHTS, OUT, SIZE, num_groups, C, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    b = tl.program_id(2).to(tl.int64)
    groups = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    slot = b * num_groups + groups
    weight = tl.load(WEIGHTS + slot * 2, groups < num_groups, other=1.0)
    weight = tl.where(weight == 0, 1.0, weight)  # a group without members
    at = slot[:, None] * C + c[None, :]
    inside = (groups < num_groups)[:, None] & (c < C)[None, :]
    mean = tl.load(FEATURES + at, inside, other=0.0) / weight[:, None]
    tl.store(OUT + at, mean.to(OUT.dtype.element_ty), inside)
    if tl.program_id(1) == 0:
        tl.store(SIZE + slot, tl.load(WEIGHTS + slot * 2 + 1, groups < num_groups), groups < num_groups)
