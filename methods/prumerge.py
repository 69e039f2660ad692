"""PruMerge: keep the outliers of the class token's attention and their neighbours (Shang et al., ICCV 2025, arXiv 2403.15388)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens


@METHODS.register("prumerge")
class PruMerge(Method):
    """Published, with and without finetuning, for what a vision encoder hands to a language model. Patches whose attention lies
    above Q3 + ``factor`` (Q3 - Q1) of their sample's stay, by falling attention; to each the sum of the ``neighbors`` patches
    most like it (cosine of keys; other kept ones are among them) is added, weighted by attention and not divided, as in the
    official code. One token more, the last, is the sum of all patches that do not stay, weighted alike; it has their size.

    ``spatial``: PruMerge+, which keeps patches at equal steps as well, up to three for each outlier. ``split_heads``: False, as
    published: attention as of one head with all channels; True: the mean over the model's own heads. ``scores``: "cls", or
    "received" (mean attention each patch receives, over the model's own heads) for models without a class token.

    The official code has one threshold for a whole batch; here each sample has its own: the same for a batch of one, which
    the official results are of. It takes the features that enter CLIP's last layer, and the keys of that layer; here they are
    those that leave it. Where there are fewer than ``neighbors`` other patches, all are added, and where PruMerge+ finds no
    outlier, no patch stays: the official code stops with an error in both. It takes int(N * (count / N)) patches, in
    floating point: one too few for 16 of the counts at N = 196, for none at CLIP's 576. It looks up neighbours one
    token at a time; here those of all patches come from one N x N product.
    """

    paper = "Shang et al., ICCV 2025, arXiv 2403.15388"
    code = "42Shawn/LLaVA-PruMerge @097c041, Apache-2.0"
    tuning = "optional"
    site = "output"
    other_sites = ("after_attention", "after_mlp")
    varies = True
    num_extra = 1

    def __init__(
        self,
        factor: float = 1.5,
        neighbors: int = 32,
        spatial: bool = False,
        split_heads: bool = False,
        scores: Literal["cls", "received"] = "cls",
    ):
        super().__init__()
        if neighbors < 0:
            raise ValueError(f"neighbors must be 0 or more; got {neighbors}")
        self.factor, self.neighbors, self.spatial = factor, neighbors, spatial
        self.split_heads, self.scores = split_heads, scores
        self.needs_cls = scores == "cls"
        self.statistics = ("received",) if scores == "received" else ("cls_row",) if split_heads else ()

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        """Without the neighbours, which ``reduce`` adds."""
        assert attention is not None
        return self._assign(tokens, self._scores(tokens, attention), keep)[0]

    def reduce(self, tokens: Tokens, attention: Attention | None, keep: int) -> Tokens:
        assert attention is not None
        score_BN, prefix = self._scores(tokens, attention), tokens.prefix
        assignment, stays_BN = self._assign(tokens, score_BN, keep)
        near_BNN = neighbor_weights(
            _joined(attention.k_BHND)[:, prefix:],
            score_BN[:, prefix:],
            tokens.num_real()[:, None] - prefix,
            self.neighbors,
        )
        added_BNC = F.pad(near_BNN.to(tokens.x_BNC.dtype) @ tokens.x_BNC[:, prefix:], (0, 0, prefix, 0))
        return tokens.with_x(tokens.x_BNC + added_BNC * stays_BN[..., None]).reduce(assignment)

    def _assign(self, tokens: Tokens, score_BN: Tensor, keep: int) -> tuple[Assignment, Tensor]:
        """And which tokens stay (B, N)."""
        num_B1, place_N = tokens.num_real()[:, None], torch.arange(tokens.num, device=score_BN.device)
        rank_BN = self._ranks(score_BN[:, tokens.prefix :], num_B1 - tokens.prefix)
        rank_BN = F.pad(rank_BN, (tokens.prefix, 0), value=torch.inf)
        order_BN = rank_BN.argsort(dim=1, descending=True, stable=True)
        slot_BN = torch.empty_like(order_BN).scatter(1, order_BN, place_N.expand_as(order_BN))
        num_stay_B1 = (rank_BN > -torch.inf).sum(1, keepdim=True)
        num_stay_B1 = num_stay_B1.minimum(
            keep - (num_B1 > keep).long()
        )  # where any are left out, their sum has a place too
        stays_BN = slot_BN < num_stay_B1
        group_BN = slot_BN.minimum(num_stay_B1).masked_fill(place_N >= num_B1, -1)
        valid_BK = place_N[:keep] < (num_stay_B1 + 1).minimum(num_B1)
        weight_BN = score_BN.where(~stays_BN, 1.0)
        return Assignment(group_BN, keep, weight_BN=weight_BN, normalize=False, valid_BK=valid_BK), stays_BN

    def _scores(self, tokens: Tokens, attention: Attention) -> Tensor:
        """(B, N): attention the class token pays, or each token receives; 0 for padding."""
        if self.scores == "received":
            return attention.received_BN
        if self.split_heads:
            return attention.cls_row_BN
        q_B1C, k_BNC = _joined(attention.q_BHND[:, :, :1]), _joined(attention.k_BHND)
        logits_BN = ((q_B1C * q_B1C.shape[-1] ** -0.5) @ k_BNC.mT).float().squeeze(1)
        return (logits_BN if tokens.valid_BN is None else logits_BN.masked_fill(~tokens.valid_BN, -torch.inf)).softmax(
            1
        )

    def _ranks(self, score_BN: Tensor, num_B1: Tensor) -> Tensor:
        """(B, N), of patches alone: the higher the earlier, -inf for those that do not stay."""
        outlier_BN = score_BN > upper_fence(score_BN, num_B1, self.factor)
        rank_BN = score_BN.where(outlier_BN, -torch.inf)
        if not self.spatial:
            return rank_BN
        num_outliers_B1, place_N = (
            outlier_BN.sum(1, keepdim=True),
            torch.arange(score_BN.shape[1], device=score_BN.device),
        )
        step_B1 = (num_B1 // num_outliers_B1.clamp_min(1) // 3).clamp_min(1)
        taken_BN = (place_N % step_B1 == 0) & (place_N < num_B1 - 1) & (num_outliers_B1 > 0)
        return torch.where(taken_BN & ~outlier_BN, -1.0 - place_N, rank_BN)  # after all outliers, by place

    def knob(self, num_tokens: int) -> tuple[str, float, float]:
        return "factor", 100.0, -10.0  # but for sinks of attention no patch is as far out as either

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        score = num_tokens * at.channels if self.scores == "cls" and not self.split_heads else 0
        return score + 2 * (num_tokens - at.prefix) ** 2 * at.channels  # keys with keys, weights with features


def upper_fence(score_BN: Tensor, num_B1: Tensor, factor: float) -> Tensor:
    """(B, 1): Q3 + factor (Q3 - Q1) of the first ``num_B1`` scores of a sample; quartiles by linear interpolation."""
    is_padding_BN = torch.arange(score_BN.shape[1], device=score_BN.device) >= num_B1
    sorted_BN = score_BN.masked_fill(is_padding_BN, torch.inf).sort(1).values
    quartiles = []
    for share in (0.25, 0.75):
        at_B1 = share * (num_B1 - 1).clamp_min(0)
        low_B1, high_B1 = sorted_BN.gather(1, at_B1.floor().long()), sorted_BN.gather(1, at_B1.ceil().long())
        quartiles.append(low_B1 + (high_B1 - low_B1) * (at_B1 - at_B1.floor()))
    return quartiles[1] + factor * (quartiles[1] - quartiles[0])


def neighbor_weights(key_BNC: Tensor, score_BN: Tensor, num_B1: Tensor, num_neighbors: int) -> Tensor:
    """(B, N, N): in a patch's row the scores of the others whose keys are most like its own, 0 elsewhere."""
    key_BNC, place_N = F.normalize(key_BNC, dim=-1), torch.arange(key_BNC.shape[1], device=key_BNC.device)
    is_other_BNN = (place_N != place_N[:, None]) & (place_N < num_B1)[:, None]
    alike_BNN = (key_BNC @ key_BNC.mT).masked_fill(~is_other_BNN, -torch.inf)
    near_BNn = alike_BNN.argsort(dim=-1, descending=True, stable=True)[..., :num_neighbors]
    is_near_BNN = torch.zeros_like(is_other_BNN).scatter(2, near_BNn, True)
    return score_BN[:, None] * (is_near_BNN & is_other_BNN)


def _joined(of_heads_BHND: Tensor) -> Tensor:
    """(B, N, H D): the heads side by side, as they come out of the linear map."""
    return of_heads_BHND.detach().transpose(1, 2).flatten(2).float()
