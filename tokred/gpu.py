"""Whether tokred's own Triton kernels run on a tensor."""

import importlib.util
from functools import cache

import torch
from torch import Tensor

MIN_CAPABILITY = (8, 0)  # Ampere; of an older GPU their blocks would not fit the shared memory
# For GPUs with tensor memory, such as B200, earlier versions of triton fail in their own compiler at the attention kernel.
TENSOR_MEMORY, MIN_TRITON_THERE = (10, 11), (3, 8)


def runs_kernels(x: Tensor) -> bool:
    """Not while a program is captured, which could not look inside."""
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # asked first: a compiler cannot follow the rest
    return not captured and has_kernels(x)


def has_kernels(x: Tensor) -> bool:
    """On an NVIDIA GPU from Ampere on, with triton at hand."""
    return x.is_cuda and type(x) is Tensor and _is_able(x.device.index)


@cache
def _is_able(index: int) -> bool:
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:
        return False
    return compiles_for(torch.cuda.get_device_capability(index))


def compiles_for(capability: tuple[int, int]) -> bool:
    """Whether the triton that is there compiles the kernels for GPUs of this compute capability."""
    import triton

    version = tuple(int(number) for number in triton.__version__.split(".")[:2])
    return capability >= MIN_CAPABILITY and (capability[0] not in TENSOR_MEMORY or version >= MIN_TRITON_THERE)
