"""The tokens of one batch, and the one operation that makes them fewer.

A token reduction is an assignment of N tokens to K groups. Merging, pruning, fusing, pooling and soft assignment are all
this one thing, so the sums, the sizes, the tracing of sources and the way back (unmerge) are written once, here.

Dimension key: B batch, N tokens now, K tokens after, M tokens at the input, C channels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokred.gpu import runs_kernels
from tokred.rows import gather_rows, sum_rows


@dataclass(frozen=True)
class Assignment:
    """Which group each of N tokens joins, and with what weight.

    ``group_BN``      0..num_groups-1, or -1: the token is dropped. Groups are the new tokens, in order.
    ``num_groups``    K.
    ``weight_BN``     what a token's features count in its group; None: its size.
    ``mass_BN``       what share of its size a token brings along; None: all of it.
    ``normalize``     True: a group is the weighted mean of its members; False: their weighted sum.
    ``matrix_BKN``    soft methods give this in place of ``group_BN``: new features are ``matrix @ x``.
    ``valid_BK``      which groups are real, where counts differ by sample, real ones first; None: all.
    ``index_BK``      of a selection (``select``) the place of each token that is kept.
    """

    group_BN: Tensor | None
    num_groups: int
    weight_BN: Tensor | None = None
    mass_BN: Tensor | None = None
    normalize: bool = True
    matrix_BKN: Tensor | None = None
    valid_BK: Tensor | None = None
    index_BK: Tensor | None = None

    def __post_init__(self):
        if (self.group_BN is None) == (self.matrix_BKN is None):
            raise ValueError("an Assignment needs either group_BN or matrix_BKN; give exactly one of them")
        plain = self.weight_BN is None and self.mass_BN is None and self.normalize
        if self.index_BK is not None and not plain:
            raise ValueError(
                "a selection leaves tokens as they are; give groups without index_BK where they have weights"
            )

    @classmethod
    def select(cls, index_BK: Tensor, num_tokens: int, valid_BK: Tensor | None = None) -> "Assignment":
        """Keeps the tokens of these places, in this order, and drops the others; where not valid, the place does not matter."""
        num_kept = index_BK.shape[1]
        target_BK = index_BK if valid_BK is None else index_BK.where(valid_BK, num_tokens)
        group_BN = index_BK.new_full((index_BK.shape[0], num_tokens + (valid_BK is not None)), -1)
        slot_BK = torch.arange(num_kept, device=index_BK.device).expand_as(index_BK)
        group_BN = group_BN.scatter(1, target_BK, slot_BK)[:, :num_tokens]
        return cls(group_BN, num_kept, valid_BK=valid_BK, index_BK=index_BK)

    def unmerge(self, x_BKC: Tensor) -> Tensor:
        """(B, N, C): each token gets the features of its group; dropped tokens get zeros."""
        if self.group_BN is None:
            assert self.matrix_BKN is not None
            share_BKN = self.matrix_BKN / self.matrix_BKN.sum(1, keepdim=True).clamp_min(1e-12)
            return share_BKN.mT.to(x_BKC.dtype) @ x_BKC
        back_BNC = gather_rows(x_BKC, self.group_BN.clamp_min(0))
        return back_BNC.masked_fill(self.group_BN[..., None] < 0, 0)

    def merge_map(self, map_BHNN: Tensor, size_BN: Tensor) -> Tensor:
        """(B, H, K, K): an attention map of the groups. A row is the weighted mean of its members' rows, as features are; a
        column their sum, so that rows still add up to 1 where no token is dropped (MCTF, Sec. 3.3)."""
        assert self.group_BN is not None
        weight_BN = (size_BN if self.weight_BN is None else self.weight_BN).to(map_BHNN.dtype)
        total_BK = sum_rows(weight_BN[..., None], self.group_BN, self.num_groups).squeeze(-1)
        share_BN = weight_BN / gather_rows(total_BK[..., None], self.group_BN.clamp_min(0)).squeeze(-1)
        B, H, N, _ = map_BHNN.shape
        group_BHN = self.group_BN[:, None].expand(B, H, N).flatten(0, 1)
        columns = sum_rows(map_BHNN.flatten(0, 1).mT, group_BHN, self.num_groups)  # (B H, K, N)
        share = share_BN[:, None].expand(B, H, N).flatten(0, 1)[..., None]
        return sum_rows(columns.mT * share, group_BHN, self.num_groups).unflatten(0, (B, H))


NO_LOGS = None, None, None


@dataclass(frozen=True)
class Tokens:
    """The tokens that reach one place in the network.

    ``x_BNC``      their features.
    ``prefix``     leading tokens that are never reduced: CLS, distillation, registers.
    ``grid``       (T, H, W) of the input's patches, which follow the prefix in this order.
    ``size_BN``    how many input tokens (what mass) each token stands for, in float32; None: one each.
    ``source_BM``  for each input token, the token it is in now, -1 if dropped; None: not traced.
    ``valid_BN``   which tokens are real, where counts differ by sample, real ones first; None: all.
    ``key_B``      an integer drawn from the sample's own input, for methods that draw numbers; else None.
    ``place_BN``   each token's place in the flattened grid, -1 for the prefix; a merged token's is that of its heaviest member,
                   of equals the first. Carried for methods with ``needs_places``; else None.
    ``layer``      the layer they are in, of ``depth``.
    ``pixels``     what the model was given; at the site input only.
    ``before_mlp_BNC``  the features before the residual of the layer's MLP; at the sites after it only.
    ``logs``       of ``logged`` tokens the sizes and the mask that their logs (B, N) were made of, and these.
    """

    x_BNC: Tensor
    prefix: int = 0
    grid: tuple[int, int, int] | None = None
    size_BN: Tensor | None = None
    source_BM: Tensor | None = None
    valid_BN: Tensor | None = None
    key_B: Tensor | None = None
    place_BN: Tensor | None = None
    layer: int = 0
    depth: int = 1
    pixels: Tensor | None = None
    before_mlp_BNC: Tensor | None = None
    logs: tuple[Tensor | None, Tensor | None, Tensor | None] = NO_LOGS

    @property
    def num(self) -> int:
        """Tokens now, prefix included."""
        return self.x_BNC.shape[1]

    def sizes(self) -> Tensor:
        """``size_BN``, or ones."""
        if self.size_BN is not None:
            return self.size_BN
        return torch.ones(self.x_BNC.shape[:2], device=self.x_BNC.device)

    def key(self) -> Tensor:
        """``key_B``; raises ValueError where the method that draws numbers did not say so."""
        if self.key_B is None:
            raise ValueError("these tokens carry no key to draw numbers from; set `random = True` on the method")
        return self.key_B

    def log_size_BN(self) -> Tensor | None:
        """What proportional attention adds to the logits of each key (ToMe, Sec. 3.2, Eq. 1); None before any merge."""
        size_BN, valid_BN, log_BN = self.logs
        if log_BN is not None and size_BN is self.size_BN and valid_BN is self.valid_BN:
            return log_BN
        if self.size_BN is None or self.valid_BN is None:
            return None if self.size_BN is None else self.size_BN.log()
        return self.size_BN.where(self.valid_BN, 1).log()  # padding has no size

    def logged(self) -> "Tokens":
        """The same tokens, with the logs of their sizes: the layers up to the next reduction share them."""
        return replace(self, logs=(self.size_BN, self.valid_BN, self.log_size_BN()))

    def with_x(self, x_BNC: Tensor) -> "Tokens":
        return replace(self, x_BNC=x_BNC)

    def traced(self) -> "Tokens":
        """The same tokens, with the source of each input token followed from here on."""
        place = torch.arange(self.num, device=self.x_BNC.device)
        return replace(self, source_BM=place.expand(self.x_BNC.shape[0], -1))

    def placed(self) -> "Tokens":
        """The same tokens as they come from the input, each with its place in the grid."""
        place = torch.arange(-self.prefix, self.num - self.prefix, device=self.x_BNC.device).clamp_min(-1)
        return replace(self, place_BN=place.expand(self.x_BNC.shape[0], -1))

    def places(self) -> Tensor:
        """``place_BN``; raises ValueError where the method that reads it did not say so."""
        if self.place_BN is None:
            raise ValueError("these tokens carry no places in the grid; set `needs_places = True` on the method")
        return self.place_BN

    def num_real(self) -> Tensor:
        """(B,): the tokens of each sample, padding left out."""
        if self.valid_BN is None:
            return torch.full(self.x_BNC.shape[:1], self.num, device=self.x_BNC.device)
        return self.valid_BN.sum(1)

    def trimmed(self) -> "Tokens":
        """Without the padding that no sample of the batch needs. Waits for the device: how much that is is in the values."""
        if self.valid_BN is None or not len(self.x_BNC):
            return self
        least, most = torch.stack([self.num_real().amin(), self.num_real().amax()]).tolist()
        return replace(
            self,
            x_BNC=self.x_BNC[:, :most],
            size_BN=None if self.size_BN is None else self.size_BN[:, :most],
            place_BN=None if self.place_BN is None else self.place_BN[:, :most],
            valid_BN=None if least == most else self.valid_BN[:, :most],
        )

    def mean_pool(self, *, skip_prefix: bool = True, by_size: bool = False) -> Tensor:
        """(B, C): the mean over real tokens; ``by_size`` weighs each by its size."""
        start = self.prefix if skip_prefix else 0
        x_BNC = self.x_BNC[:, start:]
        if not by_size and self.valid_BN is None:
            return x_BNC.mean(1)
        weight_BN = self.sizes() if by_size else torch.ones_like(self.sizes())
        if self.valid_BN is not None:
            weight_BN = weight_BN * self.valid_BN
        weight_BN = weight_BN[:, start:] / weight_BN[:, start:].sum(1, keepdim=True)
        return (x_BNC * weight_BN[..., None].to(x_BNC.dtype)).sum(1)

    def reduce(self, assignment: Assignment) -> "Tokens":
        """The K tokens that the groups of ``assignment`` become; sizes and sources follow."""
        if assignment.matrix_BKN is not None:
            return self._assign_softly(assignment)
        if assignment.index_BK is not None:
            return self._select(assignment)
        group_BN, num_groups = assignment.group_BN, assignment.num_groups
        assert group_BN is not None
        size_BN = self.sizes()
        weight_BN = size_BN if assignment.weight_BN is None else assignment.weight_BN.to(size_BN.dtype)
        mass_BN = size_BN if assignment.mass_BN is None else size_BN * assignment.mass_BN.to(size_BN.dtype)
        x_BKC, size_BK = _merged(self.x_BNC, group_BN, weight_BN, mass_BN, num_groups, assignment.normalize)
        return replace(
            self,
            x_BNC=x_BKC,
            size_BN=size_BK,
            source_BM=_follow(self.source_BM, group_BN),
            valid_BN=assignment.valid_BK,
            place_BN=None if self.place_BN is None else _heaviest(self.place_BN, size_BN, group_BN, num_groups),
        )

    def _select(self, assignment: Assignment) -> "Tokens":
        """A gather; padding has no features and no size."""
        index_BK, valid_BK, group_BN = assignment.index_BK, assignment.valid_BK, assignment.group_BN
        assert index_BK is not None and group_BN is not None
        x_BKC = gather_rows(self.x_BNC, index_BK)
        size_BK = None if self.size_BN is None else self.size_BN.gather(1, index_BK)
        if valid_BK is not None:
            x_BKC = x_BKC.masked_fill(~valid_BK[..., None], 0)
            size_BK = valid_BK.float() if size_BK is None else size_BK.masked_fill(~valid_BK, 0)
        return replace(
            self,
            x_BNC=x_BKC,
            size_BN=size_BK,
            source_BM=_follow(self.source_BM, group_BN),
            valid_BN=valid_BK,
            place_BN=None if self.place_BN is None else self.place_BN.gather(1, index_BK),
        )

    def _assign_softly(self, assignment: Assignment) -> "Tokens":
        """Each new token takes a share of every token; an input token is traced to the group that takes most of it."""
        matrix_BKN = assignment.matrix_BKN
        assert matrix_BKN is not None
        x_BKC = matrix_BKN.to(self.x_BNC.dtype) @ self.x_BNC
        if assignment.normalize:
            x_BKC = x_BKC / matrix_BKN.sum(-1, keepdim=True).to(x_BKC.dtype)
        share_BKN = matrix_BKN / matrix_BKN.sum(1, keepdim=True).clamp_min(1e-12)
        group_BN = matrix_BKN.argmax(1)
        return replace(
            self,
            x_BNC=x_BKC,
            size_BN=(share_BKN.to(torch.float32) @ self.sizes()[..., None]).squeeze(-1),
            source_BM=_follow(self.source_BM, group_BN),
            valid_BN=assignment.valid_BK,
            place_BN=None
            if self.place_BN is None
            else _heaviest(self.place_BN, self.sizes(), group_BN, assignment.num_groups),
        )


def _merged(
    x_BNC: Tensor, group_BN: Tensor, weight_BN: Tensor, mass_BN: Tensor, num_groups: int, normalize: bool
) -> tuple[Tensor, Tensor]:
    """The weighted sums of groups (B, K, C), ``normalize``: means, and their masses (B, K)."""
    if not _wants_gradient(x_BNC, weight_BN, mass_BN) and runs_kernels(x_BNC):
        from tokred.merge_kernels import DTYPES, merged_rows  # here, since it imports triton

        if x_BNC.dtype in DTYPES:
            return merged_rows(x_BNC, group_BN, weight_BN, mass_BN, num_groups, normalize=normalize)
    wide = torch.promote_types(x_BNC.dtype, torch.float32)  # sums of hundreds of tokens overflow float16
    x_BKC = sum_rows(x_BNC * weight_BN[..., None].to(wide), group_BN, num_groups)
    total_BK, size_BK = sum_rows(torch.stack([weight_BN, mass_BN], -1), group_BN, num_groups).unbind(-1)
    if normalize:
        total_BK1 = total_BK[..., None]
        x_BKC = x_BKC / total_BK1.masked_fill(total_BK1 == 0, 1).to(wide)  # padding has no members
    return x_BKC.to(x_BNC.dtype), size_BK


def _wants_gradient(*values: Tensor) -> bool:
    return torch.is_grad_enabled() and any(value.requires_grad for value in values)


def _heaviest(place_BN: Tensor, size_BN: Tensor, group_BN: Tensor, num_groups: int) -> Tensor:
    """(B, K): the place of each group's largest member, of equals that of the smallest place; sizes to 1/1024 of a token."""
    most = 2**22  # above any place; size and place are one number, so that one maximum finds both
    code_BN = (size_BN * 1024).round().long() * most + (most - 1 - place_BN.clamp_min(0))
    bin_BN = group_BN.where(group_BN >= 0, num_groups)
    code_BK = code_BN.new_zeros(code_BN.shape[0], num_groups + 1).scatter_reduce(1, bin_BN, code_BN, "amax")
    place_BK = most - 1 - code_BK[:, :num_groups] % most
    is_prefix_BN = (place_BN < 0).long()
    prefix_BK = is_prefix_BN.new_zeros(code_BK.shape).scatter_add(1, bin_BN, is_prefix_BN)[:, :num_groups]
    return place_BK.masked_fill((prefix_BK > 0) | (code_BK[:, :num_groups] == 0), -1)  # padding is at no place


def _follow(source_BM: Tensor | None, group_BN: Tensor) -> Tensor | None:
    if source_BM is None:
        return None
    return group_BN.gather(1, source_BM.clamp_min(0)).where(source_BM >= 0, -1)
