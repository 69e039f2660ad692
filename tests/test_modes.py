"""docs/modes.md says what comes out: every method, in every mode."""

import copy
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import tokred
from tokred import METHODS, Assignment, Method, modes
from tokred.onnx_export import count_below, float_bits, only_what_onnx_has
from tokred.testing import Case, cases, tiny_models

PAGE = Path(__file__).parent.parent / "docs" / "modes.md"
ROWS = re.findall(r"^\| \[(\w+)\]\(methods\.md#\w+\) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
CELLS = {(name, mode): cell for name, row in ROWS for mode, cell in zip(modes.MODES, row.split(" | "), strict=True)}
# one that does not say how it was trained is somebody's own, on trial here
OWN = [cls.name for cls in METHODS if cls.__module__.startswith("tokred.methods.") and "tuning" in vars(cls)]
no_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime; pip install -e '.[dev]' brings them",
)


@pytest.fixture(scope="module")
def models():
    return modes.tiny()


@pytest.fixture(scope="module", autouse=True)
def translations_are_read_once():
    """torch.onnx.export reads its table of all operators anew each time, a fifth of what it takes."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


def marks_of(name, mode):
    """These take seconds a method: of each kind of operations one is quick enough for every run. The contract compiles them all."""
    own = [no_onnx] if mode == "ONNX" else []
    quick = mode == "no host sync" or name not in OWN or name in ("tome", "vid_tldr", "evit", "ats", "dpc_knn")
    return own if quick else [*own, pytest.mark.slow]


def each_mode(names) -> list:
    return [
        pytest.param(name, mode, marks=marks_of(name, mode), id=f"{name}-{mode}")
        for name in names
        for mode in modes.MODES
    ]


@pytest.mark.parametrize(("name", "mode"), each_mode(OWN))
def test_the_page_says_what_comes_out(name, mode, models):
    assert modes.answer(modes.case_of(METHODS[name], models), mode) == CELLS[name, mode], f"run: {modes.COMMAND}"


@no_onnx
def test_the_page_is_what_the_command_prints_but_for_versions():
    def no_versions(text):
        return re.sub(r"^Versions: .*$", "", text, flags=re.MULTILINE)

    assert no_versions(PAGE.read_text()) == no_versions(modes.page(CELLS))


def test_every_method_has_a_row():
    assert sorted(OWN) == [name for name, _ in ROWS]


def test_methods_of_a_fixed_count_work_in_every_mode():
    fixed = [name for name in OWN if not METHODS[name]().varies]
    assert {CELLS[name, mode] for name in fixed for mode in modes.MODES} == {"yes"}


# All options, on three layers of which two reduce

OPTIONS = [
    case
    for kind, model in tiny_models().items()
    if kind in ("class_token", "umt")
    for case in cases({kind: model}, with_variants=(kind,))
    if METHODS[case.method].needs_frames == (kind == "umt")
]


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_a_capture_is_possible_with_every_option(case):
    modes.captured(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_a_program_is_exported_with_every_option(case):
    modes.exported(case)


@pytest.mark.slow
@no_onnx
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_onnx_gives_the_same_with_every_option_for_any_batch(case):
    modes.in_onnx(case, optimize=True, any_batch=True)


# A mode must fail where it does not hold

WRONG = {
    "reads a value": (lambda score_BN: score_BN * float(score_BN.max() > 0), ["no host sync"]),
    "copies from the host": (
        lambda score_BN: score_BN * torch.tensor([2.0] * score_BN.shape[1]).to(score_BN.device),
        ["no host sync"],
    ),
    "counts a mask": (lambda score_BN: score_BN + score_BN[score_BN > 0].sum(), ["no host sync"]),
    "puts where a mask is": (
        lambda score_BN: score_BN.index_put((score_BN > 0,), torch.ones_like(score_BN[0, 0])),
        ["no host sync"],
    ),
    "breaks the graph": (lambda score_BN: (torch._dynamo.graph_break(), score_BN)[1], ["compile"]),
    "is another in a program": (lambda score_BN: -score_BN if torch.compiler.is_exporting() else score_BN, ["export", "ONNX"]),
}  # fmt: skip
"""By name: what is done to a method's scores, and modes in which it then does not work."""


class ByFirstChannel(Method):
    """Keeps the tokens whose first channel, changed, is largest."""

    name = "by_first_channel"
    conserves_mass = False

    def __init__(self, change):
        super().__init__()
        self.change = change

    def assign(self, tokens, attention, keep):
        index_BK = tokred.matching.top_places(self.change(tokens.x_BNC[..., 0]), keep, prefix=tokens.prefix)
        return Assignment.select(index_BK, tokens.num)


class CaseOf(Case):
    """Of a method that is in no registry."""

    def new_method(self):
        return ByFirstChannel(self.options["change"])


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        pytest.param(kind, mode, marks=no_onnx if mode == "ONNX" else [], id=f"{kind}-{mode}")
        for kind, (_, failing) in WRONG.items()
        for mode in failing
    ],
)
def test_a_method_that_does_not_work_in_a_mode_is_found_out(kind, mode, models):
    case = CaseOf("by_first_channel", models["class_token"], {"change": WRONG[kind][0]})
    assert modes.answer(case, mode).startswith("no: ")


@pytest.mark.parametrize(("name", "mode"), each_mode(["by_first_channel"]))
def test_and_one_that_does_is_not(name, mode, models):
    assert modes.answer(CaseOf(name, models["class_token"], {"change": abs}), mode) == "yes"


# Padding


def test_outside_of_a_capture_padding_is_trimmed_by_a_count_that_the_host_waits_for(models, monkeypatch):
    case = modes.case_of(METHODS["ats"], models)
    trimmed = tokred.Tokens.trimmed
    calls = []
    monkeypatch.setattr(tokred.Tokens, "trimmed", lambda tokens: calls.append(1) or trimmed(tokens))
    case.reduced()(case.inputs)
    assert calls
    calls.clear()
    modes.captured(case)
    assert not calls


# What ONNX has no operator for


def test_bits_of_a_float_are_those_in_memory():
    any_bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=torch.Generator().manual_seed(0))
    largest = torch.finfo(torch.float32).max
    x = torch.cat([any_bits.int().view(torch.float32), torch.tensor([0.0, -0.0, 1, -1, 2**-126, 2**-149, largest])])
    x = x[x.isfinite()]
    assert torch.equal(float_bits(x), x.view(torch.int32))


def test_counting_what_is_below_places_as_searchsorted_does():
    sorted_BN = torch.tensor([[0.0, 1, 1, 2], [0, 0, 0, 3]])
    value_BV = torch.tensor([[-1.0, 0, 1, 1.5, 2, 9], [-1, 0, 1, 1.5, 3, 9]])
    assert torch.equal(count_below(sorted_BN, value_BV), torch.searchsorted(sorted_BN, value_BV))


def test_nothing_is_replaced_while_nothing_is_exported():
    with only_what_onnx_has():
        assert not torch.overrides._get_current_function_mode_stack()


class Sorts(nn.Module):
    def forward(self, x):
        with only_what_onnx_has():
            falling, rising = x.argsort(dim=1, descending=True, stable=True), torch.argsort(x, dim=1, stable=True)
            return falling, rising, x.sort(dim=1, stable=True).indices, torch.sort(x, stable=True)[1]


@no_onnx
def test_sorts_stay_stable_in_onnx():
    import onnxruntime

    x = torch.randint(4, (2, 500), generator=torch.Generator().manual_seed(0)).float()  # mostly ties
    program = torch.onnx.export(Sorts().eval(), (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert all(torch.equal(torch.from_numpy(ours), eager) for ours, eager in zip(found, Sorts()(x), strict=True))


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OWN)
def test_a_graph_captured_on_a_gpu_gives_what_eager_mode_gives(name, dtype, models):
    case = modes.case_of(METHODS[name], models)
    reduced = copy.deepcopy(case.reduced()).to("cuda", dtype).eval()  # the model is shared
    inputs = case.inputs.to("cuda", dtype)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            reduced(inputs)  # warms up
        torch.cuda.current_stream().wait_stream(side)
        graph, held = torch.cuda.CUDAGraph(), inputs.clone()
        with torch.cuda.graph(graph):
            logits = reduced(held)
        held.copy_(inputs.flip(0))
        graph.replay()
        expected = reduced(inputs.flip(0))
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-6}[dtype]  # atomic sums come in any order
    torch.testing.assert_close(logits, expected, rtol=0, atol=rounding * float(expected.abs().max()))
