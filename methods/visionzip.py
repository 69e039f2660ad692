"""VisionZip: keep what the class token looks at, merge the rest into a few tokens (Yang et al., CVPR 2025, arXiv 2412.04467)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


@METHODS.register("visionzip")
class VisionZip(Method):
    """Training-free; published for what a vision encoder hands to a language model. The tokens the class token looks at most stay
    as they are (dominant); of the others every step-th is a target, and the rest join the target whose key is most alike
    (contextual). A contextual token is its target plus the mean of those that joined, a sum that is not divided, as in the
    official code: about twice a token's size, and a target that nobody joins stays as it is. Order: prefix, dominant, contextual
    tokens, each by place.

    ``contextual``: their share of all tokens that are left, prefix included; published are 54 + 10, 108 + 20 and 162 + 30, 10 of
    64 each time (the official function's default, 191 + 30, is 0.136). The count is rounded, and one at least; 0: all
    others are dropped. ``scores``: "cls", or "received" (mean attention each token receives) for models without a class token.

    The official code works on the last layer but one of CLIP, which LLaVA reads; here on the last of whatever model there is.
    A key of length 0 is nobody's neighbour here, and NaN there.
    """

    paper = "Yang et al., CVPR 2025, arXiv 2412.04467"
    code = "dvlab-research/VisionZip @3151f6d, Apache-2.0"
    tuning = "optional"
    site = "output"
    other_sites = ("after_attention", "after_mlp")

    def __init__(self, contextual: float = 10 / 64, scores: Literal["cls", "received"] = "cls"):
        super().__init__()
        if not 0 <= contextual <= 1:
            raise ValueError(f"contextual is a share, from 0 to 1; got {contextual}")
        self.contextual, self.scores = contextual, scores
        self.conserves_mass = contextual > 0
        self.needs_cls = scores == "cls"
        self.statistics = ("cls_row",) if scores == "cls" else ("received",)

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        score_BN = attention.cls_row_BN if self.scores == "cls" else attention.received_BN
        num_contextual = self.num_contextual(keep, tokens.prefix)
        index_BK = matching.top_places(score_BN, keep - num_contextual, prefix=tokens.prefix).sort(1).values
        dominant = Assignment.select(index_BK, tokens.num)
        if num_contextual == 0:
            return dominant
        group_BN = dominant.group_BN
        assert group_BN is not None
        other_BR = (
            (group_BN < 0).byte().argsort(dim=1, descending=True, stable=True)[:, : tokens.num - index_BK.shape[1]]
        )
        target_BT, source_BA = every_step(other_BR, num_contextual)
        key_BND = F.normalize(attention.k_BHND.detach().mean(1).float(), dim=-1)
        source_BAD, target_BTD = (
            key_BND.gather(1, place[..., None].expand(-1, -1, key_BND.shape[2])) for place in (source_BA, target_BT)
        )
        partner_BA = (source_BAD @ target_BTD.mT).argmax(-1)
        slot_BT = torch.arange(keep - num_contextual, keep, device=group_BN.device).expand_as(target_BT)
        group_BN = group_BN.scatter(1, target_BT, slot_BT).scatter(1, source_BA, slot_BT.gather(1, partner_BA))
        joined_BT = torch.zeros_like(slot_BT).scatter_add(1, partner_BA, torch.ones_like(partner_BA))
        weight_BN = torch.ones_like(score_BN).scatter(1, source_BA, 1 / joined_BT.gather(1, partner_BA).float())
        return Assignment(group_BN, keep, weight_BN=weight_BN, normalize=False)

    def num_contextual(self, keep: int, prefix: int) -> int:
        """Of ``keep`` tokens, how many are contextual."""
        return min(max(round(self.contextual * keep), self.contextual > 0), keep - prefix)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return (num_tokens - keep) * self.num_contextual(keep, at.prefix) * (at.channels // at.heads)


def every_step(place_BR: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """``num`` of R places, each (R // num)-th from the first on, and the others."""
    step, num_others = place_BR.shape[1] // num, place_BR.shape[1] - num
    rank_A = torch.arange(num_others, device=place_BR.device)
    before = (rank_A // (step - 1) + 1).clamp_max(num) if step > 1 else num  # how many of those taken are before it
    return place_BR[:, ::step][:, :num], place_BR[:, rank_A + before]
