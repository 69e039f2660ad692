"""Attention, and what methods want to know of it, at the cost they really need.

A method that reads no attention runs on fused scaled-dot-product attention. One that reads the CLS row pays for one row
more. One that reads a statistic of the whole map gets it from the same products as the output, in chunks of queries: the
map of all heads is held for those who read that itself (the statistic "map") and for nobody else.

Dimension key: B batch, N tokens, H heads, D channels of a head, Q queries of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

STATISTICS = {
    "cls_row": "attention that the first token pays to each token, mean over heads",
    "received": "attention that each token receives, mean over heads and the queries of real tokens",
    "row_entropy": "negative entropy of the attention each token pays, of the mean over heads",
    "head_mean": "the whole map, mean over heads: N x N",
    "map": "the whole map of every head: H x N x N",
}
_CHUNK_ELEMENTS = 2**22  # of a chunk's logits: 16 MiB in float32, about the size of a core's last-level cache


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
    mask_BN = _key_mask(bias_BN, valid_BN)
    seen_BN = mask_BN if biased_statistics else _key_mask(None, valid_BN)
    found: dict[str, Tensor] = {}
    if _only_cls_row(statistics):
        out_BHND = plain(q_BHND, k_BHND, v_BHND, scale=scale, bias_BN=bias_BN, valid_BN=valid_BN)
    else:
        outputs, found = _in_chunks(q_BHND, k_BHND, v_BHND, scale, mask_BN, seen_BN, statistics, valid_BN)
        out_BHND = torch.cat(outputs, 2)
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
    mask = _as_mask(_key_mask(bias_BN, valid_BN), q_BHQD)
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
    seen_BN = _key_mask(bias_BN if biased_statistics else None, valid_BN)
    found: dict[str, Tensor] = {}
    if "map" in statistics:
        map_BHNN = _weights(q_BHND, k_BHND, scale, seen_BN)
        real_BN = _real(q_BHND, valid_BN)
        others = [name for name in statistics if name not in ("map", "cls_row")]
        found = {name: _of_chunks(name, [_of_chunk(name, map_BHNN.detach(), real_BN)], real_BN) for name in others}
        found["map"] = map_BHNN
    elif not _only_cls_row(statistics):
        _, found = _in_chunks(q_BHND, k_BHND, None, scale, seen_BN, seen_BN, statistics, valid_BN)
    found |= _cls_row(q_BHND, k_BHND, scale, seen_BN, statistics)
    return Attention(q_BHND, k_BHND, v_BHND, scale, bias_BN, found)


def _check_known(statistics: Sequence[str]) -> None:
    unknown = [name for name in statistics if name not in STATISTICS]
    if unknown:
        raise ValueError(f"no attention statistic {unknown[0]!r}; there are {', '.join(STATISTICS)}")


def _only_cls_row(statistics: Sequence[str]) -> bool:
    return all(name == "cls_row" for name in statistics)


def _cls_row(
    q_BHND: Tensor, k_BHND: Tensor, scale: float, seen_BN: Tensor | None, statistics: Sequence[str]
) -> dict[str, Tensor]:
    if "cls_row" not in statistics:
        return {}
    row_BH1N = _weights(q_BHND[:, :, :1].detach(), k_BHND.detach(), scale, seen_BN)
    return {"cls_row": row_BH1N.mean(1).squeeze(1)}


def _key_mask(bias_BN: Tensor | None, valid_BN: Tensor | None) -> Tensor | None:
    if valid_BN is None:
        return bias_BN
    bias_BN = torch.zeros(valid_BN.shape, device=valid_BN.device) if bias_BN is None else bias_BN
    return bias_BN.masked_fill(~valid_BN, -torch.inf)


def _as_mask(mask_BN: Tensor | None, like: Tensor) -> Tensor | None:
    return None if mask_BN is None else mask_BN[:, None, None, :].to(like.dtype)


def _weights(q_BHQD: Tensor, k_BHND: Tensor, scale: float, mask_BN: Tensor | None) -> Tensor:
    """softmax(q k + mask) in float32, whatever the precision of q and k."""
    logits_BHQN = ((q_BHQD * scale) @ k_BHND.mT).float()
    if mask_BN is not None:
        logits_BHQN = logits_BHQN + mask_BN[:, None, None, :]
    return logits_BHQN.softmax(-1)


def _real(q_BHND: Tensor, valid_BN: Tensor | None) -> Tensor:
    """(B, N): 1 for a real token, 0 for padding."""
    B, _, N, _ = q_BHND.shape
    return torch.ones(B, N, device=q_BHND.device) if valid_BN is None else valid_BN.float()


def _in_chunks(
    q_BHND, k_BHND, v_BHND, scale, mask_BN, seen_BN, statistics, valid_BN
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs (none without values) and statistics from the same products, a chunk of queries at a time."""
    B, H, N, _ = q_BHND.shape
    real_BN = _real(q_BHND, valid_BN)
    chunk = N if "map" in statistics else max(16, _CHUNK_ELEMENTS // (B * H * N))
    outputs: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {name: [] for name in statistics if name != "cls_row"}
    for q_BHQD, real_BQ in zip(q_BHND.split(chunk, dim=2), real_BN.split(chunk, dim=1), strict=True):
        logits_BHQN = ((q_BHQD * scale) @ k_BHND.mT).float()
        used_BHQN = _softmax(logits_BHQN, mask_BN)
        if v_BHND is not None:
            outputs.append(used_BHQN.to(v_BHND.dtype) @ v_BHND)
        seen_BHQN = used_BHQN.detach() if seen_BN is mask_BN else _softmax(logits_BHQN.detach(), seen_BN)
        for name, found in parts.items():
            found.append(_of_chunk(name, seen_BHQN, real_BQ))
    return outputs, {name: _of_chunks(name, found, real_BN) for name, found in parts.items()}


def _softmax(logits_BHQN: Tensor, mask_BN: Tensor | None) -> Tensor:
    return (logits_BHQN if mask_BN is None else logits_BHQN + mask_BN[:, None, None, :]).softmax(-1)


def _of_chunk(name: str, map_BHQN: Tensor, real_BQ: Tensor) -> Tensor:
    if name == "map":
        return map_BHQN
    mean_BQN = map_BHQN.mean(1)
    if name == "head_mean":
        return mean_BQN
    if name == "received":
        return (mean_BQN * real_BQ[..., None]).sum(1)
    return torch.special.xlogy(mean_BQN, mean_BQN).sum(-1)  # row_entropy; xlogy: 0 log 0 = 0, where log alone gives NaN


def _of_chunks(name: str, found: list[Tensor], real_BN: Tensor) -> Tensor:
    if name == "received":
        return torch.stack(found).sum(0) / real_BN.sum(1, keepdim=True)
    return torch.cat(found, 2 if name == "map" else 1)
