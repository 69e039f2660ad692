"""K-Medoids: keep the tokens in the middle of clusters (Token Pooling; Marin et al., WACV 2023, arXiv 2110.03860)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching


@METHODS.register("k_medoids")
class KMedoids(Method):
    """Clusters begin at the tokens that receive most attention; then, ``iterations`` times, each token joins the nearest medoid
    and each cluster moves its medoid. The medoids are the new tokens, in the order they began in.

    ``update``: what a medoid is. "paper": the member i with the least sum over members j of w_j d_ij, w the attention received
    and d the Euclidean distance. "token_reduction": with the least w_i times the sum of d_ij over *all* tokens, as
    TokenReduction has it, which favours members that are little looked at and lie towards the other clusters: on DeiTs with
    random weights, 64 patches to 23, the error it leaves, each token's distance to its medoid weighted by w, is 1.6 to 1.9 times
    that of "paper".
    ``centres``: "medoid", or "mean", the mean of the members weighted by w, with which weighted K-means would end.

    Decided after the MLP, by the attention of the same layer, this is TokenReduction's clustering at the start of the next
    layer by the attention of the one before: its locations 3, 6, 9 are layers 2, 5, 8 here. A medoid stays in its own cluster;
    where tokens are exactly equal, TokenReduction leaves a cluster empty and takes the first token for it. Left out: its
    variant without weights, which begins at farthest points from a random one.
    """

    paper = "Marin et al., WACV 2023, arXiv 2110.03860"
    code = "none of the authors; JoakimHaurum/TokenReduction @88fe07e, MIT"
    tuning = "finetuned"
    site = "after_mlp"
    other_sites = ("after_attention",)
    statistics = ("received",)

    def __init__(
        self,
        iterations: int = 3,
        update: Literal["paper", "token_reduction"] = "paper",
        centres: Literal["medoid", "mean"] = "medoid",
    ):
        super().__init__()
        if iterations < 0:
            raise ValueError(f"iterations must be 0 or more; got {iterations}")
        self.iterations, self.update, self.centres = iterations, update, centres

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        prefix, x_BNC = tokens.prefix, tokens.x_BNC.detach()
        weight_BN = attention.received_BN[:, prefix:]
        distance_BNN = matching.distances(x_BNC[:, prefix:])
        medoid_BK = weight_BN.argsort(dim=1, descending=True, stable=True)[:, : keep - prefix]
        for _ in range(self.iterations):
            group_BN = matching.nearest_centre(distance_BNN, medoid_BK)
            cost_BN = self._cost(distance_BNN, weight_BN, group_BN)
            medoid_BK = matching.least_of_groups(cost_BN, group_BN, keep - prefix)
        group_BN = matching.groups_behind_prefix(matching.nearest_centre(distance_BNN, medoid_BK), prefix)
        if self.centres == "mean":
            share_BN = weight_BN.clamp_min(1e-12)  # members that nobody looks at count alike
        else:
            share_BN = torch.zeros_like(weight_BN).scatter(1, medoid_BK, 1.0)
        return Assignment(group_BN, keep, weight_BN=F.pad(share_BN, (prefix, 0), value=1.0))

    def _cost(self, distance_BNN: Tensor, weight_BN: Tensor, group_BN: Tensor) -> Tensor:
        """What it costs a cluster to have this member as its medoid."""
        if self.update == "token_reduction":
            return weight_BN * distance_BNN.sum(-1)
        within_BNN = distance_BNN * (group_BN[:, :, None] == group_BN[:, None])
        return (within_BNN * weight_BN[:, None]).sum(-1)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return (num_tokens - at.prefix) ** 2 * at.channels
