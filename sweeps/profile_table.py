"""What ``tokred profile`` prints: a table for each model, then their speed-ups; and the same numbers as lines of a CSV."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokred.analysis.rows import plain
from tokred.profile import LAYER_PARTS, Profile
from tokred.sweeps.profile import GroupProfile, ModelProfile

FORWARD = "forward"
_TITLES = {"mlp_ms": "MLP"}


@dataclass(frozen=True)
class Line:
    """A layer of a model, its embedding or its head; and last, as layer "forward", the sums over them and what is known of the
    whole: ``forward_ms`` is without a stopwatch, the shares lie in 0..1, the speed-ups have no unit."""

    backbone: str
    weights: str
    model: str
    batch_size: int
    layer: str
    num_tokens_in: int | None = None
    num_tokens_out: int | None = None
    attention_ms: float | None = None
    statistics_ms: float | None = None
    matching_ms: float | None = None
    merging_ms: float | None = None
    mlp_ms: float | None = None
    sum_ms: float | None = None
    forward_ms: float | None = None
    reduction_time_share: float | None = None
    speedup_by_macs: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    verdict: str = ""


def lines(group: GroupProfile) -> list[Line]:
    return [line for model in group.models if model.profile is not None for line in _lines(group, model, model.profile)]


def print_group(group: GroupProfile, console: Console) -> None:
    """The tables of one backbone."""
    threads = torch.get_num_threads()
    where = f"cpu, {threads} thread{'s' * (threads > 1)}" if group.device == "cpu" else group.device
    _say(console, f"{group.backbone}, {group.weights} weights, a batch of {group.batch_size} of {group.data}, {where}")
    for model in group.models:
        if model.profile is None:
            _say(console, f"{model.label}: {model.status}: {plain(model.reason)}", style="")
            continue
        console.print()
        _say(console, f"{_name(model)}, milliseconds for the batch")
        console.print(_table(_lines(group, model, model.profile)))
        _say(console, _adds_up(model.profile), style="")
    console.print()
    if any(model.profile is not None for model in group.models[1:]):
        console.print(_speedups(group))
    for note in _notes(group):
        _say(console, note, style="")


def _adds_up(profile: Profile) -> str:
    whole, share = _form(profile.forward_ms)(profile.forward_ms), 100 * profile.sum_share
    return f"Without a stopwatch {whole} ms. In a round the parts add up to {share:.1f} % of that (the median of all rounds)."


def _lines(group: GroupProfile, model: ModelProfile, profile: Profile) -> list[Line]:
    def line(layer: str, parts_ms: dict[str, float], **known: Any) -> Line:
        by_part: dict[str, Any] = {f"{part}_ms": parts_ms.get(part) for part in LAYER_PARTS}
        label, sum_ms = plain(model.label), sum(parts_ms.values())
        return Line(group.backbone, group.weights, label, group.batch_size, layer, sum_ms=sum_ms, **by_part | known)

    middle, low, high = model.measured or (None, None, None)
    reaching = (model.num_input_tokens, *profile.tokens)
    of_layers = [
        line(str(layer), parts_ms, num_tokens_in=reaching[layer], num_tokens_out=reaching[layer + 1])
        for layer, parts_ms in enumerate(profile.layers_ms)
    ]
    whole = line(
        FORWARD,
        profile.parts_ms,
        num_tokens_in=reaching[0],
        num_tokens_out=reaching[-1],
        forward_ms=profile.forward_ms,
        reduction_time_share=profile.reduction_share,
        speedup_by_macs=model.by_macs,
        speedup=middle,
        speedup_low=low,
        speedup_high=high,
        verdict=model.verdict,
    )
    first = line("embedding", {"embedding": profile.embedding_ms}, num_tokens_out=reaching[0])
    return [first, *of_layers, line("head", {"head": profile.head_ms}, num_tokens_in=reaching[-1]), whole]


def _table(found: Sequence[Line]) -> Table:
    """Of the parts that the model has."""
    whole = found[-1]
    assert whole.sum_ms is not None
    form, names = _form(whole.sum_ms), [f"{part}_ms" for part in LAYER_PARTS]
    names = [name for name in names if getattr(whole, name)] + ["sum_ms"]
    table = _empty_table("layer", "tokens", *(_TITLES.get(name, name.removesuffix("_ms")) for name in names))
    for line in found:
        if line is whole:
            table.add_section()
        times = [form(getattr(line, name)) if getattr(line, name) else "" for name in names]
        table.add_row("sum" if line is whole else line.layer, _tokens(line), *times)
    table.add_row("% of sum", "", *(f"{100 * getattr(whole, name) / whole.sum_ms:.1f}" for name in names))
    return table


def _tokens(line: Line) -> str:
    before, after = line.num_tokens_in, line.num_tokens_out
    if before is None or after is None or before == after:
        return str(after if before is None else before)
    return f"{before} -> {after}"


def _speedups(group: GroupProfile) -> Table:
    titles = ("speed-up\nby MACs", "measured\nx [95 %]", "reduction,\n% of time", "measured,\nwithout it")
    table = _empty_table("model", *titles)
    for model in group.models[1:]:
        if model.profile is None or model.by_macs is None:
            continue
        share, measured, without = model.profile.reduction_share, "", ""
        if model.measured is not None:
            middle, low, high = model.measured
            mark = "~" if model.verdict == "below resolution" else ""
            measured, without = f"{mark}{middle:.2f} [{low:.2f}, {high:.2f}]", f"{middle / (1 - share):.2f}"
        table.add_row(Text(_name(model)), f"{model.by_macs:.2f}", measured, f"{100 * share:.1f}", without)
    return table


def _notes(group: GroupProfile) -> list[str]:
    if group.null is None:
        return [f"Speed-up was not measured{group.reason and ': '}{group.reason}."]
    middle, low, high = group.null
    below = any(model.verdict == "below resolution" for model in group.models)
    return [
        *(["~: differs from 1 by no more than the unreduced model from itself, below resolution."] if below else []),
        "Reduction: statistics, matching and merging, in the sum of the parts. Without it: that share of the time taken off.",
        f"Timing: {group.verdict}; the unreduced model against itself comes out as {middle:.3f} [{low:.3f}, {high:.3f}].",
        "Milliseconds hold for their own table and moment; models are compared by their speed-ups.",
    ]


def _name(model: ModelProfile) -> str:
    return "unreduced" if model.label == "none" else plain(model.label)


def _form(whole_ms: float) -> Callable[[float], str]:
    """Four digits of the whole, and as many behind the point of its parts."""
    return f"{{:.{min(3, max(0, 3 - int(math.log10(max(whole_ms, 1)))))}f}}".format


def _empty_table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(Text(title), justify="right" if number else "left", no_wrap=bool(number))
    return table


def _say(console: Console, text: str, style: str = "bold") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
