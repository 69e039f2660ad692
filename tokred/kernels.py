"""Attention and the statistics of its map on CUDA, in two Triton kernels; needs triton, which torch's CUDA builds bring along.

The mean over heads comes before the entropy, so the normaliser of every head must be known before the first term of a sum can
be taken: a single sweep cannot do it. ``_forward`` is flash attention that also keeps the log-sum-exp of each row; ``_reduce``
makes q k^T once more, a tile of the map for all heads in turn, and sums what is wanted from the tile's mean. Price beyond
attention: one more product, N * N * H * D multiply-adds (attention has two), only in the layers that reduce. Memory: O(N) a
query block, nothing of N x N. Sums are made in a fixed order, without atomics: the same bits each time.

NOT YET RUN ON A GPU: checked in Triton's interpreter, and compiled for Ampere and Hopper, where they take at most 97 KiB of
shared memory (``tests/test_kernels.py``). Their speed is unknown; block sizes are what flash attention usually takes, not tuned.

Dimension key: B batch, N tokens, H heads, D channels of a head, Q and K blocks of queries and keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM, MIN_CAPABILITY = 128, (8, 0)  # beyond, blocks would not fit the shared memory of every GPU since Ampere
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)  # the hardware has exp2 and log2


def attend(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor | None,
    *,
    scale: float,
    used_BN: Tensor | None,
    seen_BN: Tensor | None,
    real_BN: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (B, N, H, D), empty without values, and in float32 row entropy (B, N) and received sums (B, N).

    ``used_BN`` is added to the logits of each key for the output, ``seen_BN`` for the statistics; the same tensor where they
    are the same. ``real_BN``: 1 for the queries that count in what is received.
    """
    if v_BHND is None:
        out_BNHD, used_BN = q_BHND.new_empty(0), seen_BN
    else:
        out_BNHD = v_BHND.new_empty(v_BHND.shape[0], v_BHND.shape[2], v_BHND.shape[1], v_BHND.shape[3])
    lse_BHN = _sweep(q_BHND, k_BHND, v_BHND, out_BNHD, scale, used_BN, seen_BN)
    return out_BNHD, *_sums(q_BHND, k_BHND, lse_BHN, scale, seen_BN, real_BN)


def _sweep(q_BHND, k_BHND, v_BHND, out_BNHD, scale, used_BN, seen_BN) -> Tensor:
    B, H, N, D = q_BHND.shape
    q, k = _rows(q_BHND), _rows(k_BHND)
    v = k if v_BHND is None else _rows(v_BHND)
    out = v if v_BHND is None else out_BNHD.transpose(1, 2)
    lse_BHN = q.new_empty(B, H, N, dtype=torch.float32)
    used, seen = _row(used_BN), _row(seen_BN)
    sizes = _forward_sizes(q.dtype, D)
    with torch.cuda.device_of(q):
        _forward[(triton.cdiv(N, sizes["BLOCK_Q"]), H, B)](
            *(q, k, v, out, lse_BHN, lse_BHN if used is None else used, lse_BHN if seen is None else seen),
            *(q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2)),
            *(v.stride(0), v.stride(1), v.stride(2), out.stride(0), out.stride(1), out.stride(2)),
            *(H, N, scale * LOG2_E.value),
            D=D,
            D_V=v.shape[3],
            BLOCK_D=_padded(D),
            BLOCK_V=_padded(v.shape[3]),
            HAS_V=v_BHND is not None,
            HAS_USED=used is not None,
            HAS_SEEN=seen is not None,
            SAME=used_BN is seen_BN,
            WIDEN=_widen(q),
            **sizes,
        )
    return lse_BHN


def _sums(q_BHND, k_BHND, lse_BHN, scale, seen_BN, real_BN) -> tuple[Tensor, Tensor]:
    B, H, N, D = q_BHND.shape
    q, k, seen, real = _rows(q_BHND), _rows(k_BHND), _row(seen_BN), _row(real_BN)
    sizes = _reduce_sizes(q.dtype)
    num_q, num_k = triton.cdiv(N, sizes["BLOCK_Q"]), triton.cdiv(N, sizes["BLOCK_K"])
    entropy_KBN, received_QBN = lse_BHN.new_empty(num_k, B, N), lse_BHN.new_empty(num_q, B, N)
    with torch.cuda.device_of(q):
        _reduce[(num_q, num_k, B)](
            *(q, k, lse_BHN, lse_BHN if seen is None else seen, lse_BHN if real is None else real),
            *(entropy_KBN, received_QBN),
            *(q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2)),
            *(B, H, N, scale * LOG2_E.value),
            D=D,
            BLOCK_D=_padded(D),
            HAS_SEEN=seen is not None,
            HAS_REAL=real is not None,
            WIDEN=_widen(q),
            **sizes,
        )
    return entropy_KBN.sum(0), received_QBN.sum(0)


def _forward_sizes(dtype: torch.dtype, head_dim: int) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1}
    return {"BLOCK_Q": 128, "BLOCK_K": 64, "num_warps": 8 if head_dim > 64 else 4, "num_stages": 2}


def _reduce_sizes(dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 1}
    return {"BLOCK_Q": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2}


def _rows(x_BHND: Tensor) -> Tensor:
    """With the channels of a head side by side, as the kernels read them; any other stride will do."""
    return x_BHND if x_BHND.stride(3) == 1 else x_BHND.contiguous()


def _row(x_BN: Tensor | None) -> Tensor | None:
    return None if x_BN is None else x_BN.float().contiguous()


def _padded(D: int) -> int:
    return max(16, triton.next_power_of_2(D))  # tl.dot takes powers of two, from 16 on


def _widen(q_BHND: Tensor) -> bool:
    """The interpreter (triton 3.9) holds bfloat16 as integers and multiplies those; there products are made in float32."""
    return q_BHND.dtype == torch.bfloat16 and not isinstance(_forward, triton.JITFunction)


@triton.jit
def _dot(a, b, WIDEN: tl.constexpr):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")  # not tf32, which would cost half the digits of float32


@triton.jit
def _forward(
    Q, K, V, OUT, LSE, USED, SEEN,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    H, N, scale,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_V: tl.constexpr, HAS_USED: tl.constexpr, HAS_SEEN: tl.constexpr, SAME: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head: its output, with ``USED``, and log2 of the sum of its rows, with ``SEEN``."""
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = tl.load(
        Q + b * q_b + h * q_h + rows[:, None] * q_n + d[None, :], (rows[:, None] < N) & (d[None, :] < D), other=0.0
    )
    used_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    used_sum = tl.zeros([BLOCK_Q], tl.float32)
    seen_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    seen_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_V], tl.float32)
    for start in range(0, N, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = tl.load(
            K + b * k_b + h * k_h + keys[None, :] * k_n + d[:, None], (keys[None, :] < N) & (d[:, None] < D), other=0.0
        )
        logits = _dot(q, k, WIDEN) * scale
        logits = tl.where(keys[None, :] < N, logits, float("-inf"))
        used = logits
        if HAS_USED:
            used += tl.load(USED + b * N + keys, keys < N, other=0.0)[None, :] * LOG2_E
        new_max = tl.maximum(used_max, tl.max(used, 1))
        safe = tl.where(new_max == float("-inf"), 0.0, new_max)  # all keys so far are masked: -inf - -inf is no number
        p = tl.exp2(used - safe[:, None])
        shrink = tl.exp2(used_max - safe)
        used_sum = used_sum * shrink + tl.sum(p, 1)
        used_max = new_max
        if HAS_V:
            v = tl.load(
                V + b * v_b + h * v_h + keys[:, None] * v_n + dv[None, :],
                (keys[:, None] < N) & (dv[None, :] < D_V),
                other=0.0,
            )
            acc = acc * shrink[:, None] + _dot(p.to(v.dtype), v, WIDEN)
        if not SAME:
            seen = logits
            if HAS_SEEN:
                seen += tl.load(SEEN + b * N + keys, keys < N, other=0.0)[None, :] * LOG2_E
            new_max = tl.maximum(seen_max, tl.max(seen, 1))
            safe = tl.where(new_max == float("-inf"), 0.0, new_max)
            seen_sum = seen_sum * tl.exp2(seen_max - safe) + tl.sum(tl.exp2(seen - safe[:, None]), 1)
            seen_max = new_max
    if HAS_V:
        tl.store(
            OUT + b * o_b + h * o_h + rows[:, None] * o_n + dv[None, :],
            (acc / used_sum[:, None]).to(OUT.dtype.element_ty),
            (rows[:, None] < N) & (dv[None, :] < D_V),
        )
    if SAME:
        seen_max = used_max
        seen_sum = used_sum
    tl.store(LSE + (b * H + h) * N + rows, seen_max + tl.log2(seen_sum), rows < N)


@triton.jit
def _reduce(
    Q, K, LSE, SEEN, REAL, ENTROPY, RECEIVED,
    q_b, q_h, q_n, k_b, k_h, k_n,
    B, H, N, scale,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_SEEN: tl.constexpr, HAS_REAL: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of the mean map: the sums of p log p of its rows, and of p of its columns."""
    block_q, block_k, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = block_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    keys = block_k * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    add = tl.zeros([BLOCK_K], tl.float32)
    if HAS_SEEN:
        add += tl.load(SEEN + b * N + keys, keys < N, other=0.0) * LOG2_E
    total = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for h in range(0, H):
        q = tl.load(
            Q + b * q_b + h * q_h + rows[:, None] * q_n + d[None, :], (rows[:, None] < N) & (d[None, :] < D), other=0.0
        )
        k = tl.load(
            K + b * k_b + h * k_h + keys[None, :] * k_n + d[:, None], (keys[None, :] < N) & (d[:, None] < D), other=0.0
        )
        lse = tl.load(LSE + (b * H + h) * N + rows, rows < N, other=0.0)
        total += tl.exp2(_dot(q, k, WIDEN) * scale + add[None, :] - lse[:, None])
    mean = tl.where((rows[:, None] < N) & (keys[None, :] < N), total / H, 0.0)
    terms = tl.where(mean > 0, mean * tl.log2(tl.where(mean > 0, mean, 1.0)), 0.0)  # 0 log 0 = 0
    tl.store(ENTROPY + (block_k * B + b) * N + rows, tl.sum(terms, 1) * LN_2, rows < N)
    if HAS_REAL:
        mean = mean * tl.load(REAL + b * N + rows, rows < N, other=0.0)[:, None]
    tl.store(RECEIVED + (block_q * B + b) * N + keys, tl.sum(mean, 0), keys < N)
