"""All files on what methods keep: staircase, agreement, likeness, foreground, overlays; each where a run has the data for it."""

from pathlib import Path

from tokred.analysis.agreement import pairs, save_agreement
from tokred.analysis.foreground import save_foreground
from tokred.analysis.likeness import likenesses, save_likeness
from tokred.analysis.overlays import save_overlays
from tokred.analysis.staircase import save_staircase
from tokred.analysis.traces import read_traces
from tokred.record import Store


def save_kept(store: Store, folder: str | Path) -> list[Path]:
    """The paths of those written; of a run without traces the staircase alone."""
    traced = read_traces(store)
    of_pairs = pairs(traced)
    return [
        *save_staircase(store, folder),
        *save_agreement(of_pairs, folder),
        *save_likeness(likenesses(traced), of_pairs, folder),
        *save_foreground(traced, folder),
        *save_overlays(store, folder),
    ]
