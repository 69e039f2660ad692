"""The output of attention and statistics of its map, from the same products, with the map never held at once.

Three ways, chosen by ``attend_and_measure`` and equal up to rounding:

- CPU: ``_in_place``, a chunk of queries of a head at a time, or a few small samples, in one buffer of a few MiB a thread.
  No product is made twice, and the log-size bias costs no second softmax.
- CUDA: the kernels of ``tokred.kernels``, where triton is installed, for heads of up to 128 channels in float16, bfloat16 or
  float32, on NVIDIA GPUs from Ampere on.
- ``in_chunks`` for all else: where a gradient is wanted, the map itself or its mean over heads, in ``torch.export`` (and so
  in ONNX) and ``torch.jit.trace``, for subclasses of Tensor (fake ones, which have no values), on CUDA without triton or
  beyond its limits, and on other devices. Plain differentiable operations.

``torch.compile`` sees the first two as one operator, ``tokred::attend``.

Dimension key: B batch, N tokens, H heads, D channels of a head, S samples, Q queries and G heads (of all samples) of a chunk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokred.gpu import has_kernels

SUMS = ("row_entropy", "received")  # what needs no more of the map than sums
# Of the logits of ``in_chunks``: on a CPU 16 MiB in float32, about the size of its last-level cache; a GPU wants more at once.
_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
# Measured on UMT-B's 2352 tokens and ViT-B's 197 (``benchmarks/attention.py``): from 250 to 600 queries products are as fast
# as they get: one thread makes up to 600 at once, of up to 8 each 400. Samples whose map, of all heads, fits into 4 MiB, are
# made whole, one or more by each thread.
_IN_PLACE_QUERIES, _IN_PLACE_ELEMENTS, _IN_PLACE_THREADS = 600, 2**20, 8
# Of the maps of a thread that has several samples: 1 MiB, about a core's own cache. Of powers of 2 around it this was the
# fastest, or near to it, on 8 to 32 samples of 22 to 256 tokens and 1 or 2 threads.
_SMALL_ELEMENTS = 2**18
_MAX_SPREAD = 60.0  # of a bias: exp(-60) = 1e-26, far above the 1e-38 where float32 ends
# Up to here from 0, exponentials, their sums and products with values (up to 1e9) are floats as they are. No largest of each row
# is sought and no pass divides, which saves time where a map is too large for the fastest cache. They are made as powers of 2:
# torch's exp2 is as exact as its exp, and took a third of its time on an AMD EPYC (python -m timeit -s "import torch;
# x = torch.rand(10**6)" "x.exp2()").
_MAX_LOGIT, _PLAIN_TOKENS = 60.0, 1024
_LOG2_E = math.log2(math.e)


def attend_and_measure(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor | None,
    *,
    scale: float,
    bias_BN: Tensor | None,
    valid_BN: Tensor | None,
    statistics: Sequence[str],
    biased: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output (B, H, N, D), empty without values, and ``statistics``, which carry no gradient.
    ``biased``: they see ``bias_BN`` too."""
    if not _sums_only(q_BHND, k_BHND, v_BHND, bias_BN, statistics):
        return in_chunks(
            q_BHND,
            k_BHND,
            v_BHND,
            scale=scale,
            bias_BN=bias_BN,
            valid_BN=valid_BN,
            statistics=statistics,
            biased=biased,
        )
    run = _operator if torch.compiler.is_compiling() else _attend
    wanted = ("row_entropy" in statistics, "received" in statistics)
    out_BNHD, *sums = run(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, *wanted)
    found = dict(zip(SUMS, sums, strict=True))
    out_BHND = out_BNHD if v_BHND is None else out_BNHD.transpose(1, 2)
    return out_BHND, {name: found[name] for name in statistics}


def key_mask(bias_BN: Tensor | None, valid_BN: Tensor | None) -> Tensor | None:
    """What is added to the logits of each key."""
    if valid_BN is None:
        return bias_BN
    bias_BN = torch.zeros(valid_BN.shape, device=valid_BN.device) if bias_BN is None else bias_BN
    return bias_BN.masked_fill(~valid_BN, -torch.inf)


def _masks(bias_BN: Tensor | None, valid_BN: Tensor | None, biased: bool) -> tuple[Tensor | None, Tensor | None]:
    """That of the output and that of the statistics: one tensor where they do not differ."""
    used_BN = key_mask(bias_BN, valid_BN)
    return used_BN, used_BN if biased or bias_BN is None else key_mask(None, valid_BN)


def weights(q_BHQD: Tensor, k_BHND: Tensor, scale: float, mask_BN: Tensor | None) -> Tensor:
    """softmax(q k + mask) in float32, whatever the precision of q and k."""
    return _softmax(((q_BHQD * scale) @ k_BHND.mT).float(), mask_BN)


def of_whole_map(name: str, map_BHNN: Tensor, valid_BN: Tensor | None) -> Tensor:
    """A statistic of a map that is there."""
    real_BN = _real(map_BHNN, valid_BN)
    return _of_chunks(name, [_of_chunk(name, map_BHNN, real_BN)], real_BN)


def in_chunks(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor | None,
    *,
    scale: float,
    bias_BN: Tensor | None,
    valid_BN: Tensor | None,
    statistics: Sequence[str],
    biased: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """As ``attend_and_measure``, a chunk of queries of all samples and heads at a time."""
    B, H, N, _ = q_BHND.shape
    used_BN, seen_BN = _masks(bias_BN, valid_BN, biased)
    real_BN = _real(q_BHND, valid_BN)
    together = max(1, B) if isinstance(B, int) else 1  # a program for batches of any size has one way to cut
    chunk = N if "map" in statistics else max(16, _CHUNK_ELEMENTS.get(q_BHND.device.type, 2**22) // (together * H * N))
    outputs: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {name: [] for name in statistics}
    for q_BHQD, real_BQ in zip(q_BHND.split(chunk, dim=2), real_BN.split(chunk, dim=1), strict=True):
        logits_BHQN = ((q_BHQD * scale) @ k_BHND.mT).float()
        if v_BHND is not None:
            used_BHQN = _softmax(logits_BHQN, used_BN)
            outputs.append(used_BHQN.to(v_BHND.dtype) @ v_BHND)
        shared = v_BHND is not None and seen_BN is used_BN
        seen_BHQN = used_BHQN.detach() if shared else _softmax(logits_BHQN.detach(), seen_BN)
        for name, found in parts.items():
            found.append(_of_chunk(name, seen_BHQN, real_BQ))
    out_BHND = torch.cat(outputs, 2) if outputs else q_BHND.new_empty(0)
    return out_BHND, {name: _of_chunks(name, found, real_BN) for name, found in parts.items()}


def _sums_only(q_BHND, k_BHND, v_BHND, bias_BN, statistics) -> bool:
    given = [x for x in (q_BHND, k_BHND, v_BHND, bias_BN) if x is not None]
    return (
        set(statistics) <= set(SUMS)
        and q_BHND.device.type in ("cpu", "cuda")
        and type(q_BHND) is Tensor
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in given))
        and not _is_exporting()
        and not torch.jit.is_tracing()
    )


def _is_exporting() -> bool:
    """``torch.compiler.is_exporting()``, which in torch 2.11 (no more in 2.15) is true inside of any compilation."""
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag


def _attend(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor | None,
    scale: float,
    bias_BN: Tensor | None,
    valid_BN: Tensor | None,
    biased: bool,
    entropy: bool,
    received: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, H, D), and row entropy and received (B, N); what is not wanted has no elements."""
    args = (q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, entropy, received)
    if q_BHND.device.type == "cpu":
        return _in_place(*args)
    return _by_kernel(*args) if has_kernel(q_BHND, v_BHND) else _by_chunks(*args)


_operator = torch.library.custom_op("tokred::attend", _attend, mutates_args=())


@_operator.register_fake
def _shapes(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, entropy, received):
    B, H, N, _ = q_BHND.shape
    out_BNHD = q_BHND.new_empty(0) if v_BHND is None else v_BHND.new_empty(B, N, H, v_BHND.shape[3])
    sums = [q_BHND.new_zeros((B, N) if wanted else 0, dtype=torch.float32) for wanted in (entropy, received)]
    return out_BNHD, *sums


def _by_chunks(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, entropy, received):
    statistics = [name for name, wanted in zip(SUMS, (entropy, received), strict=True) if wanted]
    out_BHND, found = in_chunks(
        q_BHND, k_BHND, v_BHND, scale=scale, bias_BN=bias_BN, valid_BN=valid_BN, statistics=statistics, biased=biased
    )
    out_BNHD = out_BHND if v_BHND is None else out_BHND.transpose(1, 2).contiguous()
    none = torch.empty(0, device=q_BHND.device)
    return out_BNHD, *(found.get(name, none) for name in SUMS)


def has_kernel(q_BHND: Tensor, v_BHND: Tensor | None) -> bool:
    """Whether the kernels of ``tokred.kernels`` take these."""
    if not has_kernels(q_BHND):
        return False
    from tokred import kernels  # here, since it imports triton

    widest = max(x.shape[3] for x in (q_BHND, v_BHND) if x is not None)
    return widest <= kernels.MAX_HEAD_DIM and q_BHND.dtype in kernels.DTYPES


def _by_kernel(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, entropy, received):
    from tokred import kernels

    out_BNHD, entropy_BN, received_BN = kernels.attend_and_measure(
        q_BHND,
        k_BHND,
        v_BHND,
        scale=scale,
        bias_BN=bias_BN,
        valid_BN=valid_BN,
        biased=biased,
        entropy=entropy,
        received=received,
    )
    if received:
        received_BN = received_BN / (q_BHND.shape[2] if valid_BN is None else valid_BN.sum(1, keepdim=True))
    return out_BNHD, entropy_BN, received_BN


@dataclass(frozen=True)
class _Samples:
    """Samples whose maps are made together, in float32 or wider: ``mask_SN`` is added to the logits; the output's map is
    weighted with ``weight_SN``; ``plain``: exponentials of the logits need no shift (only where there is one sample), and by
    scale and mask they are powers of 2."""

    q_SHND: Tensor
    k_SHND: Tensor
    v_SHND: Tensor | None
    scale: float
    mask_SN: Tensor | None
    weight_SN: Tensor | None
    real_SN: Tensor | None
    plain: bool


@torch.no_grad()
def _in_place(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, entropy, received):
    """A few samples at a time; what is in one does not reach the others, though MKL may round it otherwise beside others."""
    given = (q_BHND, k_BHND, v_BHND, bias_BN, valid_BN)
    found = _shapes(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, entropy, received)
    B, H, N, _ = q_BHND.shape
    together, heads, chunk = _at_once(B, H, N)
    buffer_SHQN = q_BHND.new_empty(together, heads, chunk, N, dtype=torch.promote_types(q_BHND.dtype, torch.float32))
    mean_SQN = torch.empty_like(buffer_SHQN[:, 0])
    too_wide = set() if biased or bias_BN is None or v_BHND is None else _too_wide(bias_BN)
    with torch.autocast("cpu", enabled=False):
        for some in _slices(B, together):
            if too_wide.issuperset(range(some.start, some.stop)):
                continue
            q, k, v, bias, valid = (None if x is None else x[some] for x in given)
            samples = _prepare(q, k, v, scale, bias, valid, biased, buffer_SHQN.dtype)
            out_SNHD, entropy_SN, received_SN = (x[some] if x.numel() else None for x in found)
            for rows in _slices(N, chunk):
                mean = _mean_map(samples, rows, None if out_SNHD is None else out_SNHD[:, rows], buffer_SHQN, mean_SQN)
                if entropy_SN is not None:
                    entropy_SN[:, rows] = _neg_entropy(mean, buffer_SHQN)
                if received_SN is not None:
                    mean = mean if samples.real_SN is None else mean.mul_(samples.real_SN[:, rows, None])
                    received_SN += mean.sum(1)
            if received_SN is not None:
                received_SN /= N if samples.real_SN is None else samples.real_SN.sum(1, keepdim=True)
        for b in too_wide:  # what stands there from samples beside it is written over
            q, k, v, bias, valid = (None if x is None else x[b : b + 1] for x in given)
            parts = _by_chunks(q, k, v, scale, bias, valid, biased, entropy, received)
            for ours, part in zip(found, parts, strict=True):
                if ours.numel():
                    ours[b] = part[0]
    return found


def _at_once(num_samples: int, num_heads: int, num_tokens: int) -> tuple[int, int, int]:
    """Of how many samples, heads and queries the map is made at once: where the whole map of a sample is small, as many samples
    for each thread; else one head's chunks of about the same size, which the threads divide among them."""
    threads = _num_threads()
    num_elements = num_heads * num_tokens**2
    if num_tokens <= _IN_PLACE_QUERIES and num_elements <= _IN_PLACE_ELEMENTS:
        together = min(num_samples, threads * max(1, _SMALL_ELEMENTS // num_elements))
        return max(1, together), num_heads, num_tokens
    chunks = -(-num_tokens // max(_IN_PLACE_QUERIES, threads * _IN_PLACE_QUERIES * 2 // 3))
    # each a multiple of the threads; where these do not divide the tokens, a short one is left at the end
    share = num_tokens / (threads * chunks)
    chunk = threads * (math.floor(share) if num_tokens % threads else math.ceil(share))
    return 1, 1, min(num_tokens, max(threads, chunk))


def _num_threads() -> int:
    return min(torch.get_num_threads(), _IN_PLACE_THREADS)


def _too_wide(bias_BN: Tensor) -> set[int]:
    """The samples where float32 does not hold the softmax with this bias and without it as products of each other, and those
    whose bias is not finite."""
    is_narrow_B = bias_BN.amax(1) - bias_BN.amin(1) < _MAX_SPREAD
    return {b for b, is_narrow in enumerate(is_narrow_B.tolist()) if not is_narrow}


def _prepare(q_SHND, k_SHND, v_SHND, scale, bias_SN, valid_SN, biased, dtype) -> _Samples:
    """The softmax without bias is p = softmax(q k); with it p w / sum(p w), where w = exp(bias). So p serves both."""
    weight_SN, v_SHND = None, None if v_SHND is None else v_SHND.to(dtype)
    if v_SHND is not None and bias_SN is not None and not biased:
        of_real_SN = bias_SN if valid_SN is None else bias_SN.masked_fill(~valid_SN, -torch.inf)
        weight_SN = (bias_SN - of_real_SN.amax(1, keepdim=True)).exp().to(dtype)
    added_SN = bias_SN if biased else None
    mask_SN = key_mask(added_SN, valid_SN)
    mask_SN = None if mask_SN is None else mask_SN.to(dtype)
    real_SN = None if valid_SN is None else valid_SN.to(dtype)
    q_SHND, k_SHND = q_SHND.to(dtype), k_SHND.to(dtype)
    # so large a map is cut into chunks, and chunks are of one sample: no other has a say in how it is made
    plain = k_SHND.shape[2] >= _PLAIN_TOKENS and _are_near(q_SHND, k_SHND, scale, added_SN)
    if plain:
        scale, mask_SN = scale * _LOG2_E, None if mask_SN is None else mask_SN * _LOG2_E
    return _Samples(q_SHND, k_SHND, v_SHND, scale, mask_SN, weight_SN, real_SN, plain)


def _are_near(q_SHND: Tensor, k_SHND: Tensor, scale: float, added_SN: Tensor | None) -> bool:
    """Whether all logits are so near to 0 that exponentials need no shift: none is larger than the product of the lengths of
    query and key (Cauchy and Schwarz). False where a number is NaN or inf, in padding too."""
    longest_q_SH, longest_k_SH = (torch.linalg.vector_norm(x, dim=-1).amax(-1) for x in (q_SHND, k_SHND))
    added = 0 if added_SN is None else added_SN.abs().amax()
    return bool((longest_q_SH * longest_k_SH).amax() * abs(scale) + added < _MAX_LOGIT)


def _mean_map(samples: _Samples, rows: slice, out_SQHD: Tensor | None, buffer_SHQN: Tensor, mean_SQN: Tensor) -> Tensor:
    """The maps of these queries, mean over heads, in ``mean_SQN``; their output goes to ``out_SQHD``.

    Beyond the two products each entry of the map is added up to three times and multiplied up to twice: little beside 2 D.
    """
    q_SHQD = samples.q_SHND[:, :, rows]
    S, H, Q, D = q_SHQD.shape
    N = samples.k_SHND.shape[2]
    mean_SQN = _part(mean_SQN, S, Q, N).zero_()
    for heads in _slices(H, buffer_SHQN.shape[1]):
        q_GQD, k_GND = (x[:, heads].flatten(0, 1) for x in (q_SHQD, samples.k_SHND))
        v_GND = None if samples.v_SHND is None else samples.v_SHND[:, heads].flatten(0, 1)
        threads = _num_threads()
        if len(q_GQD) == 1 and Q % threads == 0:
            # each thread has queries of its own, in all that follows: what it wrote it reads again from its own cache
            q_GQD, k_GND = q_GQD.view(threads, Q // threads, D), k_GND.expand(threads, -1, -1)
            v_GND = None if v_GND is None else v_GND.expand(threads, -1, -1)
        map_GQN = _part(buffer_SHQN, *q_GQD.shape[:2], N)
        # not baddbmm_, whose multiplications torch's counter does not see
        torch.baddbmm(map_GQN, q_GQD, k_GND.mT, beta=0, alpha=samples.scale, out=map_GQN)
        sum_GQ1 = _add_softmax(map_GQN, samples, mean_SQN)
        if out_SQHD is not None and v_GND is not None:
            if samples.weight_SN is not None:
                map_GQN.view(S, -1, N).mul_(samples.weight_SN[:, None])
                sum_GQ1 = map_GQN.sum(-1, keepdim=True)
            out_GQD = torch.bmm(map_GQN, v_GND)
            if sum_GQ1 is not None:
                out_GQD /= sum_GQ1
            out_SQHD[:, :, heads] = out_GQD.view(S, -1, Q, out_GQD.shape[2]).transpose(1, 2)
    return mean_SQN.div_(H)


def _add_softmax(map_GQN: Tensor, samples: _Samples, mean_SQN: Tensor) -> Tensor | None:
    """Adds the softmax of these logits to ``mean_SQN`` and leaves it in their place, still to be divided by what is
    returned (the sum of each row), if something is."""
    S, Q, N = mean_SQN.shape
    maps_of_heads = map_GQN.view(S, -1, Q, N).unbind(1)
    if samples.mask_SN is not None:
        map_GQN.view(S, -1, N).add_(samples.mask_SN[:, None])
    if not samples.plain:
        torch.softmax(map_GQN, -1, out=map_GQN)
        for map_SQN in maps_of_heads:
            mean_SQN += map_SQN
        return None
    sum_GQ1 = map_GQN.exp2_().sum(-1, keepdim=True)
    for map_SQN, share_SQ1 in zip(maps_of_heads, (1 / sum_GQ1).view(S, -1, Q, 1).unbind(1), strict=True):
        mean_SQN.addcmul_(map_SQN, share_SQ1)
    return sum_GQ1


def _neg_entropy(mean_SQN: Tensor, spare: Tensor) -> Tensor:
    """``spare`` is written over."""
    terms_SQN = _part(spare, *mean_SQN.shape)
    # the least float32 in place of 0 makes 0 log 0 = 0, in a third of xlogy's time
    torch.clamp_min(mean_SQN, torch.finfo(torch.float32).tiny, out=terms_SQN)
    return terms_SQN.log_().mul_(mean_SQN).sum(-1)


def _part(buffer: Tensor, *shape: int) -> Tensor:
    """The first numbers of ``buffer``, in this shape."""
    return buffer.view(-1)[: math.prod(shape)].view(shape)


def _slices(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _softmax(logits_BHQN: Tensor, mask_BN: Tensor | None) -> Tensor:
    return (logits_BHQN if mask_BN is None else logits_BHQN + mask_BN[:, None, None, :]).softmax(-1)


def _real(like: Tensor, valid_BN: Tensor | None) -> Tensor:
    """(B, N): 1 for a real token, 0 for padding."""
    shape = like.shape[0], like.shape[2]
    return torch.ones(shape, device=like.device) if valid_BN is None else valid_BN.float()


def _of_chunk(name: str, map_BHQN: Tensor, real_BQ: Tensor) -> Tensor:
    if name == "map":
        return map_BHQN
    mean_BQN = map_BHQN.mean(1)
    if name == "head_mean":
        return mean_BQN
    if name == "received":
        return (mean_BQN * real_BQ[..., None]).sum(1)
    return torch.special.xlogy(mean_BQN, mean_BQN).sum(-1)  # row_entropy; xlogy: 0 log 0 = 0, where log alone gives NaN


def _of_chunks(name: str, found: list[Tensor], real_BN: Tensor) -> Tensor:
    if name == "received":
        return torch.stack(found).sum(0) / real_BN.sum(1, keepdim=True)
    return torch.cat(found, 2 if name == "map" else 1)
