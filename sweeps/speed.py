"""The speed of a group's cells beside the unreduced model: a measurement for each mode and batch size, the same for all."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from tokred import ReducedModel, timing
from tokred.lit import EvaluationData, autocast
from tokred.memory import Peak, peak_memory, ran_out
from tokred.profile import reduction_share
from tokred.record import NULL, Store, Timed, Timing, key_of
from tokred.sweeps.accuracy import Bench, finished_model
from tokred.sweeps.conditions import conditions_of, device_of
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.machine import between, moment
from tokred.sweeps.plan import Cell, Group

SEED = 0  # of the order in a round
NO_LIMIT = 10**6


@dataclass(frozen=True)
class Measurement:
    """What is measured together."""

    mode: str
    batch_size: int
    cells: list[Cell]
    name: str


@dataclass(frozen=True)
class _Ready:
    """A model that has run once in its mode, on the batch."""

    run: Callable[[], object]
    peak: Peak
    compile_s: float | None


def open_measurements(group: Group, config: SweepConfig, store: Store) -> list[Measurement]:
    """Those that are not there yet. One that memory did not suffice for is tried again."""
    cells, there = _cells(group, store), {found.name for found in store.all_timings() if found.models}
    wanted = [
        Measurement(mode, size, cells, _name(group, cells, config, mode, size))
        for mode, size in config.timing.measurements
    ]
    return [measurement for measurement in wanted if cells and measurement.name not in there]


def is_measured(name: str, store: Store) -> bool:
    return any(found.name == name and found.models for found in store.all_timings())


def measure(
    measurement: Measurement, bench: Bench, progress: Progress, title: str, beat: Callable[[], None] = lambda: None
) -> Timing:
    """On one batch of the data. ``beat`` is called after every model and every round."""
    config, device = bench.config, device_of(bench.config)
    start = moment(device)
    names = [NULL, *(cell.key for cell in measurement.cells)]
    advance = _announced(measurement, len(names), config.timing.rounds, progress, title)

    def on_round() -> None:
        advance()
        beat()

    try:
        models: dict[str, nn.Module] = {NULL: bench.backbone}
        models |= {cell.key: finished_model(cell, bench) for cell in measurement.cells}
        inputs = one_batch(bench.samples, bench.backbone.sample_shape, measurement.batch_size).to(device)
        with torch.inference_mode(), autocast(device, config.precision), _compiler(measurement.mode):
            ready, left_out = _made_ready(models, inputs, measurement, device, beat)
            start = moment(device)  # of the rounds
            times = _timed(ready, config.timing.rounds, device, on_round) if ready else {}
            shares = {name: _reduction_share(models[name], inputs, measurement.mode) for name in times}
    except Exception as error:  # in the middle of the rounds, say; the records are there
        said = f"speed was not measured: {first_line(error)}"
        times, left_out = {}, _dropped(names, "the measurement") if ran_out(error) else dict.fromkeys(names, said)
    found = {name: _result(of_model, times[NULL], ready[name], shares[name]) for name, of_model in times.items()}
    return Timing(
        measurement.name,
        bench.group.backbone,
        measurement.batch_size,
        measurement.mode,
        SEED,
        found,
        timing.resolution(found[NULL].speedup) if found else None,
        left_out,
        _conditions(config) | between(start, moment(device)),
    )


def _conditions(config: SweepConfig) -> dict[str, Any]:
    """The batch size among them is that of the accuracies."""
    return {name: value for name, value in conditions_of(config).items() if name != "batch_size"}


def _cells(group: Group, store: Store) -> list[Cell]:
    """Of the done ones one a method and schedule, since other seeds run the same sums."""
    seen, cells = set(), []
    for cell in group.cells[1:]:
        what, record = key_of({**cell.spec, "seed": None}), store.get(cell.key)
        if record is not None and record.status == "done" and what not in seen:
            seen.add(what)
            cells.append(cell)
    return cells


def _name(group: Group, cells: Sequence[Cell], config: SweepConfig, mode: str, batch_size: int) -> str:
    """Another machine, mode, batch size or number of rounds is another measurement."""
    conditions = {
        name: value for name, value in conditions_of(config).items() if name in ("torch", "device", "threads")
    }
    content = [[cell.key for cell in cells], config.timing.rounds, batch_size, mode, conditions]
    return f"{group.backbone.replace('/', '_')}-{key_of(content)[:12]}"


def one_batch(samples: EvaluationData, shape: tuple[int, ...], size: int) -> Tensor:
    """``size`` inputs from the data, the first ones again where there are fewer; of several views of a sample each is one."""
    found = [one for inputs in samples.first_inputs(size) for one in inputs.reshape(-1, *shape)]
    return torch.stack([found[place % len(found)] for place in range(size)])


def _made_ready(
    models: Mapping[str, nn.Module], inputs: Tensor, measurement: Measurement, device: str, beat: Callable[[], None]
) -> tuple[dict[str, _Ready], dict[str, str]]:
    """The models, and of those that cannot be timed the reason."""
    ready, left_out = {}, {}
    labels = {NULL: "the unreduced model"} | {cell.key: cell.label for cell in measurement.cells}
    for name, model in models.items():
        try:
            ready[name] = _made_ready_one(model, inputs, measurement.mode, device)
        except Exception as error:  # a plugin can raise anything; the record is there
            if ran_out(error):
                return {}, _dropped(models, labels[name])
            left_out[name] = first_line(error)
        beat()
    if NULL in left_out:
        return {}, dict.fromkeys(models, f"the unreduced model does not run: {left_out[NULL]}")
    return ready, left_out


def first_line(error: Exception) -> str:
    """Compilers write pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _dropped(models: Iterable[str], culprit: str) -> dict[str, str]:
    """A comparison at a batch size that only some can hold would be none."""
    return dict.fromkeys(models, f"{culprit} ran out of memory, so this batch size is dropped for all")


def _made_ready_one(model: nn.Module, inputs: Tensor, mode: str, device: str) -> _Ready:
    called = torch.compile(model, fullgraph=True, dynamic=False) if mode == "compiled" else model
    call, start = partial(called, inputs), time.perf_counter()
    call()
    compile_s = time.perf_counter() - start if mode == "compiled" else None
    peak = peak_memory(call, device)
    if mode == "cuda_graph":  # the memory of the graphs captured before stays reserved, and says nothing of this one
        return _Ready(timing.graphed(call), peak._replace(reserved_mib=None), compile_s)
    return _Ready(call, peak, compile_s)


@contextmanager
def _compiler(mode: str) -> Iterator[None]:
    """Without the limit on how many graphs a forward may have, since each model has one of its own; they go at the end."""
    if mode != "compiled":
        yield
        return
    limits = {"recompile_limit": NO_LIMIT, "accumulated_recompile_limit": NO_LIMIT}
    try:
        with torch._dynamo.config.patch(limits):
            yield
    finally:
        torch._dynamo.reset()


def _announced(
    measurement: Measurement, num_models: int, rounds: int, progress: Progress, title: str
) -> Callable[[], None]:
    """To be called after every round."""
    what = f"{title}: speed, {measurement.mode}, batch {measurement.batch_size}"
    if progress.disable:  # no terminal to draw a bar on
        said = f"{what}: {rounds} rounds of {num_models} models"
        progress.console.print(said, highlight=False, markup=False, soft_wrap=True)
    return partial(progress.advance, progress.add_task(what, total=rounds))


def _timed(
    ready: Mapping[str, _Ready], rounds: int, device: str, on_round: Callable[[], None]
) -> dict[str, timing.Times]:
    return timing.beside(
        ready[NULL].run,
        {name: model.run for name, model in ready.items()},
        rounds=rounds,
        seed=SEED,
        block=timing.block_on(device),
        on_round=on_round,
    )


def _reduction_share(model: nn.Module, inputs: Tensor, mode: str) -> float | None:
    """None where parts cannot be told apart, and where memory does not suffice for running some of them once more."""
    if mode != "eager" or not isinstance(model, ReducedModel):
        return None
    try:
        return round(reduction_share(model, inputs), 4)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        return None


def _result(times: timing.Times, null: timing.Times, ready: _Ready, share: float | None) -> Timed:
    control = times is null
    verdict = timing.control(null.speedup()) if control else timing.verdict(times.speedup(), null.speedup())
    return Timed(
        **asdict(times),
        speedup=times.speedup(),
        cpu_ratio=times.cpu_ratio(),
        verdict=verdict,
        peak_mib=round(ready.peak.held_mib, 3),
        reserved_mib=ready.peak.reserved_mib,
        compile_s=None if ready.compile_s is None else round(ready.compile_s, 3),
        reduction_time_share=share,
    )
