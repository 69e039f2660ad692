"""Random drop: the control that every method has to beat."""

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching


@METHODS.register("random_drop")
class RandomDrop(Method):
    """Drops tokens uniformly at random, other ones in each sample; those that stay keep their order.

    The draw follows from ``seed`` and the sample's own pixels, so a sample loses the same tokens in any batch.
    """

    tuning = "none"
    conserves_mass = False
    random = True
    other_sites = ("input", "before_attention", "after_mlp")

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = seed

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        noise_BN = matching.noise(tokens.key(), self.seed, tokens.num)
        index_BK = matching.top_places(noise_BN, keep, prefix=tokens.prefix).sort(1).values
        return Assignment.select(index_BK, tokens.num)
