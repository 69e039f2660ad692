"""PiToMe: merge where tokens crowd, protect those that stand alone (Tran et al., NeurIPS 2024, arXiv 2405.16148)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching
from tokred.rows import gather_rows


@METHODS.register("pitome")
class PiToMe(Method):
    """Training-free. A token's energy is its mean similarity to all, with what is below a margin damped; tokens of high energy
    are many of a kind, and merge (Sec. 3.2). Similarity is the cosine of keys averaged over heads; the prefix has no part.

    ``matching``: "protected" is the paper's: of the 2r tokens of highest energy every other one joins the most alike of the
    rest, and all others are protected. "bipartite" pairs all tokens so, and merges the r best pairs. The official DeiT code
    does the latter in the first half of the layers ("bipartite_first"), its MAE code in the last ("protected_first").
    ``margin``: in the first layer; in layer l of L it is ``margin - fall * l / L``, where ``fall`` is the whole margin unless
    it is given (DeiT, MAE: 0.75; AugReg, BLIP: 0.9; CLIP: 0.95, of Hugging Face 0.9; BLIP-2: 0.75 with a fall of 0.4).
    ``alpha``: how far the energy damps. ``proportional_attention`` is off, as in the official DeiT code, whose blocks never
    hand the sizes over. Its ratio is ``keep_rate`` in every layer.

    Half of the tokens can go in a layer; there the official code crashes where more are asked for. It takes distillation
    tokens for patches; here they are kept.
    """

    paper = "Tran et al., NeurIPS 2024, arXiv 2405.16148"
    code = "hchautran/PiToMe @550b5de, CC-BY-NC 4.0"
    tuning = "none"
    at_most_half = True

    def __init__(
        self,
        matching: Literal["bipartite_first", "protected_first", "bipartite", "protected"] = "bipartite_first",
        margin: float = 0.75,
        fall: float | None = None,
        alpha: float = 1.0,
        proportional_attention: bool = False,
    ):
        super().__init__()
        if alpha < 0:
            raise ValueError(f"alpha must be 0 or more; got {alpha}")
        self.matching, self.margin, self.alpha = matching, margin, alpha
        self.fall = margin if fall is None else fall
        self.proportional_attention = proportional_attention

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        key_BND = attention.k_BHND.detach().float().mean(1)[:, tokens.prefix :]
        alike_BNN = matching.cosines(key_BND, key_BND)
        margin = self.margin - self.fall * tokens.layer / tokens.depth
        energy_BN = F.elu(alike_BNN - margin, alpha=self.alpha).mean(-1)
        order_BN = energy_BN.argsort(dim=-1, descending=True, stable=True)
        r = tokens.num - keep
        num_paired = order_BN.shape[1] if self._pairs_all(tokens) else 2 * r
        group_BN = crowded_groups(alike_BNN, order_BN, num_paired, r)
        return Assignment(matching.groups_behind_prefix(group_BN, tokens.prefix), keep)

    def _pairs_all(self, tokens: Tokens) -> bool:
        if self.matching in ("bipartite", "protected"):
            return self.matching == "bipartite"
        is_first = tokens.layer < (tokens.depth + 1) // 2
        return is_first == (self.matching == "bipartite_first")

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return (num_tokens - at.prefix) ** 2 * (at.channels // at.heads)


def crowded_groups(alike_BNN: Tensor, order_BN: Tensor, num_paired: int, r: int) -> Tensor:
    """(B, N): of the first ``num_paired`` tokens of the order every other one, from the first, is a source, and the ``r``
    sources most like one of the others join it.

    Groups: the tokens that are not paired, in the order; sources left over, by falling similarity; destinations.
    """
    paired_BP, alone_BQ = order_BN[:, :num_paired], order_BN[:, num_paired:]
    source_BA, destination_BD = paired_BP[:, ::2], paired_BP[:, 1::2]
    of_sources_BAN = gather_rows(alike_BNN, source_BA)
    score_BAD = of_sources_BAN.gather(2, destination_BD[:, None].expand(-1, source_BA.shape[1], -1))
    best_BA, partner_BA = score_BAD.max(-1)
    rank_BA = best_BA.argsort(dim=-1, descending=True, stable=True)
    source_BA = source_BA.gather(1, rank_BA)
    joining_Br, left_BL = source_BA[:, :r], source_BA[:, r:]
    target_Br = destination_BD.gather(1, partner_BA.gather(1, rank_BA[:, :r]))
    staying_BK = torch.cat([alone_BQ, left_BL, destination_BD], 1)
    slot_BK = torch.arange(staying_BK.shape[1], device=order_BN.device).expand_as(staying_BK)
    group_BN = torch.empty_like(order_BN).scatter(1, staying_BK, slot_BK)
    return group_BN.scatter(1, joining_Br, group_BN.gather(1, target_Br))
