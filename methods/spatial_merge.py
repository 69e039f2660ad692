"""ToMe inside each frame: the control that tells what merging over space is worth (Bolya et al., arXiv 2210.09461)."""

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


@METHODS.register("spatial_merge")
class SpatialMerge(Method):
    """ToMe's matching on keys, but only tokens of the same frame join; on images it is ToMe. A control, training-free.

    TESTA's patch merging (arXiv 2310.19060) is of this kind, with as many pairs in every frame; here the most alike pairs of the
    clip merge, so that a still or empty frame loses more. Sources without a partner in their frame come last, and join the
    most alike one of any frame. All pairs are computed, as in ToMe, and most masked: frames do not stay equally large.
    """

    paper = "after Bolya et al., ICLR 2023, arXiv 2210.09461, and Ren et al., EMNLP Findings 2023, arXiv 2310.19060"
    code = ""
    tuning = "none"
    at_most_half = True
    needs_places = True

    def __init__(self, proportional_attention: bool = True):
        super().__init__()
        self.proportional_attention = proportional_attention

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        if tokens.grid is None:
            raise ValueError("spatial_merge reads the grid of patches, which this backbone does not say")
        _, height, width = tokens.grid
        frame_BN, prefix = tokens.places() // (height * width), tokens.prefix
        group_BN = matching.bipartite_matching(
            attention.k_BHND.detach().mean(1), tokens.num - keep, prefix=prefix, sort=prefix > 0, label_BN=frame_BN
        )
        return Assignment(group_BN, keep)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return matching.pairs("bipartite", num_tokens, keep, at.prefix) * (at.channels // at.heads)
