"""A made-up run folder: cells whose predictions come from a seeded generator, for the tests of the analysis."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokred.analysis.curves import Curve
from tokred.record import NULL, Record, Store, Timed, Timing, key_of, write_json

NUM_SAMPLES, NUM_CLASSES, DEPTH = 400, 24, 6


@dataclass
class Run:
    """Cells are added one by one; ``finish`` writes the plan and gives the store."""

    store: Store
    keys: list[str] = field(default_factory=list)

    def add(
        self,
        method: str,
        *,
        accuracy: float = 0.9,
        share: float = 1.0,
        schedule: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        backbone: str = "mini_cls",
        data: dict[str, Any] | None = None,
        seed: int | None = None,
        status: str = "done",
        reason: str | None = None,
        metric: str = "accuracy",
        num_samples: int = NUM_SAMPLES,
        num_broken: int = 0,
        gmacs_unreduced: float = 0.4,
    ) -> str:
        """The new record's key. The first ``accuracy`` of a fixed order of samples are right, but for 2 % noise."""
        none = {"kind": "none", "amount": None, "shape": None, "layers": None}
        budget = {"kind": "budget", "amount": share, "shape": "decreasing", "layers": None}
        cell = {
            "method": method,
            "options": options or {},
            "backbone": backbone,
            "sizes": {},
            "weights": "embedded",
            "data": data or {"name": "moving_shapes", "split": "test"},
            "precision": "32-true",
            "schedule": schedule or (none if method == "none" else budget),
            "seed": seed,
        }
        key = key_of(cell)
        self.keys.append(key)
        if status != "done":
            self.store.add(Record(key, cell, status, reason))
            return key
        predictions = made_up(accuracy, metric=metric, seed=int(key[:8], 16), num_samples=num_samples)
        truth = predictions["reference" if metric == "agreement" else "label"]
        tokens = [round(256 - (256 * (1 - share)) * (layer + 1) / DEPTH) for layer in range(DEPTH)]
        result = {
            "metric": metric,
            "num_samples": num_samples,
            "num_correct": int((predictions["prediction"] == truth).sum()),
            "num_broken": num_broken,
            "tokens": tokens,
            "requested_tokens": tokens,
            "num_input_tokens": 256,
            "gmacs": gmacs_unreduced * share,
            "gmacs_unreduced": gmacs_unreduced,
        }
        self.store.add(Record(key, cell, "done", None, result), predictions)
        return key

    def time(
        self,
        speedup: dict[str, float],
        *,
        verdict: str = "ok",
        noise: float = 0.005,
        backbone: str = "mini_cls",
        mode: str = "eager",
        batch_size: int = 8,
        left_out: dict[str, str] | None = None,
    ) -> Timing:
        """30 rounds; ``speedup``: key -> the true ratio. ``noise`` is the resolution."""
        draw = np.random.RandomState(0)

        def timed(ratio: float, said: str) -> Timed:
            unreduced, own = (
                (batch_size * ms * np.exp(noise * draw.randn(30))).tolist() for ms in (1.25, 1.25 / ratio)
            )
            interval = (ratio, ratio * (1 - noise), ratio * (1 + noise))
            return Timed(own, unreduced, own, unreduced, [1] * 30, interval, interval, said, 64 / ratio)

        models = {NULL: timed(1.0, verdict)}
        for key, ratio in speedup.items():
            models[key] = timed(ratio, verdict if abs(ratio - 1) > noise else "below resolution")
        timing = Timing(
            f"{backbone}-{mode}-{batch_size}",
            backbone,
            batch_size,
            mode,
            0,
            models,
            noise,
            left_out or {},
            {"threads": 1},
        )
        self.store.add_timing(timing)
        return timing

    def finish(self, timings: Sequence[tuple[str, int]] = ()) -> Store:
        write_json(self.store.folder / "plan.json", {"keys": self.keys, "timings": timings})
        return self.store


def made_up(accuracy: float, *, metric: str, seed: int, num_samples: int) -> dict[str, np.ndarray]:
    draw, order = np.random.RandomState(seed), np.random.RandomState(0).permutation(num_samples)
    truth = np.random.RandomState(1).randint(NUM_CLASSES, size=num_samples)
    right = (order < accuracy * num_samples) ^ (draw.rand(num_samples) < 0.02 * (accuracy < 1))
    prediction = np.where(right, truth, (truth + 1) % NUM_CLASSES)
    labels = {"label": np.full(num_samples, -1), "reference": truth} if metric == "agreement" else {"label": truth}
    return {"index": np.arange(num_samples), "prediction": prediction} | labels


def new_run(folder: Path) -> Run:
    return Run(Store(folder).create())


def full_run(folder: Path) -> Run:
    """Two backbones with the unreduced model and three methods at four budgets, one random; refusals and a failure."""
    run = new_run(folder)
    for backbone, best, gmacs in (("mini_cls", 0.92, 0.4), ("mini_mean", 0.87, 0.5)):
        common = {"backbone": backbone, "gmacs_unreduced": gmacs}
        run.add("none", accuracy=best, num_broken=2, **common)
        speedup = {}
        for share in (0.85, 0.7, 0.55, 0.4):
            for method, loss, options in (
                ("tome", 0.06, {}),
                ("tome", 0.08, {"proportional_attention": False}),
                ("vid_tldr", 0.04, {}),
            ):
                lost = loss * (1 - share) ** 2 / 0.36
                key = run.add(method, accuracy=best - lost, share=share, options=options, **common)
                speedup[key] = (1 / share) ** (0.9 if method == "tome" else 0.6)
            for seed in range(3):
                key = run.add("random_drop", accuracy=best - 0.4 * (1 - share) ** 2, share=share, seed=seed, **common)
                speedup[key] = (1 / share) ** 0.95
        verdict, noise = ("noisy", 0.08) if backbone == "mini_mean" else ("ok", 0.01)
        run.time(speedup, backbone=backbone, verdict=verdict, noise=noise)
    for share in (0.7, 0.55):
        run.add(
            "evit",
            backbone="mini_mean",
            share=share,
            status="refused",
            reason="evit needs a CLS token; mini_mean has none",
        )
    run.add("evit", share=0.1, status="failed", reason="RuntimeError: \x1b[31mout of memory\n  at layer 3")
    return run


def add_retrieval(run: Run, method: str, *, share: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """A cell of 60 texts of 20 videos, with ranks both ways; the better, the larger its share."""
    draw = np.random.RandomState(seed)
    arrays = {
        "index": np.arange(60),
        "cluster": np.arange(60) // 3,
        "text_rank": draw.geometric(0.5 * share, size=60) - 1,
        "prediction": np.arange(60) // 3,
        "video_index": np.arange(20),
        "video_rank": draw.geometric(0.6 * share, size=20) - 1,
    }
    key = run.add(method, share=share)
    record = run.store.get(key)
    assert record is not None
    metrics: dict[str, Any] = {}
    for name, index, ranks, at in (("T2V R@1", "index", "text_rank", 1), ("V2T R@5", "video_index", "video_rank", 5)):
        right, total = int((arrays[ranks] < at).sum()), len(arrays[ranks])
        how = {"index": index, "ranks": ranks, "at": at}
        metrics[name] = how | {"num_samples": total, "num_correct": right, "value": right / total}
    headline = {"metric": "T2V R@1", **{part: metrics["T2V R@1"][part] for part in ("num_samples", "num_correct")}}
    metrics |= {"mean R": {"value": 0.5 * share}, "ITC T2V R@1": metrics["T2V R@1"]}
    run.store.add(replace(record, result=record.result | headline | {"metrics": metrics}), arrays)
    return arrays


def made_curve(
    label: str = "tome",
    *,
    shares: Sequence[float] = (0.4, 0.6, 0.8),
    accuracies: Sequence[float] | None = None,
    num_samples: int = 300,
    num_seeds: int = 1,
    seed: int = 0,
    **more: Any,
) -> Curve:
    """Configurations right on the easiest samples, but for noise of their own. ``more``: fields of ``Curve``."""
    true_K = np.array(accuracies if accuracies is not None else [0.7 + 0.1 * share for share in shares])
    draw, ease_N = np.random.default_rng(seed), np.random.default_rng(99).random(num_samples)
    noise_SKN = 0.1 * draw.standard_normal((num_seeds, len(shares), num_samples))
    fields = {"index_N": np.arange(num_samples), "method": label, "backbone": "b"} | more
    return Curve(label, np.array(shares), ease_N + noise_SKN < true_K[:, None], **fields)
