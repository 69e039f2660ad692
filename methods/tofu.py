"""ToFu: prune in early layers, merge at full length in late ones (Kim et al., WACV 2024, arXiv 2312.01026)."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


@METHODS.register("tofu")
class ToFu(Method):
    """Training-free. Pairs are ToMe's. Where a layer answers tokens in between far from linearly, the source is dropped; where
    nearly so, it is merged, and the mean, which is shorter than its members, is stretched to the longest of them (MLERP).

    ``merge``: "mlerp" as in the paper; "average", without the stretching; "old_norm", what the code in hchautran/PiToMe (not
    ToFu's authors', who gave out none) does: it divides by the length of the old destination in place of the mean's. On the
    embedded mini_cls at half the MACs what merges is 0.7 % shorter so than with MLERP, and plain means are 3 % shorter. Means
    are over tokens, not by size, as there. ``merge_from``: the first layer that merges; None: the one after half of them, as
    there (the paper says "late").
    ``proportional_attention`` is off, since there the sizes never change.

    Where that code crashes, above half of the tokens, the number is refused.
    """

    paper = "Kim et al., WACV 2024, arXiv 2312.01026"
    code = ""
    tuning = "optional"
    at_most_half = True
    conserves_mass = False

    def __init__(
        self,
        merge: Literal["mlerp", "average", "old_norm"] = "mlerp",
        merge_from: int | None = None,
        proportional_attention: bool = False,
    ):
        super().__init__()
        if merge_from is not None and merge_from < 0:
            raise ValueError(f"merge_from must be a layer, from 0, or None for the second half; got {merge_from}")
        self.merge, self.merge_from = merge, merge_from
        self.proportional_attention = proportional_attention

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        metric_BND, prefix, r = attention.k_BHND.detach().mean(1), tokens.prefix, tokens.num - keep
        group_BN = matching.bipartite_matching(metric_BND, r, prefix=prefix, sort=prefix > 0)
        if not self._merges(tokens):
            group_BN = group_BN.masked_fill(matching.sources(group_BN, r, prefix=tokens.prefix), -1)
        return Assignment(group_BN, keep, weight_BN=torch.ones_like(tokens.sizes()))

    def reduce(self, tokens: Tokens, attention: Attention | None, keep: int) -> Tokens:
        assignment = self.assign(tokens, attention, keep)
        merged = tokens.reduce(assignment)
        if self.merge == "average" or not self._merges(tokens):
            return merged
        group_BN = assignment.group_BN
        assert group_BN is not None
        is_source_BN = matching.sources(group_BN, tokens.num - keep, prefix=tokens.prefix)
        norm_BN = tokens.x_BNC.float().norm(dim=-1)
        if self.merge == "mlerp":
            divisor_BK = merged.x_BNC.float().norm(dim=-1)
        else:  # of the destination, the one member that is no source
            divisor_BK = _largest(norm_BN.masked_fill(is_source_BN, 0), group_BN, keep)
        # of opposite tokens the mean is 0, and stays so
        stretch_BK = _largest(norm_BN, group_BN, keep) / divisor_BK.clamp_min(1e-12)
        has_joined_BK = _largest(is_source_BN.float(), group_BN, keep) > 0  # the others keep every bit
        x_BKC = merged.x_BNC * stretch_BK.where(has_joined_BK, 1)[..., None]
        return replace(merged, x_BNC=x_BKC.to(merged.x_BNC.dtype))

    def _merges(self, tokens: Tokens) -> bool:
        return tokens.layer >= (tokens.depth // 2 + 1 if self.merge_from is None else self.merge_from)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return matching.pairs("bipartite", num_tokens, keep, at.prefix) * (at.channels // at.heads)


def _largest(value_BN: Tensor, group_BN: Tensor, num_groups: int) -> Tensor:
    """(B, K): the largest value in each group."""
    return value_BN.new_zeros(value_BN.shape[0], num_groups).scatter_reduce(1, group_BN, value_BN, "amax")
