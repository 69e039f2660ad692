"""LTMP: merge and prune by thresholds, as many as pass them (Bonnaerens and Dambre, TMLR 2023, arXiv 2307.10780)."""

import torch
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


@METHODS.register("ltmp")
class LTMP(Method):
    """A token of even place whose keys are more like those of one of odd place than ``merge_threshold`` (cosine similarity)
    joins it. Then those go that receive no more attention, in the mean over heads and queries, than ``prune_threshold``; a
    merged token counts as its most important member. Even tokens left over come first, then odd ones.

    Published with two thresholds for each layer, learned in one epoch; here they are the same in all, by default those that
    learning starts from. A budget is solved for by the merge threshold, which from -1 (all even tokens merge) to 1 (none)
    reaches any, however alike a model's tokens are. Where more are left than may be kept, the least important go. The
    official code runs samples one by one.
    """

    paper = "Bonnaerens and Dambre, TMLR 2023, arXiv 2307.10780"
    code = "Mxbonn/ltmp @1a9c055, no licence"
    tuning = "finetuned"
    varies = True
    conserves_mass = False
    statistics = ("received",)

    def __init__(self, merge_threshold: float = 0.9, prune_threshold: float = 0.0, proportional_attention: bool = True):
        super().__init__()
        self.merge_threshold, self.prune_threshold = merge_threshold, prune_threshold
        self.proportional_attention = proportional_attention

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        place_N = torch.arange(tokens.num, device=tokens.x_BNC.device)
        real_BN = place_N < tokens.num_real()[:, None]
        target_BN = self._targets(attention.k_BHND.detach().mean(1), real_BN & (place_N >= tokens.prefix))
        importance_BN = attention.received_BN.masked_fill(place_N < tokens.prefix, torch.inf)
        importance_BN = importance_BN.scatter_reduce(1, target_BN, importance_BN, "amax")
        important_BN = importance_BN > self.prune_threshold
        # of the patches the most important one, whatever it is: a sample without tokens has no output
        first_B1 = importance_BN.masked_fill(place_N < tokens.prefix, -1).argmax(1, keepdim=True)
        stays_BN = real_BN & (target_BN == place_N) & important_BN.scatter(1, target_BN.gather(1, first_B1), True)
        order_BN = importance_BN.masked_fill(~stays_BN, -1).argsort(dim=1, descending=True, stable=True)
        stays_BN = stays_BN & torch.zeros_like(stays_BN).scatter(1, order_BN[:, :keep], True)
        return _numbered(target_BN, stays_BN, tokens.prefix, keep)

    def _targets(self, metric_BNC: Tensor, free_BN: Tensor) -> Tensor:
        """(B, N): the place each token joins, its own where it stays."""
        score_BAD = matching.even_to_odd(metric_BNC).masked_fill(~free_BN[:, None, 1::2], -torch.inf)
        best_BA, partner_BA = score_BAD.max(-1)
        place_N = torch.arange(free_BN.shape[1], device=free_BN.device)
        joins_BA = free_BN[:, ::2] & (best_BA > self.merge_threshold)
        target_BA = torch.where(joins_BA, 2 * partner_BA + 1, place_N[::2])
        return place_N.expand_as(free_BN).scatter(1, place_N[::2].expand_as(target_BA), target_BA)

    def knob(self, num_tokens: int) -> tuple[str, float, float]:
        return "merge_threshold", -1.0, 1.0

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return matching.pairs("bipartite", num_tokens, keep, at.prefix) * (at.channels // at.heads)


def _numbered(target_BN: Tensor, stays_BN: Tensor, prefix: int, keep: int) -> Assignment:
    """Groups of the tokens that stay: the prefix, then even places, then odd ones; who joined one that does not is dropped."""
    place_N = torch.arange(target_BN.shape[1], device=target_BN.device)
    kind_BN = torch.where(place_N < prefix, 0, 1 + place_N % 2).where(stays_BN, 3)
    order_BN = kind_BN.argsort(dim=1, stable=True)
    slot_BN = place_N.expand_as(order_BN).scatter(1, order_BN, place_N.expand_as(order_BN))
    group_BN = slot_BN.gather(1, target_BN).where(stays_BN.gather(1, target_BN), -1)
    return Assignment(group_BN, keep, valid_BK=place_N[:keep] < stays_BN.sum(1, keepdim=True))
