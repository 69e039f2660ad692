"""Attention and the statistics of its map on CUDA, in Triton kernels; needs triton, which torch's CUDA builds bring along.

The mean over heads comes before the entropy, so the normaliser of every head must be known before the first term of a sum can
be taken: a single sweep cannot do it. ``_forward`` is flash attention that also keeps minus log2 of the sum of each row's
exponentials, the shift of its logits; ``_reduce`` makes q k^T once more, a tile of the map for all heads in turn, and sums what
is wanted from the tile's mean. Price beyond attention: one more product, N * N * H * D multiply-adds (attention has two), only
in the layers that reduce. Memory: O(N) a query block, nothing of N x N. Sums are made in a fixed order, without atomics: the same
bits each time.

On an H100 (bfloat16, batch 8, 12 heads of 64, torch 2.11, triton 3.6; ``benchmarks/attention.py --device cuda --mode
cuda_graph``, n = 30, 95 % intervals), in units of torch's fused attention alone:

- output and row entropy of 2352 tokens 1.33 [1.28, 1.37]; by plain operations in chunks 33.3 [32.3, 34.5]
- the same with a log-size bias on the output, 1752 tokens: 1.56 [1.51, 1.58]
- the bias and no statistics, 1452 tokens: 0.87 [0.85, 0.90]

Block sizes are the fastest of those tried. Ampere and Blackwell: compiled for, not run.

Dimension key: B batch, N tokens, H heads, D channels of a head, Q and K blocks of queries and keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tokred import launching

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128  # beyond, blocks would not fit the shared memory of every GPU since Ampere
FAR, TINY = tl.constexpr(2.0**80), tl.constexpr(2.0**-126)
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)  # the hardware has exp2 and log2


def attend(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    *,
    scale: float,
    bias_BN: Tensor | None = None,
    valid_BN: Tensor | None = None,
) -> Tensor:
    """The output (B, N, H, D). ``bias_BN`` is added to the logits of each key; padding, where not ``valid_BN``, gets and gives
    nothing. ``scale`` is above 0. Biases are logs of sizes: with all of them hundreds from 0 digits are lost.
    """
    out_BNHD = _empty_output(v_BHND)
    _sweep(q_BHND, k_BHND, v_BHND, out_BNHD, None, scale, _added(bias_BN, valid_BN), None, _readable(valid_BN))
    return out_BNHD


def attend_and_measure(
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
    """The output as ``attend`` gives it, empty without values, and in float32 row entropy (B, N) and sums of what is received
    (B, N), empty where not wanted.

    ``biased``: ``bias_BN`` is seen by the statistics, too. Where not, one exponential of each entry serves both, in the precision
    of the values: output is lost where a key of almost no weight has by far the largest logit (in float16 some 10, else some 80
    above the others), and a bias that lies more than 87 below the largest is one of -inf: biases are logs of sizes.
    """
    out_BNHD = q_BHND.new_empty(0) if v_BHND is None else _empty_output(v_BHND)
    added_BN = _added(bias_BN, valid_BN) if biased else None
    valid_BN = _readable(valid_BN)
    weight_BN = None if biased or v_BHND is None else _shares(bias_BN, valid_BN)
    shift_BHN = q_BHND.new_empty(q_BHND.shape[:3], dtype=torch.float32)
    _sweep(q_BHND, k_BHND, v_BHND, out_BNHD, shift_BHN, scale, added_BN, weight_BN, valid_BN)
    return out_BNHD, *_sums(q_BHND, k_BHND, shift_BHN, scale, added_BN, valid_BN, entropy, received)


def _added(bias_BN: Tensor | None, valid_BN: Tensor | None) -> Tensor | None:
    """What is added to the logits of keys; 0 for padding, whose logits are -inf, and with inf or NaN would be no numbers."""
    if bias_BN is None or valid_BN is None:
        return _readable(bias_BN)
    return _readable(bias_BN.masked_fill(~valid_BN, 0))


def _shares(bias_BN: Tensor | None, valid_BN: Tensor | None) -> Tensor | None:
    """exp(bias), as a share of the largest of real keys: a constant changes nothing in a softmax."""
    if bias_BN is None:
        return None
    share_BN = _empty_rows(bias_BN)
    with torch.cuda.device_of(bias_BN):
        _exponentials[(len(bias_BN),)](
            *(bias_BN, share_BN if valid_BN is None else valid_BN, share_BN),
            *(*bias_BN.stride(), _row(valid_BN), share_BN.stride(0), bias_BN.shape[1]),
            HAS_VALID=valid_BN is not None,
            BLOCK=1024,
            num_warps=8,
        )
    return share_BN


def _readable(value_BN: Tensor | None) -> Tensor | None:
    """In float32, the numbers of a row side by side, an even number from row to row: a thread reads two at once where the first
    lies at a multiple of 8 bytes."""
    if value_BN is None or (
        value_BN.dtype == torch.float32 and value_BN.stride(1) == 1 and value_BN.stride(0) % 2 == 0
    ):
        return value_BN
    return _empty_rows(value_BN).copy_(value_BN)


def _empty_rows(like_BN: Tensor) -> Tensor:
    """In float32, with rows that begin at multiples of 16."""
    B, N = like_BN.shape
    return like_BN.new_empty(B, N + -N % 16, dtype=torch.float32)[:, :N]


def _row(value_BN: Tensor | None) -> int:
    return 0 if value_BN is None else value_BN.stride(0)


def _empty_output(v_BHND: Tensor) -> Tensor:
    B, H, N, D = v_BHND.shape
    return v_BHND.new_empty(B, N, H, D)


def _sweep(q_BHND, k_BHND, v_BHND, out_BNHD, shift_BHN, scale, added_BN, weight_BN, valid_BN) -> None:
    B, H, N, D = q_BHND.shape
    if 0 in q_BHND.shape:  # of nothing there is no descriptor
        return
    q, k = _rows(q_BHND), _rows(k_BHND)
    v = k if v_BHND is None else _rows(v_BHND)
    out = v if v_BHND is None else out_BNHD.transpose(1, 2)
    sizes = _forward_sizes(q.dtype, max(D, v.shape[3]))
    hopper = max(D, v.shape[3]) <= 64 and launching.has_blocks(k, v)
    with torch.cuda.device_of(q):
        _forward[(launching.cdiv(N, sizes["BLOCK_Q"]), H, B)](
            *(q, *((_blocks(x, sizes["BLOCK_K"]) if hopper else x) for x in (k, v)), out),
            *(q if value is None else value for value in (shift_BHN, added_BN, weight_BN, valid_BN)),
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            *(_row(added_BN), _row(weight_BN), _row(valid_BN), H, N, scale * LOG2_E.value),
            D=D,
            D_V=v.shape[3],
            BLOCK_D=_padded(D),
            BLOCK_V=_padded(v.shape[3]),
            HAS_V=v_BHND is not None,
            HAS_SHIFT=shift_BHN is not None,
            ADDED=added_BN is not None,
            WEIGHTED=weight_BN is not None,
            HAS_VALID=valid_BN is not None,
            FOLLOW=v.dtype == torch.float16,
            HOPPER=hopper,
            WIDEN=_widen(q),
            enable_fp_fusion=True,  # from triton 3.10 on it is not the default
            **sizes,
        )


def _sums(q_BHND, k_BHND, shift_BHN, scale, added_BN, valid_BN, entropy, received) -> tuple[Tensor, Tensor]:
    B, H, N, D = q_BHND.shape
    q, k = _rows(q_BHND), _rows(k_BHND)
    hopper = D <= 64 and launching.has_blocks(q, k)
    sizes = _reduce_sizes(q.dtype, D, hopper=hopper, added=added_BN is not None)
    num_q, num_k = launching.cdiv(N, sizes["BLOCK_Q"]), launching.cdiv(N, sizes["BLOCK_K"])
    none = shift_BHN.new_empty(0)
    entropy_KBN = shift_BHN.new_empty(num_k, B, N) if entropy else none
    received_QBN = shift_BHN.new_empty(num_q, B, N) if received else none
    with torch.cuda.device_of(q):
        _reduce[(num_q, num_k, B)](
            *(_blocks(q, sizes["BLOCK_Q"]) if hopper else q, _blocks(k, sizes["BLOCK_K"]) if hopper else k, shift_BHN),
            *(none if value is None else value for value in (added_BN, valid_BN)),
            *(entropy_KBN, received_QBN),
            *q.stride()[:3],
            *k.stride()[:3],
            *(_row(added_BN), _row(valid_BN), B, H, N, scale * LOG2_E.value),
            D=D,
            BLOCK_D=_padded(D),
            ADDED=added_BN is not None,
            HAS_VALID=valid_BN is not None,
            ENTROPY=entropy,
            RECEIVED=received,
            HOPPER=hopper,
            WIDEN=_widen(q),
            HARDWARE=launching.compiles(),
            STAGES=sizes["num_stages"],
            enable_fp_fusion=True,
            **sizes,
        )
        return _totals(entropy_KBN) if entropy else none, _totals(received_QBN) if received else none


def _totals(part_PBN: Tensor) -> Tensor:
    """The sums over the first axis; 37 of 8 x 2352 numbers on an H100 in 2.7 us, by torch in 4.4."""
    total_BN = part_PBN.new_empty(part_PBN.shape[1:])
    _total[(launching.cdiv(total_BN.numel(), 32),)](
        part_PBN, total_BN, total_BN.numel(), len(part_PBN), PARTS=64, BLOCK=32, num_warps=4
    )
    return total_BN


def _forward_sizes(dtype: torch.dtype, head_dim: int) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1}
    if head_dim > 64:
        return {"BLOCK_Q": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3, "maxnreg": 128}


def _reduce_sizes(dtype: torch.dtype, head_dim: int, *, hopper: bool, added: bool) -> dict[str, int]:
    if hopper:
        return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2, "maxnreg": 128 if added else 80}
    if dtype == torch.float32:  # 64 keys of wide heads would not fit the registers of Ampere
        return {"BLOCK_Q": 64, "BLOCK_K": 32 if head_dim > 64 else 64, "num_warps": 4, "num_stages": 1}
    return {"BLOCK_Q": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2 if head_dim > 64 else 3}


def _rows(x_BHND: Tensor) -> Tensor:
    """With the channels of a head side by side, as the kernels read them; any other stride will do."""
    return x_BHND if x_BHND.stride(3) == 1 else x_BHND.contiguous()


def _blocks(x_BHND: Tensor, num_rows: int) -> TensorDescriptor:
    return launching.blocks(x_BHND, 1, 1, num_rows, _padded(x_BHND.shape[3]))


def _padded(D: int) -> int:
    return max(16, launching.power_of_2(D))  # tl.dot takes powers of two, from 16 on


def _widen(q_BHND: Tensor) -> bool:
    """The interpreter (triton 3.9) holds bfloat16 as integers and multiplies those; there products are made in float32."""
    return q_BHND.dtype == torch.bfloat16 and not launching.compiles()


@triton.jit
def _exponentials(X, VALID, OUT, x_b, x_n, valid_b, out_b, N, HAS_VALID: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, BLOCK)
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, N, BLOCK):
        most = tl.maximum(most, _biases(X + b * x_b, x_n, VALID + b * valid_b, start + each, N, HAS_VALID))
    top = _finite(tl.max(most, 0))
    for start in range(0, N, BLOCK):
        log = _biases(X + b * x_b, x_n, VALID + b * valid_b, start + each, N, HAS_VALID) - top
        tl.store(OUT + b * out_b + start + each, tl.exp2(log * LOG2_E), start + each < N)


@triton.jit
def _biases(x, x_n, valid, at, N, HAS_VALID: tl.constexpr):
    """Of padding -inf."""
    is_key = at < N
    if HAS_VALID:
        is_key = is_key & (tl.load(valid + at, is_key, other=0.0) > 0)
    return tl.load(x + at * x_n, is_key, other=float("-inf")).to(tl.float32)


@triton.jit
def _dot(a, b, WIDEN: tl.constexpr):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(
        a, b, input_precision="tf32x3"
    )  # of float32: tf32 alone would cost half its digits; ieee compiles for minutes


@triton.jit
def _load(x, rows, n: tl.constexpr, d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, channels); the caller keeps ``rows`` inside. Channels beyond D are 0."""
    if D == BLOCK_D:
        return tl.load(x + rows[:, None] * n + d[None, :])
    return tl.load(x + rows[:, None] * n + d[None, :], d[None, :] < D, other=0.0)


@triton.jit
def _block(
    X, b, h, start, n: tl.constexpr, N,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, LAST: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    """Rows of a head, to which ``X`` points where it is no descriptor. ``LAST``: with some beyond N, zeros or the last again,
    which get no weight."""
    if HOPPER:
        block = X.load([b, h, start, 0]).reshape(BLOCK_N, BLOCK_D)
    else:
        rows = start + tl.arange(0, BLOCK_N)
        block = _load(X, tl.minimum(rows, N - 1) if LAST else rows, n, tl.arange(0, BLOCK_D), D, BLOCK_D)
    return block


@triton.jit
def _logits(
    q, K, b, h, valid_of_sample, start, k_n: tl.constexpr, N,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, HAS_VALID: tl.constexpr, LAST: tl.constexpr,
    HOPPER: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """q k^T of a block of keys; ``LAST``: it reaches beyond N."""
    keys = start + tl.arange(0, BLOCK_K)
    k = _block(K, b, h, start, k_n, N, D, BLOCK_K, BLOCK_D, LAST, HOPPER)
    logits = _dot(q, tl.trans(k), WIDEN)
    if HAS_VALID:
        is_key = (keys < N) & (tl.load(valid_of_sample + tl.minimum(keys, N - 1)) > 0)
        logits = tl.where(is_key[None, :], logits, float("-inf"))
    elif LAST:
        logits = tl.where((keys < N)[None, :], logits, float("-inf"))
    return logits


@triton.jit
def _step(
    q, K, V, b, h, added_of_sample, weight_of_sample, valid_of_sample, start, k_n: tl.constexpr, v_n: tl.constexpr, N, scale,
    most, total, weighted, acc,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_V: tl.constexpr, ADDED: tl.constexpr, WEIGHTED: tl.constexpr, HAS_VALID: tl.constexpr,
    FOLLOW: tl.constexpr, LAST: tl.constexpr, HOPPER: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of keys. ``FOLLOW``: what is subtracted from the logits of a row is the most so far; else ``most``, one number."""
    keys = start + tl.arange(0, BLOCK_K)
    safe_keys = tl.minimum(keys, N - 1) if LAST else keys
    if ADDED:
        added = _unstaged(added_of_sample + safe_keys, start)
    if WEIGHTED:
        weight = _unstaged(weight_of_sample + safe_keys, start)
    logits = _logits(q, K, b, h, valid_of_sample, start, k_n, N, D, BLOCK_K, BLOCK_D, HAS_VALID, LAST, HOPPER, WIDEN)
    if FOLLOW:
        logits = logits * scale
        if ADDED:
            logits += (added * LOG2_E)[None, :]
        new_most = tl.maximum(most, tl.max(logits, 1))
        safe = _finite(new_most)
        p = tl.exp2(logits - safe[:, None])
        shrink = tl.exp2(most - safe)
        most, acc = new_most, acc * shrink[:, None]
        total, weighted = total * shrink[:, None], weighted * shrink[:, None]
    elif ADDED:
        p = tl.exp2(logits * scale + (added * LOG2_E - most)[None, :])
    else:
        p = tl.exp2(logits * scale - most)
    total += _quarters(p, BLOCK_Q, BLOCK_K)
    if WEIGHTED:
        p = p * weight[None, :]
        weighted += _quarters(p, BLOCK_Q, BLOCK_K)
    if HAS_V:
        v = _block(V, b, h, start, v_n, N, D_V, BLOCK_K, BLOCK_V, LAST, HOPPER)
        acc += _dot(p.to(v.dtype), v, WIDEN)
    return most, total, weighted, acc


@triton.jit
def _quarters(p, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Sums of rows in four parts, as products leave them: what one thread holds, so that threads need not add up in each step."""
    return tl.sum(tl.sum(tl.reshape(p, [BLOCK_Q, BLOCK_K // 8, 4, 2]), 3), 1)


@triton.jit
def _unstaged(at, start):
    """A load that triton does not see feed a product: staged in shared memory it would take the room of a whole program."""
    value = tl.zeros(at.shape, tl.float32)
    if start >= 0:
        value = tl.load(at)
    return value


@triton.jit
def _log2(x, HARDWARE: tl.constexpr):
    """Of normal numbers, to some 2^-22; the interpreter has no assembly."""
    if HARDWARE:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return tl.log2(x)


@triton.jit
def _finite(most):
    """Where all keys so far are padding or have no size: -inf - -inf is no number."""
    return tl.where(most == float("-inf"), 0.0, most)


@triton.jit
def _over_keys(
    q, K, V, b, h, added_of_sample, weight_of_sample, valid_of_sample, k_n: tl.constexpr, v_n: tl.constexpr, N, scale, most,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_V: tl.constexpr, ADDED: tl.constexpr, WEIGHTED: tl.constexpr, HAS_VALID: tl.constexpr, FOLLOW: tl.constexpr,
    HOPPER: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """What was subtracted from the logits of each row, the sums of its exponentials without and with weights, and its output
    before it is divided by one of them."""
    total = tl.zeros([BLOCK_Q, 4], tl.float32)
    weighted = tl.zeros([BLOCK_Q, 4], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_V], tl.float32)
    whole = N // BLOCK_K * BLOCK_K
    for start in range(0, whole, BLOCK_K):
        most, total, weighted, acc = _step(
            q, K, V, b, h, added_of_sample, weight_of_sample, valid_of_sample, start, k_n, v_n, N, scale,
            most, total, weighted, acc,
            D, D_V, BLOCK_Q, BLOCK_K, BLOCK_D, BLOCK_V, HAS_V, ADDED, WEIGHTED, HAS_VALID, FOLLOW, False, HOPPER, WIDEN,
        )  # fmt: skip
    if whole < N:
        most, total, weighted, acc = _step(
            q, K, V, b, h, added_of_sample, weight_of_sample, valid_of_sample, whole, k_n, v_n, N, scale,
            most, total, weighted, acc,
            D, D_V, BLOCK_Q, BLOCK_K, BLOCK_D, BLOCK_V, HAS_V, ADDED, WEIGHTED, HAS_VALID, FOLLOW, True, HOPPER, WIDEN,
        )  # fmt: skip
    total = tl.sum(total, 1)
    return total * 0 + most, total, tl.sum(weighted, 1), acc


@triton.jit
def _forward(
    Q, K, V, OUT, SHIFT, ADDED_TO, WEIGHT, VALID,
    q_b, q_h, q_n: tl.constexpr, k_b, k_h, k_n: tl.constexpr, v_b, v_h, v_n: tl.constexpr, o_b, o_h, o_n,
    added_b, weight_b, valid_b, H, N, scale,
    D: tl.constexpr, D_V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_V: tl.constexpr, HAS_SHIFT: tl.constexpr, ADDED: tl.constexpr, WEIGHTED: tl.constexpr, HAS_VALID: tl.constexpr,
    FOLLOW: tl.constexpr, HOPPER: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head: its output, and minus log2 of the sum of each row's exponentials: added to logits, it makes
    them those of shares.

    ``WEIGHTED``: one exponential serves two softmaxes. With weights w the output's is p w / sum(p w), where p is the one without.

    What is subtracted from the logits need not be their maximum: float32 and bfloat16 hold powers of 2 from -126 to 127 with the
    same digits. So it is the largest logit of the first keys, one number for all queries of the block; where a sum comes out
    ``FAR`` from 1, all is done again with maxima followed row by row, as it always is in float16.

    ``HOPPER``: its copy engine reads keys and values, and a product with the identity leaves the queries, exact where they are
    finite, in the registers from which a product takes its first factor.
    """
    at_b, h = tl.program_id(2), tl.program_id(1)
    b = at_b.to(tl.int64)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = _load(Q + b * q_b + h * q_h, tl.minimum(rows, N - 1), q_n, d, D, BLOCK_D)
    if HOPPER:
        q = _dot(q, (d[:, None] == d[None, :]).to(tl.float32).to(q.dtype), WIDEN).to(q.dtype)
    else:
        K, V = K + b * k_b + h * k_h, V + b * v_b + h * v_h
    added, valid = ADDED_TO + tl.multiple_of(b * added_b, 2), VALID + tl.multiple_of(b * valid_b, 2)
    weight = WEIGHT + tl.multiple_of(b * weight_b, 2)
    lowest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    if FOLLOW:
        most = lowest
    else:
        logits = _logits(q, K, at_b, h, valid, 0, k_n, N, D, BLOCK_K, BLOCK_D, HAS_VALID, True, HOPPER, WIDEN)
        most = _finite(tl.max(logits) * scale)  # in two steps triton 3.6 cannot compile it for B200
    most_Q, total, weighted, acc = _over_keys(
        q, K, V, at_b, h, added, weight, valid, k_n, v_n, N, scale, most,
        D, D_V, BLOCK_Q, BLOCK_K, BLOCK_D, BLOCK_V, HAS_V, ADDED, WEIGHTED, HAS_VALID, FOLLOW, HOPPER, WIDEN,
    )  # fmt: skip
    by = weighted if WEIGHTED else total
    if not FOLLOW:
        is_near = (by > 1 / FAR) & (by < FAR) & (total < FAR)  # no number is not
        if tl.sum(is_near.to(tl.int32), 0) < BLOCK_Q:
            most_Q, total, weighted, acc = _over_keys(
                q, K, V, at_b, h, added, weight, valid, k_n, v_n, N, scale, lowest,
                D, D_V, BLOCK_Q, BLOCK_K, BLOCK_D, BLOCK_V, HAS_V, ADDED, WEIGHTED, HAS_VALID, True, HOPPER, WIDEN,
            )  # fmt: skip
            by = weighted if WEIGHTED else total
    if HAS_V:
        tl.store(
            OUT + b * o_b + h * o_h + rows[:, None] * o_n + dv[None, :],
            (acc * (1 / by)[:, None]).to(OUT.dtype.element_ty),
            (rows[:, None] < N) & (dv[None, :] < D_V),
        )
    if HAS_SHIFT:
        tl.store(SHIFT + (b * H + h) * N + rows, -_finite(most_Q) - tl.log2(total), rows < N)


@triton.jit
def _reduce(
    Q, K, SHIFT, ADDED_TO, VALID, ENTROPY_OUT, RECEIVED_OUT,
    q_b, q_h, q_n: tl.constexpr, k_b, k_h, k_n: tl.constexpr,
    added_b, valid_b, B, H, N, scale,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    ADDED: tl.constexpr, HAS_VALID: tl.constexpr, ENTROPY: tl.constexpr, RECEIVED: tl.constexpr,
    HOPPER: tl.constexpr, WIDEN: tl.constexpr, HARDWARE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of the mean map: the sums of p log p of its rows, and of p of its columns."""
    block_q, block_k, at_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b = at_b.to(tl.int64)
    rows = block_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    keys = block_k * BLOCK_K + tl.arange(0, BLOCK_K)
    safe_rows, safe_keys = tl.minimum(rows, N - 1), tl.minimum(keys, N - 1)
    d = tl.arange(0, BLOCK_D)
    shift_of = SHIFT + b * H * N + safe_rows
    total = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    if ADDED:
        added = tl.load(ADDED_TO + b * added_b + safe_keys) * LOG2_E
    # Where stages are asked for in the loop, the loads of shifts get them, too; else all would wait for these.
    for h in tl.range(0, H, num_stages=STAGES):
        if HOPPER:
            q = Q.load([at_b, h, block_q * BLOCK_Q, 0]).reshape(BLOCK_Q, BLOCK_D)
            k = K.load([at_b, h, block_k * BLOCK_K, 0]).reshape(BLOCK_K, BLOCK_D)
        else:
            q = _load(Q + b * q_b + h * q_h, safe_rows, q_n, d, D, BLOCK_D)
            k = _load(K + b * k_b + h * k_h, safe_keys, k_n, d, D, BLOCK_D)
        shift = tl.load(shift_of + h * N)
        if ADDED:
            total += tl.exp2(_dot(q, tl.trans(k), WIDEN) * scale + (added[None, :] + shift[:, None]))
        else:
            total += tl.exp2(_dot(q, tl.trans(k), WIDEN) * scale + shift[:, None])
    is_key = keys < N
    if HAS_VALID:
        is_key = is_key & (tl.load(VALID + b * valid_b + safe_keys) > 0)
    mean = tl.where(is_key[None, :], total * (1.0 / H), 0.0)
    if ENTROPY:
        terms = mean * _log2(tl.maximum(mean, TINY), HARDWARE)  # 0 log 0 = 0
        tl.store(ENTROPY_OUT + (block_k * B + b) * N + rows, tl.sum(terms, 1) * LN_2, rows < N)
    if RECEIVED:
        is_row = rows < N
        if HAS_VALID:
            is_row = is_row & (tl.load(VALID + b * valid_b + safe_rows) > 0)
        received = tl.sum(tl.where(is_row[:, None], mean, 0.0), 0)
        tl.store(RECEIVED_OUT + (block_q * B + b) * N + keys, received, keys < N)


@triton.jit
def _total(PART, OUT, num, num_parts, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    at, each = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PARTS)
    total = tl.zeros([PARTS, BLOCK], tl.float32)
    for start in range(0, num_parts, PARTS):
        part = (start + each)[:, None]
        total += tl.load(
            PART + part.to(tl.int64) * num + at[None, :], (part < num_parts) & (at < num)[None, :], other=0.0
        )
    tl.store(OUT + at, tl.sum(total, 0), at < num)
