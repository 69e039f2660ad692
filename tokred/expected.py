"""What the JSON of a run folder must hold. It is checked where it is read: a folder may come from somebody else, and what is
missing in it or of another kind is then one line that names the file, not an error wherever it is first used.

An expectation is a kind (``str``), a tuple of such of which one must fit, a list with what each of its items must be, or a
mapping of names to expectations: a name that ends in "?" may be missing, and "*" stands for any name. Others may be there too.
"""

from textwrap import shorten
from typing import Any

NUMBER = (int, float)
NUMBERS = [NUMBER]
METRIC = {"index?": str, "ranks?": (str, None), "at?": NUMBER, "value?": NUMBER}
CELL = {
    "method": str,
    "options": dict,
    "backbone": object,
    "weights": object,
    "data": object,
    "schedule": {"kind": str, "shape?": (str, None), "layers?": ([int], None), "match_options?": dict},
    "seed": (int, None),
}
RECORD = {
    "key": str,
    "cell": CELL,
    "status": str,
    "reason": (str, None),
    "result": dict,
    "conditions": {"finished?": str},
    "kind": (str, None),
    "made_of": dict,
}
RESULT = METRIC | {  # of a record that is done
    "metric": str,
    "metrics?": {"*": METRIC},
    "identity?": (dict, None),
    "num_broken": int,
    "broken?": [list],
    "num_input_tokens": NUMBER,
    "tokens": NUMBERS,
    "tokens_sd?": NUMBERS,
    "tokens_p95?": NUMBERS,
    "site?": str,
    "gmacs": NUMBER,
    "gmacs_unreduced": NUMBER,
    "gmacs_padded?": (int, float, None),
}
SAMPLES = {"num_samples": int, "num_correct": NUMBER}
PLAN = {"keys": [str], "timings?": [list], "words?": [str]}
TIMED = {
    **dict.fromkeys(("times_ms", "unreduced_ms", "cpu_ms", "unreduced_cpu_ms", "speedup"), NUMBERS),
    "cpu_ratio": (NUMBERS, None),
    "verdict": str,
    **dict.fromkeys(("peak_mib", "reserved_mib", "compile_s", "reduction_time_share"), (int, float, None)),
}
TIMING = {
    "name": str,
    "backbone": str,
    "batch_size": int,
    "mode": str,
    "models": {"*": TIMED},
    "resolution": (int, float, None),
    "left_out": {"*": str},
    "conditions": {"finished?": str},
}


def check(value: Any, expected: Any, name: str) -> None:
    """Raises ValueError that names the part which is missing or of another kind.

    >>> check({"gmacs": "many"}, {"gmacs": NUMBER}, "result")
    Traceback (most recent call last):
    ValueError: result.gmacs must be int or float, not 'many'
    """
    if isinstance(expected, dict):
        _check_fields(value, expected, name)
    elif isinstance(expected, list):
        _check_kind(value, list, name)
        for number, item in enumerate(value):
            check(item, expected[0], f"{name}[{number}]")
    elif (
        isinstance(expected, tuple) and isinstance(value, list) and (lists := [e for e in expected if type(e) is list])
    ):
        check(value, lists[0], name)
    else:
        _check_kind(value, expected, name)


def check_result(result: dict[str, Any]) -> None:
    """Of a record that is done: the fields, and that its counts can be shares."""
    check(result, RESULT, "result")
    for name, one in [
        ("result", result),
        *((f"metrics {name!r}", one) for name, one in result.get("metrics", {}).items()),
    ]:
        if "num_samples" in one:
            check(one, SAMPLES if one.get("ranks") is None else SAMPLES | {"at": NUMBER}, name)
            if not 0 <= one["num_correct"] <= one["num_samples"]:
                raise ValueError(f"{name} has {one['num_correct']} right of {one['num_samples']} samples")
        else:
            check(one, {"value": NUMBER}, name)
    if not (result["gmacs"] > 0 and result["gmacs_unreduced"] > 0 and result["tokens"]):
        raise ValueError("MACs must be above 0, and tokens be there for each layer")
    if any(len(pair) != 2 for pair in result.get("broken", [])):
        raise ValueError("result.broken must hold pairs of a file and a reason")


def check_timing(timing: dict[str, Any]) -> None:
    """The fields, and that each ratio is a median with two ends."""
    check(timing, TIMING, "timing")
    for key, model in timing["models"].items():
        for name in ("speedup", "cpu_ratio"):
            if model[name] is not None and not (len(model[name]) == 3 and min(model[name]) > 0):
                raise ValueError(f"{name} of {key} must be three numbers above 0, not {model[name]}")


def check_cell(cell: dict[str, Any]) -> None:
    """What the fields alone do not say: an amount for each schedule that has one, a number where it is a budget."""
    schedule = cell["schedule"]
    if schedule["kind"] not in ("none", "own"):
        check(schedule, {"amount": NUMBER if schedule["kind"] == "budget" else object}, "cell.schedule")


def _check_fields(value: Any, expected: dict[str, Any], name: str) -> None:
    _check_kind(value, dict, name)
    for part, own in expected.items():
        key = part.removesuffix("?")
        if part == "*":
            for other, item in value.items():
                check(item, own, f"{name}.{other}")
        elif key in value:
            check(value[key], own, f"{name}.{key}")
        elif key == part:
            raise ValueError(f"{name} has no {key}")


def _check_kind(value: Any, expected: Any, name: str) -> None:
    """A bool is no number here."""
    kinds = expected if isinstance(expected, tuple) else (expected,)
    if object in kinds or (value is None and None in kinds) or type(value) in kinds:
        return
    told = " or ".join("nothing" if kind is None else "list" if type(kind) is list else kind.__name__ for kind in kinds)
    raise ValueError(f"{name} must be {told}, not {shorten(repr(value), 80, placeholder='...')}")
