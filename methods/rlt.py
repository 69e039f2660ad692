"""RLT: drop patches that do not change from frame to frame (Choudhury et al., NeurIPS 2024, arXiv 2411.05222)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokred import METHODS, Assignment, Attention, Method, Tokens


@METHODS.register("rlt")
class RLT(Method):
    """Off the shelf: no token is told how long its run is (the paper's length embedding is trained, and in the official code
    reaches the wrong tokens). What is kept keeps its order and position; the output is read off its mean, as published.

    ``tau``: a token is dropped where the mean absolute difference of its pixels is no more than that, in units of the model's own
    normalisation: with ImageNet's, the paper's 0.1 is 5.7 grey levels of 255, with 0.5 and 0.5 it is 12.8. Raise it to drop more.

    As in the official code, a patch's last frame is compared with the first of the patch before it in time: for tubelets of 2
    that is 3 frames apart, for single frames it is the one before. So a change seen in the first frame of a tubelet alone is
    noticed one tubelet late, and slow drift never. A clip's first tubelet always stays. ``keep`` caps what is kept: those of
    largest change stay, the first tubelet last to go. Patches are embedded before they are dropped, where the official code
    embeds what it keeps: at half the tokens that is 0.9 of 79.8 GMACs of VideoMAE-B, 1.2 of 269.4 of VideoMAE-L.
    """

    paper = "Choudhury et al., NeurIPS 2024, arXiv 2411.05222"
    code = "rccchoudhury/rlt @69ec8b4, MIT"
    tuning = "optional"
    site = "input"
    needs_frames = True
    varies = True
    conserves_mass = False

    def __init__(self, tau: float = 0.1):
        super().__init__()
        if tau < 0:
            raise ValueError(f"tau must be 0 or more; got {tau}")
        self.tau = tau

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assert tokens.pixels is not None and tokens.grid is not None
        change_BN = changes(tokens.pixels.detach(), tokens.grid)
        change_BN = F.pad(change_BN, (tokens.prefix, 0), value=torch.inf)
        rank_BN = change_BN.argsort(dim=1, descending=True, stable=True).argsort(1)
        kept_BN = (change_BN > self.tau) & (rank_BN < keep)
        index_BK = (~kept_BN).int().argsort(dim=1, stable=True)[:, :keep]
        valid_BK = torch.arange(keep, device=kept_BN.device) < kept_BN.sum(1, keepdim=True)
        return Assignment.select(index_BK, tokens.num, valid_BK)

    def knob(self, num_tokens: int) -> tuple[str, float, float]:
        return "tau", 5.0, 0.0  # no two pixels normalised by ImageNet's deviations are more than 4.5 apart


def changes(pixels_BTCHW: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(B, prod(grid)): how much each patch differs from the one before it in time; infinite in the first tubelet."""
    times, rows, columns = grid
    tubelet = pixels_BTCHW.shape[1] // times
    last, first = pixels_BTCHW[:, 2 * tubelet - 1 :: tubelet], pixels_BTCHW[:, :-tubelet:tubelet]
    difference = (last.float() - first.float()).abs()
    patches = difference.unflatten(4, (columns, -1)).unflatten(3, (rows, -1))
    return F.pad(patches.mean((2, 4, 6)).flatten(1), (rows * columns, 0), value=torch.inf)
