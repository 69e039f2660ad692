"""Representation Shift: keep the tokens that the MLP moves most (Choi et al., ICCV 2025, arXiv 2508.00367)."""

from typing import Literal

import torch
import torch.nn.functional as F

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching


@METHODS.register("rep_shift")
class RepShift(Method):
    """Training-free; reads no attention, so that attention stays fused. Tokens that stay keep their order.

    A token's score is how far its representation moves over the layer's MLP, D(F(x), x). ``after``: what F(x) is; "mlp": the
    MLP's output alone, against its input; "residual": the token behind the residual, so that its shift is what the MLP adds.
    ``distance``: D, "l2" (the paper's), "l1" or "cosine" (1 - cos). In half precision a shift holds the residual's rounding, up
    to 2^-9 of a bfloat16 token, 2^-12 of a float16 one.

    The official code (mlvlab/Representation-Shift) could not be had, and of the paper its abstract, Eq. D(F(x), x) and the
    caption "before and after the MLP": which of the two F(x) is, in which layers it prunes and in which order tokens leave
    are choices made here. Its further form, in the place of vid-TLDR's saliency, is not this.
    """

    paper = "Choi et al., ICCV 2025, arXiv 2508.00367"
    code = "mlvlab/Representation-Shift, not seen"
    site = "after_mlp"
    other_sites = ("output",)
    tuning = "none"
    conserves_mass = False

    def __init__(
        self,
        distance: Literal["l2", "l1", "cosine"] = "l2",
        after: Literal["mlp", "residual"] = "mlp",
    ):
        super().__init__()
        self.distance, self.after = distance, after

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert tokens.before_mlp_BNC is not None
        before_BNC, after_BNC = tokens.before_mlp_BNC.detach().float(), tokens.x_BNC.detach().float()
        if self.after == "mlp":
            after_BNC = after_BNC - before_BNC
        if self.distance == "cosine":
            shift_BN = 1 - F.cosine_similarity(after_BNC, before_BNC, dim=-1)
        else:
            shift_BN = torch.linalg.vector_norm(after_BNC - before_BNC, {"l1": 1, "l2": 2}[self.distance], dim=-1)
        index_BK = matching.top_places(shift_BN, keep, prefix=tokens.prefix).sort(1).values
        return Assignment.select(index_BK, tokens.num)
