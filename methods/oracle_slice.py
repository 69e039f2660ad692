"""The first tokens, cut off by a slice: no method, but how fast one could be at most."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Tokens


@METHODS.register("oracle_slice")
class OracleSlice(Method):
    """Keeps the first tokens and looks at nothing: its speed is the limit of all methods on the same schedule, its accuracy is no
    one's aim (the first frames of a clip, the top of an image).

    It costs no MACs, and no time but a view of the features: no gather, no scatter. Inside attention ("queries", "attention") the
    core applies the choice by itself, to queries and map as well, and gathers; there the limit holds for what decides alone.
    """

    tuning = "none"
    other_sites = ("input", "before_attention", "queries", "attention", "after_mlp", "output")
    conserves_mass = False

    def __init__(
        self,
        site: Literal[
            "after_attention", "input", "before_attention", "queries", "attention", "after_mlp", "output"
        ] = "after_attention",
    ):
        super().__init__()
        self.site = site
        self.statistics = ("map",) if site == "attention" else ()

    def reduce(self, tokens: Tokens, attention: Attention | None, keep: int) -> Tokens:
        def first(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[:, :keep]

        source_BM = tokens.source_BM
        return replace(
            tokens,
            x_BNC=tokens.x_BNC[:, :keep],
            size_BN=first(tokens.size_BN),
            source_BM=None if source_BM is None else source_BM.where(source_BM < keep, -1),
            valid_BN=first(tokens.valid_BN),
            place_BN=first(tokens.place_BN),
            before_mlp_BNC=first(tokens.before_mlp_BNC),
        )

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        place_K = torch.arange(keep, device=tokens.x_BNC.device)
        return Assignment.select(place_K.expand(tokens.x_BNC.shape[0], -1), tokens.num)
