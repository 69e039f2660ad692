"""vid-TLDR: merge in the first layers, by the sharpness of attention (Choi et al., CVPR 2024, arXiv 2403.13347)."""

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


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
        # saliency (Eq. 5 to 7): the official normalisation, mask and second normalisation come to this contrast
        mass_BN = matching.contrast_of_sources(attention.row_entropy_BN, group_BN, r, prefix=tokens.prefix)
        return Assignment(group_BN, keep, weight_BN=mass_BN * tokens.sizes(), mass_BN=mass_BN)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return matching.pairs("bipartite", num_tokens, keep, at.prefix) * at.channels
