"""STA: prune what was there a frame before and means little (Ding et al., ICCV 2023, arXiv 2308.04549)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching
from tokred.rows import gather_rows


@METHODS.register("sta")
class STA(Method):
    """Training-free. A token's score is how much of the frame before flows to it (softmax of key cosines over this frame's
    tokens, weighted by the scores of those kept there) times how little it means (1 - its L1 norm, min-max in the frame);
    each frame keeps its lowest, in rising order. The first frame keeps its odd tokens, then even ones least like an odd one.

    Frames are the T of the grid at layer 0, T/2 pairs from layer L/3 on, in reversed time, and T/4 groups from layer 2L/3 on. At
    these three the paper (T = 8) removes R tokens from each frame, 14 R in all: here ``r`` is a list with 8 R, 4 R and 2 R there
    and 0 between; in a sweep, ``experiment=sta_stages``. Any other layer takes the frames of its third of the depth.

    Where the tokens do not divide by the frames, single ones of the remainder go to frames spread over time (``shares``); an even
    number of frames still pairs up exactly, of an odd one a group ends within a frame. The official code takes multiples of
    T alone, and T = 8. With fewer kept than there are frames, neighbours
    are taken as one. Of a frame whose tokens all have the same norm the official score is 0 / 0, and what is kept there
    undefined; here nothing in it means more than the rest, and only time decides. A prefix has no part in any of it.
    """

    paper = "Ding et al., ICCV 2023, arXiv 2308.04549"
    code = "Mark12Ding/STA @faf10be, BSD-2-Clause"
    tuning = "none"
    site = "after_mlp"
    other_sites = ("after_attention",)
    needs_frames = True
    conserves_mass = False

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None and tokens.grid is not None
        prefix, num = tokens.prefix, tokens.num - tokens.prefix
        groups = num_groups(tokens.grid[0], keep - prefix, tokens.layer, tokens.depth)
        before, after = shares(num, groups), shares(keep - prefix, groups)
        key_BND = F.normalize(attention.k_BHND.detach().mean(1).float(), dim=-1)[:, prefix:]
        norm_BN = tokens.x_BNC.detach()[:, prefix:].float().abs().sum(-1)
        keys, meanings = key_BND.split(before, 1), [_minmax(part_BN) for part_BN in norm_BN.split(before, 1)]
        times = range(groups)[::-1] if _third(tokens.layer, tokens.depth) == 1 else range(groups)
        kept = _accumulate([keys[t] for t in times], [meanings[t] for t in times], [after[t] for t in times])
        in_time = sorted(zip(times, kept, strict=True), key=lambda one: one[0])
        index_BK = torch.cat([prefix + sum(before[:t]) + local_Bk for t, local_Bk in in_time], 1)
        return Assignment.select(matching.with_prefix(index_BK, prefix), tokens.num)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        groups = num_groups(at.num_frames, keep - at.prefix, at.layer, at.depth)
        before, after = shares(num_tokens - at.prefix, groups), shares(keep - at.prefix, groups)
        if _third(at.layer, at.depth) == 1:
            before, after = before[::-1], after[::-1]
        channels = at.channels // at.heads
        in_first = before[0] // 2 * (before[0] - before[0] // 2) * channels
        compared = sum(num * source for num, source in zip(before[1:], [before[0], *after[1:-1]]))
        return in_first + compared * (channels + 1)


def num_groups(num_frames: int, keep: int, layer: int, depth: int) -> int:
    """How many groups of frames are compared in a layer."""
    groups = max(1, num_frames >> _third(layer, depth))
    while groups > keep:
        groups //= 2
    return groups


def shares(num: int, groups: int) -> list[int]:
    """``num`` tokens over ``groups`` frames in a row, as evenly as can be.

    The shares of fewer tokens are nowhere larger, and those of half the groups are sums of two.

    >>> shares(10, 4), shares(10, 2)
    ([3, 2, 3, 2], [5, 5])
    """
    each, rest = divmod(num, groups)
    favoured = _spread(groups)[:rest]
    return [each + (group in favoured) for group in range(groups)]


def _spread(groups: int) -> list[int]:
    """The groups in an order that serves one of each pair before the other, and pairs likewise."""
    if groups % 2:
        return list(range(groups))
    pairs = _spread(groups // 2)
    return [2 * pair for pair in pairs] + [2 * pair + 1 for pair in pairs]


def _third(layer: int, depth: int) -> int:
    """0, 1 or 2: of the depth; the first layer is in the first third of any."""
    return 0 if layer == 0 else (layer >= depth // 3) + (layer >= 2 * depth // 3)


def _minmax(value_BN: Tensor) -> Tensor:
    low_B1, high_B1 = value_BN.amin(1, keepdim=True), value_BN.amax(1, keepdim=True)
    return (value_BN - low_B1) / (high_B1 - low_B1).clamp_min(1e-12)


def _accumulate(keys: list[Tensor], meanings: list[Tensor], after: list[int]) -> list[Tensor]:
    """Of each frame in this order (B, its share): the places kept in it, lowest score first (Sec. 3.2)."""
    kept = [_unlike_first(keys[0])[:, : after[0]]]
    source_BMD, flow_BM1 = keys[0], torch.ones_like(keys[0][..., :1])  # all of the first frame, also what it drops
    for key_BND, meaning_BN, num in zip(keys[1:], meanings[1:], after[1:], strict=True):
        accumulated_BN1 = (key_BND @ source_BMD.mT).softmax(1) @ flow_BM1
        score_BN = accumulated_BN1.squeeze(-1) * (1 - meaning_BN)
        kept.append(score_BN.argsort(dim=1, stable=True)[:, :num])
        source_BMD = gather_rows(key_BND, kept[-1])
        flow_BM1 = gather_rows(accumulated_BN1, kept[-1])
        flow_BM1 = flow_BM1 / flow_BM1.sum(1, keepdim=True)
    return kept


def _unlike_first(key_BND: Tensor) -> Tensor:
    """(B, N): odd places, then the even ones, those least like an odd one first."""
    place_BN = torch.arange(key_BND.shape[1], device=key_BND.device).expand(key_BND.shape[:2])
    if key_BND.shape[1] < 2:
        return place_BN
    best_BA = (key_BND[:, ::2] @ key_BND[:, 1::2].mT).amax(-1)
    return torch.cat([place_BN[:, 1::2], 2 * best_BA.argsort(dim=1, stable=True)], 1)
