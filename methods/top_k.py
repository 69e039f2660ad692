"""Top-K: keep the tokens the class token looks at, drop the others (Haurum et al., ICCVW 2023, arXiv 2308.04657)."""

from typing import Literal

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching


@METHODS.register("top_k")
class TopK(Method):
    """Kept tokens come by falling attention. ``scores``: "cls" (attention the class token pays), or "received" (mean attention
    each token receives) for models without one."""

    paper = "Haurum et al., ICCVW 2023, arXiv 2308.04657"
    code = "JoakimHaurum/TokenReduction @88fe07e, MIT"
    tuning = "finetuned"
    conserves_mass = False

    def __init__(self, scores: Literal["cls", "received"] = "cls"):
        super().__init__()
        self.scores = scores
        self.needs_cls = scores == "cls"
        self.statistics = ("cls_row",) if scores == "cls" else ("received",)

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert attention is not None
        score_BN = attention.cls_row_BN if self.scores == "cls" else attention.received_BN
        return Assignment.select(matching.top_places(score_BN, keep, prefix=tokens.prefix), tokens.num)
