"""The configuration of a sweep: composed by Hydra from ``conf``, then plain data. Nothing in it is ever called or imported."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokred.registry import unknown
from tokred.schedule import SHAPES

CONF = Path(__file__).resolve().parent / "conf"
AMOUNTS = ("budget", "r", "keep_rate", "tokens")
SHARES = ("budget", "keep_rate")
GROUPS = ("data", "experiment", "task")  # their values are names of files in CONF
OPEN = (
    "options",
    "sizes",
    "data",
    "calibration",
)  # what is in these depends on methods, backbones and data, which check it
LISTED = ("timing", "resources", "slurm")  # have parts, checked here
MOST_CHARACTERS = 10_000  # of a word: Hydra's grammar takes seconds for more, and minutes for much more
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


MODES = ("eager", "compiled", "cuda_graph")
LOGGERS = ("csv", "tensorboard", "wandb")


@dataclass(frozen=True)
class Timing:
    """Each mode at each batch size is a measurement; the first of both is the one that the table shows."""

    rounds: int
    batch_size: list[int]
    modes: list[str]

    @property
    def measurements(self) -> list[tuple[str, int]]:
        return [(mode, size) for mode in self.modes for size in self.batch_size] if self.rounds else []


EXECUTORS = ("local", "ray", "slurm")
SLURM = ("cluster", "partition", "account", "qos", "constraint", "gres", "time", "mem", "nodelist", "exclude")


@dataclass(frozen=True)
class Resources:
    """What one process of a sweep asks for; None: see ``tokred.sweeps.executors``. Two processes can share a GPU: gpus=0.5."""

    cpus: int | None
    gpus: float | None
    memory_gb: float | None


@dataclass(frozen=True)
class SweepConfig:
    """Axes are lists. ``amounts``: (kind, amount) pairs, kind one of budget, r, keep_rate, tokens, own."""

    task: str
    methods: list[str]
    options: dict[str, dict[str, Any]]
    backbones: list[str]
    sizes: dict[str, Any]
    weights: list[str]
    vocabulary: str | None
    shortlist: int | None
    amounts: list[tuple[str, Any]]
    shape: list[str]
    layers: list[list[int] | None]
    match: str | None
    allow_clip: bool
    seeds: int
    data: dict[str, Any]
    calibration: dict[str, Any]
    batch_size: int
    cells_per_pass: int
    workers: int
    traces: int
    timeout: float | None
    retry: str | None
    executor: str
    processes: int | None
    resources: Resources
    slurm: dict[str, str]
    device: str
    devices: int
    precision: str
    timing: Timing
    loggers: list[str]
    out: str | None
    plugins: list[str]


def read_config(overrides: Sequence[str]) -> SweepConfig:
    """From ``key=value`` words. Raises ValueError with one line where they cannot be understood."""
    words = [_parsed(word) for word in overrides]
    raw = _compose([_opened(word) for word in words])
    asked = [word.key_or_group for word in words]
    for key in raw:  # of an experiment's file; those of the words are checked
        _check_known(key)
    methods = _strings(raw, "methods")
    _check_used(asked, methods)
    return SweepConfig(
        task=_one_of(_names("task"), raw, "task"),
        methods=methods,
        options=_options(_mapping(raw, "options")),
        backbones=_strings(raw, "backbones"),
        sizes=_mapping(raw, "sizes"),
        weights=_strings(raw, "weights"),
        vocabulary=None if raw["vocabulary"] is None else str(raw["vocabulary"]),
        shortlist=None if raw["shortlist"] is None else _at_least(1, raw, "shortlist"),
        amounts=_amounts(raw, asked),
        shape=[_one_of(SHAPES, {"shape": shape}, "shape") for shape in _strings(raw, "shape")],
        layers=_layers(raw["layers"]),
        match=_match(raw, methods),
        allow_clip=_a(bool, raw, "allow_clip"),
        seeds=_at_least(1, raw, "seeds"),
        data=_mapping(raw, "data"),
        calibration=_mapping(raw, "calibration"),
        batch_size=_at_least(1, raw, "batch_size"),
        cells_per_pass=_at_least(1, raw, "cells_per_pass"),
        workers=_at_least(0, raw, "workers"),
        traces=_at_least(0, raw, "traces"),
        timeout=_seconds(raw["timeout"]),
        retry=None if raw["retry"] is None else _one_of(("failed",), raw, "retry"),
        executor=_one_of(EXECUTORS, raw, "executor"),
        processes=_processes(raw),
        resources=_resources(_mapping(raw, "resources"), raw["executor"]),
        slurm=_slurm(raw),
        device=_one_of(("auto", "cpu", "cuda"), raw, "device"),
        devices=_at_least(1, raw, "devices"),
        precision=_one_of(PRECISIONS, raw, "precision"),
        timing=_timing(_mapping(raw, "timing")),
        loggers=[_one_of(LOGGERS, {"loggers": one}, "loggers") for one in _strings(raw, "loggers")],
        out=None if raw["out"] is None else str(raw["out"]),
        plugins=_strings(raw, "plugins"),
    )


def experiments() -> list[str]:
    """Names for ``experiment=NAME``."""
    return _names("experiment")


def data_sets() -> list[str]:
    """Names for ``data=NAME``: the sources, and published sets that are read by one of them."""
    return _names("data")


def _names(group: str) -> list[str]:
    folder = CONF / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _parsed(word: str) -> Override:
    """One ``key=value``, its key known. Hydra's own messages name its grammar, not ours."""
    if "=" not in word or word.startswith(("-", "~")):
        raise ValueError(f"{word!r} is not KEY=VALUE, as methods=[tome,evit] is; --help names the keys")
    if len(word) > MOST_CHARACTERS:
        raise ValueError(f"{word[:60]!r}... has {len(word)} characters, and {MOST_CHARACTERS} are the most; shorten it")
    if "${" in word:
        raise ValueError(
            f"{word!r} is to be filled in from elsewhere (${{...}}), which is not done; give the value itself"
        )
    try:
        parsed = OverridesParser.create().parse_override(word)
    except (HydraException, RecursionError) as error:
        raise ValueError(
            f"{word!r} cannot be read; a list is written KEY=[a,b], and a value with other signs in quotes: KEY='a=b'"
        ) from error
    if parsed.is_sweep_override():
        raise ValueError(f"{word!r} is not a value; a list is written in brackets, as {parsed.key_or_group}=[a,b]")
    key, _, part = parsed.key_or_group.partition(".")
    _check_known(key)
    if part and key not in (*OPEN, *LISTED):
        raise ValueError(f"{key} takes a value and has no parts; got {word!r}")
    if key in GROUPS and not part and parsed.value() not in [*_names(key), *([None] if key == "experiment" else [])]:
        raise ValueError(unknown(key, str(parsed.value()), _names(key)))
    return parsed


def _check_known(key: str) -> None:
    known = [field.name for field in fields(SweepConfig) if field.name != "amounts"] + [*AMOUNTS, "experiment"]
    if key not in known:
        raise ValueError(unknown("the settings", key, known))


def _opened(word: Override) -> str:
    """Hydra asks for ``++`` where a setting is not listed; here that is for those to say who take it."""
    text, key = (word.input_line or "").lstrip("+"), word.key_or_group
    is_open = key.startswith(tuple(f"{name}." for name in (*OPEN, *LISTED))) or key in (
        "options",
        "sizes",
        "calibration",
        *LISTED,
    )
    return "++" + text if is_open else text


def _compose(overrides: list[str]) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=overrides)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ValueError(f"{missing[0]} must be given, and none came; add {missing[0]}=...")
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]  # a mapping at the top
    except RecursionError as error:
        raise ValueError(
            "a value is nested too deeply; lists of lists are the deepest that any setting takes"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError("; ".join(line.strip() for line in str(error).splitlines()[:2])) from error


def _check_used(asked: Sequence[str], methods: Sequence[str]) -> None:
    """An option that was asked for and reaches no method would be passed over in silence."""
    named = [key.split(".")[1] for key in asked if key.startswith("options.")]
    unused = [name for name in named if name not in methods and list(methods) != ["all"]]
    if unused:
        raise ValueError(
            f"options.{unused[0]} is set, but the methods are {', '.join(methods)}; add {unused[0]} to them"
        )


def _options(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    for method, options in raw.items():
        if not isinstance(options, dict):
            raise ValueError(f"options of a method are given by name, as options.{method}.NAME=VALUE; got {options!r}")
        empty = [name for name, value in options.items() if value == []]
        if empty:
            raise ValueError(f"options.{method}.{empty[0]} must be a value or a list of values; the list is empty")
    return raw


def _amounts(raw: dict[str, Any], asked: Sequence[str]) -> list[tuple[str, Any]]:
    """Of the four kinds the one that was asked for; a budget that was not, the default, gives way to the others. None of them:
    methods whose counts differ by sample do as their options say."""
    given = [kind for kind in AMOUNTS if raw[kind] is not None]
    by_hand = [kind for kind in given if kind in asked]
    given = by_hand or [kind for kind in given if kind != "budget"] or given
    if not given:
        return [("own", None)]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(AMOUNTS)}; got {' and '.join(given)}")
    kind, amounts = given[0], raw[given[0]]
    if kind != "budget" and "shape" in asked:
        raise ValueError(f"shape goes with budget: it says where one is spent; the amounts here are {kind}")
    if amounts == []:
        raise ValueError(f"{kind} must be an amount or a list of amounts; the list is empty")
    amounts = amounts if isinstance(amounts, list) else [amounts]
    for amount in amounts:
        _check_amount(kind, amount)
    return [(kind, amount) for amount in amounts]


def _check_amount(kind: str, amount: Any) -> None:
    if kind == "budget" and isinstance(amount, list):
        raise ValueError(f"an amount of budget must be one share, for the whole model; got {amount!r}")
    if kind == "tokens" and not isinstance(amount, list):
        raise ValueError(f"tokens must be a list of lists, each with one count for each layer; got {amount!r} in it")
    kinds = (int,) if kind == "tokens" else (int, float)
    for number in amount if isinstance(amount, list) else [amount]:
        if type(number) not in kinds:
            raise ValueError(
                f"{kind} must be a list of amounts, each a number or a list of one number for each layer; got {number!r}"
            )
        if not (0 < number <= 1 if kind in SHARES else 0 <= number < float("inf")):
            range_ = "above 0 and at most 1" if kind in SHARES else "0 or more"
            raise ValueError(f"{kind} must be {range_}; got {number!r}")
    if amount == []:
        raise ValueError(
            f"an amount of {kind} must be a number or a list of one number for each layer; the list is empty"
        )


def _layers(raw: Any) -> list[list[int] | None]:
    if raw is None:
        return [None]
    choices = raw if isinstance(raw, list) and raw and all(isinstance(one, list) for one in raw) else [raw]
    for layers in choices:
        if not isinstance(layers, list) or not layers or not all(type(layer) is int for layer in layers):
            raise ValueError(f"layers must be a list of layers, or a list of such lists; got {raw!r}")
    return choices


def _match(raw: dict[str, Any], methods: Sequence[str]) -> str | None:
    match = raw["match"]
    if match is not None and match not in methods and methods != ["all"]:
        raise ValueError(f"match must be one of the methods, {', '.join(methods)}, or null; got {match!r}")
    return match


def _processes(raw: dict[str, Any]) -> int | None:
    """Raises ValueError where they would not be used, or somebody else's machines be taken for as many as there are."""
    if raw["executor"] == "slurm" and raw["processes"] is None:
        raise ValueError("executor=slurm needs the number of jobs: add processes=8")
    return None if raw["processes"] is None else _at_least(1, raw, "processes")


def _resources(raw: dict[str, Any], executor: str) -> Resources:
    _check_parts("resources", raw, [field.name for field in fields(Resources)])
    for name, value in raw.items():
        whole = name == "cpus"
        if value is not None and (type(value) not in ((int,) if whole else (int, float)) or not 0 <= value < 10**6):
            raise ValueError(
                f"resources.{name} must be a {'whole ' if whole else ''}number from 0, or null; got {value!r}"
            )
    if executor == "slurm" and (raw["gpus"] or 0) % 1:
        raise ValueError(f"resources.gpus must be a whole number with executor=slurm; got {raw['gpus']!r}")
    return Resources(raw["cpus"], raw["gpus"], raw["memory_gb"])


def _slurm(raw: dict[str, Any]) -> dict[str, str]:
    """They become lines of a script for a shell, so that only plain words are taken."""
    settings = _mapping(raw, "slurm")
    _check_parts("slurm", settings, SLURM)
    for name, value in settings.items():
        if name == "time" and not (type(value) is int and value > 0):
            raise ValueError(f"slurm.time must be a number of minutes; got {value!r}")
        if not re.fullmatch(r"[\w.,:=+/@%\[\]-]+", str(value)):
            raise ValueError(f"slurm.{name} must be one word of letters, digits and .,:=+/@%[]-; got {value!r}")
    if settings and raw["executor"] != "slurm":
        raise ValueError(
            f"slurm.{next(iter(settings))} is set, but the executor is {raw['executor']}; add executor=slurm"
        )
    return {name: str(value) for name, value in settings.items()}


def _check_parts(key: str, raw: dict[str, Any], known: Sequence[str]) -> None:
    if strange := sorted(set(raw) - set(known)):
        raise ValueError(f"no setting {key}.{strange[0]}; there are {', '.join(f'{key}.{name}' for name in known)}")


def _timing(raw: dict[str, Any]) -> Timing:
    _check_parts("timing", raw, [field.name for field in fields(Timing)])
    rounds = _at_least(0, raw, "rounds")
    if 0 < rounds < 20:
        raise ValueError(f"timing.rounds must be 0 (no timing) or at least 20, for an interval; got {rounds}")
    sizes = raw["batch_size"] if isinstance(raw["batch_size"], list) else [raw["batch_size"]]
    if not sizes:
        raise ValueError("timing.batch_size must be a number or a list of numbers; the list is empty")
    sizes = [_at_least(1, {"timing.batch_size": size}, "timing.batch_size") for size in sizes]
    modes = [_one_of(MODES, {"timing.modes": mode}, "timing.modes") for mode in _strings(raw, "modes")]
    return Timing(rounds, list(dict.fromkeys(sizes)), modes)


def _strings(raw: dict[str, Any], name: str) -> list[str]:
    value = raw[name]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values) or (not values and name not in ("plugins", "loggers")):
        raise ValueError(f"{name} must be a list of names, as {name}=[a,b]; got {value!r}")
    return list(dict.fromkeys(values))


def _mapping(raw: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(raw[name], dict):
        raise ValueError(f"{name} must be given by parts, as {name}.NAME=VALUE; got {raw[name]!r}")
    return raw[name]


def _a(kind: type, raw: dict[str, Any], name: str) -> Any:
    if type(raw[name]) is not kind:
        what = {bool: "true or false", int: "a whole number"}[kind]
        raise ValueError(f"{name} must be {what}; got {raw[name]!r}")
    return raw[name]


def _at_least(least: int, raw: dict[str, Any], name: str) -> int:
    if _a(int, raw, name) < least:
        raise ValueError(f"{name} must be at least {least}; got {raw[name]}")
    return raw[name]


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError(f"timeout must be a number of seconds above 0, or null for none; got {value!r}")
    return float(value)


def _one_of(choices: Collection[str], raw: dict[str, Any], name: str) -> str:
    if raw[name] not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {raw[name]!r}")
    return raw[name]
