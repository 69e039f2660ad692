"""The finished sweep that comes with tokred, for the notebooks, and to try the analysis on without a model.

Three methods on the embedded ``mini_cls``, at three budgets, with two shapes of schedules over all layers and over every second
one; 300 clips, traces of 8 and a few that were lost or gained. Made in a clone by

    python sweep.py "methods=[tome,vid_tldr,random_drop]" "backbones=[mini_cls]" "shape=[constant,decreasing]" \\
        "layers=[[0,1,2,3,4,5],[0,2,4]]" "budget=[0.85,0.7,0.55]" data.num_clips=300 traces=8 "loggers=[]" \\
        out=analysis/example_run
"""

from pathlib import Path

from tokred.record import Store

FOLDER = Path(__file__).parent / "example_run"


def example_run() -> Store:
    """It is read, not written: hand ``draw_all`` a folder of your own."""
    return Store(FOLDER)
