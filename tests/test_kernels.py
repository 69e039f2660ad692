"""The Triton kernels: in Triton's interpreter against the map in float64, and on a GPU, where there is one, against the chunks."""

import importlib.util
import itertools

import pytest
import torch

from tests.interpreted import interpret, run
from tokred.attention_map import SUMS, in_chunks

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# The interpreter takes seconds for a case.
INTERPRETED = """
import sys
import torch
from tests.test_attention_map import SCALE, dense, options
from tokred.attention_map import _by_kernel

dtype, num, heads, channels, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
generator = torch.Generator().manual_seed(0)
dtype = getattr(torch, dtype)
q, k, v = torch.randn(2, num, 3, heads, channels, generator=generator).to(dtype).permute(2, 0, 3, 1, 4)
masks = torch.rand(2, num, generator=generator) * 6.9, torch.ones(2, num, dtype=torch.bool)
masks[1][1, num // 2 :] = False
for name in names:
    given = options(name, *masks)
    args = (given["bias_BN"], given["valid_BN"], given["biased"], True, True)
    out_BNHD, *sums = _by_kernel(q, k, v, SCALE, *args)
    expected = dense(q, k, v, **given)
    pairs = list(zip((out_BNHD.transpose(1, 2), *sums), expected, strict=True))
    errors = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs]
    none, *alone = _by_kernel(q, k, None, SCALE, *args)
    same = none.numel() == 0 and all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(alone, sums))
    print(name, *errors, same, sep=";")
"""
ALL = ("plain", "biased", "unbiased", "unbiased, padded", "padded")
ROUNDING = {
    "float32": 2e-6,
    "float16": 2**-9,
    "bfloat16": 2**-6,
}  # of the output: weights and values are rounded, and cancel


def interpreted(dtype, num, heads, channels, names):
    return [line.split(";") for line in interpret(INTERPRETED, dtype, str(num), str(heads), str(channels), *names)]


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "num", "heads", "channels", "names"),
    [
        ("float32", 5, 3, 32, ALL),
        ("bfloat16", 5, 2, 80, ("unbiased, padded",)),
        ("float16", 64, 2, 64, ("biased",)),
        pytest.param("float32", 66, 2, 32, ALL, marks=pytest.mark.slow),
        pytest.param("float32", 33, 2, 80, ("biased", "unbiased, padded"), marks=pytest.mark.slow),
        pytest.param("float16", 130, 2, 64, ("plain", "unbiased, padded"), marks=pytest.mark.slow),
        pytest.param("float16", 64, 2, 128, ("biased", "unbiased"), marks=pytest.mark.slow),
        pytest.param("bfloat16", 130, 3, 80, ("unbiased",), marks=pytest.mark.slow),
        pytest.param("bfloat16", 5, 2, 128, ALL, marks=pytest.mark.slow),
    ],
)
def test_interpreted_kernels_give_what_the_map_gives(dtype, num, heads, channels, names):
    lines = interpreted(dtype, num, heads, channels, names)
    assert [line[0] for line in lines] == list(names)
    for _, out, entropy, received, same in lines:
        assert float(out) < ROUNDING[dtype]
        assert float(entropy) < 2e-6 and float(received) < 2e-6  # float32 sums, and logits of a few units in exp2
        assert same == "True"


WIDE = """
import sys
import torch
from tests.test_attention_map import SCALE, dense
from tokred import kernels
from tokred.attention_map import _by_kernel

dtype, bias, biased = getattr(torch, sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "biased"
q, k, v = torch.randn(3, 1, 1, 70, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
k[:, :, 40] = 30.0  # ahead of all others for some queries
bias_BN = torch.zeros(1, 70)
bias_BN[0, 40] = bias
out_BNHD, *sums = _by_kernel(q, k, v, SCALE, bias_BN, None, biased, True, True)
expected = dense(q, k, v, bias_BN=bias_BN, valid_BN=None, biased=biased)
alone_BNHD = kernels.attend(q, k, v, scale=SCALE, bias_BN=bias_BN)
pairs = zip((alone_BNHD.transpose(1, 2), out_BNHD.transpose(1, 2), *sums), (expected[0], *expected), strict=True)
print(*(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs))
"""


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "bias", "biased"),
    [
        *(("float16", bias, "biased") for bias in ("12", "-20", "-inf")),
        ("float16", "2", "unbiased"),
        *(("float32", bias, biased) for bias in ("-20", "-inf") for biased in ("biased", "unbiased")),
        ("bfloat16", "-inf", "biased"),
    ],
)
def test_a_bias_of_any_size_on_a_key_far_ahead_is_heeded(dtype, bias, biased):
    (line,) = interpret(WIDE, dtype, bias, biased)
    alone, out, *sums = map(float, line.split())
    assert alone < ROUNDING[dtype] and out < ROUNDING[dtype]
    assert all(error < 1e-5 for error in sums)  # logits of dozens in float32


OTHER = """
import sys
import torch
from tests.test_attention_map import SCALE, dense
from tokred.attention_map import _by_kernel

dtypes = {"half": torch.float16, "single": torch.float32}
generator = torch.Generator().manual_seed(0)
q, k = 3 * torch.randn(2, 1, 2, 70, 16, generator=generator).to(dtypes[sys.argv[1]])
v = torch.randn(1, 2, 70, 24, generator=generator).to(dtypes[sys.argv[2]])
bias_BN = torch.zeros(1, 70)
valid_BN = torch.ones(1, 70, dtype=torch.bool)
bias_BN[:, -2], bias_BN[:, -1], valid_BN[:, -2:] = float("inf"), float("nan"), False
for biased in (True, False):
    out_BNHD, *sums = _by_kernel(q, k, v, SCALE, bias_BN, valid_BN, biased, True, True)
    expected = dense(q, k, v, bias_BN=bias_BN.masked_fill(~valid_BN, 0), valid_BN=valid_BN, biased=biased)
    pairs = zip((out_BNHD.transpose(1, 2), *sums), expected, strict=True)
    print(*(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs))
"""


@needs_triton
@pytest.mark.parametrize(("queries", "values"), [("single", "half"), ("half", "single")])
def test_values_of_another_precision_and_head_size_and_a_bias_on_padding(queries, values):
    for line in interpret(OTHER, queries, values):
        out, *sums = map(float, line.split())
        assert out < (ROUNDING["float16"] if values == "half" else 1e-5)
        assert all(error < 1e-5 for error in sums)  # logits of dozens in float32


FAR = """
import sys
import torch
from tests.test_attention_map import SCALE, dense
from tokred import kernels
from tokred.attention_map import _by_kernel

dtype, far, device, channels = getattr(torch, sys.argv[1]), int(sys.argv[2]), sys.argv[3], 16
num = 2 * kernels._forward_sizes(dtype, channels)["BLOCK_K"] + 3
q, k, v = torch.randn(3, 1, 2, num, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
k[:, :, far] = 200.0
print(float((q.float() @ k[:, :, far, :, None].float()).abs().amax() * SCALE))
bias_BN, valid_BN = torch.zeros(1, num), torch.ones(1, num, dtype=torch.bool)
bias_BN[:, num // 2 :] = -2.0
valid_BN[:, -1] = False
for biased in (True, False):
    given = [x.to(device) for x in (q, k, v, bias_BN, valid_BN)]
    found = _by_kernel(*given[:3], SCALE, *given[3:], biased, True, True)
    out_BNHD, *sums = (x.cpu() for x in found)
    expected = dense(q, k, v, bias_BN=bias_BN, valid_BN=valid_BN, biased=biased)
    pairs = zip((out_BNHD.transpose(1, 2), *sums), expected, strict=True)
    print(*(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs))
"""


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("far", [0, -2])
def test_logits_far_above_those_of_the_first_keys_or_of_other_queries_are_seen(dtype, far):
    check_far(dtype, interpret(FAR, dtype, str(far), "cpu"))


def check_far(dtype, lines):
    assert float(lines[0]) > 150  # either way: e to that is beyond what sums are made in without a maximum of each row
    for line in lines[1:]:
        out, *sums = map(float, line.split())
        assert out < ROUNDING[dtype]
        assert all(error < 1e-5 for error in sums)  # logits of hundreds in float32


LAYOUTS = """
import torch
from tests.test_attention_map import SCALE, dense
from tokred import launching, kernels
from tokred.attention_map import _by_kernel

def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).half()

q, k, v = drawn(3, 2, 3, 70, 16)
layouts = {
    "side by side": (k, v),
    "as of one product": drawn(2, 70, 2, 3, 16).permute(2, 0, 3, 1, 4).unbind(0),
    "rows of 34 bytes": drawn(2, 2, 3, 70, 17)[..., :16].unbind(0),
    "begins at 2 bytes": drawn(2 * 2 * 3 * 70 * 16 + 1)[1:].view(2, 2, 3, 70, 16).unbind(0),
    "one head for all": drawn(2, 2, 1, 70, 16).expand(2, 2, 3, 70, 16).unbind(0),
    "channels apart": drawn(2, 2, 3, 16, 70).mT.unbind(0),
    "values alone": (k, drawn(2, 3, 70, 17)[..., :16]),
}
layouts = {name: (q, *pair) for name, pair in layouts.items()}
layouts["queries alone"] = drawn(2, 3, 70, 17)[..., :16], k, v
biases = {
    "float16": drawn(2, 70),
    "tokens apart": drawn(70, 4).float().T[::2],
    "odd rows": drawn(2, 71).float()[:, :70],
    "one for all": drawn(1, 70).float().expand(2, 70),
}
cases = {name: (*qkv, None) for name, qkv in layouts.items()} | {name: (q, k, v, bias) for name, bias in biases.items()}
for name, (*qkv, bias_BN) in cases.items():
    out_BNHD, *sums = _by_kernel(*qkv, SCALE, bias_BN, None, True, True, True)
    expected = dense(*qkv, bias_BN=bias_BN, valid_BN=None, biased=True)
    pairs = zip((out_BNHD.transpose(1, 2), *sums), expected, strict=True)
    copied = "".join(str(int(launching.has_blocks(kernels._rows(x)))) for x in qkv)
    print(name, copied, *(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs), sep=";")
out_BNHD, *sums = _by_kernel(q[:0], k[:0], v[:0], SCALE, None, None, True, True, True)
print(*(tuple(x.shape) for x in (out_BNHD, *sums)), sep=";")
"""


@needs_triton
def test_queries_keys_values_and_biases_lie_in_memory_as_they_like():
    *lines, empty = (line.split(";") for line in interpret(LAYOUTS))
    # Else at no multiples of 16 bytes. Channels that lie apart are laid out anew.
    by_pointers = {"queries alone": "011", "values alone": "110"}
    by_pointers |= dict.fromkeys(("rows of 34 bytes", "begins at 2 bytes", "one head for all"), "100")
    assert len(lines) == 12
    for name, copied, out, *sums in lines:
        assert copied == by_pointers.get(name, "111")
        assert float(out) < ROUNDING["float16"]
        assert all(float(error) < 2e-6 for error in sums)
    assert empty == ["(0, 70, 3, 16)", "(0, 70)", "(0, 70)"]


# Without a GPU: a driver that has no device, and launches that end where the program is compiled.
COMPILED = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from tokred import kernels, merge_kernels

dtype, channels, capability = getattr(torch, sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

class NoDevice:
    def get_current_device(self):
        return 0
    def get_current_stream(self, device=None):
        return 0
    def get_current_target(self):
        return GPUTarget("cuda", capability, 32)
    def get_device_capability(self, device=None):
        return divmod(capability, 10)
    def get_active_torch_device(self):
        return torch.device("cpu")

def compiled(self, *args, grid, warmup, **options):
    program = launch(self, *args, grid=grid, warmup=True, **options)
    print(self.__name__, program.metadata.shared, "cp.async.bulk.tensor" in program.asm["ptx"])

launch, JITFunction.run = JITFunction.run, compiled
triton.runtime.driver.set_active(NoDevice())
q, k, v = torch.zeros(2, 785, 3, 4, channels, dtype=dtype).permute(2, 0, 3, 1, 4)
bias_BN, valid_BN = torch.zeros(2, 785), torch.ones(2, 785, dtype=torch.bool)
kernels.attend(q, k, v, scale=0.1, bias_BN=bias_BN)
for biased in (True, False):
    kernels.attend_and_measure(
        q, k, v, scale=0.1, bias_BN=bias_BN, valid_BN=valid_BN, biased=biased, entropy=True, received=True
    )
if dtype != torch.float32:
    merge_kernels.nearest_odd(v.flatten(0, 1))
"""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("dtype", "channels"), [("float16", 128), ("bfloat16", 80), ("bfloat16", 64), ("float32", 64)])
def test_what_is_launched_compiles_for_ampere_hopper_and_blackwell_and_fits_their_memory(dtype, channels, capability):
    programs = [line.split() for line in run(COMPILED, dtype, str(channels), str(capability))]
    names = [name for name, *_ in programs]
    assert [names.count(name) for name in ("_forward", "_reduce", "_nearest")] == [3, 2, int(dtype != "float32")]
    room = (99 if capability == 80 else 227) * 1024  # of a block; of Ampere the least, that of 8.6
    assert all(int(shared) <= room for _, shared, _ in programs)
    for kernel, widest in (("_forward", 64), ("_reduce", 64), ("_nearest", 128)):
        by_engine = {copies for name, _, copies in programs if name == kernel}
        runs = kernel != "_nearest" or dtype != "float32"
        assert by_engine == ({str(capability == 90 and dtype != "float32" and channels <= widest)} if runs else set())


@needs_triton
def test_blocks_are_counted_and_padded_as_triton_does():
    code = (
        "from tokred.launching import *; print(*map(power_of_2, (1, 2, 3, 64, 65)), cdiv(6, 3), cdiv(7, 3), cdiv(0, 3))"
    )
    assert run(code) == ["1 2 4 64 128 2 3 0"]


def test_triton_is_not_imported_without_a_gpu():
    code = "import tokred, sys; tokred.list_methods(); print('tokred.kernels' in sys.modules)"
    assert run(code) == ["False"]


# On a GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(dtype, num, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(2, num, 3, 4, channels, generator=generator).to("cuda", dtype).permute(2, 0, 3, 1, 4)
    valid_BN = torch.ones(2, num, dtype=torch.bool, device="cuda")
    valid_BN[1, num // 2 :] = False
    return q, k, v, (torch.rand(2, num, generator=generator) * 6.9).cuda(), valid_BN


@pytest.mark.gpu
@gpu
@needs_triton
@pytest.mark.parametrize("channels", [32, 64, 80, 128])
@pytest.mark.parametrize("num", [5, 197, 785, 2352])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_give_what_chunks_give(dtype, num, channels):
    from tokred.attention_map import _by_kernel

    q, k, v, bias_BN, valid_BN = on_gpu(dtype, num, channels)
    scale = channels**-0.5
    for bias, valid, biased in itertools.product((None, bias_BN), (None, valid_BN), (True, False)):
        out_BNHD, *sums = _by_kernel(q, k, v, scale, bias, valid, biased, True, True)
        wide = (x.double() for x in (q, k, v))
        given = {"scale": scale, "bias_BN": bias, "valid_BN": valid, "biased": biased, "statistics": SUMS}
        expected, found = in_chunks(*wide, **given)
        largest = float(expected.abs().max())
        rounding = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
        assert float((out_BNHD.transpose(1, 2) - expected).abs().max()) / largest < rounding
        for ours, theirs in zip(sums, found.values(), strict=True):
            assert float((ours - theirs).abs().max() / theirs.abs().max()) < 3e-6


@pytest.mark.gpu
@gpu
@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("far", [0, -2])
def test_logits_far_above_others_are_seen_on_a_gpu(dtype, far):
    check_far(dtype, run(FAR, dtype, str(far), "cuda", CUDA_VISIBLE_DEVICES="0"))


@pytest.mark.gpu
@gpu
@needs_triton
def test_attend_on_cuda_takes_the_kernels_and_compiles_to_one_graph(monkeypatch):
    from tokred import kernels
    from tokred.attention import attend

    seen, run = [], kernels.attend_and_measure
    monkeypatch.setattr(kernels, "attend_and_measure", lambda *a, **k: seen.append(1) or run(*a, **k))
    q, k, v, bias_BN, _ = on_gpu(torch.bfloat16, 197, 64)

    def layer():
        out, found = attend(q, k, v, scale=0.125, bias_BN=bias_BN, statistics=SUMS, biased_statistics=False)
        return out, found.row_entropy_BN, found.received_BN

    eager, compiled = layer(), torch.compile(layer, fullgraph=True)()
    assert len(seen) == 2
    assert all(a.equal(b) for a, b in zip(eager, compiled, strict=True))


@pytest.mark.gpu
@gpu
@needs_triton
def test_kernels_give_the_same_bits_each_time():
    from tokred.attention_map import _by_kernel

    q, k, v, bias_BN, valid_BN = on_gpu(torch.float16, 785, 64)
    first, second = (_by_kernel(q, k, v, 0.125, bias_BN, valid_BN, False, True, True) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
