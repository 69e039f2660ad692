"""EViT: keep the tokens the class token looks at, fuse the others in one (Liang et al., ICLR 2022, arXiv 2202.07800)."""

from typing import Literal

import torch

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching


@METHODS.register("evit")
class EViT(Method):
    """Published with finetuning; runs without, at a loss. Kept tokens come by falling attention, the fused one last.

    ``fuse``: the others become one token, their sum weighted by attention (Eq. 3; not divided by the weights, as in the
    official code). ``scores``: "cls" (attention the class token pays), or "received" (mean attention each token receives)
    for models without one. Where a keep rate sets apart just one token, so that fusing would save none, nothing is done;
    the official code then scales that token. Distillation tokens are kept; the official code prunes them like patches.
    """

    paper = "Liang et al., ICLR 2022, arXiv 2202.07800"
    code = "youweiliang/evit @5ca95a7, Apache-2.0"
    tuning = "finetuned"

    def __init__(self, fuse: bool = True, scores: Literal["cls", "received"] = "cls"):
        super().__init__()
        self.fuse, self.scores = fuse, scores
        self.num_extra, self.conserves_mass = int(fuse), fuse
        self.needs_cls = scores == "cls"
        self.statistics = ("cls_row",) if scores == "cls" else ("received",)

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        score_BN = attention.cls_row_BN if self.scores == "cls" else attention.received_BN
        index_BK = matching.top_places(score_BN, keep - self.num_extra, prefix=tokens.prefix)
        kept = Assignment.select(index_BK, tokens.num)
        if not self.fuse:
            return kept
        assert kept.group_BN is not None
        other_BN = kept.group_BN < 0
        group_BN = kept.group_BN.masked_fill(other_BN, keep - 1)
        return Assignment(group_BN, keep, weight_BN=torch.where(other_BN, score_BN, 1.0), normalize=False)
