"""Many reduced models of one backbone on one batch: what several of them have in common is run once.

Their layers, cut in halves, are a tree: models go together until the first half in which one is reduced in another way. A walk
over it gives each model the tokens it would have alone, bit for bit, since the same operations run on the same tensors.
The branch with most models comes last, when nothing else needs the tokens it starts from: no more than log2(models) states
wait at any time.

Dimension key: B batch, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tokred.attention import Attention
from tokred.reduced import ReducedModel
from tokred.tokens import Tokens


class Arrived(NamedTuple):
    """Model number ``model`` has its tokens, or an error ended it."""

    model: int
    outcome: tuple[Tokens, Tensor] | Exception

    def reached(self) -> tuple[Tokens, Tensor]:
        """The tokens that reach its head, and how many real ones (B, L) left each layer. Raises the error that ended it."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Tree:
    """``models`` of one backbone. ``num_halves``: half layers that a walk runs, where all alone would run ``num_alone``."""

    def __init__(self, models: Sequence[ReducedModel]):
        self.models = tuple(models)
        paths = [model.halves() for model in self.models]
        self._branches = _grown(self.models, paths, range(len(self.models)), 0)
        self.num_halves = sum(branch.size for branch in self._branches)
        self.num_alone = sum(map(len, paths))

    def walk(self, inputs: Tensor) -> Iterator[Arrived]:
        """Every model once. An error ends those that share the half layer it is in, and the walk goes on with the others."""
        if not self.models:
            return
        try:
            state = _State(self.models[0].embedded(inputs))
        except Exception as error:  # as below
            yield from (Arrived(model, error) for model in range(len(self.models)))
            return
        waiting = [(branch, state) for branch in self._branches]
        while waiting:
            node, state = waiting.pop()
            try:
                state = node.run(state, inputs)
            except Exception as error:  # plugins can raise anything
                yield from (Arrived(model, error) for model in node.members)
                continue
            if node.branches:
                waiting.extend((branch, state) for branch in node.branches)
            else:
                yield from (Arrived(model, (state.tokens, state.counted())) for model in node.members)


class _State(NamedTuple):
    """``num``: of each layer so far the tokens that left it, a number where they are as many in all samples."""

    tokens: Tokens
    attention: Attention | None = None
    num: tuple[Tensor | int, ...] = ()

    def counted(self) -> Tensor:
        B, device = len(self.tokens.x_BNC), self.tokens.x_BNC.device
        return torch.stack(
            [num if isinstance(num, Tensor) else torch.full((B,), num, device=device) for num in self.num], 1
        )


@dataclass
class _Node:
    """Half a layer. ``members``: the models that share it, of which ``model`` runs it; ``branches``: most models first."""

    model: ReducedModel
    layer: int
    second: bool
    members: list[int]
    branches: list["_Node"] = field(default_factory=list)

    @property
    def size(self) -> int:
        return 1 + sum(branch.size for branch in self.branches)

    def run(self, state: _State, inputs: Tensor) -> _State:
        if not self.second:
            tokens, attention = self.model.attended(self.layer, state.tokens, inputs)
            return _State(tokens, attention, state.num)
        tokens, attention = self.model.between(self.layer, state.tokens, state.attention, inputs)
        tokens = self.model.fed(self.layer, tokens, attention, inputs)
        return _State(tokens, None, (*state.num, tokens.num if tokens.valid_BN is None else tokens.num_real()))


def _grown(models: Sequence[ReducedModel], paths: Sequence[list], members: Sequence[int], depth: int) -> list[_Node]:
    """The branches of these models from half layer ``depth`` on."""
    if not members or depth == len(paths[members[0]]):
        return []
    together: dict[object, list[int]] = {}
    for member in members:
        together.setdefault(paths[member][depth], []).append(member)
    nodes = [
        _Node(models[some[0]], depth // 2, depth % 2 == 1, some, _grown(models, paths, some, depth + 1))
        for some in together.values()
    ]
    return sorted(nodes, key=lambda node: -len(node.members))
