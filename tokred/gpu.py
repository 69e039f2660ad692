"""Whether tokred's own Triton kernels run on a tensor."""

import importlib.util
from functools import cache

import torch
from torch import Tensor

MIN_CAPABILITY = (8, 0)  # Ampere; of an older GPU their blocks would not fit the shared memory


def runs_kernels(x: Tensor) -> bool:
    """Not while a program is captured, which could not look inside."""
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # asked first: a compiler cannot follow the rest
    return not captured and has_kernels(x)


def has_kernels(x: Tensor) -> bool:
    """On an NVIDIA GPU from Ampere on, with triton at hand."""
    return x.is_cuda and type(x) is Tensor and _is_able(x.device.index)


@cache
def _is_able(index: int) -> bool:
    return (
        importlib.util.find_spec("triton") is not None
        and torch.version.hip is None
        and torch.cuda.get_device_capability(index) >= MIN_CAPABILITY
    )
