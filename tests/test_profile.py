"""Where the time goes, on a clock of our own, which a model of known steps moves on. No test here reads the real one."""

from types import SimpleNamespace

import pytest
import torch

from tokred import Assignment, Backbone, Method, Schedule, Tokens, Widths, create_backbone, profile
from tokred.attention import Attention
from tokred.profile import LAYER_PARTS, profiled, reduction_share
from tokred.reduced import ReducedModel
from tokred.testing import TINY

EMBED, QKV, PROJECT, STATISTIC, FEEDFORWARD, HEAD = 300.0, 50.0, 20.0, 100.0, 70.0, 11.0  # ms
ASSIGN, REDUCE = 13.0, 5.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Seconds, moved on by hand."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    return clock


class Known(Backbone):
    """Two layers on 6 tokens, each step of which takes a known time; those of attention by the token."""

    depth, sample_shape, grid, num_tokens, prefix, has_cls = 2, (3, 2, 3), (1, 2, 3), 6, 0, False

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.speed = 1.0

    def takes(self, work_ms: float) -> None:
        self.clock.now_s += work_ms / 1e3 / self.speed

    def embed(self, inputs):
        self.takes(EMBED)
        return Tokens(inputs.flatten(2).mT, grid=self.grid)

    def qkv(self, layer, tokens, part="qkv"):
        self.takes(QKV * tokens.num)
        return (tokens.x_BNC[:, None],) * len(part)

    def project(self, layer, tokens, out_BHND):
        self.takes(PROJECT * tokens.num)
        return tokens.with_x(out_BHND[:, 0])

    def attend(self, layer, tokens, bias_BN=None, *, statistics=(), biased_statistics=True):
        self.takes(STATISTIC * len(statistics))
        return super().attend(layer, tokens, bias_BN, statistics=statistics, biased_statistics=biased_statistics)

    def feedforward(self, layer, tokens):
        self.takes(FEEDFORWARD)
        return tokens

    def normed(self, tokens):
        return tokens

    def head(self, tokens):
        self.takes(HEAD)
        return tokens.x_BNC.mean(1)

    def widths(self):
        two = (9, 9)
        return Widths(1, two, two, two, (3, 3), (3, 3), two, 1, 3, 1)


class First(Method):
    """Keeps the first tokens, in a known time."""

    def __init__(self, clock, site="after_attention", statistics=()):
        super().__init__()
        self.clock, self.site, self.statistics = clock, site, statistics

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        self.clock.now_s += ASSIGN / 1e3
        return Assignment.select(torch.arange(keep).expand(len(tokens.x_BNC), -1), tokens.num)

    def reduce(self, tokens, attention, keep):
        self.clock.now_s += REDUCE / 1e3
        return super().reduce(tokens, attention, keep)


def real(clock) -> ReducedModel:
    name, sizes = TINY["class_token"]
    backbone = create_backbone(name, weights="random", **sizes)
    return ReducedModel(backbone, First(clock), Schedule(17, (9, 9, 9), (9, 9, 9), "by hand")).eval()


def found(clock, method, tokens=(4, 4), **options):
    schedule = Schedule(6, tokens, tokens, "by hand")
    model = ReducedModel(Known(clock), method, schedule).eval()
    return profiled(model, torch.rand(2, 3, 2, 3), **options)


def parts(**times_ms: float):
    return pytest.approx({part: times_ms.get(part, 0.0) for part in LAYER_PARTS}, abs=1e-6)


@pytest.mark.parametrize(("site", "in_attention"), [("before_attention", 4), ("after_attention", 6), ("after_mlp", 6)])
def test_each_step_shows_in_its_part_and_nowhere_else(site, in_attention, clock):
    seen = found(clock, First(clock, site))
    attention = in_attention * (QKV + PROJECT)
    assert seen.layers_ms[0] == parts(attention=attention, matching=ASSIGN, merging=REDUCE, mlp=FEEDFORWARD)
    assert (seen.embedding_ms, seen.head_ms) == pytest.approx((EMBED, HEAD))


def test_a_layer_that_does_not_reduce_has_attention_and_mlp_alone(clock):
    assert found(clock, First(clock)).layers_ms[1] == parts(attention=4 * (QKV + PROJECT), mlp=FEEDFORWARD)


def test_statistics_are_what_attention_takes_longer_with_them(clock):
    seen = found(clock, First(clock, statistics=("received", "row_entropy")))
    attention = 6 * (QKV + PROJECT)
    assert seen.layers_ms[0] == parts(
        attention=attention, statistics=2 * STATISTIC, matching=ASSIGN, merging=REDUCE, mlp=FEEDFORWARD
    )


@pytest.mark.parametrize(
    ("site", "statistics", "merges"), [("queries", ("received",), 1), ("attention", ("map", "received"), 2)]
)
def test_what_lies_inside_attention_is_found_by_running_it_again(site, statistics, merges, clock, monkeypatch):
    """``merges``: of the tokens, and of the map."""

    def takes(work_ms, call):
        def run(*arguments, **options):
            clock.now_s += work_ms(options) / 1e3
            return call(*arguments, **options)

        return run

    measure = takes(lambda options: STATISTIC * len(options["statistics"]), profile.measure)
    for module in ("tokred.reduced", "tokred.profile"):
        monkeypatch.setattr(f"{module}.measure", measure)
    monkeypatch.setattr(Tokens, "reduce", takes(lambda _: REDUCE, Tokens.reduce))
    monkeypatch.setattr(Assignment, "merge_map", takes(lambda _: REDUCE, Assignment.merge_map))
    seen = found(clock, First(clock, site, statistics)).layers_ms[0]
    queries, values = (6, 6) if site == "queries" else (6, 4)
    of_map = STATISTIC * (site == "attention")  # the output is made of it
    attention = of_map + QKV * (queries + (values if site == "attention" else 0)) + PROJECT * 4
    assert seen == parts(
        attention=attention, statistics=STATISTIC, matching=ASSIGN, merging=merges * REDUCE, mlp=FEEDFORWARD
    )


@pytest.mark.parametrize("site", ["before_attention", "queries", "attention", "after_attention", "after_mlp"])
def test_the_parts_add_up_to_the_forward(site, clock):
    statistics = () if site == "before_attention" else ("map", "received") if site == "attention" else ("received",)
    seen = found(clock, First(clock, site, statistics))
    assert sum(seen.parts_ms.values()) == pytest.approx(seen.forward_ms) and seen.sum_share == pytest.approx(1)


def test_the_share_is_that_of_statistics_matching_and_merging(clock):
    seen = found(clock, First(clock, statistics=("received",)))
    assert seen.reduction_share == pytest.approx((STATISTIC + ASSIGN + REDUCE) / seen.forward_ms)


def test_the_share_alone_is_the_same(clock):
    model = ReducedModel(Known(clock), First(clock, statistics=("received",)), Schedule(6, (4, 4), (4, 4), "by hand"))
    share = profiled(model, torch.rand(2, 3, 2, 3)).reduction_share
    assert reduction_share(model, torch.rand(2, 3, 2, 3)) == pytest.approx(share)


def test_an_unreduced_model_has_no_reduction(clock):
    seen = found(clock, First(clock, statistics=("received",)), tokens=(6, 6))
    assert seen.reduction_share == 0 and seen.tokens == (6, 6)


def test_tokens_are_those_that_left_each_layer(clock):
    assert found(clock, First(clock), tokens=(5, 2)).tokens == (5, 2)


def test_a_slow_round_does_not_move_the_median(clock):
    class OnceSlow(First):
        calls = 0

        def assign(self, tokens, attention, keep):
            self.calls += 1
            if self.calls == 9:
                self.clock.now_s += 10
            return super().assign(tokens, attention, keep)

    assert found(clock, OnceSlow(clock), rounds=5).layers_ms[0]["matching"] == pytest.approx(ASSIGN)


def test_the_first_call_is_not_counted(clock):
    class SlowAtFirst(First):
        calls = 0

        def assign(self, tokens, attention, keep):
            self.calls += 1
            self.clock.now_s += 10 * (self.calls <= 3)  # the tokens, and both forwards of a round
            return super().assign(tokens, attention, keep)

    assert found(clock, SlowAtFirst(clock), rounds=1).layers_ms[0]["matching"] == pytest.approx(ASSIGN)


@pytest.mark.parametrize(("speed", "num_rounds"), [(1.0, 3), (1e3, 78)])
def test_quick_models_are_run_in_more_rounds(speed, num_rounds, clock):
    """Two forwards of 1.291 s a round, or of 1.291 ms: 200 ms are 78 rounds."""
    heads = []

    class Counted(Known):
        def head(self, tokens):
            heads.append(1)
            return super().head(tokens)

    backbone, schedule = Counted(clock), Schedule(6, (6, 6), (6, 6), "by hand")
    backbone.speed = speed
    profiled(ReducedModel(backbone, First(clock), schedule), torch.rand(1, 3, 2, 3), rounds=3)
    assert len(heads) == 1 + 2 + 2 * num_rounds  # the tokens, and a round that is not counted


def test_the_model_stays_as_it_was(clock):
    model, inputs = real(clock), torch.rand(1, 3, 32, 32)
    before = [dict(vars(part)) for part in (model.backbone, model.method)]
    profiled(model, inputs, rounds=1)
    assert before == [vars(part) for part in (model.backbone, model.method)]


def test_the_model_on_the_stopwatch_computes_what_it_does_without(clock):
    model, inputs = real(clock), torch.rand(2, 3, 32, 32)
    watch = profile._Stopwatch("cpu", turn=0)
    assert torch.equal(profile._Timed(model, watch)(inputs), model(inputs))


def test_inputs_on_another_device_are_refused(clock):
    model = ReducedModel(Known(clock), First(clock), Schedule(6, (4, 4), (4, 4), "by hand"))
    with pytest.raises(ValueError, match="on the CPU and on CUDA; the inputs are on meta"):
        profiled(model, torch.rand(1, 3, 2, 3, device="meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_a_wait_of_the_device_shows_in_its_part_alone():
    """``torch.cuda._sleep`` keeps the device busy and returns at once: only its own clock sees that."""

    class Busy(First):
        def assign(self, tokens, attention, keep):
            torch.cuda._sleep(50_000_000)  # cycles, 20 ms and more
            index_BK = torch.arange(keep, device="cuda").expand(len(tokens.x_BNC), -1)
            return Assignment.select(index_BK, tokens.num)

    model = real(None).cuda()
    model.method = Busy(SimpleNamespace(now_s=0.0))
    layer = profiled(model, torch.rand(1, 3, 32, 32, device="cuda"), rounds=3).layers_ms[0]
    assert layer["matching"] > sum(time_ms for part, time_ms in layer.items() if part != "matching")
