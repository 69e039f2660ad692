"""Attention, and what methods want to know of it, at the cost they really need.

A method that reads no attention runs on fused scaled-dot-product attention, as does a layer that does not reduce. One that
reads the CLS row pays for one row more. One that reads a statistic of the whole map gets it together with the output; the map
of all heads is held for those who read that itself (the statistic "map") and for nobody else: ``tokred.attention_map`` says
how, and which way is taken where.

Dimension key: B batch, N tokens, H heads, D channels of a head, Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred.attention_map import attend_and_measure, has_kernel, key_mask, of_whole_map, weights
from tokred.gpu import runs_kernels

STATISTICS = {
    "cls_row": "attention that the first token pays to each token, mean over heads",
    "received": "attention that each token receives, mean over heads and the queries of real tokens",
    "row_entropy": "negative entropy of the attention each token pays, of the mean over heads",
    "head_mean": "the whole map, mean over heads: N x N",
    "map": "the whole map of every head: H x N x N",
}


@dataclass(frozen=True)
class Attention:
    """Queries, keys and values of one layer, and the statistics that were asked for.

    ``scale`` is what q @ k is multiplied with; ``bias_BN`` what proportional attention adds for each key. ``v_BHND`` is None
    at the site "attention", where values are of the tokens that are left.
    """

    q_BHND: Tensor
    k_BHND: Tensor
    v_BHND: Tensor | None
    scale: float
    bias_BN: Tensor | None = None
    found: dict[str, Tensor] = field(default_factory=dict)

    @property
    def cls_row_BN(self) -> Tensor:
        return self._statistic("cls_row")

    @property
    def received_BN(self) -> Tensor:
        return self._statistic("received")

    @property
    def row_entropy_BN(self) -> Tensor:
        return self._statistic("row_entropy")

    @property
    def head_mean_BNN(self) -> Tensor:
        return self._statistic("head_mean")

    @property
    def map_BHNN(self) -> Tensor:
        return self._statistic("map")

    def _statistic(self, name: str) -> Tensor:
        if name not in self.found:
            raise ValueError(
                f"the attention statistic {name!r} was not asked for; name it in the method's `statistics`, "
                "so that its cost is paid and counted"
            )
        return self.found[name]


def attend(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    *,
    scale: float,
    bias_BN: Tensor | None = None,
    valid_BN: Tensor | None = None,
    statistics: Sequence[str] = (),
    biased_statistics: bool = True,
) -> tuple[Tensor, Attention]:
    """The output (B, H, N, D) of attention, and an ``Attention`` that holds what ``statistics`` names.

    ``biased_statistics=False`` leaves ``bias_BN`` out of the statistics (vid-TLDR scores so), never out of the output.
    Statistics are detached: no gradient flows through a decision.
    """
    _check_known(statistics)
    of_map = [name for name in statistics if name != "cls_row"]
    found: dict[str, Tensor] = {}
    if of_map:
        out_BHND, found = attend_and_measure(
            q_BHND,
            k_BHND,
            v_BHND,
            scale=scale,
            bias_BN=bias_BN,
            valid_BN=valid_BN,
            statistics=of_map,
            biased=biased_statistics,
        )
    else:
        out_BHND = plain(q_BHND, k_BHND, v_BHND, scale=scale, bias_BN=bias_BN, valid_BN=valid_BN)
    seen_BN = key_mask(bias_BN if biased_statistics else None, valid_BN)
    found |= _cls_row(q_BHND, k_BHND, scale, seen_BN, statistics)
    return out_BHND, Attention(q_BHND, k_BHND, v_BHND, scale, bias_BN, found)


def plain(
    q_BHQD: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    *,
    scale: float,
    bias_BN: Tensor | None = None,
    valid_BN: Tensor | None = None,
) -> Tensor:
    """(B, H, Q, D): fused attention, of as many queries as there are."""
    if (bias_BN is not None or valid_BN is not None) and _by_own_kernel(q_BHQD, k_BHND, v_BHND, bias_BN):
        from tokred.kernels import attend  # here, since it imports triton

        return attend(q_BHQD, k_BHND, v_BHND, scale=scale, bias_BN=bias_BN, valid_BN=valid_BN).transpose(1, 2)
    mask = _as_mask(key_mask(bias_BN, valid_BN), q_BHQD)
    return F.scaled_dot_product_attention(q_BHQD, k_BHND, v_BHND, attn_mask=mask, scale=scale)


def measure(
    q_BHND: Tensor,
    k_BHND: Tensor,
    *,
    v_BHND: Tensor | None = None,
    scale: float,
    bias_BN: Tensor | None = None,
    valid_BN: Tensor | None = None,
    statistics: Sequence[str] = (),
    biased_statistics: bool = True,
) -> Attention:
    """The statistics alone, without an output: for what is decided before attention is paid. Here the map keeps its gradient,
    since the output is made of it."""
    _check_known(statistics)
    seen_BN = key_mask(bias_BN if biased_statistics else None, valid_BN)
    of_map = [name for name in statistics if name != "cls_row"]
    found: dict[str, Tensor] = {}
    if "map" in of_map:
        map_BHNN = weights(q_BHND, k_BHND, scale, seen_BN)
        found = {name: of_whole_map(name, map_BHNN.detach(), valid_BN) for name in of_map if name != "map"}
        found["map"] = map_BHNN
    elif of_map:
        _, found = attend_and_measure(
            q_BHND.detach(),
            k_BHND.detach(),
            None,
            scale=scale,
            bias_BN=bias_BN,
            valid_BN=valid_BN,
            statistics=of_map,
            biased=biased_statistics,
        )
    found |= _cls_row(q_BHND, k_BHND, scale, seen_BN, statistics)
    return Attention(q_BHND, k_BHND, v_BHND, scale, bias_BN, found)


def _check_known(statistics: Sequence[str]) -> None:
    unknown = [name for name in statistics if name not in STATISTICS]
    if unknown:
        raise ValueError(f"no attention statistic {unknown[0]!r}; there are {', '.join(STATISTICS)}")


def _cls_row(
    q_BHND: Tensor, k_BHND: Tensor, scale: float, seen_BN: Tensor | None, statistics: Sequence[str]
) -> dict[str, Tensor]:
    if "cls_row" not in statistics:
        return {}
    row_BH1N = weights(q_BHND[:, :, :1].detach(), k_BHND.detach(), scale, seen_BN)
    return {"cls_row": row_BH1N.mean(1).squeeze(1)}


def _by_own_kernel(q_BHQD: Tensor, k_BHND: Tensor, v_BHND: Tensor, bias_BN: Tensor | None) -> bool:
    """With a mask, in half precision on CUDA: a bias for each key costs less there than a mask in torch's kernels."""
    given = [x for x in (q_BHQD, k_BHND, v_BHND, bias_BN) if x is not None]
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    return (
        q_BHQD.dtype in (torch.float16, torch.bfloat16)
        and q_BHQD.shape == k_BHND.shape
        and not needs_gradient
        and runs_kernels(q_BHQD)
        and has_kernel(q_BHQD, v_BHND)
    )


def _as_mask(mask_BN: Tensor | None, like: Tensor) -> Tensor | None:
    return None if mask_BN is None else mask_BN[:, None, None, :].to(like.dtype)
