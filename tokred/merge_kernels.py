"""Merging on CUDA in a few Triton kernels: who is nearest to whom, and the features of groups; needs triton.

In plain operations the similarities of all pairs, and the features twice over in float32, go to memory and back.

Dimension key: B batch, N tokens now, K groups, C channels, A tokens of even place, D of odd place.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokred import launching

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # of features that are merged
# Two programs at once on a processor; with Hopper's copy engine, one.
NEAREST = {"BLOCK_A": 128, "BLOCK_D": 128, "BLOCK_C": 64, "num_warps": 4, "num_stages": 3}
NEAREST_ON_HOPPER = {"BLOCK_A": 128, "BLOCK_D": 256, "BLOCK_C": 64, "num_warps": 8, "num_stages": 4}
# Of places: each warp compares 32 tokens with every fourth of 128.
COUNTING = {"BLOCK": 32, "OTHERS": 128, "num_warps": 4}
JOINING = {"BLOCK": 128, "num_warps": 4}


def nearest_odd(x_BNC: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Of each token of even place the largest cosine (B, A), float32, to one of odd place, and which (B, A) of these, from the
    ``first`` on; of equals the lowest. Products of half-precision numbers, summed in float32, where they are exact."""
    x = x_BNC if x_BNC.stride(2) == 1 else x_BNC.contiguous()
    B, N, C = x.shape
    num_even, num_odd = N - N // 2, N // 2
    inverse_BN = _norms(x)
    even, odd = x[:, ::2], x[:, 1::2]
    hopper = launching.has_blocks(even, odd)
    sizes = NEAREST_ON_HOPPER if hopper else NEAREST
    grid = launching.cdiv(num_even, sizes["BLOCK_A"]), B
    parts = _num_parts(x, grid[0] * B, launching.cdiv(num_odd - first, sizes["BLOCK_D"]), hopper)
    if hopper:
        even, odd = (
            launching.blocks(y, 1, sizes[by], sizes["BLOCK_C"]) for y, by in ((even, "BLOCK_A"), (odd, "BLOCK_D"))
        )
    best_PBA = inverse_BN.new_empty(parts, B, num_even)
    partner_PBA = best_PBA.new_empty(parts, B, num_even, dtype=torch.int64)
    with torch.cuda.device_of(x):
        _nearest[(*grid, parts)](
            *(even, odd, inverse_BN, best_PBA, partner_PBA),
            *(x.stride(0), 2 * x.stride(1), N, num_even, num_odd, first, C),
            HOPPER=hopper,
            **sizes,
        )
        if parts > 1:
            _best[(launching.cdiv(B * num_even, 256),)](best_PBA, partner_PBA, B * num_even, PARTS=parts, BLOCK=256)
    return best_PBA[0], partner_PBA[0]


def _norms(x_BNC: Tensor) -> Tensor:
    """Of each row 1 / its norm."""
    B, N, C = x_BNC.shape
    inverse_BN = torch.empty(B, N, device=x_BNC.device, dtype=torch.float32)
    block = min(1024, launching.power_of_2(C))
    with torch.cuda.device_of(x_BNC):
        _inverse_norms[(launching.cdiv(N, 4), B)](
            x_BNC, inverse_BN, x_BNC.stride(0), x_BNC.stride(1), N, C, ROWS=4, BLOCK_C=block, num_warps=4
        )
    return inverse_BN


def _num_parts(x: Tensor, num_programs: int, num_blocks: int, hopper: bool) -> int:
    """Few programs fill no GPU: among how many the blocks of one are divided."""
    room = _num_processors(x) * (1 if hopper else 2)
    return max(1, min(4, round(room / max(1, num_programs)), num_blocks))


def _num_processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 132


def join(best_BA: Tensor, partner_BA: Tensor, r: int, num_tokens: int, *, sort: bool) -> Tensor:
    """group_BN as ``matching.join`` gives it, without a prefix, of the ``r`` largest of ``best_BA``; of equals the first."""
    B, num_even = best_BA.shape
    rank_BA = best_BA.new_empty(B, num_even, dtype=torch.int32)
    group_BN = partner_BA.new_empty(B, num_tokens)
    best_BA, partner_BA = best_BA.contiguous(), partner_BA.contiguous()
    with torch.cuda.device_of(best_BA):
        _rank[(launching.cdiv(num_even, COUNTING["BLOCK"]), B)](best_BA, rank_BA, num_even, **COUNTING)
        _join[(launching.cdiv(num_even, JOINING["BLOCK"]), B)](
            rank_BA, partner_BA, group_BN, num_even, num_tokens, r, SORT=sort, **JOINING
        )
    return group_BN


def merged_rows(
    x_BNC: Tensor, group_BN: Tensor, weight_BN: Tensor, mass_BN: Tensor, num_groups: int, *, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """The weighted means (B, K, C) of groups, or sums, and their masses (B, K), float32. Tokens of group -1 are left out.

    Sums are made in float32, in an order that follows from the places of members alone: the same bits each time.
    """
    x = x_BNC if x_BNC.stride(2) == 1 else x_BNC.contiguous()
    B, N, C = x.shape
    order_BN = group_BN.new_empty(B, N, dtype=torch.int32)
    start_BK = order_BN.new_full((B, num_groups), N)  # a group without members
    out_BKC = x.new_empty(B, num_groups, C)
    size_BK = torch.empty(B, num_groups, device=x.device, dtype=torch.float32)
    block = min(1024, launching.power_of_2(C))
    weight_BN, mass_BN, group_BN = (value.contiguous() for value in (weight_BN, mass_BN, group_BN))
    with torch.cuda.device_of(x):
        _sort[(launching.cdiv(N, COUNTING["BLOCK"]), B)](group_BN, order_BN, start_BK, N, num_groups, **COUNTING)
        _merge[(num_groups, launching.cdiv(C, block), B)](
            *(x, group_BN, order_BN, start_BK, weight_BN, mass_BN, out_BKC, size_BK),
            *(x.stride(0), x.stride(1), N, num_groups, C),
            NORMALIZE=normalize,
            MEMBERS=4,
            BLOCK_C=block,
            num_warps=4,
        )
    return out_BKC, size_BK


def contrast_of_sources(score_BN: Tensor, group_BN: Tensor, r: int, prefix: int, flat: float) -> Tensor:
    """(B, N): of the ``r`` tokens that ``join`` merged into another, how far their score lies above the mean, as a share of the
    largest's, in 0..1; of all others 1. Of them 1 too where the largest lies no more than the share ``flat`` of the mean above
    it."""
    B, N = score_BN.shape
    score_BN, group_BN = score_BN.contiguous(), group_BN.contiguous()
    out_BN = torch.empty_like(score_BN)
    with torch.cuda.device_of(score_BN):
        _contrast[(launching.cdiv(N, 1024), B)](
            score_BN, group_BN, out_BN, N, N - r - N // 2, prefix, flat, BLOCK=1024, num_warps=8
        )
    return out_BN


@triton.jit
def _inverse_norms(X, INVERSE, x_b, x_n, N, C, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    square = tl.zeros([ROWS], tl.float32)
    for at in range(0, C, BLOCK_C):
        c = at + tl.arange(0, BLOCK_C)
        inside = (rows < N)[:, None] & (c < C)[None, :]
        x = tl.load(X + b * x_b + rows[:, None] * x_n + c[None, :], inside, other=0.0).to(tl.float32)
        square += tl.sum(x * x, 1)
    tl.store(INVERSE + b * N + rows, 1 / tl.maximum(tl.sqrt(square), 1e-12), rows < N)


@triton.jit
def _nearest(
    EVEN, ODD, INVERSE, BEST, PARTNER, x_b, x_n, N, num_even, num_odd, first, C,
    BLOCK_A: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    """A block of tokens of even place against all of odd place, or a part of these. ``HOPPER``: its copy engine reads both."""
    at_b, part = tl.program_id(1), tl.program_id(2)
    b = at_b.to(tl.int64)
    num_each = tl.cdiv(tl.cdiv(num_odd - first, BLOCK_D), tl.num_programs(2)) * BLOCK_D
    first_even = tl.program_id(0) * BLOCK_A
    even = first_even + tl.arange(0, BLOCK_A)
    row_of_even = tl.minimum(even, num_even - 1)
    best = tl.full([BLOCK_A], float("-inf"), tl.float32)
    partner = tl.zeros([BLOCK_A], tl.int32)
    begin = first + part * num_each
    for start in tl.range(begin, tl.minimum(begin + num_each, num_odd), BLOCK_D, flatten=True):
        odd = start + tl.arange(0, BLOCK_D)
        row_of_odd = tl.minimum(odd, num_odd - 1)
        score = tl.zeros([BLOCK_A, BLOCK_D], tl.float32)
        for at in range(0, C, BLOCK_C):
            if HOPPER:
                evens = EVEN.load([at_b, first_even, at]).reshape(BLOCK_A, BLOCK_C)
                odds = ODD.load([at_b, start, at]).reshape(BLOCK_D, BLOCK_C)
            else:
                c = at + tl.arange(0, BLOCK_C)
                evens = tl.load(EVEN + b * x_b + row_of_even[:, None] * x_n + c[None, :], c[None, :] < C, other=0.0)
                odds = tl.load(ODD + b * x_b + row_of_odd[:, None] * x_n + c[None, :], c[None, :] < C, other=0.0)
            score = tl.dot(evens, tl.trans(odds), score)
        beyond = tl.where(odd < num_odd, 0.0, float("-inf"))
        score = score * tl.load(INVERSE + b * N + 2 * row_of_odd + 1)[None, :] + beyond[None, :]
        top = tl.max(score, 1)
        place = tl.min(tl.where(score == top[:, None], odd[None, :], num_odd - 1), 1)
        partner = tl.where(top > best, place, partner)
        best = tl.maximum(best, top)
    at = (part * tl.num_programs(1) + b) * num_even + even
    tl.store(BEST + at, best * tl.load(INVERSE + b * N + 2 * row_of_even), even < num_even)
    tl.store(PARTNER + at, partner.to(tl.int64), even < num_even)


@triton.jit
def _best(BEST, PARTNER, num, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Of the parts the largest, of equals the first, in place of the first."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    best = tl.load(BEST + at, at < num, other=0.0)
    partner = tl.load(PARTNER + at, at < num, other=0)
    for part in tl.static_range(1, PARTS):
        other = tl.load(BEST + part * num + at, at < num, other=float("-inf"))
        is_better = other > best
        best = tl.where(is_better, other, best)
        partner = tl.where(is_better, tl.load(PARTNER + part * num + at, at < num, other=0), partner)
    tl.store(BEST + at, best, at < num)
    tl.store(PARTNER + at, partner, at < num)


@triton.jit
def _keys(X, at, N, GROUPS: tl.constexpr):
    """What tokens are put in order by: their groups, of which -1 is above all without a sign, or values, the largest first."""
    if GROUPS:
        key = tl.load(X + at, at < N, other=-1).to(tl.uint32)
    else:
        key = -tl.load(X + at, at < N, other=float("-inf"))
    return key


@triton.jit
def _place(X, own_block, N, GROUPS: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr):
    """How many come before each token of a block, by rising key and then by place: a count over all, which needs no sort. The
    tokens of the block lie along the last axis, those they are compared with along the first."""
    i, each = own_block + tl.arange(0, BLOCK), tl.arange(0, OTHERS)
    own = _keys(X, i, N, GROUPS)[None, :]
    mixed = own_block // OTHERS * OTHERS  # some of these lie before an own token, some behind
    other = _keys(X, mixed + each, N, GROUPS)[:, None]
    before = ((other < own) | ((other == own) & ((mixed + each)[:, None] < i[None, :]))).to(tl.int32)
    for start in range(0, mixed, OTHERS):
        before += (_keys(X, start + each, N, GROUPS)[:, None] <= own).to(tl.int32)
    for start in range(mixed + OTHERS, N, OTHERS):
        before += (_keys(X, start + each, N, GROUPS)[:, None] < own).to(tl.int32)
    return tl.sum(before, 0)


@triton.jit
def _rank(BEST, RANK, num_even, BLOCK: tl.constexpr, OTHERS: tl.constexpr):
    """The place of each by falling value and then by place."""
    b, own_block = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK
    i = own_block + tl.arange(0, BLOCK)
    rank = _place(BEST + b * num_even, own_block, num_even, False, BLOCK, OTHERS)
    tl.store(RANK + b * num_even + i, rank, i < num_even)


@triton.jit
def _join(RANK, PARTNER, GROUP, num_even, num_tokens, r, SORT: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    own_block = tl.program_id(0) * BLOCK
    each = tl.arange(0, BLOCK)
    i = own_block + each
    num_left = num_even - r
    rank = tl.load(RANK + b * num_even + i, i < num_even, other=0)
    slot = rank - r
    if SORT:
        merged = tl.zeros([BLOCK], tl.int32)
        for start in range(0, own_block, BLOCK):
            merged += (tl.load(RANK + b * num_even + start + each) < r).to(tl.int32)
        in_block = ((rank < r)[:, None] & (each[:, None] < each[None, :])).to(tl.int32)
        slot = i - tl.sum(merged, 0) - tl.sum(in_block, 0)
    partner = tl.load(PARTNER + b * num_even + i, i < num_even, other=0).to(tl.int32)
    even = tl.where(rank < r, num_left + partner, slot)
    tl.store(GROUP + b * num_tokens + 2 * i, even.to(tl.int64), i < num_even)
    tl.store(GROUP + b * num_tokens + 2 * i + 1, (num_left + i).to(tl.int64), 2 * i + 1 < num_tokens)


@triton.jit
def _sort(GROUP, ORDER, START, N, num_groups, BLOCK: tl.constexpr, OTHERS: tl.constexpr):
    """The places of tokens by group and then by place, those of no group last, and where in it each group starts: at the least
    of its members."""
    b, own_block = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK
    i = own_block + tl.arange(0, BLOCK)
    place = _place(GROUP + b * N, own_block, N, True, BLOCK, OTHERS)
    group = tl.load(GROUP + b * N + i, i < N, other=-1)
    tl.store(ORDER + b * N + place, i, i < N)
    tl.atomic_min(START + b * num_groups + group, place, (group >= 0) & (group < num_groups))


@triton.jit
def _merge(
    X, GROUP, ORDER, START, WEIGHT, MASS, OUT, SIZE, x_b, x_n, N, num_groups, C,
    NORMALIZE: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One group: its members' rows times their weights, a few at a time."""
    group, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    features = tl.zeros([BLOCK_C], tl.float32)
    total, size = 0.0, 0.0
    at = tl.load(START + b * num_groups + group)
    more = at < N
    while more:
        places = at + tl.arange(0, MEMBERS)
        member = tl.load(ORDER + b * N + places, places < N, other=0)
        is_member = (tl.load(GROUP + b * N + member) == group) & (places < N)
        weight = tl.load(WEIGHT + b * N + member, is_member, other=0.0)
        inside = is_member[:, None] & (c < C)[None, :]
        x = tl.load(X + b * x_b + member[:, None] * x_n + c[None, :], inside, other=0.0)
        features += tl.sum(x.to(tl.float32) * weight[:, None], 0)
        total += tl.sum(weight, 0)
        size += tl.sum(tl.load(MASS + b * N + member, is_member, other=0.0), 0)
        at += MEMBERS
        more = (tl.sum(is_member.to(tl.int32), 0) == MEMBERS) & (at < N)
    if NORMALIZE:
        features = features / tl.where(total == 0, 1.0, total)  # a group without members
    tl.store(OUT + (b * num_groups + group) * C + c, features.to(OUT.dtype.element_ty), c < C)
    if tl.program_id(1) == 0:
        tl.store(SIZE + b * num_groups + group, size)


@triton.jit
def _contrast(SCORE, GROUP, OUT, N, first_joined, prefix, flat, BLOCK: tl.constexpr):
    """Each program reads all scores of its sample: they are few."""
    b, each = tl.program_id(1).to(tl.int64), tl.arange(0, BLOCK)
    total, most = tl.zeros([BLOCK], tl.float32), tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(prefix, N, BLOCK):
        inside = start + each < N
        score = tl.load(SCORE + b * N + start + each, inside, other=0.0)
        total += score
        most = tl.maximum(most, tl.where(inside, score, float("-inf")))
    mean = tl.sum(total, 0) / (N - prefix)
    contrast = tl.max(most, 0) - mean
    i = tl.program_id(0) * BLOCK + each
    share = tl.div_rn(tl.load(SCORE + b * N + i, i < N, other=0.0) - mean, contrast)  # of the largest exactly 1
    share = tl.clamp(share, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    share = tl.where(contrast <= flat * tl.abs(mean), 1.0, share)
    merged = (i % 2 == 0) & (tl.load(GROUP + b * N + i, i < N, other=-1) >= first_joined)
    tl.store(OUT + b * N + i, tl.where(merged, share, 1.0), i < N)
