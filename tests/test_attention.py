"""Attention and its statistics against the full map, written out in float64."""

import pytest
import torch
import torch.nn.functional as F

from tokred import attention, attention_map
from tokred.attention import STATISTICS, attend, measure, plain

B, H, N, D = 2, 3, 37, 8  # of 37 queries, chunks of 16 leave a rest
SCALE = D**-0.5


def parts(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, H, N, D, generator=generator) for _ in range(3)]


def bias(seed: int = 1) -> torch.Tensor:
    return torch.rand(B, N, generator=torch.Generator().manual_seed(seed)) * 3


def valid() -> torch.Tensor:
    """All tokens of the first sample are real; the last 9 of the second are not."""
    real_BN = torch.ones(B, N, dtype=torch.bool)
    real_BN[1, 28:] = False
    return real_BN


def full_map(q, k, bias_BN=None, valid_BN=None) -> torch.Tensor:
    logits = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) / D**0.5
    if bias_BN is not None:
        logits = logits + bias_BN[:, None, None].double()
    if valid_BN is not None:
        logits = logits.masked_fill(~valid_BN[:, None, None], float("-inf"))
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def expected(name: str, map_BHNN: torch.Tensor, valid_BN=None) -> torch.Tensor:
    mean = map_BHNN.mean(1)
    if name == "map":
        return map_BHNN
    if name == "head_mean":
        return mean
    if name == "cls_row":
        return mean[:, 0]
    if name == "received":
        real = torch.ones(B, N) if valid_BN is None else valid_BN
        return torch.stack([row[keep.bool()].mean(0) for row, keep in zip(mean, real, strict=True)])
    return (mean * mean.clamp_min(1e-300).log()).sum(-1)  # 0 log 0 = 0


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-6)  # float32 sums of 37 terms of about 1


@pytest.fixture(params=["one chunk", "chunks"])
def chunks(request, monkeypatch):
    if request.param == "chunks":
        monkeypatch.setattr(attention_map, "_CHUNK_ELEMENTS", {"cpu": 1})  # the least chunk: 16 queries
        monkeypatch.setattr(attention_map, "_IN_PLACE_QUERIES", 16)
        monkeypatch.setattr(attention_map, "_IN_PLACE_THREADS", 1)
        monkeypatch.setattr(attention_map, "_IN_PLACE_ELEMENTS", 1)  # one head at a time


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_that_of_the_full_map(name, with_bias, with_valid, chunks):
    q, k, v = parts()
    options = {"bias_BN": bias() if with_bias else None, "valid_BN": valid() if with_valid else None}
    _, found = attend(q, k, v, scale=SCALE, statistics=(name,), **options)
    assert close(found.found[name], expected(name, full_map(q, k, **options), options["valid_BN"]))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("statistics", [(), ("cls_row",), ("received",), ("map", "cls_row")])
def test_the_output_is_that_of_the_full_map(statistics, with_bias, with_valid, chunks):
    q, k, v = parts()
    options = {"bias_BN": bias() if with_bias else None, "valid_BN": valid() if with_valid else None}
    out, _ = attend(q, k, v, scale=SCALE, statistics=statistics, **options)
    assert close(out, full_map(q, k, **options) @ v.double())


@pytest.mark.parametrize("name", STATISTICS)
def test_unbiased_statistics_leave_the_bias_out_and_the_output_keeps_it(name, chunks):
    q, k, v = parts()
    out, found = attend(q, k, v, scale=SCALE, bias_BN=bias(), statistics=(name,), biased_statistics=False)
    assert close(found.found[name], expected(name, full_map(q, k)))
    assert close(out, full_map(q, k, bias()) @ v.double())


@pytest.mark.parametrize("name", STATISTICS)
def test_a_padded_sample_has_the_statistics_of_the_sample_alone(name, chunks):
    q, k, v = parts()
    _, padded = attend(q, k, v, scale=SCALE, valid_BN=valid(), statistics=(name,))
    _, alone = attend(*(x[1:, :, :28] for x in (q, k, v)), scale=SCALE, statistics=(name,))
    ours, theirs = padded.found[name][1:], alone.found[name]
    real = ours[tuple(slice(size) for size in theirs.shape)]  # what is there of padding comes last on each axis
    assert torch.allclose(real, theirs, rtol=1e-5, atol=1e-6)


def test_several_statistics_come_from_one_call():
    q, k, v = parts()
    _, found = attend(q, k, v, scale=SCALE, statistics=tuple(STATISTICS))
    assert all(close(found.found[name], expected(name, full_map(q, k))) for name in STATISTICS)


def test_statistics_have_a_name_on_the_attention():
    q, k, v = parts()
    _, found = attend(q, k, v, scale=SCALE, statistics=tuple(STATISTICS))
    named = (found.cls_row_BN, found.received_BN, found.row_entropy_BN, found.head_mean_BNN, found.map_BHNN)
    assert all(ours is found.found[name] for ours, name in zip(named, STATISTICS, strict=True))


@pytest.mark.parametrize(("statistics", "calls"), [((), 1), (("cls_row",), 1), (("row_entropy",), 0)])
def test_attention_is_fused_unless_a_statistic_needs_the_map(statistics, calls, monkeypatch):
    seen, fused = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: seen.append(1) or fused(*a, **k))
    attend(*parts(), scale=SCALE, statistics=statistics)
    assert len(seen) == calls


def test_entropy_is_finite_where_attention_is_exactly_zero():
    q, k, v = parts()
    _, found = attend(1000 * q, k, v, scale=SCALE, statistics=("row_entropy", "head_mean"))
    assert (found.head_mean_BNN == 0).any()
    assert found.row_entropy_BN.isfinite().all()


def test_entropy_lies_between_that_of_one_key_and_of_all():
    q, k, v = parts()
    _, found = attend(torch.zeros_like(q), k, v, scale=SCALE, statistics=("row_entropy",))
    assert torch.allclose(found.row_entropy_BN, -torch.tensor(float(N)).log())
    onto_itself = 1e4 * F.normalize(q, dim=-1)
    _, found = attend(onto_itself, onto_itself, v, scale=SCALE, statistics=("row_entropy",))
    assert torch.equal(found.row_entropy_BN, torch.zeros(B, N))


def test_statistics_carry_no_gradient():
    q, k, v = (x.requires_grad_() for x in parts())
    _, found = attend(q, k, v, scale=SCALE, statistics=tuple(STATISTICS))
    assert not any(value.requires_grad for value in found.found.values())


def test_the_gradient_of_the_output_is_that_of_fused_attention(chunks):
    gradients = []
    for statistics in ((), ("row_entropy",)):
        given = [x.requires_grad_() for x in parts()]
        attend(*given, scale=SCALE, bias_BN=bias(), statistics=statistics)[0].square().sum().backward()
        gradients.append([x.grad for x in given])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_statistics_are_computed_in_float32_whatever_the_precision():
    q, k, v = (x.bfloat16() for x in parts())
    out, found = attend(q, k, v, scale=SCALE, bias_BN=bias(), statistics=tuple(STATISTICS))
    assert out.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in found.found.values())


def test_an_unknown_statistic_is_refused_with_the_list():
    with pytest.raises(ValueError, match="no attention statistic 'entropy'; there are cls_row, received, row_entropy"):
        attend(*parts(), scale=SCALE, statistics=("entropy",))


def test_a_statistic_that_was_not_asked_for_says_where_to_ask():
    _, found = attend(*parts(), scale=SCALE, statistics=("cls_row",))
    with pytest.raises(ValueError, match=r"'received' was not asked for; name it in the method's `statistics`"):
        _ = found.received_BN


# Inside attention: some queries, and statistics before there is an output


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_valid", [False, True])
def test_some_queries_get_what_they_get_among_all(with_bias, with_valid):
    q, k, v = parts()
    options = {"bias_BN": bias() if with_bias else None, "valid_BN": valid() if with_valid else None}
    out = plain(q[:, :, [30, 2, 5]], k, v, scale=SCALE, **options)
    assert close(out, (full_map(q, k, **options) @ v.double())[:, :, [30, 2, 5]])


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("name", STATISTICS)
def test_a_measured_statistic_is_that_of_the_full_map(name, with_bias, with_valid, chunks):
    q, k, _ = parts()
    options = {"bias_BN": bias() if with_bias else None, "valid_BN": valid() if with_valid else None}
    found = measure(q, k, scale=SCALE, statistics=(name,), **options)
    assert close(found.found[name], expected(name, full_map(q, k, **options), options["valid_BN"]))


@pytest.mark.parametrize("name", STATISTICS)
def test_measured_statistics_without_bias_leave_it_out(name):
    q, k, _ = parts()
    found = measure(q, k, scale=SCALE, bias_BN=bias(), statistics=(name,), biased_statistics=False)
    assert close(found.found[name], expected(name, full_map(q, k)))


def test_all_statistics_are_measured_in_one_call():
    q, k, _ = parts()
    found = measure(q, k, scale=SCALE, valid_BN=valid(), statistics=tuple(STATISTICS)).found
    map_BHNN = full_map(q, k, valid_BN=valid())
    assert set(found) == set(STATISTICS)
    assert all(close(found[name], expected(name, map_BHNN, valid())) for name in STATISTICS)


def test_only_the_measured_map_has_a_gradient():
    q, k, _ = (x.requires_grad_() for x in parts())
    found = measure(q, k, scale=SCALE, statistics=tuple(STATISTICS)).found
    assert [name for name in STATISTICS if found[name].requires_grad] == ["map"]


def test_measuring_needs_no_values_and_keeps_those_it_is_given():
    q, k, v = parts()
    assert measure(q, k, scale=SCALE).v_BHND is None
    assert measure(q, k, v_BHND=v, scale=SCALE).v_BHND is v


def test_an_unknown_statistic_is_not_measured():
    with pytest.raises(ValueError, match="no attention statistic 'entropy'"):
        measure(*parts()[:2], scale=SCALE, statistics=("entropy",))


@pytest.mark.parametrize("wanted", ["q", "bias", None])
def test_where_a_gradient_is_wanted_plain_attention_takes_no_kernel_of_our_own(wanted, monkeypatch):
    for check in ("runs_kernels", "has_kernel"):
        monkeypatch.setattr("tokred.attention." + check, lambda *given: True)
    q, k, v = (x.bfloat16() for x in parts())
    given = {"q": q, "k": k, "v": v, "bias": bias()}
    if wanted:
        given[wanted] = given[wanted].detach().requires_grad_()
    assert attention._by_own_kernel(*given.values()) == (wanted is None)
