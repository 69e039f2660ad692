"""Where and with what a sweep runs: the device, and what a record says of it."""

import platform
import time
from typing import Any

import lightning
import timm
import torch

import tokred
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.machine import processor


def device_of(config: SweepConfig) -> str:
    """Raises ValueError where the device that was asked for is not there, or cannot do what was asked for."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda was asked for, but torch sees no CUDA device; use device=cpu or device=auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device == "cpu" and config.precision == "16-mixed":  # Lightning would take bf16-mixed in its place
        raise ValueError("precision=16-mixed needs CUDA; on a CPU use precision=bf16-mixed or 32-true")
    if device == "cpu" and "cuda_graph" in config.timing.modes:
        raise ValueError("timing.modes=cuda_graph needs CUDA; on a CPU the modes are eager and compiled")
    num = torch.cuda.device_count()
    if device == "cuda" and config.devices > num:
        raise ValueError(f"devices={config.devices} was asked for, but torch sees {num} of them; take devices={num}")
    return device


def conditions_of(config: SweepConfig) -> dict[str, Any]:
    """Where and with what a record was made."""
    device = device_of(config)
    return {
        "tokred": tokred.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu ({processor()})",
        "devices": config.devices,
        "threads": torch.get_num_threads(),
        "precision": config.precision,
        "batch_size": config.batch_size,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
