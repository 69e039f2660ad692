"""``grid_pool``: plain average pooling where a regular grid comes to the number, boxes as equal as can be where not."""

from collections import Counter
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokred
from tests.golden.weights import inputs
from tokred import Tokens
from tokred.methods.grid_pool import cells
from tokred.reduction import create_method
from tokred.testing import tiny_models


def pooled(x_BNC: Tensor, grid: tuple[int, int, int], keep: int, prefix: int = 0) -> Tensor:
    return create_method("grid_pool").reduce(Tokens(x_BNC, prefix=prefix, grid=grid), None, keep).x_BNC


def boxes(grid: tuple[int, int, int], num: int) -> list[tuple[int, ...]]:
    """The sides of each cell; fails where a cell is no box."""
    cell_THW, found = torch.tensor(cells(grid, num)).view(grid), []
    for cell in range(num):
        places = (cell_THW == cell).nonzero()
        sides = (places.amax(0) - places.amin(0) + 1).tolist()
        assert prod(sides) == len(places), f"cell {cell} of {num} is no box"
        found.append(tuple(sides))
    return found


@pytest.mark.parametrize(
    ("grid", "keep", "box"),
    [
        ((1, 14, 14), 49, (1, 2, 2)),
        ((1, 14, 14), 4, (1, 7, 7)),
        ((8, 14, 14), 8 * 49, (1, 2, 2)),
        ((8, 14, 14), 4 * 49, (2, 2, 2)),
        ((8, 14, 14), 4 * 196, (1, 1, 2)),
        ((12, 14, 14), 6 * 49, (2, 2, 2)),
        ((4, 8, 8), 64, (1, 2, 2)),
    ],
)
@pytest.mark.parametrize("prefix", [0, 1])
def test_where_a_regular_grid_comes_to_the_number_it_is_plain_average_pooling(grid, keep, box, prefix):
    x_BNC = inputs((2, prefix + prod(grid), 3), keep)
    x_BCTHW = x_BNC[:, prefix:].mT.unflatten(2, grid)
    expected = F.avg_pool3d(x_BCTHW, box).flatten(2).mT
    found = pooled(x_BNC, grid, prefix + keep, prefix)
    assert torch.equal(found[:, :prefix], x_BNC[:, :prefix])
    assert torch.allclose(found[:, prefix:], expected, atol=1e-6)  # float32 sums of 4 or 8 values


GRIDS = [(1, 4, 4), (1, 7, 5), (2, 4, 4), (1, 14, 14), (4, 8, 8), (5, 3, 3)]


@pytest.mark.parametrize("grid", GRIDS)
def test_any_number_of_boxes_covers_the_grid_and_none_is_larger_than_two_of_the_mean(grid):
    num = prod(grid)
    for keep in range(1, num + 1, 1 if num < 100 else 7):
        sizes = Counter(cells(grid, keep))
        assert sorted(sizes) == list(range(keep))
        assert max(sizes.values()) <= 2 * num / keep


def test_of_half_the_numbers_the_largest_box_is_within_half_of_the_mean():
    worst = [max(Counter(cells((8, 14, 14), keep)).values()) * keep / 1568 for keep in range(20, 1568, 31)]
    assert sorted(worst)[len(worst) // 2] < 1.5


@pytest.mark.parametrize("grid", GRIDS[:5])
def test_every_cell_is_a_box(grid):
    for keep in range(1, prod(grid) + 1, 1 if prod(grid) < 40 else 23):
        boxes(grid, keep)


@pytest.mark.parametrize("grid", [(1, 14, 14), (8, 14, 14), (4, 8, 8)])
def test_boxes_are_no_longer_than_four_times_their_width(grid):
    for keep in (1, 5, 11, 28, 50, 62, 97, 193):
        for box in boxes(grid, keep):
            sides = [side for side, whole in zip(box, grid, strict=True) if whole > 1]
            assert max(sides) <= 4 * min(sides)


def test_a_few_boxes_by_hand():
    assert cells((1, 2, 3), 2) == (0, 1, 1, 0, 1, 1)  # 2 x 1 and 2 x 2
    assert cells((2, 1, 2), 3) == (0, 1, 2, 2)  # of equal sides the first is cut
    assert cells((1, 1, 7), 3) in ((0, 0, 1, 1, 2, 2, 2), (0, 0, 0, 1, 1, 2, 2), (0, 0, 1, 1, 1, 2, 2))


def test_a_run_of_tokens_is_cut_in_runs_that_differ_by_one():
    for num, keep in ((100, 30), (97, 40), (50, 49), (12, 5)):
        cell_N = cells((1, 1, num), keep)
        assert list(cell_N) == sorted(cell_N)
        sizes = Counter(cell_N).values()
        assert max(sizes) - min(sizes) <= 1


def test_a_second_reduction_joins_tokens_that_follow_each_other_by_size():
    method, x_BNC = create_method("grid_pool"), inputs((1, 6, 2), 0)
    first = method.reduce(Tokens(x_BNC, grid=(1, 2, 3)), None, 2)  # of 2 and 4 tokens
    second = method.reduce(first, None, 1)
    assert first.size_BN.tolist() == [[2, 4]] and second.size_BN.tolist() == [[6]]
    assert torch.allclose(second.x_BNC[:, 0], x_BNC.mean(1), atol=1e-6)


def test_it_works_once_before_the_first_layer_by_itself_and_in_any_layer_elsewhere():
    video = tiny_models()["umt"]  # 4 x 2 x 2
    assert tokred.reduce(video, "grid_pool", r=8).schedule.tokens == (8, 8, 8)
    assert tokred.reduce(video, "grid_pool", r=4, site="after_mlp").schedule.tokens == (12, 8, 4)
    with pytest.raises(ValueError, match="grid_pool works at the input only: layer 0"):
        tokred.reduce(video, "grid_pool", r=[4, 4])


def test_all_samples_get_the_same_cells_whatever_is_in_them():
    video = tiny_models()["umt"]
    with torch.no_grad():
        source_BM = tokred.reduce(video, "grid_pool", r=9).trace(inputs((3, *video.sample_shape), 2)).source_BM[-1]
    assert source_BM.tolist() == [list(cells((4, 2, 2), 7))] * 3


def test_it_costs_nothing_of_its_own():
    assert tokred.reduce(tiny_models()["umt"], "grid_pool", r=9).cost().gmacs_reduction == 0
