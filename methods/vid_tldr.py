"""vid-TLDR: merge in the first layers, by the sharpness of attention (Choi et al., CVPR 2024, arXiv 2403.13347)."""

import torch
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching
from tokred.gpu import runs_kernels

FLAT = 1e-5  # no contrast: float32 rounds a sum of N log terms to about 1e-6 of itself


@METHODS.register("vid_tldr")
class VidTLDR(Method):
    """Training-free. Tokens that are alike merge (ToMe's matching, on the tokens themselves), but a source counts only as much
    as it is salient: background vanishes, and the foreground is not diluted by it (Sec. 3.2 and 3.3).

    Where attention is uniform, or exactly 0 somewhere, the official code turns the sample to NaN; here a probability of 0
    adds no entropy, and a sample without any contrast keeps all its sources at full weight (then this is ToMe). Tokens of a
    prefix are never merged and have no part in the saliency's mean; the official code knows models without one only.
    """

    paper = "Choi et al., CVPR 2024, arXiv 2403.13347"
    code = "mlvlab/vid-TLDR @a25051d, MIT (its vid_TLDR.py has the header of ToMe's licence)"
    tuning = "none"
    at_most_half = True
    proportional_attention = True
    conserves_mass = False
    statistics = ("row_entropy",)
    biased_statistics = False  # scored without the log-size bias

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        r = tokens.num - keep
        group_BN = matching.bipartite_matching(tokens.x_BNC.detach(), r, prefix=tokens.prefix)
        mass_BN = masses(attention.row_entropy_BN, group_BN, r, prefix=tokens.prefix)
        return Assignment(group_BN, keep, weight_BN=mass_BN * tokens.sizes(), mass_BN=mass_BN)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return matching.pairs("bipartite", num_tokens, keep, at.prefix) * at.channels


def masses(row_entropy_BN: Tensor, group_BN: Tensor, r: int, *, prefix: int = 0) -> Tensor:
    """(B, N): the saliency of the ``r`` tokens that were joined to another; 1 of all others."""
    if prefix < 2 and runs_kernels(row_entropy_BN):
        from tokred.merge_kernels import contrast_of_sources  # here, since it imports triton

        return contrast_of_sources(row_entropy_BN, group_BN, r, prefix, FLAT)
    merged_BN = matching.sources(group_BN, r, prefix=prefix)
    return torch.where(merged_BN, saliency(row_entropy_BN, prefix=prefix), 1.0)


def saliency(row_entropy_BN: Tensor, *, prefix: int = 0) -> Tensor:
    """(B, N) in 0..1: how far a token's negative entropy lies above the mean, as a share of the sharpest token's (Eq. 5 to 7).

    The official normalisation, mask and second normalisation come to max(0, (s - mean) / (max - mean)).
    """
    of_tokens_BN = row_entropy_BN[:, prefix:]
    mean_B1 = of_tokens_BN.mean(1, keepdim=True)
    contrast_B1 = of_tokens_BN.amax(1, keepdim=True) - mean_B1
    flat_B1 = contrast_B1 <= FLAT * mean_B1.abs()
    return ((row_entropy_BN - mean_B1) / contrast_B1).clamp(0, 1).masked_fill(flat_B1, 1.0)
