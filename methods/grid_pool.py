"""Average pooling over cells of the grid: what merging must beat that looks at where tokens are and at nothing else."""

from functools import cache
from itertools import product
from math import prod

import torch
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Tokens, matching

Box = tuple[range, range, range]  # of times, rows and columns


@METHODS.register("grid_pool")
class GridPool(Method):
    """Every token is the mean of a box of neighbours in time and space; all samples get the same boxes. A control, training-free.

    Any number of boxes will do (``cells``); where regular ones come to it, as with a quarter of 14 x 14, it is plain pooling.
    That is at the first reduction; later ones join tokens that follow each other, weighed by size, in as equal runs as can be.
    At the site "input", its own, there is one reduction, before layer 0.
    """

    tuning = "none"
    site = "input"
    other_sites = ("before_attention", "after_attention", "after_mlp")

    def __init__(self):
        super().__init__()
        self._known: dict[tuple, Tensor] = {}  # so that only the first forward copies cells to the device

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        prefix, num = tokens.prefix, tokens.num - tokens.prefix
        grid = tokens.grid if tokens.grid is not None and prod(tokens.grid) == num else (1, 1, num)
        cell_N = self._cells(grid, keep - prefix, tokens.x_BNC.device)
        cell_BN = cell_N.expand(tokens.x_BNC.shape[0], -1)
        return Assignment(matching.groups_behind_prefix(cell_BN, prefix), keep)

    def _cells(self, grid: tuple[int, int, int], num: int, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling():  # there it is a constant of the graph
            return _as_tensor(grid, num, device)
        place = grid, num, device
        if place not in self._known:
            self._known[place] = _as_tensor(*place)
        return self._known[place]


@torch.compiler.assume_constant_result  # thousands of steps of Python, which dynamo would trace
def _as_tensor(grid: tuple[int, int, int], num: int, device: torch.device) -> Tensor:
    return torch.tensor(cells(grid, num), device=device)


@cache
def cells(grid: tuple[int, int, int], num: int) -> tuple[int, ...]:
    """The cell of each place of the grid, where it is cut in ``num`` boxes as equal as can be.

    Regular ones where there are such, no more than twice as long as wide. Else the grid is cut in two across its longest side,
    with a share of the boxes for each part, and so on: none is then larger than two of the mean size (the largest is mostly
    1.4 or 1.5), none longer than four times its width.

    >>> cells((1, 4, 4), 4)
    (0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3)
    """
    times, rows, columns = grid
    found = [0] * prod(grid)
    for cell, box in enumerate(_cut((range(times), range(rows), range(columns)), num)):
        for t, h, w in product(*box):
            found[(t * rows + h) * columns + w] = cell
    return tuple(found)


def _cut(box: Box, num: int) -> list[Box]:
    if num == 1:
        return [box]
    steps = _regular_steps(box, num)
    if steps is not None:
        times, rows, columns = (_pieces(side, step) for side, step in zip(box, steps, strict=True))
        return list(product(times, rows, columns))
    axis = max(range(3), key=lambda axis: len(box[axis]))
    side = box[axis]
    at, of_first = min(
        ((at, min(max(round(num * at / len(side)), 1), num - 1)) for at in _middle(len(side))),
        key=lambda cut: (_unevenness(len(side), num, *cut), abs(2 * cut[0] - len(side))),
    )
    return _cut(_with_side(box, axis, side[:at]), of_first) + _cut(_with_side(box, axis, side[at:]), num - of_first)


def _pieces(side: range, step: int) -> list[range]:
    return [side[at : at + step] for at in range(0, len(side), step)]


def _with_side(box: Box, axis: int, side: range) -> Box:
    times, rows, columns = (side if axis == own else old for own, old in enumerate(box))
    return times, rows, columns


def _middle(side: int) -> range:
    """Where a side may be cut, such that both parts have a quarter of it at least."""
    return range(max(1, -(-side // 4)), side - max(1, -(-side // 4)) + 1)


def _unevenness(side: int, num: int, at: int, of_first: int) -> float:
    """How far the boxes of both parts differ in size; rounded, so that equal cuts are equal."""
    return round(abs(at / of_first - (side - at) / (num - of_first)), 9)


def _regular_steps(box: Box, num: int) -> tuple[int, ...] | None:
    """The sides of ``num`` equal boxes, the most cubic ones, of equals the shortest in time; None where they would be long."""
    sides = [len(side) for side in box]
    steps = product(*([step for step in range(1, side + 1) if side % step == 0] for side in sides))
    fitting = [step for step in steps if prod(step) * num == prod(sides) and _compact(step, sides)]
    return min(fitting, key=lambda step: (max(step), sum(step), step), default=None)


def _compact(steps: tuple[int, ...], sides: list[int]) -> bool:
    """No more than twice as long as wide; a side on which there is but one place does not count."""
    counted = [step for step, side in zip(steps, sides, strict=True) if side > 1]
    return max(counted) <= 2 * min(counted)
