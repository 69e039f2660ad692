"""What is said below a table of rows: what failed, how to read its intervals, whether its timing can be trusted."""

from collections.abc import Sequence

from tokred.analysis.columns import percent, shapes
from tokred.analysis.rows import Row, grouped, shapes_told, spanned
from tokred.analysis.speeds import Speed


def failures(rows: Sequence[Row]) -> list[str]:
    """How many cells have no result, then a line with the reason for those of a method that share it."""
    failed = [row for row in shapes_told(rows) if row.status != "done"]
    alike = grouped(failed, lambda row: (row.group, row.label, row.status, row.reason))
    num_failed, num_cells = (sum(row.num_seeds for row in some) for some in (failed, rows))
    return [f"{num_failed} of {num_cells} cells have no result:", *map(_failure, alike)] if failed else []


def not_timed(speeds: Sequence[Speed]) -> list[str]:
    """A line for each with its reason, or for all of one measurement where they share it."""
    left_out = [speed for speed in shapes_told(speeds) if speed.reason]
    return [
        _not_timed(same) for same in grouped(left_out, lambda one: (one.backbone, one.mode, one.batch_size, one.reason))
    ]


def _not_timed(same: Sequence[Speed]) -> str:
    first = same[0]
    labels = "" if len(same) > 1 else f", {first.label}"
    return f"Not timed: {first.backbone}, {first.mode}, batch {first.batch_size}{labels}: {first.reason}"


def _failure(alike: Sequence[Row]) -> str:
    first = alike[0]
    shown = [row.setting if row.num_seeds == 1 else f"{row.setting}, {row.num_seeds} seeds" for row in alike]
    reason = first.reason or "no reason given"
    return f"  {first.backbone}, {first.label} ({'; '.join(dict.fromkeys(shown))}): {first.status}: {reason}"


def reading(done: Sequence[Row]) -> list[str]:
    """n, what the intervals are, broken files."""
    counts = {row.num_samples for row in done if row.num_samples is not None}
    if not counts:
        return []
    lines = [
        f"n = {spanned(counts)} samples a cell. In brackets 95 % intervals; differences are paired with the unreduced model on "
        "the same samples. MACs % is the share of the unreduced model's."
    ]
    if any(row.num_clusters is None and row.low is not None for row in done):
        lines.append(
            "Intervals: Wilson's, and for differences Agresti and Min's (3 / n to either side where no sample differs)."
        )
    if videos := sorted({row.num_clusters for row in done if row.num_clusters}):
        lines.append(
            f"Several samples are of one video: intervals count videos, {spanned(videos)}, not samples (Student's t)."
        )
    if any(row.metric == "agreement" for row in done):
        lines.append("Agreement is the share of samples on which the prediction is the unreduced model's.")
    if any("T2V" in row.metric for row in done):
        lines.append(
            "T2V R@K is the share of texts of whose K videos ranked first one is their own, V2T R@K of videos of whose K texts "
            "one is; mean R is the mean of these shares. What begins with ITC ranks by the joint space alone, without the "
            "matching head."
        )
    if any(row.num_seeds > 1 for row in done):
        lines.append(
            "Of several seeds: their mean, an interval over samples and seeds, in parentheses the seeds' SD in points."
        )
    if len(found := shapes(done)) == 1:
        lines.append(f"Shape of the schedules that meet a budget: {found[0]}.")
    if off := _off_budget(done):
        lines.append(
            "A budget of counts that differ by sample is met on calibration samples. On these, more than 2 % off it, in % of the "
            f"MACs: {', '.join(off)}. Compare them at what they spent."
        )
    for group in grouped(done, lambda row: row.data):
        if num_broken := max(row.num_broken for row in group):
            lines.append(f"Broken files in {group[0].data}, not counted: {num_broken}.")
    return lines


def _off_budget(done: Sequence[Row]) -> list[str]:
    """Of each label what was spent and asked for, where that is more than 2 % apart."""
    apart: dict[str, list[str]] = {}
    for row in done:
        if row.budget and row.gmacs_share and abs(row.gmacs_share / row.budget - 1) > 0.02:
            apart.setdefault(row.label, []).append(f"{percent(row.gmacs_share)} of {100 * row.budget:g}")
    return [f"{label} {', '.join(spent)}" for label, spent in apart.items()]


def timing_notes(done: Sequence[Row]) -> list[str]:
    """The verdict and resolution of each measurement, and what the marks mean."""
    timed = [row for row in done if row.verdict]
    if not timed and done:
        return ["Speed was not measured."]
    notes = [_timing_note(same) for same in grouped(timed, lambda row: (row.group, row.resolution, _setting(row)))]
    if any(row.verdict == "below resolution" for row in timed):
        notes.append("~: the speed-up differs from 1 by no more than the unreduced model does from itself.")
    if any(row.reduction_time_share is not None for row in timed):
        notes.append("Reduction % of time: what the method itself takes, statistics of the attention included.")
    return notes


def _timing_note(same: Sequence[Row]) -> str:
    """Of rows that were timed together."""
    first = same[0]
    noisy = any(row.verdict == "noisy" for row in same)
    least = (
        ""
        if first.resolution is None
        else f"; speed differences under {percent(first.resolution)} % are below resolution"
    )
    return f"Timing of {first.backbone}, {_setting(first)}: {'noisy' if noisy else 'ok'}{least}."


def _setting(row: Row) -> str:
    return f"{row.timing_mode}, batch {row.timing_batch_size}"
