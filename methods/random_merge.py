"""Random merge: the control for methods that merge what is alike."""

import torch

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching


@METHODS.register("random_merge")
class RandomMerge(Method):
    """Tokens drawn at random each join another one drawn at random; a group is the mean by size.

    The draw follows from ``seed`` and the sample's own pixels, so a sample is merged alike in any batch.
    """

    tuning = "none"
    random = True
    other_sites = ("input", "before_attention", "after_mlp")

    def __init__(self, proportional_attention: bool = True, seed: int = 0):
        super().__init__()
        self.proportional_attention, self.seed = proportional_attention, seed

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        noise_BN = matching.noise(tokens.key(), self.seed, tokens.num)
        order_BN = noise_BN[:, tokens.prefix :].argsort(1) + tokens.prefix
        r = tokens.num - keep
        merged_Br, stay_BK = order_BN[:, :r], order_BN[:, r:]
        partner_Br = noise_BN.gather(1, merged_Br) % stay_BK.shape[1]
        place_BN = torch.arange(tokens.num, device=order_BN.device).expand_as(noise_BN)
        target_BN = place_BN.scatter(1, merged_Br, stay_BK.gather(1, partner_Br))
        return Assignment(matching.groups_by_place(target_BN), keep)
