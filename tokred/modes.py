"""Which method works in which mode: compiled, in a CUDA graph, exported, in ONNX. Makes docs/modes.md: ``python -m tokred.modes``.

Each mode is a function of a ``Case`` that raises where the method does not work in it, or gives something else than eager.
ONNX needs onnx, onnxscript and onnxruntime (``pip install -e ".[dev]"``).
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from tokred.backbone import create_backbone
from tokred.catalogue import table
from tokred.model import Backbone, Method
from tokred.reduced import ReducedModel
from tokred.registry import METHODS
from tokred.testing import TINY, Case, compiles_to_one_graph, spread_

COMMAND = "python -m tokred.modes > docs/modes.md"
_TOLERANCE = 1e-5  # of the largest value: other kernels sum in another order; another token would be off by about 1
_PAGE = """\
# Modes

Which method works in which mode, put together by `{command}`; a test runs every method in every mode, and fails where this
page says otherwise. **Yes**: it works as it is, and gives what it gives in eager mode: the same logits and the same tokens, within
1e-5 of the largest value. **Padded**: it works; the counts of this method differ by sample, and in a graph a batch keeps
the padding that eager mode trims off, so that it gives the same and saves less (nothing where no cap was given).

{table}

- **compile**: `torch.compile(fullgraph=True)` makes one graph, without a break. Tried with dynamo alone (`backend="eager"`).
- **CUDA graph**: in a forward, the host waits for no value of the device and copies nothing to it, which is what a capture asks
  for. Tried without CUDA, on fake CUDA tensors, which have no values, after one forward to warm up. **No graph was
  captured on a GPU yet**: the test that does so is skipped where there is none; and the Triton kernels, which attention
  statistics use on CUDA, were not part of it.
- **export**: the program of `torch.export.export(model, (inputs,))`, run by torch.
- **ONNX**: the program of `torch.onnx.export(model, (inputs,), dynamo=True, optimize=False)`, run by onnxruntime on the CPU; inputs
  are float32. Sorts stay stable in it, and draws the same.

Each with default options, on a tiny model ({models}) that reduces in its first layer, with a fixed batch. Other options, more
layers and `optimize=True`: `pytest -m slow tests/test_modes.py`. Dynamic shapes were not tried.

Versions: {versions}.

    small = tokred.reduce(vit, "tome", r=13).eval()
    compiled = torch.compile(small, fullgraph=True)
    program = torch.export.export(small, (images,))
    torch.onnx.export(small, (images,), "small.onnx", dynamo=True)
"""


def compiled(case: Case) -> None:
    """One graph, with the same output."""
    compiles_to_one_graph(case)


def captured(case: Case) -> None:
    """Nothing that a capture of a CUDA graph forbids, as far as fake CUDA tensors show it."""
    reduced = case.reduced()
    capturing = patch.object(torch.cuda, "is_current_stream_capturing", lambda: True)
    with torch.no_grad(), FakeTensorMode() as mode, capturing:

        def on_gpu(value: Tensor) -> Tensor:
            return mode.from_tensor(value).to("cuda")

        state = {name: on_gpu(value) for name, value in [*reduced.named_parameters(), *reduced.named_buffers()]}
        inputs = on_gpu(case.inputs)
        functional_call(reduced, state, inputs)  # as one warms up
        with _NothingOfTheHost():
            functional_call(reduced, state, inputs)


def exported(case: Case) -> None:
    """The exported program gives the same logits and tokens."""
    whole = _Whole(case.reduced().eval())
    with torch.no_grad():
        found = torch.export.export(whole, (case.inputs,)).module()(case.inputs)
    _expect_same(whole.reduced, case.inputs, *found)


def in_onnx(case: Case, *, optimize: bool = False) -> None:
    """onnxruntime gives the same logits and tokens."""
    import onnxruntime

    whole = _Whole(case.reduced().eval())
    with torch.no_grad():
        program = torch.onnx.export(whole, (case.inputs,), dynamo=True, verbose=False, optimize=optimize)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of every cast that it cannot fold
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    found = session.run(None, {session.get_inputs()[0].name: case.inputs.numpy()})
    _expect_same(whole.reduced, case.inputs, *map(torch.from_numpy, found))


MODES: dict[str, Callable[[Case], None]] = {
    "compile": compiled,
    "CUDA graph": captured,
    "export": exported,
    "ONNX": in_onnx,
}


class _Whole(nn.Module):
    """A reduced model that gives the tokens that are left, too."""

    def __init__(self, reduced: ReducedModel):
        super().__init__()
        self.reduced = reduced

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.reduced.run(inputs)
        return self.reduced.backbone.head(tokens), tokens.x_BNC


class _NothingOfTheHost(TorchDispatchMode):
    """Raises RuntimeError where a tensor goes from one device to another, or a mask's length becomes a shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        before, after = (args[0] if args else None), found
        if isinstance(before, Tensor) and isinstance(after, Tensor) and before.device != after.device:
            raise RuntimeError(f"{func} copies from {before.device} to {after.device}")
        if func is torch.ops.aten.index_put_.default and any(place.dtype is torch.bool for place in args[1]):
            raise RuntimeError(f"{func} with a mask waits for how much it selects")
        return found


def _expect_same(reduced: ReducedModel, inputs: Tensor, logits: Tensor, x_BNC: Tensor) -> None:
    """Raises AssertionError where they are not what the model gives; padding apart."""
    with torch.no_grad():
        tokens = reduced.run(inputs)
        expected = reduced.backbone.head(tokens)
    real_BN = torch.ones(tokens.x_BNC.shape[:2], dtype=torch.bool) if tokens.valid_BN is None else tokens.valid_BN
    x_BNC = x_BNC if tokens.valid_BN is None and not reduced.method.varies else x_BNC[:, : tokens.num]
    torch.testing.assert_close(logits, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max()))
    assert x_BNC.shape == tokens.x_BNC.shape, f"the tokens are {tuple(x_BNC.shape)}, not {tuple(tokens.x_BNC.shape)}"
    largest = float(tokens.x_BNC[real_BN].abs().max())
    torch.testing.assert_close(x_BNC[real_BN], tokens.x_BNC[real_BN], rtol=0, atol=_TOLERANCE * largest)


def answer(case: Case, mode: str) -> str:
    """What the page says: "yes", "padded", or "no" with the kind of error."""
    try:
        MODES[mode](case)
    except ImportError:
        raise  # says nothing of the method
    except Exception as error:  # each mode fails in ways of its own
        return f"no: {type(error).__name__}"
    return "padded" if case.new_method().varies else "yes"


def tiny() -> dict[str, Backbone]:
    """Two layers, of images with a class token, and of clips."""
    kinds = {kind: TINY[kind] for kind in ("class_token", "umt")}
    return {
        kind: spread_(create_backbone(name, weights="random", **sizes | {"depth": 2}))
        for kind, (name, sizes) in kinds.items()
    }


def case_of(cls: type[Method], models: dict[str, Backbone]) -> Case:
    """The method on the first of the models that it runs on."""
    return next(case for kind, model in models.items() if (case := Case(cls.name, model, {}, kind)).runs())


def page(cells: dict[tuple[str, str], str]) -> str:
    """The page, from what each (method, mode) came to."""
    names = sorted({name for name, _ in cells})
    rows = [[f"[{name}](methods.md#{name})", *(cells[name, mode] for mode in MODES)] for name in names]
    found = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "onnx", "onnxscript", "onnxruntime"))
    models = "a ViT on images; a video transformer for methods that compare frames"
    return _PAGE.format(command=COMMAND, table=table(["method", *MODES], rows), models=models, versions=found)


def main() -> None:
    models = tiny()
    own = [cls for cls in METHODS if cls.__module__.startswith("tokred.methods.")]
    print(page({(cls.name, mode): answer(case_of(cls, models), mode) for cls in own for mode in MODES}), end="")


if __name__ == "__main__":
    main()
