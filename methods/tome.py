"""ToMe: merge the tokens whose keys are most alike (Bolya et al., ICLR 2023, arXiv 2210.09461)."""

from typing import Literal

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


@METHODS.register("tome")
class ToMe(Method):
    """Training-free. Proportional attention is on, as for the paper's off-the-shelf models (its MAE models: off).

    ``matching``: "bipartite" (Sec. 3.1), or one of two controls: "kth" (of every k tokens in a row the last is a destination)
    and "random" (a random bipartition), whose tokens also go to the most alike destination. Where the official "kth"
    merges all sources and drops the last N % k tokens, here the asked number is met and none is dropped; where the official
    "random" returns its destinations in random order, here they keep theirs.
    """

    paper = "Bolya et al., ICLR 2023, arXiv 2210.09461"
    code = "facebookresearch/ToMe @af95e4b, CC-BY-NC 4.0"
    tuning = "optional"

    def __init__(
        self,
        matching: Literal["bipartite", "kth", "random"] = "bipartite",
        proportional_attention: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        self.matching, self.proportional_attention, self.seed = matching, proportional_attention, seed
        self.random, self.at_most_half = matching == "random", matching == "bipartite"

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        metric_BND, prefix, r = attention.k_BHND.detach().mean(1), tokens.prefix, tokens.num - keep
        if self.matching == "bipartite":  # the official code sorts what is left over only where a class token is
            group_BN = matching.bipartite_matching(metric_BND, r, prefix=prefix, sort=prefix > 0)
        elif self.matching == "kth":
            group_BN = matching.kth_matching(metric_BND, r, prefix=prefix)
        else:
            noise_BN = matching.noise(tokens.key(), self.seed, tokens.num)
            group_BN = matching.random_matching(metric_BND, noise_BN, r, prefix=prefix)
        return Assignment(group_BN, keep)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return matching.pairs(self.matching, num_tokens, keep, at.prefix) * (at.channels // at.heads)
