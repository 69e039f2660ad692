"""Norm pruning: keep the tokens with the longest features, or those nearest to the middle (Haurum et al., arXiv 2308.04657)."""

from typing import Literal

import torch
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching


@METHODS.register("norm_prune")
class NormPrune(Method):
    """The cheapest score there is, to hold others against: no attention, no pairs. Tokens that stay keep their order.

    ``norm``: "l2", "l1" (what STA takes for a token's semantic weight; Ding et al., ICCV 2023, arXiv 2308.04549) or "linf";
    ``of``: "features", the longest stay (a heuristic without a paper of its own); or "place", the distance from the middle of
    the frame, the nearest stay: the fixed patterns of TokenReduction. Those keep all places within a distance, the nearest
    count there is to what was asked for (of 14 x 14 places by l2: 137 asked, 140 kept); here it is met, and of places as
    far out the first stay. On a side of an odd number of patches the official middle lies half a patch off; here it does not.
    """

    paper = "Haurum et al., ICCVW 2023, arXiv 2308.04657, for of=place"
    code = "JoakimHaurum/TokenReduction @88fe07e, MIT, for of=place"
    tuning = "none"
    conserves_mass = False
    other_sites = ("input", "before_attention", "after_mlp", "output")

    def __init__(self, norm: Literal["l2", "l1", "linf"] = "l2", of: Literal["features", "place"] = "features"):
        super().__init__()
        self.norm, self.of = norm, of
        self.needs_places = of == "place"

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        vector = tokens.x_BNC.detach().float() if self.of == "features" else from_middle(tokens)
        order = {"l1": 1, "l2": 2, "linf": torch.inf}[self.norm]
        norm_BN = torch.linalg.vector_norm(vector, order, dim=-1)
        score_BN = norm_BN if self.of == "features" else -norm_BN
        index_BK = matching.top_places(score_BN, keep, prefix=tokens.prefix).sort(1).values
        return Assignment.select(index_BK, tokens.num)


def from_middle(tokens: Tokens) -> Tensor:
    """(B, N, 2): how far each token's place is from the middle of its frame, down and across, in patches."""
    if tokens.grid is None:
        raise ValueError("norm_prune of=place reads the grid of patches, which this backbone does not say")
    _, height, width = tokens.grid
    place_BN = tokens.places().clamp_min(0)
    down_BN, across_BN = place_BN // width % height, place_BN % width
    return torch.stack([down_BN - (height - 1) / 2, across_BN - (width - 1) / 2], -1)
