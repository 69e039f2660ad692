"""ATS: sample tokens by what the class token takes from them (Fayyaz et al., ECCV 2022, arXiv 2111.15667)."""

from typing import Literal

import torch
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching


@METHODS.register("ats")
class ATS(Method):
    """A token's score is the attention that the class token pays to it, times the length of its value. Tokens are drawn at even
    steps of the sum of scores, and stay once, however often they were drawn: many where scores are even, few where they are
    not. They come by rising score, behind the prefix. Those that go are still looked at in their layer, but ask no more.

    Published with finetuning and without. Of three published algorithms this is the official code's, which sorts scores before it
    sums them up and lets steps run from the smallest positive share to 1, so that the token of least score always goes
    (lucidrains draws with Gumbel noise, TokenReduction does not sort). ``samples``: n_ref, of which one is the class token's, and
    n_ref - 1 are drawn; 0: as many as the input has patches, as officially (n_ref = 197 at 224 pixels). ``scores``: "cls", or
    "received" (mean attention each token receives) for models without a class token.

    Where more are drawn than may be kept, the best stay; the official cap fails. Officially padding shifts the scores of shorter
    samples of a batch (of 8 samples of the golden model 6 change, by up to 0.64 in logits of up to 4.2), and softmax adds 1e-6
    to the sum of a row; here samples are as they are alone, within 4e-6 of the official logits. Officially all queries ask
    before it is decided whose answers stay: N (N - K) C multiply-adds more.
    """

    paper = "Fayyaz et al., ECCV 2022, arXiv 2111.15667"
    code = "adaptivetokensampling/ATS @9271257, Apache-2.0"
    tuning = "optional"
    site = "queries"
    varies = True
    conserves_mass = False

    def __init__(self, samples: int = 0, scores: Literal["cls", "received"] = "cls"):
        super().__init__()
        if samples != 0 and samples < 3:
            raise ValueError(f"samples must be 3 at least, or 0 for as many as the input has patches; got {samples}")
        self.samples, self.scores = samples, scores
        self.needs_cls = scores == "cls"
        self.statistics = ("cls_row",) if scores == "cls" else ("received",)

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None and attention.v_BHND is not None
        prefix, most = tokens.prefix, keep - tokens.prefix
        attended_BN = attention.cls_row_BN if self.scores == "cls" else attention.received_BN
        length_BN = attention.v_BHND.detach().float().transpose(1, 2).flatten(2).norm(dim=-1)
        score_BP = (attended_BN * length_BN)[:, prefix:]
        real_BP = torch.arange(prefix, tokens.num, device=score_BP.device) < tokens.num_real()[:, None]
        rising_BP = score_BP.masked_fill(~real_BP, -1).argsort(dim=1, stable=True)  # padding first: it adds nothing
        drawn_BP = drawn(score_BP.gather(1, rising_BP), real_BP.gather(1, rising_BP), self._draws(tokens))
        drawn_BP &= drawn_BP.flip(1).cumsum(1).flip(1) <= most
        order_BK = (~drawn_BP).long().argsort(dim=1, stable=True)[:, :most]
        index_BK = matching.with_prefix(rising_BP.gather(1, order_BK) + prefix, prefix)
        valid_BK = torch.cat([real_BP.new_ones(real_BP.shape[0], prefix), drawn_BP.gather(1, order_BK)], 1)
        return Assignment.select(index_BK, tokens.num, valid_BK)

    def _draws(self, tokens: Tokens) -> int:
        if self.samples:
            return self.samples - 1
        if tokens.grid is None:
            raise ValueError(
                "ats draws as often as the input has patches, which this backbone does not say; give samples="
            )
        return max(2, tokens.grid[0] * tokens.grid[1] * tokens.grid[2])

    def knob(self, num_tokens: int) -> tuple[str, float, float]:
        return "samples", 3, 64 * num_tokens


def drawn(score_BP: Tensor, real_BP: Tensor, draws: int) -> Tensor:
    """(B, P) bool: which of the tokens, by rising score and padding first, are drawn. The last one always is."""
    score_BP = score_BP.masked_fill(~real_BP, 0)
    least_B1 = score_BP.masked_fill(~real_BP, torch.inf).amin(1, keepdim=True)
    total_BP = score_BP.cumsum(1)
    range_B1 = total_BP[:, -1:] - least_B1
    share_BP = (total_BP - least_B1) / range_B1.masked_fill(~(range_B1 > 0), 1)
    share_BP = torch.cat([share_BP[:, :-1], torch.ones_like(range_B1)], 1)
    start_B1 = share_BP.masked_fill(share_BP <= 0, 1).amin(1, keepdim=True)
    step_D = torch.arange(draws, device=score_BP.device) / (draws - 1)
    at_BD = start_B1 + (1 - start_B1) * step_D
    above_BD = torch.searchsorted(share_BP, at_BD).clamp_max(share_BP.shape[1] - 1)
    below_BD = (above_BD - 1).clamp_min(0)
    is_below_BD = at_BD - share_BP.gather(1, below_BD) <= (share_BP.gather(1, above_BD) - at_BD).abs()
    nearest_BD = torch.where(is_below_BD & (below_BD < above_BD), below_BD, above_BD)
    return torch.zeros_like(real_BP).scatter(1, nearest_BD, True)
