"""DPC-KNN: merge tokens with the nearest of the density peaks (TCFormer; Zeng et al., CVPR 2022, arXiv 2204.08680)."""

import torch

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


@METHODS.register("dpc_knn")
class DPCKNN(Method):
    """Centres are dense tokens far from any denser one; each other token joins the nearest, and a group is the plain mean of
    its members. Groups come by falling score of their centre. In a plain ViT as in TokenReduction (Haurum et al., ICCVW 2023).

    ``k``: nearest tokens that a density is taken over, the token itself among them; of fewer tokens, all (the official code
    fails there). A draw below 1e-6 is added to each density, as published, so that none are equal; it follows from ``seed``
    and the sample's own pixels. Where neighbours are far apart it decides alone: a density is below 1e-6 from a mean squared
    distance of 13.8 a channel on.

    Left out: the learned weights of the members (equal here, which is TokenReduction's ``equal_weight``), and the official
    1e-6 in the divisor, which shortens a token by at most 1e-6 of itself.
    """

    paper = "Zeng et al., CVPR 2022, arXiv 2204.08680"
    code = "zengwang430521/TCFormer @1ea72a8, Apache-2.0; in a plain ViT JoakimHaurum/TokenReduction @88fe07e, MIT"
    tuning = "finetuned"
    site = "before_attention"
    other_sites = ("after_attention", "after_mlp")
    random = True

    def __init__(self, k: int = 5, seed: int = 0):
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be 1 or more: a token is the nearest to itself; got {k}")
        self.k, self.seed = k, seed

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        x_BNC, prefix = tokens.x_BNC.detach()[:, tokens.prefix :], tokens.prefix
        distance_BNN = matching.distances(x_BNC) / x_BNC.shape[-1] ** 0.5
        noise_BN = matching.noise(tokens.key(), self.seed, tokens.num)[:, prefix:] >> 38  # 24 bits, which float32 holds
        density_BN = matching.knn_density(distance_BNN, self.k) + 1e-6 * (noise_BN.float() / 2**24)
        score_BN = matching.density_peaks(distance_BNN, density_BN)
        centre_BK = score_BN.argsort(dim=1, descending=True, stable=True)[:, : keep - prefix]
        group_BN = matching.groups_behind_prefix(matching.nearest_centre(distance_BNN, centre_BK), prefix)
        return Assignment(group_BN, keep, weight_BN=torch.ones_like(tokens.sizes()))

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return (num_tokens - at.prefix) ** 2 * at.channels
