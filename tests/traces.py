"""Made-up traces: groups written by hand, beside the records of ``tests.records``."""

from collections.abc import Sequence

import numpy as np

from tokred.analysis.rows import Row
from tokred.analysis.traces import Trace, Traced


def made_trace(*states: Sequence[Sequence[int]], depth: int | None = None, **more) -> Trace:
    """``states``: behind each layer, of each sample the first member of each token's group."""
    first_RSP = np.array(states, np.int16)
    _, S, P = first_RSP.shape
    named = {
        "index_S": np.arange(S),
        "grid": (1, 1, P),
        "depth": depth or len(states),
        "layers": tuple(range(len(states))),
        "first_RSP": first_RSP,
        "size_RSP": np.zeros(first_RSP.shape, np.float16),
        "feature_SC": np.random.RandomState(0).randn(S, 3).astype(np.float16),
    }
    return Trace(**named | more)


def made_row(method: str = "tome", **more) -> Row:
    named = {"backbone": "b", "weights": "w", "data": "d", "schedule": "budget 0.5", "shape": "", "status": "done"}
    return Row(**named | {"method": method, "options": "", "metric": "accuracy", "gmacs": 0.5} | more)


def made(method: str, *traces: Trace, setting: str = "budget 0.5", **more) -> Traced:
    return Traced(made_row(method, schedule=setting, **more), setting, traces)


def stored(trace: Trace, *, asked: Sequence[int] = (), num_spread: int | None = None, **more) -> dict[str, np.ndarray]:
    """As the sweep writes it."""
    arrays = {
        "index_S": trace.index_S,
        "num_spread": np.array(len(trace.index_S) if num_spread is None else num_spread),
        "asked": np.array(asked or trace.index_S),
        "grid": np.array(trace.grid),
        "depth": np.array(trace.depth),
        "layer_R": np.array(trace.layers, int),
        "first_RSP": trace.first_RSP,
        "size_RSP": trace.size_RSP,
        "feature_SC": trace.feature_SC,
    }
    return arrays | ({} if trace.object_SP is None else {"object_SP": trace.object_SP}) | more
