"""What the launchers of ``tokred.kernels`` and ``tokred.merge_kernels`` share; needs triton.

The copy engine of NVIDIA's Hopper GPUs (TMA) reads blocks of a tensor that a descriptor tells it of. On other GPUs kernels read
by pointers: on Ampere triton would take descriptors apart, and spill.
"""

from functools import cache

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. triton's own, made for kernels, takes microseconds, and small batches wait for the host."""
    return -(-a // b)


def power_of_2(x: int) -> int:
    """The least that is not below ``x``; for the same reason."""
    return 1 << max(0, x - 1).bit_length()


@cache
def compiles() -> bool:
    """Whether kernels are compiled, and not interpreted."""
    return isinstance(_nothing, triton.JITFunction)


def has_blocks(*values: Tensor) -> bool:
    """Whether the copy engine reads all of these: in half precision, rows at multiples of 16 bytes."""
    with torch.cuda.device_of(values[0]):
        return _has_engine(values[0].device) and all(_lies_well(x) for x in values)


def blocks(x: Tensor, *shape: int) -> TensorDescriptor:
    """``x`` in blocks of this shape; what lies beyond its end is read as 0."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(shape))


@cache
def _has_engine(device: torch.device) -> bool:
    """On a GPU of that kind, or in the interpreter, which can do the same."""
    return not compiles() or triton.runtime.driver.active.get_current_target().arch // 10 == 9


def _lies_well(x: Tensor) -> bool:
    size, (*strides, last) = x.element_size(), x.stride()
    at_16 = not x.data_ptr() % 16 and all(stride and not stride * size % 16 for stride in strides)
    return at_16 and size == 2 and last == 1 and x.numel() > 0


@triton.jit
def _nothing():
    pass
