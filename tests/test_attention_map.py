"""The three ways to the map's statistics against the map itself in float64, and what each way may hold and when it is taken."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokred import attention_map
from tokred.attention import attend, measure
from tokred.attention_map import SUMS, in_chunks

B, H, N, D = 2, 12, 650, 16  # two chunks of queries
SCALE = D**-0.5
OPTIONS = {
    "plain": {"bias_BN": None, "valid_BN": None, "biased": True},
    "biased": {"bias_BN": True, "valid_BN": None, "biased": True},
    "unbiased": {"bias_BN": True, "valid_BN": None, "biased": False},
    "unbiased, padded": {"bias_BN": True, "valid_BN": True, "biased": False},
    "padded": {"bias_BN": None, "valid_BN": True, "biased": False},
}


def drawn(*, dtype=torch.float32, num=N, seed=0):
    """Queries, keys and values, and of each sample sizes from 1 to 1000 and 50 tokens of padding in the second."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(B, num, 3, H, D, generator=generator).to(dtype).permute(2, 0, 3, 1, 4)
    )  # as backbones give them
    bias_BN = torch.rand(B, num, generator=generator) * 6.9
    valid_BN = torch.ones(B, num, dtype=torch.bool)
    valid_BN[1, -50:] = False
    return q, k, v, bias_BN, valid_BN


def options(name, bias_BN, valid_BN):
    wanted = OPTIONS[name]
    return {
        "bias_BN": bias_BN if wanted["bias_BN"] else None,
        "valid_BN": valid_BN if wanted["valid_BN"] else None,
        "biased": wanted["biased"],
    }


def dense(q, k, v, bias_BN=None, valid_BN=None, biased=True):
    """Output, row entropy and received of the full map in float64."""
    logits = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) * SCALE
    real_BN = torch.ones(q.shape[0], q.shape[2], dtype=torch.float64) if valid_BN is None else valid_BN.double()
    logits = logits + real_BN.log()[:, None, None]
    with_bias = logits if bias_BN is None else logits + bias_BN.double()[:, None, None]
    mean = (with_bias if biased else logits).softmax(-1).mean(1)
    received = torch.einsum("bqk,bq->bk", mean, real_BN) / real_BN.sum(1, keepdim=True)
    return with_bias.softmax(-1) @ v.double(), torch.special.xlogy(mean, mean).sum(-1), received


def ours(q, k, v, bias_BN=None, valid_BN=None, biased=True):
    out, attention = attend(
        q, k, v, scale=SCALE, bias_BN=bias_BN, valid_BN=valid_BN, statistics=SUMS, biased_statistics=biased
    )
    return out, attention.row_entropy_BN, attention.received_BN


def error(a, b):
    """The largest difference, as a share of the largest value."""
    return float((a.double() - b).abs().max() / b.abs().max())


@pytest.fixture(params=["softmax", "plain exponentials"])
def exponentials(request, monkeypatch):
    monkeypatch.setattr(attention_map, "_PLAIN_TOKENS", 1 if request.param == "plain exponentials" else 10**6)
    return request.param


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_in_place_is_exact_to_a_millionth(name, threads, exponentials, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # which the size of a chunk follows
    q, k, v, *masks = drawn()
    found = zip(ours(q, k, v, **options(name, *masks)), dense(q, k, v, **options(name, *masks)), strict=True)
    assert all(error(a, b) < 1e-6 for a, b in found)


@pytest.mark.parametrize("name", OPTIONS)
def test_half_precision_costs_the_statistics_nothing(name, exponentials):
    q, k, v, *masks = drawn(dtype=torch.bfloat16)
    out, *sums = zip(ours(q, k, v, **options(name, *masks)), dense(q, k, v, **options(name, *masks)), strict=True)
    assert error(*out) < 2**-8  # what bfloat16 rounds the output to
    assert all(error(a, b) < 1e-6 for a, b in sums)


def test_double_precision_is_kept(exponentials):
    q, k, v, bias_BN, _ = drawn(dtype=torch.float64)
    given = {"bias_BN": bias_BN.double(), "biased": False}
    out, *sums = zip(ours(q, k, v, **given), dense(q, k, v, **given), strict=True)
    assert error(*out) < 1e-13
    assert all(error(a, b) < 1e-6 for a, b in sums)  # which are float32


@pytest.mark.parametrize(
    ("threads", "num", "divided"), [(1, 650, [1]), (2, 650, [2]), (5, 650, [5]), (2, 651, [1, 2]), (2, 60, [12])]
)
def test_threads_divide_the_queries_of_a_head(threads, num, divided, monkeypatch):
    """Else a thread reads what another has in its cache; of few tokens all heads are one batch."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    product, batches = torch.bmm, set()
    monkeypatch.setattr(torch, "bmm", lambda a, b: (batches.add(len(a)), product(a, b))[1])
    q, k, v, *_ = (x[:1] for x in drawn(num=num))
    assert all(error(a, b) < 1e-6 for a, b in zip(ours(q, k, v), dense(q, k, v), strict=True))
    assert sorted(batches) == divided


@pytest.mark.parametrize("num", [2, 5, 600, 601])
def test_any_number_of_tokens_will_do(num, exponentials):
    q, k, v, bias_BN, _ = drawn(num=num)
    given = {"bias_BN": bias_BN, "biased": False}
    assert all(error(a, b) < 1e-6 for a, b in zip(ours(q, k, v, **given), dense(q, k, v, **given), strict=True))


@pytest.mark.parametrize(("scale", "near"), [(0.3, True), (-0.3, True), (30.0, False), (-30.0, False)])
def test_any_scale_will_do(scale, near, monkeypatch):
    monkeypatch.setattr(attention_map, "_PLAIN_TOKENS", 1)
    q, k, v, *_ = drawn()
    with _Seen() as seen:
        out, attention = attend(q, k, v, scale=scale, statistics=SUMS)
    found = out, attention.row_entropy_BN, attention.received_BN
    wanted = dense(q.double() * (scale / SCALE), k, v)
    most = 2e-6 if near else 1e-3  # float32 logits of 1000 are not exact
    assert all(error(a, b) < most for a, b in zip(found, wanted, strict=True))
    assert any("softmax" in name for name in seen.names) != near


@pytest.mark.parametrize("low", [-70.0, -torch.inf])
def test_a_bias_too_wide_for_one_softmax_is_exact_too(low, exponentials):
    """Where a token without weight outshines all others by exp(200) and more, one softmax would leave the output 0 / 0."""
    q, k, v, bias_BN, _ = drawn()
    k = k.contiguous()
    k[:, :, 7] = q[:, :, 3] * 60
    bias_BN[0, 7] = low
    given = {"bias_BN": bias_BN, "biased": False}
    found = list(zip(ours(q, k, v, **given), dense(q, k, v, **given), strict=True))
    assert all(a.isfinite().all() for a, _ in found)
    assert all(error(a, b) < 1e-4 for a, b in found)  # float32 logits of 300 are right to 2e-5


@pytest.mark.parametrize(
    ("largest", "bias", "shifted"), [(59.9, 0.0, False), (60.1, 0.0, True), (29.9, 30.0, False), (29.9, -31.0, True)]
)
def test_logits_up_to_60_need_no_softmax_and_are_exact(largest, bias, shifted, monkeypatch):
    """Two queries of one head have logits that lie as far from 0 as there may be, on both sides."""
    monkeypatch.setattr(attention_map, "_PLAIN_TOKENS", 1)
    q, k, v, *_ = (x[:1].contiguous() * 0.1 for x in drawn())
    k[0, 5] = torch.nn.functional.normalize(torch.ones(D), dim=0)  # all keys of the head
    k[0, 5, ::3] *= -1
    q[0, 5, 0] = largest / SCALE * k[0, 5, 1]
    q[0, 5, 1] = -q[0, 5, 0]
    bias_BN = torch.zeros(1, N)
    bias_BN[:, 5] = bias
    with _Seen() as seen:
        found = ours(q, k, v, bias_BN)
    assert all(error(a, b) < 1e-5 for a, b in zip(found, dense(q, k, v, bias_BN), strict=True))  # float32 logits of 60
    assert any("softmax" in name for name in seen.names) == shifted
    monkeypatch.setattr(attention_map, "_PLAIN_TOKENS", 10**6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(found, ours(q, k, v, bias_BN), strict=True))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("num", "softmax"), [(1023, True), (1024, False)])
def test_large_maps_take_plain_exponentials(num, softmax, padded):
    q, k, v, _, valid_BN = drawn(num=num)
    with _Seen() as seen:
        ours(q, k, v, valid_BN=valid_BN if padded else None)
    assert any("softmax" in name for name in seen.names) == softmax
    assert any("exp2_" in name for name in seen.names) != softmax


def test_the_bias_of_padding_does_not_take_the_weight_of_real_tokens(exponentials):
    """Logits of -55 and weights of exp(-50) in units of padding's would together be 0 in float32."""
    q, k, v, bias_BN, valid_BN = drawn()
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    q[..., 0], k[..., 0] = -55 / SCALE, 1
    bias_BN = torch.where(valid_BN, bias_BN * 0.1, 50.0)
    given = {"bias_BN": bias_BN, "valid_BN": valid_BN, "biased": False}
    assert all(error(a, b) < 1e-5 for a, b in zip(ours(q, k, v, **given), dense(q, k, v, **given), strict=True))


@pytest.mark.parametrize("filler", [torch.inf, torch.nan])
def test_padding_without_numbers_is_left_to_the_softmax(filler, monkeypatch):
    monkeypatch.setattr(attention_map, "_PLAIN_TOKENS", 1)
    q, k, v, _, valid_BN = drawn()
    q = q.masked_fill(~valid_BN[:, None, :, None], filler)
    with _Seen() as seen:
        found = ours(q, k, v, valid_BN=valid_BN)
    assert any("softmax" in name for name in seen.names)
    assert found[0][:, :, :-50].isfinite().all() and found[1][:, :-50].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("num", "heads"), [(N, H), (197, H), (60, H), (197, 3), (61, 1)])
def test_what_is_in_a_sample_does_not_reach_its_batch(num, heads, padded, threads, monkeypatch):
    """Of small samples several are made together. The third's bias is too wide for that, the fourth's far below the others', and
    the fifth has no numbers."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    q, k, v, bias_BN, valid_BN = (torch.cat([x, x.flip(0), x[:1]]) for x in drawn(num=num))
    q, k, v = (x[:, :heads] for x in (q, k, v))
    bias_BN[2, 3], q[4, :, 5], v[4, :, 7] = -100, torch.inf, torch.nan
    bias_BN[3] -= 200
    given = (q, k, v, bias_BN, valid_BN if padded else None)
    together = ours(*given, biased=False)
    for b in range(4):
        alone = ours(*(None if x is None else x[b : b + 1] for x in given), biased=False)
        assert all(error(a[b], one[0].double()) < 1e-6 for a, one in zip(together, alone, strict=True))
    assert not together[0][4].isfinite().any()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_small_samples_together_are_exact_to_a_millionth(padded, biased, monkeypatch):
    """Seven samples, of which up to four are made together."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(attention_map, "_SMALL_ELEMENTS", 2 * H * 60**2)
    q, k, v, bias_BN, valid_BN = (torch.cat([x, x.roll(1, -1), x.flip(0), x[:1]]) for x in drawn(num=60))
    assert attention_map._at_once(7, H, 60)[0] == 4
    given = (q, k, v, bias_BN, valid_BN if padded else None, biased)
    assert all(error(a, b) < 1e-6 for a, b in zip(ours(*given), dense(*given), strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_chunks_and_in_place_agree(name):
    q, k, v, *masks = drawn()
    out, sums = in_chunks(q, k, v, scale=SCALE, statistics=SUMS, **options(name, *masks))
    found = (out, *sums.values())
    assert all(error(a, b.double()) < 1e-6 for a, b in zip(ours(q, k, v, **options(name, *masks)), found, strict=True))


def test_statistics_without_output_are_those_with_it():
    q, k, v, bias_BN, _ = drawn()
    found = measure(q, k, scale=SCALE, bias_BN=bias_BN, statistics=SUMS).found
    assert all(found[name].equal(value) for name, value in zip(SUMS, ours(q, k, v, bias_BN)[1:], strict=True))


def test_autocast_changes_nothing():
    q, k, v, bias_BN, _ = drawn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(q, k, v, bias_BN, biased=False)
    assert all(a.equal(b) for a, b in zip(found, ours(q, k, v, bias_BN, biased=False), strict=True))


# What is held, and what is done


class _Seen(TorchDispatchMode):
    """The operations that ran, and the most elements that one of them gave out."""

    def __init__(self):
        super().__init__()
        self.names, self.most = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.__name__)
        if isinstance(out, torch.Tensor):
            self.most = max(self.most, out.numel())
        return out


@pytest.mark.parametrize("with_bias", [False, True])
def test_no_more_than_one_head_of_one_chunk_is_held(with_bias, exponentials, monkeypatch):
    monkeypatch.setattr(attention_map, "_IN_PLACE_ELEMENTS", 1)
    monkeypatch.setattr(attention_map, "_IN_PLACE_THREADS", 1)
    q, k, v, bias_BN, _ = drawn()
    with _Seen() as seen:
        ours(q, k, v, bias_BN if with_bias else None, biased=False)
    assert seen.most <= max(-(-N // 2) * N, v.numel())


@pytest.mark.parametrize(
    ("threads", "num_samples", "num_heads", "num_tokens", "at_once"),
    [
        (1, 20, 12, 2352, (1, 1, 588)),
        (2, 20, 12, 2352, (1, 1, 784)),
        (64, 20, 12, 2352, (1, 1, 2352)),
        (1, 20, 12, 785, (1, 1, 393)),
        (2, 20, 12, 785, (1, 1, 784)),
        (2, 20, 12, 1451, (1, 1, 724)),
        (2, 20, 12, 1550, (1, 1, 776)),
        (2, 20, 12, 600, (1, 1, 600)),
        (2, 20, 1, 1024, (1, 1, 512)),
        (64, 20, 2**20, 3, (1, 1, 3)),
        (1, 20, 12, 197, (1, 12, 197)),
        (2, 20, 12, 197, (2, 12, 197)),
        (1, 20, 12, 50, (8, 12, 50)),
        (2, 20, 12, 50, (16, 12, 50)),
        (64, 20, 12, 50, (20, 12, 50)),
        (2, 0, 12, 50, (1, 12, 50)),
    ],
)
def test_each_thread_has_its_share(threads, num_samples, num_heads, num_tokens, at_once, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert attention_map._at_once(num_samples, num_heads, num_tokens) == at_once


def test_biases_too_wide_are_left_to_chunks_at_once():
    """Nothing is first made in place, whose map is weighted where it stands."""
    q, k, v, bias_BN, _ = drawn(num=60)
    with _Seen() as narrow:
        ours(q, k, v, bias_BN, biased=False)
    bias_BN[:, 0] = -100
    with _Seen() as wide:
        ours(q, k, v, bias_BN, biased=False)
    assert "mul_.Tensor" in narrow.names and "mul_.Tensor" not in wide.names


def test_another_default_device_changes_nothing():
    q, k, v, bias_BN, _ = drawn(num=60)
    with torch.device("meta"):
        found = ours(q, k, v, bias_BN, biased=False)
    assert all(a.equal(b) for a, b in zip(found, ours(q, k, v, bias_BN, biased=False), strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_output_and_statistics_share_products_and_exponentials(bias, exponentials):
    q, k, v, bias_BN, _ = drawn()
    with _Seen() as seen:
        ours(q, k, v, bias_BN if bias else None, biased=False)
    made = sum("softmax" in name or "exp2_" in name for name in seen.names)
    assert sum("bmm" in name for name in seen.names) == 2 * made


def test_a_gradient_is_what_takes_the_way_with_gradients():
    q, k, v, *_ = drawn()
    q.requires_grad_()
    out, found = attend(q, k, v, scale=SCALE, statistics=SUMS)
    assert out.requires_grad and not found.row_entropy_BN.requires_grad
    with torch.no_grad():
        assert not attend(q, k, v, scale=SCALE, statistics=SUMS)[0].requires_grad


# Graphs


@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_it_is_one_graph_with_the_same_numbers(name):
    q, k, v, *masks = drawn()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = zip(compiled(q, k, v, **options(name, *masks)), ours(q, k, v, **options(name, *masks)), strict=True)
    assert all(a.equal(b) and a.stride() == b.stride() for a, b in found)


def test_the_operator_keeps_torchs_rules_for_operators():
    q, k, v, bias_BN, valid_BN = drawn(num=20)
    for values, wanted in ((v, (True, True)), (v, (True, False)), (None, (False, True))):
        args = (q, k, values, SCALE, bias_BN, valid_BN, False, *wanted)
        torch.library.opcheck(attention_map._operator, args, test_utils=("test_schema", "test_faketensor"))


def test_an_exported_program_holds_plain_operations_only():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, bias_BN):
            return ours(q, k, v, bias_BN, biased=False)

    q, k, v, bias_BN, _ = drawn(num=40)
    program = torch.export.export(Layer(), (q, k, v, bias_BN))
    assert not any("tokred" in str(node.target) for node in program.graph.nodes)
    found = zip(program.module()(q, k, v, bias_BN), dense(q, k, v, bias_BN, biased=False), strict=True)
    assert all(error(a, b) < 1e-6 for a, b in found)
