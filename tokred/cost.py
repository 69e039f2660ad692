"""Exact multiply-adds (MACs) of a reduced model, by layer and by part, the reduction's own apart.

Counted: every multiply-add of convolutions, linear maps and of the two attention products, per sample. Not counted, as in the
field's tables: norms, softmax, activations, additions, sorting, gathering. (fvcore adds 5 per LayerNorm element, and counts
fused attention as nothing: see ``tests/test_cost.py``.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokred.model import Method, Widths

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


def count(widths: Widths, method: Method, tokens: Sequence[int], *, num_tokens: int, prefix: int) -> Cost:
    """The cost where ``num_tokens`` reach layer 0 and ``tokens[l]`` leave layer l."""
    parts = dict.fromkeys(PARTS, 0)
    parts["embed"] = widths.embed
    layers, num = [], num_tokens
    for layer, keep in enumerate(tokens):
        in_attention, in_mlp = _tokens_in_layer(method.site, num, keep)
        of_layer = {
            "projections": in_attention * widths.projections[layer],
            "attention": in_attention**2 * widths.attention[layer],
            "mlp": in_mlp * widths.mlp[layer],
            "reduction": _reduction(method, widths, num, keep, prefix),
        }
        for part, macs in of_layer.items():
            parts[part] += macs
        layers.append(sum(of_layer.values()))
        num = keep
    parts["head"] = widths.head + num * widths.head_per_token + num**2 * widths.head_per_pair
    return Cost(parts, tuple(layers))


def _tokens_in_layer(site: str, num: int, keep: int) -> tuple[int, int]:
    if site in ("input", "before_attention"):
        return keep, keep
    return (num, keep) if site == "after_attention" else (num, num)


def _reduction(method: Method, widths: Widths, num: int, keep: int, prefix: int) -> int:
    """The row of the CLS token beside the attention, and what the method says of itself."""
    if keep == num:
        return 0
    cls_row = num * widths.channels if "cls_row" in method.statistics else 0
    return cls_row + method.macs(num, keep, prefix=prefix, channels=widths.channels, heads=widths.heads)
