"""Which method works in which mode: compiled, without a wait of the host, exported, in ONNX. Makes docs/modes.md.

Each mode is a function of a ``Case`` that raises where the method does not work in it, or gives something else than eager.
ONNX needs onnx, onnxscript and onnxruntime (``pip install -e ".[dev]"``).
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
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
_ANY_BATCH = ({0: torch.export.Dim("batch")},)
_PAGE = """\
# Modes

Which method works in which mode, put together by `{command}`. A test runs every method in every mode
(most with `-m slow`), and fails where this page says otherwise.

- **yes**: it works as it is. *compile* gives the logits of eager mode within 1e-6 of the largest, *export* and *ONNX* its logits
  and its tokens within 1e-5; for *no host sync* see below.
- **padded**: likewise; but the counts of this method differ by sample, and a graph keeps all the padding that eager mode trims to
  the fullest sample of a batch, so that it saves what the schedule's cap says (r, keep_rate, tokens), and without one nothing.

{table}

- **compile**: `torch.compile(model, fullgraph=True)` makes one graph. Tried with dynamo alone (`backend="eager"`).
- **no host sync**: in a forward the host waits for no value of the device and copies nothing to it or from it, which is what the
  capture of a CUDA graph asks for. Tried without CUDA, on fake CUDA tensors, which have no values, after one forward to warm up,
  which a capture needs anyway (`grid_pool` copies its cells then). On a GPU a test captures each in a graph and compares what a
  replay gives with eager mode: all passed on an H100, torch 2.11, triton 3.6, in float32 and bfloat16.
- **export**: `torch.export.export(model, (inputs,), dynamic_shapes=({{0: Dim("batch")}},))`, run by torch on two sizes of batch.
- **ONNX**: `torch.onnx.export(model, (inputs,), dynamo=True, optimize=False)`, run by onnxruntime on the CPU. Sorts are stable in
  it, and draws those of eager mode. Inputs are float32; of half precision and of int8 nothing is known.

Each with default options, on a tiny model that reduces in the first of its two layers: {models}.
All options, two reductions, `optimize=True` and batches of any size in ONNX: `python -m pytest -m slow tests/test_modes.py`.

Versions: {versions}.

    small = tokred.reduce(vit, "tome", r=13).eval()
    faster = torch.compile(small, fullgraph=True)
    program = torch.export.export(small, (images,))
    torch.onnx.export(small, (images,), "small.onnx", dynamo=True)      # pip install onnx onnxscript

A method of your own is tried so: `tokred.modes.in_onnx(tokred.testing.Case("my_method", model))`, and likewise `exported`,
`captured` and `compiled`. What has no translation to ONNX (stable sorts, `searchsorted`, the bits of a float) is replaced while
it exports, in [tokred/onnx_export.py](../tokred/onnx_export.py); `scatter_add` and `scatter_reduce` have one (ScatterElements).
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
    """The program that is exported for batches of any size gives the same logits and tokens."""
    whole = _Whole(case.reduced()).eval()
    with torch.no_grad():
        program = torch.export.export(whole, (case.inputs,), dynamic_shapes=_ANY_BATCH).module()
        for inputs in (case.inputs, case.inputs[:2]):
            _expect_same(whole.reduced, inputs, *program(inputs))


def in_onnx(case: Case, *, optimize: bool = False, any_batch: bool = False) -> None:
    """onnxruntime gives the same logits and tokens; ``any_batch``: of a program for batches of any size."""
    import onnxruntime

    whole = _Whole(case.reduced()).eval()
    shapes = _ANY_BATCH if any_batch else None
    with torch.no_grad():
        program = torch.onnx.export(
            whole, (case.inputs,), dynamo=True, verbose=False, optimize=optimize, dynamic_shapes=shapes
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of every cast that it cannot fold
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    for inputs in (case.inputs, case.inputs[:2])[: 1 + any_batch]:
        found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        _expect_same(whole.reduced, inputs, *map(torch.from_numpy, found))


MODES: dict[str, Callable[[Case], None]] = {
    "compile": compiled,
    "no host sync": captured,
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
        puts = torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default
        if func in puts and any(place is not None and place.dtype is torch.bool for place in args[1]):
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
    models = "a ViT on images, a video transformer for methods that compare frames"
    return _PAGE.format(command=COMMAND, table=table(["method", *MODES], rows), models=models, versions=found)


def main() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        sys.exit(
            f"modes are tried with ONNX, too, and {' and '.join(missing)} is not here; pip install -e '.[dev]' brings it"
        )
    models = tiny()
    own = [cls for cls in METHODS if cls.__module__.startswith("tokred.methods.")]
    print(page({(cls.name, mode): answer(case_of(cls, models), mode) for cls in own for mode in MODES}), end="")


if __name__ == "__main__":
    main()
