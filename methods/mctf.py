"""MCTF: merge by likeness, information and size at once, both ways (Lee et al., CVPR 2024, arXiv 2403.10030)."""

from typing import Literal

import torch
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


@METHODS.register("mctf")
class MCTF(Method):
    """A token of even place and one of odd place merge the sooner the more alike they are (cosine, mapped to 0..1), the less
    attention they receive and the fewer tokens they hold: three factors, each to the power of 1 / ``tau_...``, where 0 leaves
    one out. ``bidirectional``: half of the tokens go from even places to odd ones, then as many from odd places, with what has
    joined them, to even ones that are left. ``pooling``: a group is the mean of its members by the attention they receive
    times their size, by size, or the plain mean.

    Published with finetuning; runs without. At its own site the layer's attention is computed before the merge and merged
    along (one-step-ahead attention); "after_mlp" is the official code's variant without it (one that computes the map again
    is left out, and so is the maximum as a pooling). Published schedules: r = 16 in all layers but the first, or a keep rate of
    0.65 at layers 3, 6 and 9. The official code stops at 10 tokens; here the schedule decides.
    """

    paper = "Lee et al., CVPR 2024, arXiv 2403.10030"
    code = "mlvlab/MCTF @2004da0, MIT (its mctf.py has Meta's header)"
    tuning = "finetuned"
    at_most_half = True
    site = "attention"
    other_sites = ("after_attention", "after_mlp")

    def __init__(
        self,
        tau_sim: float = 1,
        tau_info: float = 20,
        tau_size: float = 40,
        bidirectional: bool = True,
        pooling: Literal["attention", "size", "mean"] = "attention",
        proportional_attention: bool = True,
        site: Literal["attention", "after_attention", "after_mlp"] = "attention",
    ):
        super().__init__()
        for name, tau in {"tau_sim": tau_sim, "tau_info": tau_info, "tau_size": tau_size}.items():
            if tau < 0:
                raise ValueError(f"{name} must be above 0, or 0 to leave that factor out; got {tau}")
        self.tau_sim, self.tau_info, self.tau_size = tau_sim, tau_info, tau_size
        self.bidirectional, self.pooling, self.proportional_attention = bidirectional, pooling, proportional_attention
        self.site = site
        self.statistics = ("map", "received") if site == "attention" else ("received",)

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        r, received_BN = tokens.num - keep, attention.received_BN.clamp_min(1e-12)  # a softmax can round to 0
        score_BAD = self._scores(tokens, received_BN)
        group_BN = two_way_matching(score_BAD, r // 2 if self.bidirectional else r, r, prefix=tokens.prefix)
        if self.pooling == "size":
            return Assignment(group_BN, keep)
        weight_BN = received_BN * tokens.sizes() if self.pooling == "attention" else torch.ones_like(received_BN)
        is_prefix_N = torch.arange(tokens.num, device=received_BN.device) < tokens.prefix
        return Assignment(group_BN, keep, weight_BN=weight_BN.masked_fill(is_prefix_N, 1))  # alone: left as they are

    def _scores(self, tokens: Tokens, received_BN: Tensor) -> Tensor:
        """(B, A, D): how gladly each token of even place and each of odd place merge; -inf where one is of the prefix."""
        likeness_BAD = ((matching.even_to_odd(tokens.x_BNC.detach()) + 1) / 2).clamp_min(0)
        score_BAD = likeness_BAD ** (1 / self.tau_sim) if self.tau_sim else torch.ones_like(likeness_BAD)
        for value_BN, tau in ((received_BN, self.tau_info), (tokens.sizes(), self.tau_size)):
            if tau:
                share_BN = value_BN.amin(1, keepdim=True) / value_BN
                score_BAD = score_BAD * (share_BN[:, ::2, None] * share_BN[:, None, 1::2]) ** (1 / tau)
        is_prefix_N = torch.arange(tokens.num, device=score_BAD.device) < tokens.prefix
        return score_BAD.masked_fill(is_prefix_N[::2, None] | is_prefix_N[1::2], -torch.inf)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return matching.pairs("bipartite", num_tokens, keep, at.prefix) * at.channels


def two_way_matching(score_BAD: Tensor, num_even: int, r: int, *, prefix: int) -> Tensor:
    """group_BN: the ``num_even`` best tokens of even place join their partner of odd place; then the ``r - num_even`` best of odd
    place join their partner among the even ones left over.

    Groups: the prefix, even tokens left over, odd tokens left over, these by falling score where any have joined.
    """
    B, A, D = score_BAD.shape
    place_N = torch.arange(A + D, device=score_BAD.device)
    best_BA, odd_BA = score_BAD.max(-1)
    order_BA = best_BA.argsort(dim=1, descending=True, stable=True)
    gone_BG, left_BL = order_BA[:, :num_even], order_BA[:, num_even:].sort(1).values
    target_BN = place_N.expand(B, -1).scatter(1, 2 * gone_BG, 2 * odd_BA.gather(1, gone_BG) + 1)
    order_BD = place_N[:D].expand(B, -1)
    if r > num_even:
        best_BD, even_BD = score_BAD.gather(1, left_BL[..., None].expand(-1, -1, D)).max(1)
        order_BD = best_BD.argsort(dim=1, descending=True, stable=True)
        back_BG = order_BD[:, : r - num_even]
        target_BN = target_BN.scatter(1, 2 * back_BG + 1, 2 * left_BL.gather(1, even_BD.gather(1, back_BG)))
    stay_BK = torch.cat([2 * left_BL, 2 * order_BD[:, r - num_even :] + 1], 1)
    in_order_BK = stay_BK.clamp_max(prefix).argsort(dim=1, stable=True)  # prefix tokens in front
    stay_BK = stay_BK.gather(1, in_order_BK)
    slot_BN = place_N.expand(B, -1).scatter(1, stay_BK, place_N[: A + D - r].expand(B, -1))
    return slot_BN.gather(1, target_BN.gather(1, target_BN))  # the partner of one that went there may have gone back
