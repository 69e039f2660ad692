"""An MLP whose GELU writes over what it reads: the hidden layer is the largest tensor of a forward, and is held once, not twice.

On a CPU a second one is memory that the system may hand out anew, page by page, for each layer of each batch. The numbers are the
same bit for bit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.overrides import TorchFunctionMode

# Of these alone it is known that nobody reads again what GELU reads, unless it is the input of them all.
KNOWN = {
    "tokred.transformer.MLP",
    "timm.layers.mlp.Mlp",
    "timm.layers.activations.GELU",
    "timm.layers.activations.GELUTanh",
    "transformers.activations.GELUActivation",
    "transformers.activations.GELUTanh",
    "transformers.models.videomae.modeling_videomae.VideoMAEIntermediate",
    "transformers.models.vivit.modeling_vivit.VivitMLP",
    *(f"{cls.__module__}.{cls.__qualname__}" for cls in (nn.Linear, nn.GELU, nn.Dropout, nn.Identity, nn.LayerNorm)),
}


def run_mlp(mlp: nn.Module, x_BNC: Tensor) -> Tensor:
    """``mlp(x_BNC)``.

    As it is where its parts are not all ``KNOWN``, and where the hidden layer may be wanted: by a gradient, by hooks, in
    torch.compile, torch.export and torch.jit.trace, and of subclasses of Tensor (fake ones, which have no values).
    """
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x_BNC) is not Tensor
    if torch.is_grad_enabled() or captured or not all(map(_is_known, mlp.modules())) or _has_hooks(mlp):
        return mlp(x_BNC)
    with _InPlace(x_BNC):
        return mlp(x_BNC)


class _InPlace(TorchFunctionMode):
    def __init__(self, kept: Tensor):
        super().__init__()
        self.kept = kept.untyped_storage().data_ptr()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.gelu and args and args[0].untyped_storage().data_ptr() != self.kept:
            func = torch.ops.aten.gelu_.default
        return func(*args, **(kwargs or {}))


def _is_known(part: nn.Module) -> bool:
    return f"{type(part).__module__}.{type(part).__qualname__}" in KNOWN


def _has_hooks(mlp: nn.Module) -> bool:
    everywhere = all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks
    return bool(everywhere) or any(part._forward_hooks or part._forward_pre_hooks for part in mlp.modules())
