"""Exact multiply-adds (MACs) of a reduced model, by layer and by part, the reduction's own apart.

Counted: every multiply-add of convolutions, linear maps and of the two attention products, per sample. Not counted, as in the
field's tables: norms, softmax, activations, additions, sorting, gathering. (fvcore adds 5 per LayerNorm element, and counts
fused attention as nothing: see ``tests/test_cost.py``.)
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokred.model import Method, Place, Widths

PARTS = ("embed", "projections", "attention", "mlp", "head", "reduction")


@dataclass(frozen=True)
class Cost:
    """MACs of one sample. ``by_layer`` holds the layers, their reduction included, without embedding and head."""

    macs_by_part: dict[str, int]
    macs_by_layer: tuple[int, ...]

    @property
    def macs(self) -> int:
        return sum(self.macs_by_part.values())

    @property
    def gmacs(self) -> float:
        return self.macs / 1e9

    @property
    def gmacs_reduction(self) -> float:
        """What the method itself costs: matching, and statistics beyond the attention's own products."""
        return self.macs_by_part["reduction"] / 1e9

    @property
    def by_part(self) -> dict[str, float]:
        """GMACs of embed, projections, attention, mlp, head and reduction."""
        return {part: macs / 1e9 for part, macs in self.macs_by_part.items()}

    @property
    def by_layer(self) -> list[float]:
        """GMACs of each layer, its reduction included."""
        return [macs / 1e9 for macs in self.macs_by_layer]


def mean(costs: Sequence[Cost]) -> Cost:
    """Of several samples; MACs are rounded to whole ones."""
    num = len(costs)
    by_part = {part: round(sum(cost.macs_by_part[part] for cost in costs) / num) for part in PARTS}
    by_layer = zip(*(cost.macs_by_layer for cost in costs), strict=True)
    return Cost(by_part, tuple(round(sum(layer) / num) for layer in by_layer))


def count(
    widths: Widths,
    method: Method,
    tokens: Sequence[int],
    *,
    num_tokens: int,
    prefix: int,
    layers: Collection[int],
    num_frames: int = 1,
) -> Cost:
    """The cost where ``num_tokens`` reach layer 0 and ``tokens[l]`` leave layer l; the method works in ``layers``."""
    parts = dict.fromkeys(PARTS, 0)
    parts["embed"] = widths.embed
    by_layer, num = [], num_tokens
    for layer, keep in enumerate(tokens):
        site = method.site if layer in layers else None
        of_layer = _layer(widths, layer, *_tokens_in_layer(site, num, keep))
        place = Place(prefix, widths.channels, widths.heads, layer, len(tokens), num_frames)
        of_layer["reduction"] = _reduction(method, widths, num, keep, place) if layer in layers else 0
        for part, macs in of_layer.items():
            parts[part] += macs
        by_layer.append(sum(of_layer.values()))
        num = keep
    parts["head"] = widths.head + num * widths.head_per_token + num**2 * widths.head_per_pair
    return Cost(parts, tuple(by_layer))


def _layer(widths: Widths, layer: int, queries: int, keys: int, values: int, rows: int, in_mlp: int) -> dict[str, int]:
    """Of the tokens that reach attention, all have ``keys``; ``rows`` come out of it."""
    maps = keys * widths.query_key[layer] + values * widths.value[layer] + rows * widths.output[layer]
    return {
        "projections": maps,
        "attention": queries * keys * widths.logits[layer] + rows * values * widths.mixing[layer],
        "mlp": in_mlp * widths.mlp[layer],
    }


def _tokens_in_layer(site: str | None, num: int, keep: int) -> tuple[int, int, int, int, int]:
    """How many queries, keys, values, rows of attention's output and tokens in the MLP there are."""
    if site in ("input", "before_attention"):
        return keep, keep, keep, keep, keep
    if site == "queries":
        return keep, num, num, keep, keep
    if site == "attention":
        return num, num, keep, keep, keep
    return num, num, num, num, keep if site == "after_attention" else num


def _reduction(method: Method, widths: Widths, num: int, keep: int, place: Place) -> int:
    """Statistics that attention's own products do not give, and what the method says of itself."""
    channels = widths.logits[place.layer]
    statistics = num * channels if "cls_row" in method.statistics else 0
    if method.site == "queries" and set(method.statistics) - {"cls_row"}:
        statistics += num * num * channels
    return statistics + method.macs(num, keep, place)
