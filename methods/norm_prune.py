"""Norm pruning: keep the tokens with the longest features. A heuristic without a paper of its own."""

from typing import Literal

import torch

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching


@METHODS.register("norm_prune")
class NormPrune(Method):
    """The cheapest score there is, to hold others against: no attention, no pairs. Tokens that stay keep their order.

    ``norm``: of the features, "l2", "l1" (what STA takes for a token's semantic weight; Ding et al., ICCV 2023, arXiv
    2308.04549) or "linf". TokenReduction's patterns of these names (Haurum et al., ICCVW 2023) are something else: fixed
    distances from the middle of the image.
    """

    paper = "a heuristic, without a paper"
    tuning = "none"
    conserves_mass = False
    other_sites = ("input", "before_attention", "after_mlp", "output")

    def __init__(self, norm: Literal["l2", "l1", "linf"] = "l2"):
        super().__init__()
        self.norm = norm

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        order = {"l1": 1, "l2": 2, "linf": torch.inf}[self.norm]
        norm_BN = torch.linalg.vector_norm(tokens.x_BNC.detach().float(), order, dim=-1)
        index_BK = matching.top_places(norm_BN, keep, prefix=tokens.prefix).sort(1).values
        return Assignment.select(index_BK, tokens.num)
