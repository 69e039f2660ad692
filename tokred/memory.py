"""Peak memory of a call, from the allocator: the resident size of a process forgets nothing and shares pages."""

import gc
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import torch
from torch import autograd


class Peak(NamedTuple):
    """MiB. ``held_mib``: the most that was held at once on top of what was there before, so without parameters and input.
    ``reserved_mib``: the most that the CUDA allocator kept for the process, parameters and input included; None on a CPU."""

    held_mib: float
    reserved_mib: float | None = None


def peak_memory(call: Callable[[], object], device: str) -> Peak:
    """Of one call, which is slower than it is otherwise: not to be timed. Call it once before: what a first call allocates for
    good is not its own."""
    return _on_cuda(call) if device == "cuda" else _on_cpu(call)


def ran_out(error: BaseException) -> bool:
    """Whether memory was what was missing. On a CPU, and inside of CUDA's libraries, that is a RuntimeError like any other."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    ):
        return True
    earlier = error.__cause__ or error.__context__  # the end of a capture can fail over what went wrong in it
    return isinstance(error, RuntimeError) and isinstance(earlier, RuntimeError) and ran_out(earlier)


def _on_cuda(call: Callable[[], object]) -> Peak:
    gc.collect()  # what is freed in the middle of the call would be missing from its peak
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # else the cached blocks of earlier calls would count as reserved
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return Peak((torch.cuda.max_memory_allocated() - before) / 2**20, torch.cuda.max_memory_reserved() / 2**20)


def _on_cpu(call: Callable[[], object]) -> Peak:
    """From the autograd profiler's record of every allocation and release, in order.

    torch.profiler has the same record, but takes seconds to start where CUDA is built in and writes to standard error.
    """
    state, none = autograd.ProfilerState.CPU, torch.profiler._ExperimentalConfig()
    autograd._enable_profiler_legacy(autograd.ProfilerConfig(state, False, True, False, False, False, none))
    try:
        call()
    finally:
        threads = autograd._disable_profiler_legacy()
    held = peak = 0
    for event in chain.from_iterable(threads):
        if event.kind() == "memory_alloc":
            held += event.cpu_memory_usage()
            peak = max(peak, held)
    return Peak(peak / 2**20)
