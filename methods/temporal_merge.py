"""ToMe along time: the control that tells what merging over frames is worth (Bolya et al., arXiv 2210.09461)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Place, Tokens, matching
from tokred.rows import gather_rows


@METHODS.register("temporal_merge")
class TemporalMerge(Method):
    """A token joins the one at its own place in the frame before or after, whichever key is more alike; the most alike first. A
    control, training-free.

    All tokens are put in one chain, place by place (row by row) and in each by time. Those at even positions are sources: with an
    even number of frames, at first, those of even frames. Later, neighbours in time are the nearest frames that are left at a
    place. Sources alone at their place come last, and join a neighbour in the chain at another, mostly next to it in space. Only
    neighbours are compared, so that it costs next to nothing: N x D.

    TESTA (arXiv 2310.19060) also merges over time, but whole frames, by a vote of their patches; Pollard and Wray (arXiv
    2506.03885) give ToMe all tokens of a clip.
    """

    paper = "after Bolya et al., ICLR 2023, arXiv 2210.09461"
    code = ""
    tuning = "none"
    at_most_half = True
    needs_frames = True
    needs_places = True

    def __init__(self, proportional_attention: bool = True):
        super().__init__()
        self.proportional_attention = proportional_attention

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None and tokens.grid is not None
        times, height, width = tokens.grid
        prefix, place_BN = tokens.prefix, tokens.places()[:, tokens.prefix :]
        column_BN, time_BN = place_BN % (height * width), place_BN // (height * width)
        chain_BN = (column_BN * times + time_BN).argsort(1)
        key_BND = attention.k_BHND.detach().mean(1)[:, prefix:]
        key_BND = gather_rows(key_BND, chain_BN)
        source_Br, target_Br = neighbours(key_BND, column_BN.gather(1, chain_BN), tokens.num - keep)
        own_BN = torch.arange(tokens.num, device=chain_BN.device).expand(chain_BN.shape[0], -1)
        source_Br, target_Br = chain_BN.gather(1, source_Br) + prefix, chain_BN.gather(1, target_Br) + prefix
        return Assignment(matching.groups_by_place(own_BN.scatter(1, source_Br, target_Br)), keep)

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        return (num_tokens - at.prefix - 1) * (at.channels // at.heads)


def neighbours(key_BND: Tensor, label_BN: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The ``r`` tokens at even positions that are most like one beside them, and that one's position, (B, r) each. Pairs of the
    same label come first; of equals the first in the row."""
    key_BND = F.normalize(key_BND.float(), dim=-1)
    near_BM = torch.einsum("bnd,bnd->bn", key_BND[:, :-1], key_BND[:, 1:])
    near_BM = near_BM - 4.0 * (label_BN[:, :-1] != label_BN[:, 1:])  # cosines lie in -1..1
    left_BA = F.pad(near_BM[:, 1::2], (1, 0), value=-torch.inf)
    right_BA = F.pad(near_BM[:, ::2], (0, key_BND.shape[1] % 2), value=-torch.inf)
    best_BA, is_right_BA = torch.maximum(left_BA, right_BA), right_BA > left_BA
    even_Br = best_BA.argsort(dim=1, descending=True, stable=True)[:, :r]
    return 2 * even_Br, 2 * even_Br + 2 * is_right_BA.gather(1, even_Br) - 1
