"""The output of attention and statistics of its map, from the same products, with the map never held at once.

Three ways, chosen by ``attend_and_measure`` and equal up to rounding:

- CPU: ``_in_place``, a chunk of queries of a few heads at a time in one buffer that stays in the cache. No product is made
  twice, and the log-size bias costs no second softmax.
- CUDA: the kernels of ``tokred.kernels``, where triton is installed, for heads of up to 128 channels in float16, bfloat16 or
  float32, on NVIDIA GPUs from Ampere on.
- ``in_chunks`` for all else: where a gradient is wanted, the map itself or its mean over heads, in ``torch.export`` (and so
  in ONNX) and ``torch.jit.trace``, for subclasses of Tensor (fake ones, which have no values), on CUDA without triton or
  beyond its limits, and on other devices. Plain differentiable operations.

``torch.compile`` sees the first two as one operator, ``tokred::attend``.

Dimension key: B batch, N tokens, H heads, D channels of a head, Q queries of a chunk, G heads of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokred.gpu import has_kernels

SUMS = ("row_entropy", "received")  # what needs no more of the map than sums
# Of the logits of ``in_chunks``: on a CPU 16 MiB in float32, about the size of its last-level cache; a GPU wants more at once.
_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
# Measured on UMT-B's 2352 tokens and ViT-B's 197 (``benchmarks/attention.py``): from 250 to 600 queries products are as fast
# as they get; far beyond 4 MiB a buffer leaves the cache. Up to 8 threads have a head each, or more.
_IN_PLACE_QUERIES, _IN_PLACE_ELEMENTS, _IN_PLACE_THREADS = 600, 2**20, 8
_MAX_SPREAD = 60.0  # of a bias: exp(-60) = 1e-26, far above the 1e-38 where float32 ends
# Up to here from 0, exponentials, their sums and products with values (up to 1e9) are floats as they are. No largest of each row
# is sought and no pass divides, which saves time where a map is too large for the fastest cache.
_MAX_LOGIT, _PLAIN_TOKENS = 60.0, 1024


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
class _Sample:
    """One sample, in float32 or wider: ``mask_N`` is added to the logits; values were multiplied with ``weight_N``; ``plain``:
    exponentials of its logits need no shift."""

    q_HND: Tensor
    k_HDN: Tensor
    v_HND: Tensor | None
    mask_N: Tensor | None
    weight_N: Tensor | None
    real_N: Tensor | None
    ones_N: Tensor
    plain: bool


@torch.no_grad()
def _in_place(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, entropy, received):
    """Sample by sample, so that the numbers of one do not depend on its batch."""
    given = (q_BHND, k_BHND, v_BHND, bias_BN, valid_BN)
    found = _shapes(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, entropy, received)
    _, H, N, _ = q_BHND.shape
    chunk, heads = _chunk_and_heads(N, H)
    buffer_GQN = q_BHND.new_empty(heads, chunk, N, dtype=torch.promote_types(q_BHND.dtype, torch.float32))
    mean_QN = torch.empty_like(buffer_GQN[0])
    with torch.autocast("cpu", enabled=False):
        for b in range(len(q_BHND)):
            q, k, v, bias, valid = (None if x is None else x[b : b + 1] for x in given)
            out_NHD, entropy_N, received_N = (x[b] if x.numel() else None for x in found)
            if not (biased or bias is None or v is None or _is_narrow(bias)):
                parts = _by_chunks(q, k, v, scale, bias, valid, biased, entropy, received)
                for ours, part in zip((out_NHD, entropy_N, received_N), parts, strict=True):
                    if ours is not None:
                        ours.copy_(part[0])
                continue
            sample = _prepare(q, k, v, scale, bias, valid, biased, buffer_GQN.dtype)
            for rows in _slices(N, chunk):
                out_QHD = None if out_NHD is None else out_NHD[rows]
                mean = _mean_map(sample, rows, out_QHD, buffer_GQN, mean_QN)
                if entropy_N is not None:
                    entropy_N[rows] = _neg_entropy(mean, buffer_GQN)
                if received_N is not None:
                    mean = mean if sample.real_N is None else mean.mul_(sample.real_N[rows, None])
                    received_N += mean.sum(0)
            if received_N is not None:
                received_N /= N if sample.real_N is None else sample.real_N.sum()
    return found


def _chunk_and_heads(num_tokens: int, num_heads: int) -> tuple[int, int]:
    """Of how many queries and heads the map is made at once: chunks of about the same size, as many heads for each thread."""
    threads = min(torch.get_num_threads(), _IN_PLACE_THREADS)
    chunk = -(-num_tokens // -(-num_tokens // _IN_PLACE_QUERIES))
    return chunk, min(num_heads, threads * max(1, _IN_PLACE_ELEMENTS // (chunk * num_tokens)))


def _is_narrow(bias_BN: Tensor) -> bool:
    """Whether float32 holds the softmax with this bias and without it as products of each other."""
    return bool(bias_BN.amax() - bias_BN.amin() < _MAX_SPREAD)


def _prepare(q_BHND, k_BHND, v_BHND, scale, bias_BN, valid_BN, biased, dtype) -> _Sample:
    """The softmax without bias is p = softmax(q k); with it p w / sum(p w), where w = exp(bias). So p serves both."""
    weight_N, v_HND = None, None if v_BHND is None else v_BHND[0].to(dtype)
    if v_HND is not None and bias_BN is not None and not biased:
        of_real_BN = bias_BN if valid_BN is None else bias_BN.masked_fill(~valid_BN, -torch.inf)
        weight_N = (bias_BN[0] - of_real_BN.amax()).exp().to(dtype)
        v_HND = v_HND * weight_N[:, None]
    added_BN = bias_BN if biased else None
    mask_BN = key_mask(added_BN, valid_BN)
    mask_N = None if mask_BN is None else mask_BN[0].to(dtype)
    real_N = None if valid_BN is None else valid_BN[0].to(dtype)
    q_HND, k_HND = q_BHND[0].to(dtype) * scale, k_BHND[0].to(dtype)
    plain = k_HND.shape[1] >= _PLAIN_TOKENS and _are_near(q_HND, k_HND, added_BN)
    return _Sample(q_HND, k_HND.mT, v_HND, mask_N, weight_N, real_N, k_HND.new_ones(k_HND.shape[1]), plain)


def _are_near(q_HND: Tensor, k_HND: Tensor, added_BN: Tensor | None) -> bool:
    """Whether all logits are so near to 0 that exponentials need no shift: none is larger than the product of the lengths of
    query and key (Cauchy and Schwarz). False where a number is NaN or inf, in padding too."""
    longest_q_H, longest_k_H = (torch.linalg.vector_norm(x_HND, dim=-1).amax(-1) for x_HND in (q_HND, k_HND))
    added = 0 if added_BN is None else added_BN.abs().amax()
    return bool((longest_q_H * longest_k_H).amax() + added < _MAX_LOGIT)


def _mean_map(sample: _Sample, rows: slice, out_QHD: Tensor | None, buffer_GQN: Tensor, mean_QN: Tensor) -> Tensor:
    """The map of these queries, mean over heads, in ``mean_QN``; their output goes to ``out_QHD``.

    Beyond the two products there are up to two multiply-adds for each entry of the map, for sums: 1 / (2 D) of them each.
    """
    q_HQD = sample.q_HND[:, rows]
    H, Q, _ = q_HQD.shape
    mean_QN = mean_QN[:Q].zero_()
    for heads in _slices(H, len(buffer_GQN)):
        size = heads.stop - heads.start
        map_GQN = buffer_GQN.view(-1)[: size * mean_QN.numel()].view(size, *mean_QN.shape)
        torch.bmm(q_HQD[heads], sample.k_HDN[heads], out=map_GQN)
        sum_GQ1 = _add_softmax(map_GQN, sample, mean_QN)
        if out_QHD is not None and sample.v_HND is not None:
            out_GQD = torch.bmm(map_GQN, sample.v_HND[heads])
            if sample.weight_N is not None:
                sum_GQ1 = _sums(map_GQN, sample.weight_N)
            if sum_GQ1 is not None:
                out_GQD /= sum_GQ1
            out_QHD[:, heads] = out_GQD.transpose(0, 1)
    return mean_QN.div_(H)


def _add_softmax(map_GQN: Tensor, sample: _Sample, mean_QN: Tensor) -> Tensor | None:
    """Adds the softmax of these logits to ``mean_QN`` and leaves it in their place, still to be divided by what is
    returned (G, Q, 1), if something is."""
    if sample.mask_N is not None:
        map_GQN += sample.mask_N
    if not sample.plain:
        torch.softmax(map_GQN, -1, out=map_GQN)
        for map_QN in map_GQN:
            mean_QN += map_QN
        return None
    sum_GQ1 = _sums(map_GQN.exp_(), sample.ones_N)
    for map_QN, share_Q1 in zip(map_GQN, 1 / sum_GQ1, strict=True):
        mean_QN.addcmul_(map_QN, share_Q1)
    return sum_GQ1


def _sums(map_GQN: Tensor, weight_N: Tensor) -> Tensor:
    """(G, Q, 1)"""
    return torch.mv(map_GQN.flatten(0, 1), weight_N).view(*map_GQN.shape[:2], 1)


def _neg_entropy(mean_QN: Tensor, spare: Tensor) -> Tensor:
    """``spare`` is written over."""
    terms_QN = spare.view(-1)[: mean_QN.numel()].view_as(mean_QN)
    # the least float32 in place of 0 makes 0 log 0 = 0, in a third of xlogy's time
    torch.clamp_min(mean_QN, torch.finfo(torch.float32).tiny, out=terms_QN)
    return terms_QN.log_().mul_(mean_QN).sum(-1)


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
