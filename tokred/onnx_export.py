"""What ``torch.onnx.export`` has no translation for, said in operations that it has; used while it runs, and in no other mode.

So methods say what they mean (a stable sort, the bits of a pixel) and know nothing of ONNX.

Dimension key: B batch, N sorted numbers, V values to place among them.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def only_what_onnx_has() -> AbstractContextManager:
    """While ``torch.onnx.export`` captures a program the replacements hold within it; else it does nothing."""
    return _Replaced() if torch.onnx.is_in_onnx_export() else nullcontext()


class _Replaced(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.sort, torch.argsort, Tensor.sort, Tensor.argsort):
            kwargs.pop("stable", None)  # it becomes ONNX's TopK, of which of equals the lower index comes first
        if func is torch.searchsorted and not kwargs:
            return count_below(*args)
        if func is Tensor.view and args[1:] == (torch.int32,) and args[0].dtype is torch.float32:
            return float_bits(args[0])
        return func(*args, **kwargs)


def count_below(sorted_BN: Tensor, value_BV: Tensor) -> Tensor:
    """(B, V): how many of the sorted numbers lie below each value, which is where ``torch.searchsorted`` places it."""
    return (sorted_BN[:, None] < value_BV[..., None]).sum(-1)


def float_bits(x: Tensor) -> Tensor:
    """The bits of float32 numbers, finite ones, as int32: sign, exponent, fraction. ONNX reinterprets bits from opset 26 on only.

    All products are with powers of two, and exact.

    >>> float_bits(torch.tensor([1.5])) == torch.tensor([1.5]).view(torch.int32)
    tensor([True])
    """
    size, exponent = x.abs(), torch.full_like(x, 127, dtype=torch.int64)
    for power in (64, 32, 16, 8, 4, 2, 1):
        for is_far, by in ((size >= 2.0**power, power), (size < 2.0 ** (1 - power), -power)):
            size, exponent = torch.where(is_far, size * 2.0**-by, size), torch.where(is_far, exponent + by, exponent)
    # in 1..2 now, but below 1 where the exponent's field is 0: those numbers have no leading 1
    fraction = torch.where(exponent > 0, (size - 1) * 2.0**23, size * 2.0**22).long()
    is_negative = torch.where(x == 0, 1 / x, x) < 0  # -0.0 has a sign, too
    return (exponent * 2**23 + fraction - is_negative.long() * 2**31).int()
