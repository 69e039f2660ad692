"""DiffRate: drop the least attended tokens, merge the next into those that stay (Chen et al., ICCV 2023, arXiv 2305.17997)."""

from typing import Literal

import torch

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching
from tokred.rows import gather_rows


@METHODS.register("diffrate")
class DiffRate(Method):
    """Tokens are sorted by attention; the last are dropped, those before them each join the most alike of the first (cosine of
    the tokens themselves). A group is the plain mean; a merged token's mass is its size times that cosine.

    The paper learns how many tokens each layer keeps, with the model frozen; then nothing is trained. ``tokens`` of the schedule
    are what is left, and ``pruned`` what is left after the dropping half, one number for each layer, prefix included (None:
    half of what goes is dropped). The published lists are the experiments ``diffrate/``. ``scores``: "cls", or "received" (mean
    attention each token receives) for models without a class token, as in the official CAFormer code.

    A cosine below 0 counts as 0. The official evaluation lets it take mass away, down to the logarithm of a negative size,
    NaN: two sources of cosine -0.6 and -0.52 are enough; on the embedded mini_cls none of 38144 was negative. Its training
    has a source bring 1 at least: there a single token of cosine 0.5 weighs 1, here and in evaluation 0.5. What is dropped
    is compared, too, so that the cost does not hang on ``pruned`` (0.08 % of DeiT-S above what is needed at the published
    2.9 G). Layers from which nothing goes are left unsorted, which changes no result. MAE's models are pooled by size there,
    by their plain mean here.
    """

    paper = "Chen et al., ICCV 2023, arXiv 2305.17997"
    code = "OpenGVLab/DiffRate @91ae3e3, no licence"
    tuning = "none"
    proportional_attention = True
    conserves_mass = False

    def __init__(self, pruned: list[int] | None = None, scores: Literal["cls", "received"] = "cls"):
        super().__init__()
        if pruned is not None and (not isinstance(pruned, list) or any(type(left) is not int for left in pruned)):
            raise ValueError(
                f"pruned must be a list with one count for each layer (in a sweep, a list of such); got {pruned!r}"
            )
        self.pruned, self.scores = pruned, scores
        self.needs_cls = scores == "cls"
        self.statistics = ("cls_row",) if scores == "cls" else ("received",)

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        prefix, num = tokens.prefix, tokens.num
        score_BN = attention.cls_row_BN if self.scores == "cls" else attention.received_BN
        order_BN = matching.top_places(score_BN, num, prefix=prefix)
        x_BNC = gather_rows(tokens.x_BNC.detach(), order_BN)
        best_BR, partner_BR = matching.cosines(x_BNC[:, keep:], x_BNC[:, prefix:keep]).max(-1)
        is_merged_R = torch.arange(keep, num, device=order_BN.device) < self._num_after_pruning(tokens, keep)
        stays_BK = torch.arange(keep, device=order_BN.device).expand(order_BN.shape[0], -1)
        group_BN = torch.cat([stays_BK, (prefix + partner_BR).where(is_merged_R, -1)], 1)
        mass_BN = torch.cat([torch.ones_like(stays_BK, dtype=torch.float32), best_BR.clamp_min(0)], 1)
        group_BN = torch.empty_like(order_BN).scatter(1, order_BN, group_BN)
        mass_BN = torch.empty_like(mass_BN).scatter(1, order_BN, mass_BN)
        return Assignment(group_BN, keep, weight_BN=torch.ones_like(mass_BN), mass_BN=mass_BN)

    def _num_after_pruning(self, tokens: Tokens, keep: int) -> int:
        if self.pruned is None:
            return tokens.num - (tokens.num - keep) // 2
        if len(self.pruned) != tokens.depth:
            raise ValueError(
                f"pruned must name one count for each of the {tokens.depth} layers; got {len(self.pruned)}: {self.pruned}"
            )
        left = self.pruned[tokens.layer]
        if left < keep:
            raise ValueError(
                f"pruned[{tokens.layer}] is {left}, but {keep} tokens are to leave layer {tokens.layer}; give `tokens` that "
                "are not above it"
            )
        return left

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return (num_tokens - keep) * (keep - at.prefix) * at.channels
