"""Which tokens are alike, and draws of random numbers: pure functions that methods share.

All return places, groups or scores, never features. Ties are broken by place (stable sorts).

Dimension key: B batch, N tokens, C channels of the metric, A sources, D destinations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred.gpu import runs_kernels
from tokred.rows import gather_rows

_FLAT = 1e-5  # scores are equal: float32 rounds a sum of N log terms to about 1e-6 of itself


def bipartite_matching(
    metric_BNC: Tensor, r: int, *, prefix: int = 0, sort: bool = True, label_BN: Tensor | None = None
) -> Tensor:
    """Joins the ``r`` tokens of even place that are most like a token of odd place to it (ToMe, arXiv 2210.09461, Sec. 3.1).

    Returns group_BN with the N - r groups in the order: even tokens left over, odd tokens; of ``prefix`` tokens the
    first come first. ``sort`` keeps the left-over tokens in order of place, else they come by falling similarity: ToMe
    sorts where there is a CLS token, vid-TLDR always. Cosine similarity, in float32. ``label_BN``: pairs of the same label come
    before all others.
    """
    best_BA, partner_BA = _nearest_odd(metric_BNC, prefix, label_BN)
    if prefix:
        best_BA[:, : (prefix + 1) // 2] = -torch.inf  # prefix tokens at even places
    num_tokens = metric_BNC.shape[1]
    if prefix < 2 and runs_kernels(best_BA):
        from tokred import merge_kernels  # here, since it imports triton

        return merge_kernels.join(best_BA, partner_BA, r, num_tokens, sort=sort)
    order_BA = best_BA.argsort(dim=-1, descending=True, stable=True)
    return join(order_BA, partner_BA, r, num_tokens, sort=sort, prefix=prefix)


def _nearest_odd(metric_BNC: Tensor, prefix: int, label_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of each token of even place the largest similarity to one of odd place behind the prefix, and which of these it is."""
    if label_BN is None and metric_BNC.dtype in (torch.float16, torch.bfloat16) and runs_kernels(metric_BNC):
        from tokred.merge_kernels import nearest_odd

        return nearest_odd(metric_BNC, prefix // 2)
    score_BAD = even_to_odd(metric_BNC)
    if label_BN is not None:
        score_BAD = score_BAD - 4.0 * (label_BN[:, ::2, None] != label_BN[:, None, 1::2])  # cosines lie in -1..1
    score_BAD[:, :, : prefix // 2] = -torch.inf
    best_BA, partner_BA = score_BAD.max(-1)
    return best_BA, partner_BA


def join(order_BA: Tensor, partner_BA: Tensor, r: int, num_tokens: int, *, sort: bool, prefix: int = 0) -> Tensor:
    """group_BN where the first ``r`` sources (even places) of ``order_BA`` join their partner among the odd places.

    Groups: sources left over, then destinations; with a prefix of two or more, its tokens come first, in order.
    """
    merged_Br, left_BL = order_BA[:, :r], order_BA[:, r:]
    if sort:
        left_BL = left_BL.sort(-1).values
    num_left = left_BL.shape[1]
    slot_BL = torch.arange(num_left, device=left_BL.device).expand_as(left_BL)
    even_BA = torch.empty_like(order_BA).scatter(1, left_BL, slot_BL)
    even_BA = even_BA.scatter(1, merged_Br, num_left + partner_BA.gather(1, merged_Br))
    odd_D = num_left + torch.arange(num_tokens // 2, device=order_BA.device)
    group_BN = order_BA.new_empty(order_BA.shape[0], num_tokens)
    group_BN[:, ::2] = even_BA
    group_BN[:, 1::2] = odd_D
    if prefix >= 2:
        return _prefix_first(group_BN, prefix, num_tokens - r)
    return group_BN


def _prefix_first(group_BN: Tensor, prefix: int, num_groups: int) -> Tensor:
    """Renumbers the groups so that those of the prefix tokens are 0, 1, ...; the others keep their order."""
    of_prefix_BP = group_BN[:, :prefix]
    is_prefix_BK = torch.zeros(group_BN.shape[0], num_groups, dtype=torch.long, device=group_BN.device)
    is_prefix_BK = is_prefix_BK.scatter(1, of_prefix_BP, 1)
    new_BK = prefix + (1 - is_prefix_BK).cumsum(1) - 1
    place_P = torch.arange(prefix, device=group_BN.device).expand_as(of_prefix_BP)
    return new_BK.scatter(1, of_prefix_BP, place_P).gather(1, group_BN)


def kth_matching(metric_BNC: Tensor, r: int, *, prefix: int = 0) -> Tensor:
    """Of every k tokens in a row the last is a destination; the ``r`` others most like a destination join it.

    k is the smallest that leaves ``r`` sources (ToMe's appendix D, where all sources merge). Groups in order of place.
    """
    num, device, B = metric_BNC.shape[1] - prefix, metric_BNC.device, metric_BNC.shape[0]
    k = kth_step(num, r)
    num_destinations = num // k
    rank_A = torch.arange(num - num_destinations, device=device)  # k - 1 of every k tokens, and the last num % k
    source_A = prefix + rank_A + (rank_A // (k - 1)).clamp_max(num_destinations)
    destination_D = prefix + k * torch.arange(1, num_destinations + 1, device=device) - 1
    return nearest_joined(metric_BNC, source_A.expand(B, -1), destination_D.expand(B, -1), r)


def random_matching(metric_BNC: Tensor, noise_BN: Tensor, r: int, *, prefix: int = 0) -> Tensor:
    """``r`` tokens drawn at random join the most alike of the others. Groups in order of place."""
    order_BN = noise_BN[:, prefix:].argsort(-1) + prefix
    return nearest_joined(metric_BNC, order_BN[:, :r], order_BN[:, r:], r)


def nearest_joined(metric_BNC: Tensor, source_BA: Tensor, destination_BD: Tensor, r: int) -> Tensor:
    """group_BN where the ``r`` sources most like a destination join it (cosine similarity, float32), by place."""
    score_BAD = cosines(gather_rows(metric_BNC, source_BA), gather_rows(metric_BNC, destination_BD))
    best_BA, partner_BA = score_BAD.max(-1)
    merged_Br = best_BA.argsort(dim=-1, descending=True, stable=True)[:, :r]
    place_BN = torch.arange(metric_BNC.shape[1], device=metric_BNC.device).expand(metric_BNC.shape[0], -1)
    target_Br = destination_BD.gather(1, partner_BA.gather(1, merged_Br))
    return groups_by_place(place_BN.scatter(1, source_BA.gather(1, merged_Br), target_Br))


def groups_by_place(target_BN: Tensor) -> Tensor:
    """group_BN from the place each token joins (its own where it stays): groups in order of the tokens that stay."""
    place_N = torch.arange(target_BN.shape[1], device=target_BN.device)
    slot_BN = (target_BN == place_N).cumsum(1) - 1
    return slot_BN.gather(1, target_BN)


def sources(group_BN: Tensor, r: int, *, prefix: int) -> Tensor:
    """(B, N) bool: the ``r`` tokens that ``bipartite_matching`` merged into another: those of even place whose group has
    an odd token."""
    num_groups = group_BN.shape[1] - r
    merged_BN = torch.zeros_like(group_BN, dtype=torch.bool)
    if prefix < 2:  # the groups with an odd token are the last ones
        merged_BN[:, ::2] = group_BN[:, ::2] >= num_groups - group_BN.shape[1] // 2
        return merged_BN
    has_odd_BK = group_BN.new_zeros(group_BN.shape[0], num_groups).scatter(1, group_BN[:, 1::2], 1)
    merged_BN[:, ::2] = has_odd_BK.gather(1, group_BN[:, ::2]).bool()
    return merged_BN


def contrast_of_sources(score_BN: Tensor, group_BN: Tensor, r: int, *, prefix: int) -> Tensor:
    """(B, N) in 0..1: of the ``r`` tokens that ``bipartite_matching`` merged into another the ``contrast``; 1 of all others."""
    if prefix < 2 and runs_kernels(score_BN):
        from tokred import merge_kernels

        return merge_kernels.contrast_of_sources(score_BN, group_BN, r, prefix, _FLAT)
    return torch.where(sources(group_BN, r, prefix=prefix), contrast(score_BN, prefix=prefix), 1.0)


def contrast(score_BN: Tensor, *, prefix: int = 0) -> Tensor:
    """(B, N) in 0..1: how far a score lies above the mean, as a share of the largest's: max(0, (s - mean) / (max - mean)). 1 in a
    sample of equal scores. Tokens of a prefix have no part in mean and maximum."""
    of_tokens_BN = score_BN[:, prefix:]
    mean_B1 = of_tokens_BN.mean(1, keepdim=True)
    contrast_B1 = of_tokens_BN.amax(1, keepdim=True) - mean_B1
    flat_B1 = contrast_B1 <= _FLAT * mean_B1.abs()
    return ((score_BN - mean_B1) / contrast_B1).clamp(0, 1).masked_fill(flat_B1, 1.0)


def pairs(kind: str, num_tokens: int, keep: int, prefix: int) -> int:
    """How many similarities a matching computes: "bipartite", "kth" or "random"."""
    num, r = num_tokens - prefix, num_tokens - keep
    if kind == "bipartite":
        return (num_tokens - num_tokens // 2) * (num_tokens // 2)
    if kind == "random":
        return r * (num - r)
    return (num - num // kth_step(num, r)) * (num // kth_step(num, r))


def kth_step(num: int, r: int) -> int:
    """The smallest k for which ``num`` tokens, each k-th a destination, have ``r`` sources."""
    return next(k for k in range(2, num + 1) if num - num // k >= r)


def top_places(score_BN: Tensor, keep: int, *, prefix: int) -> Tensor:
    """(B, keep): the prefix, then the best of the others by falling score."""
    order_BK = score_BN[:, prefix:].argsort(dim=-1, descending=True, stable=True)[:, : keep - prefix] + prefix
    return with_prefix(order_BK, prefix)


def with_prefix(index_BK: Tensor, prefix: int) -> Tensor:
    """Places of the prefix tokens put in front."""
    place_BP = torch.arange(prefix, device=index_BK.device).expand(index_BK.shape[0], -1)
    return torch.cat([place_BP, index_BK], 1)


def noise(key_B: Tensor, seed: int, num: int) -> Tensor:
    """(B, num): 62-bit integers that look random and depend on nothing but the sample's key, the seed and ``num``.

    So a sample gets the same draw in any batch, at any place in it, on any machine. SplitMix64's finaliser (Steele et al.,
    OOPSLA 2014), in wrapping int64.
    """
    place_N = torch.arange(1, num + 1, device=key_B.device)
    state_BN = (key_B + _as_int64((seed * 2 + 1) * 0xD1342543DE82EF95) + num * 0x632BE5AB)[:, None]
    state_BN = _mix(state_BN) + place_N * _as_int64(0x9E3779B97F4A7C15)
    return _mix(_mix(state_BN)) & (2**62 - 1)


def sample_key(inputs: Tensor) -> Tensor:
    """(B,) int64: a sum over the bits of each sample's pixels, weighted by place."""
    bits = {4: torch.int32, 2: torch.int16, 8: torch.int64}[inputs.element_size()]
    flat = inputs.detach().contiguous().view(bits).flatten(1).long()
    place = torch.arange(flat.shape[1], device=flat.device) * 2 + 1
    return (flat * place).sum(1)


def distances(x_BNC: Tensor) -> Tensor:
    """(B, N, N), float32 also under autocast: Euclidean distances, 0 on the diagonal.

    Of tokens centred on their mean, |a|^2 + |b|^2 - 2 ab: one product of N x N x C, which counters of MACs see (of torch.cdist
    they see nothing). What cancels leaves a square wrong by some 1e-7 of the largest |a|^2; cdist, from 26 tokens on, does
    not centre, and is wrong by as much of the offset too.
    """
    x_BNC = x_BNC.float()
    x_BNC = x_BNC - x_BNC.mean(1, keepdim=True)
    product_BNN = _products(x_BNC, x_BNC)
    square_BN = x_BNC.square().sum(-1)
    distance_BNN = (square_BN[:, :, None] + square_BN[:, None] - 2 * product_BNN).clamp_min(0).sqrt()
    return distance_BNN.masked_fill(torch.eye(x_BNC.shape[1], dtype=torch.bool, device=x_BNC.device), 0)


def knn_density(distance_BNN: Tensor, k: int) -> Tensor:
    """(B, N) in 0..1: exp of minus the mean squared distance to the ``k`` nearest, the token itself among them (Du et al.,
    Knowledge-Based Systems 2016; TCFormer, arXiv 2204.08680). Of fewer than ``k`` tokens, to all."""
    nearest_BNk = distance_BNN.topk(min(k, distance_BNN.shape[-1]), largest=False).values
    return (-nearest_BNk.square().mean(-1)).exp()


def density_peaks(distance_BNN: Tensor, density_BN: Tensor) -> Tensor:
    """(B, N): density times the distance to the nearest denser token; of the densest, times the largest distance there is in
    the sample (Rodriguez and Laio, Science 2014)."""
    denser_BNN = density_BN[:, None, :] > density_BN[:, :, None]
    largest_B11 = distance_BNN.amax((1, 2), keepdim=True)
    return density_BN * distance_BNN.where(denser_BNN, largest_B11).amin(-1)


def nearest_centre(distance_BNN: Tensor, centre_BK: Tensor) -> Tensor:
    """group_BN: each token joins the nearest of the centres, of equals the first; a centre stays in its own group."""
    to_centre_BKN = gather_rows(distance_BNN, centre_BK)
    slot_BK = torch.arange(centre_BK.shape[1], device=centre_BK.device).expand_as(centre_BK)
    return to_centre_BKN.argmin(1).scatter(1, centre_BK, slot_BK)


def least_of_groups(cost_BN: Tensor, group_BN: Tensor, num_groups: int) -> Tensor:
    """(B, K): the place of each group's member of least cost, of equals the first. Every group must have a member."""
    order_BN = cost_BN.argsort(dim=1, stable=True)
    rank_BN = order_BN.argsort(1)
    least_BK = rank_BN.new_full((rank_BN.shape[0], num_groups), rank_BN.shape[1])
    return order_BN.gather(1, least_BK.scatter_reduce(1, group_BN, rank_BN, "amin"))


def groups_behind_prefix(group_BN: Tensor, prefix: int) -> Tensor:
    """(B, prefix + N): groups of the tokens behind a prefix, whose tokens come first and stay alone."""
    return with_prefix(group_BN + prefix, prefix)


def even_to_odd(metric_BNC: Tensor) -> Tensor:
    """(B, A, D): the cosine similarity of each token of even place to each of odd place; float32 also under autocast."""
    direction_BNC = F.normalize(metric_BNC.float(), dim=-1)
    return _products(direction_BNC[:, ::2], direction_BNC[:, 1::2])


def cosines(a_BAC: Tensor, b_BDC: Tensor) -> Tensor:
    """(B, A, D): the cosine similarity of each of A tokens to each of D; float32 also under autocast."""
    return _products(F.normalize(a_BAC.float(), dim=-1), F.normalize(b_BDC.float(), dim=-1))


def _products(a_BAC: Tensor, b_BDC: Tensor) -> Tensor:
    with torch.autocast("cpu" if a_BAC.device.type == "meta" else a_BAC.device.type, enabled=False):
        return a_BAC @ b_BDC.mT


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _as_int64(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _as_int64(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """A logical shift to the right: int64's own copies the sign."""
    return (x >> by) & (2 ** (64 - by) - 1)


def _as_int64(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value
