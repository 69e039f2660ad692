"""Attention and the statistics of its map on CUDA, in two Triton kernels; needs triton, which torch's CUDA builds bring along.

The mean over heads comes before the entropy, so the normaliser of every head must be known before the first term of a sum can
be taken: a single sweep cannot do it. ``_forward`` is flash attention that also keeps the log-sum-exp of each row; ``_reduce``
makes q k^T once more, a tile of the map for all heads in turn, and sums what is wanted from the tile's mean. Price beyond
attention: one more product, N * N * H * D multiply-adds (attention has two), only in the layers that reduce. Memory: O(N) a
query block, nothing of N x N. Sums are made in a fixed order, without atomics: the same bits each time.

On an H100 (bfloat16, 8 x 2352 tokens, 12 heads of 64, torch 2.11, triton 3.6; n = 20 interleaved rounds of
``benchmarks/attention.py``): output and row entropy take 1.79 [1.78, 1.84] of torch's fused attention alone, with a log-size
bias on the output 2.16 [2.14, 2.19], where plain operations in chunks take 33.8 [33.1, 34.4]. The bias alone costs 1.16 [1.15,
1.18]. Block sizes are the fastest of the eight tried there. Ampere: compiled for, not run.

Dimension key: B batch, N tokens, H heads, D channels of a head, Q and K blocks of queries and keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128  # beyond, blocks would not fit the shared memory of every GPU since Ampere
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)  # the hardware has exp2 and log2


def attend(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor | None,
    *,
    scale: float,
    bias_BN: Tensor | None = None,
    valid_BN: Tensor | None = None,
    biased: bool = True,
    entropy: bool = False,
    received: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (B, N, H, D), empty without values, and in float32 row entropy (B, N) and sums of what is received (B, N), empty
    where not wanted.

    ``bias_BN`` is added to the logits of each key; ``biased``: in the statistics, too. Padding, where not ``valid_BN``, gets and
    gives nothing. Where not ``biased`` one exponential serves both, in the range of the values' precision: biases are logs of
    sizes, a few units apart; one that lies tens below all others takes its key's place in the maximum along, and output is lost.
    """
    if v_BHND is None:
        out_BNHD = q_BHND.new_empty(0)
    else:
        out_BNHD = v_BHND.new_empty(v_BHND.shape[0], v_BHND.shape[2], v_BHND.shape[1], v_BHND.shape[3])
    if (
        bias_BN is not None
    ):  # a constant changes nothing in a softmax, and exp(bias) stays in the range of half precision
        bias_BN = (bias_BN - bias_BN.amax(1, keepdim=True)).float().contiguous()
    valid_BN = None if valid_BN is None else valid_BN.float().contiguous()
    lse_BHN = _sweep(q_BHND, k_BHND, v_BHND, out_BNHD, scale, bias_BN, valid_BN, biased)
    if not (entropy or received):
        return out_BNHD, lse_BHN.new_empty(0), lse_BHN.new_empty(0)
    seen_BN = bias_BN if biased else None
    return out_BNHD, *_sums(q_BHND, k_BHND, lse_BHN, scale, seen_BN, valid_BN, entropy, received)


def _sweep(q_BHND, k_BHND, v_BHND, out_BNHD, scale, bias_BN, valid_BN, biased) -> Tensor:
    B, H, N, D = q_BHND.shape
    q, k = _rows(q_BHND), _rows(k_BHND)
    v = k if v_BHND is None else _rows(v_BHND)
    out = v if v_BHND is None else out_BNHD.transpose(1, 2)
    lse_BHN = q.new_empty(B, H, N, dtype=torch.float32)
    sizes = _forward_sizes(q.dtype, D)
    with torch.cuda.device_of(q):
        _forward[(triton.cdiv(N, sizes["BLOCK_Q"]), H, B)](
            *(
                q,
                k,
                v,
                out,
                lse_BHN,
                lse_BHN if bias_BN is None else bias_BN,
                lse_BHN if valid_BN is None else valid_BN,
            ),
            *(q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2)),
            *(v.stride(0), v.stride(1), v.stride(2), out.stride(0), out.stride(1), out.stride(2)),
            *(H, N, scale * LOG2_E.value),
            D=D,
            D_V=v.shape[3],
            BLOCK_D=_padded(D),
            BLOCK_V=_padded(v.shape[3]),
            HAS_V=v_BHND is not None,
            HAS_BIAS=bias_BN is not None,
            HAS_VALID=valid_BN is not None,
            BIASED=biased,
            WIDEN=_widen(q),
            **sizes,
        )
    return lse_BHN


def _sums(q_BHND, k_BHND, lse_BHN, scale, bias_BN, valid_BN, entropy, received) -> tuple[Tensor, Tensor]:
    B, H, N, D = q_BHND.shape
    q, k = _rows(q_BHND), _rows(k_BHND)
    sizes = _reduce_sizes(q.dtype, D)
    num_q, num_k = triton.cdiv(N, sizes["BLOCK_Q"]), triton.cdiv(N, sizes["BLOCK_K"])
    none = lse_BHN.new_empty(0)
    entropy_KBN = lse_BHN.new_empty(num_k, B, N) if entropy else none
    received_QBN = lse_BHN.new_empty(num_q, B, N) if received else none
    with torch.cuda.device_of(q):
        _reduce[(num_q, num_k, B)](
            *(q, k, lse_BHN, lse_BHN if bias_BN is None else bias_BN, lse_BHN if valid_BN is None else valid_BN),
            *(entropy_KBN, received_QBN),
            *(q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2)),
            *(B, H, N, scale * LOG2_E.value),
            D=D,
            BLOCK_D=_padded(D),
            HAS_BIAS=bias_BN is not None,
            HAS_VALID=valid_BN is not None,
            ENTROPY=entropy,
            RECEIVED=received,
            WIDEN=_widen(q),
            **sizes,
        )
    return entropy_KBN.sum(0) if entropy else none, received_QBN.sum(0) if received else none


def _forward_sizes(dtype: torch.dtype, head_dim: int) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1}
    if head_dim > 64:
        return {"BLOCK_Q": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}


def _reduce_sizes(dtype: torch.dtype, head_dim: int) -> dict[str, int]:
    stages = 1 if dtype == torch.float32 else 2 if head_dim > 64 else 3
    return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": stages}


def _rows(x_BHND: Tensor) -> Tensor:
    """With the channels of a head side by side, as the kernels read them; any other stride will do."""
    return x_BHND if x_BHND.stride(3) == 1 else x_BHND.contiguous()


def _padded(D: int) -> int:
    return max(16, triton.next_power_of_2(D))  # tl.dot takes powers of two, from 16 on


def _widen(q_BHND: Tensor) -> bool:
    """The interpreter (triton 3.9) holds bfloat16 as integers and multiplies those; there products are made in float32."""
    return q_BHND.dtype == torch.bfloat16 and not isinstance(_forward, triton.JITFunction)


@triton.jit
def _dot(a, b, WIDEN: tl.constexpr):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(
        a, b, input_precision="tf32x3"
    )  # of float32: tf32 alone would cost half its digits; ieee compiles for minutes


@triton.jit
def _load(x, rows, n, d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, channels); the caller keeps ``rows`` inside. Channels beyond D are 0."""
    if D == BLOCK_D:
        return tl.load(x + rows[:, None] * n + d[None, :])
    return tl.load(x + rows[:, None] * n + d[None, :], d[None, :] < D, other=0.0)


@triton.jit
def _step(
    q, k_of_head, v_of_head, bias_of_sample, valid_of_sample, start, k_n, v_n, N, scale, most, total, weighted, acc,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_V: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, BIASED: tl.constexpr,
    LAST: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of keys; ``LAST``: it reaches beyond N."""
    keys = start + tl.arange(0, BLOCK_K)
    if LAST:
        safe_keys = tl.minimum(keys, N - 1)
    else:
        safe_keys = keys
    k = _load(k_of_head, safe_keys, k_n, tl.arange(0, BLOCK_D), D, BLOCK_D)
    logits = _dot(q, tl.trans(k), WIDEN)
    if HAS_VALID:
        is_key = (keys < N) & (tl.load(valid_of_sample + safe_keys) > 0)
        logits = tl.where(is_key[None, :], logits, float("-inf"))
    elif LAST:
        logits = tl.where((keys < N)[None, :], logits, float("-inf"))
    logits = logits * scale
    if HAS_BIAS and BIASED:
        logits += (tl.load(bias_of_sample + safe_keys) * LOG2_E)[None, :]
    new_most = tl.maximum(most, tl.max(logits, 1))
    safe = new_most
    if HAS_VALID or (
        HAS_BIAS and BIASED
    ):  # where all keys so far are padding or have no size: -inf - -inf is no number
        safe = tl.where(new_most == float("-inf"), 0.0, new_most)
    shrink = tl.exp2(most - safe)
    p = tl.exp2(logits - safe[:, None])
    total = total * shrink + tl.sum(p, 1)
    if HAS_BIAS and not BIASED:
        p = p * tl.exp2(tl.load(bias_of_sample + safe_keys) * LOG2_E)[None, :]
        weighted = weighted * shrink + tl.sum(p, 1)
    if HAS_V:
        v = _load(v_of_head, safe_keys, v_n, tl.arange(0, BLOCK_V), D_V, BLOCK_V)
        acc = acc * shrink[:, None] + _dot(p.to(v.dtype), v, WIDEN)
    return new_most, total, weighted, acc


@triton.jit
def _forward(
    Q, K, V, OUT, LSE, BIAS, VALID,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    H, N, scale,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_V: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, BIASED: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head: its output, and log2 of the sum of its rows, with the bias where ``BIASED``.

    One exponential serves both: with w = exp(bias) the output's softmax is p w / sum(p w), where p is the one without bias.
    """
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = _load(Q + b * q_b + h * q_h, tl.minimum(rows, N - 1), q_n, d, D, BLOCK_D)
    k_of_head, v_of_head = K + b * k_b + h * k_h, V + b * v_b + h * v_h
    most = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    weighted = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_V], tl.float32)
    whole = N // BLOCK_K * BLOCK_K
    for start in range(0, whole, BLOCK_K):
        most, total, weighted, acc = _step(
            q, k_of_head, v_of_head, BIAS + b * N, VALID + b * N, start, k_n, v_n, N, scale, most, total, weighted, acc,
            D, D_V, BLOCK_K, BLOCK_D, BLOCK_V, HAS_V, HAS_BIAS, HAS_VALID, BIASED, False, WIDEN,
        )  # fmt: skip
    if whole < N:
        most, total, weighted, acc = _step(
            q, k_of_head, v_of_head, BIAS + b * N, VALID + b * N, whole, k_n, v_n, N, scale, most, total, weighted, acc,
            D, D_V, BLOCK_K, BLOCK_D, BLOCK_V, HAS_V, HAS_BIAS, HAS_VALID, BIASED, True, WIDEN,
        )  # fmt: skip
    by = total
    if HAS_BIAS and not BIASED:
        by = weighted
    if HAS_V:
        tl.store(
            OUT + b * o_b + h * o_h + rows[:, None] * o_n + dv[None, :],
            (acc / by[:, None]).to(OUT.dtype.element_ty),
            (rows[:, None] < N) & (dv[None, :] < D_V),
        )
    tl.store(LSE + (b * H + h) * N + rows, most + tl.log2(total), rows < N)


@triton.jit
def _reduce(
    Q, K, LSE, BIAS, VALID, ENTROPY_OUT, RECEIVED_OUT,
    q_b, q_h, q_n, k_b, k_h, k_n,
    B, H, N, scale,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, ENTROPY: tl.constexpr, RECEIVED: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of the mean map: the sums of p log p of its rows, and of p of its columns."""
    block_q, block_k, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = block_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    keys = block_k * BLOCK_K + tl.arange(0, BLOCK_K)
    safe_rows, safe_keys = tl.minimum(rows, N - 1), tl.minimum(keys, N - 1)
    d = tl.arange(0, BLOCK_D)
    q_of, k_of, lse_of = Q + b * q_b, K + b * k_b, LSE + b * H * N + safe_rows
    total = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    if HAS_BIAS:
        bias = tl.load(BIAS + b * N + safe_keys) * LOG2_E
    for h in range(0, H):
        q = _load(q_of + h * q_h, safe_rows, q_n, d, D, BLOCK_D)
        k = _load(k_of + h * k_h, safe_keys, k_n, d, D, BLOCK_D)
        lse = tl.load(lse_of + h * N)
        if HAS_BIAS:
            total += tl.exp2(_dot(q, tl.trans(k), WIDEN) * scale + (bias[None, :] - lse[:, None]))
        else:
            total += tl.exp2(_dot(q, tl.trans(k), WIDEN) * scale - lse[:, None])
    inside = (rows[:, None] < N) & (keys[None, :] < N)
    mean = total / H
    if HAS_VALID:
        inside = inside & (tl.load(VALID + b * N + safe_keys) > 0)[None, :]
    mean = tl.where(inside, mean, 0.0)
    if ENTROPY:
        terms = tl.where(mean > 0, mean * tl.log2(tl.where(mean > 0, mean, 1.0)), 0.0)  # 0 log 0 = 0
        tl.store(ENTROPY_OUT + (block_k * B + b) * N + rows, tl.sum(terms, 1) * LN_2, rows < N)
    if RECEIVED:
        if HAS_VALID:
            mean = mean * tl.load(VALID + b * N + safe_rows)[:, None]
        tl.store(RECEIVED_OUT + (block_q * B + b) * N + keys, tl.sum(mean, 0), keys < N)
