"""``tokred.rows`` against torch's ``gather`` and ``scatter_add_`` with the index expanded to every number.

    python benchmarks/rows.py

One thread, float32, ViT-B's width; the ways take turns in the same rounds. Both give the same bits, which is checked.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokred.rows import gather_rows, sum_rows
from tokred.timing import interleave, ratio

SHAPES = {"8 pictures of 197 tokens, 184 left": (8, 197, 184), "1 clip of 2352 tokens, 1752 left": (1, 2352, 1752)}
WIDTH = 768


def expanded_gather(x_BNC: Tensor, index_BK: Tensor) -> Tensor:
    return x_BNC.gather(1, index_BK[..., None].expand(-1, -1, x_BNC.shape[-1]))


def expanded_sum(x_BNC: Tensor, group_BN: Tensor, num_groups: int) -> Tensor:
    sums = x_BNC.new_zeros(x_BNC.shape[0], num_groups, x_BNC.shape[-1])
    return sums.scatter_add_(1, group_BN[..., None].expand_as(x_BNC), x_BNC)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}; n = 30 rounds, 95 % intervals")
    for name, (B, N, K) in SHAPES.items():
        x_BNC = torch.randn(B, N, WIDTH)
        index_BK = torch.stack([torch.randperm(N)[:K] for _ in range(B)])
        group_BN = torch.cat([torch.arange(K).expand(B, -1), torch.randint(K, (B, N - K))], 1)
        compare(
            f"gather, {name}",
            lambda x=x_BNC, i=index_BK: gather_rows(x, i),
            lambda x=x_BNC, i=index_BK: expanded_gather(x, i),
        )
        compare(
            f"sum, {name}",
            lambda x=x_BNC, g=group_BN, k=K: sum_rows(x, g, k),
            lambda x=x_BNC, g=group_BN, k=K: expanded_sum(x, g, k),
        )


def compare(name: str, ours: Callable[[], Tensor], expanded: Callable[[], Tensor]) -> None:
    assert torch.equal(ours(), expanded())
    times = interleave({"ours": ours, "expanded": expanded})
    middle, low, high = ratio(times["expanded"], times["ours"])
    print(f"{name}: {middle:.1f} [{low:.1f}, {high:.1f}] times as fast")


if __name__ == "__main__":
    main()
