"""What one pass for all cells of a sweep saves: the time of its accuracy part, as a share of that of single runs.

    python benchmarks/one_pass.py                       mini_mean on 64 clips of moving shapes and on 64 mp4 files, 5 rounds
    python benchmarks/one_pass.py 16 3                  16 clips or files, 3 rounds
    python benchmarks/one_pass.py 16 3 batch_size=4     with words of a sweep

24 reduced cells (8 methods, 3 amounts) and the unreduced one, in three ways, in random order in each round:

    single   each cell is a run of its own: it builds the model, reads the data, makes its record. Imports are not counted
    apart    one run that reads the data once, then runs cell by cell
    together one run in which all cells share each batch, and the layers they have in common

The accuracy part alone: no speed is measured, and no tokens are traced for figures.

The files are made here, in a temporary folder: H.264, 320 x 240, 50 frames. All three ways must give the same records and
predictions, which is checked.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import arguments
import av
import numpy as np
import torch
from rich.console import Console

from tokred.data import DataSource, create_data
from tokred.record import Store
from tokred.sweeps.config import SweepConfig, read_config
from tokred.sweeps.plan import Group, make_plan
from tokred.sweeps.run import run_plan

METHODS = "vid_tldr,tome,tofu,pitome,mctf,random_drop,norm_prune,temporal_merge"
WORDS = [f"methods=[{METHODS}]", "backbones=mini_mean", "seeds=1", "batch_size=8", "traces=0"]
BUDGETS = ["budget=[0.8,0.65,0.5]"]  # tokens go in all layers: no two cells share more than the first attention
LATER = ["keep_rate=[0.8,0.7,0.6]", "layers=[2,4]"]  # cells share two layers and a half
SILENT = Console(quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="numbers of samples and of rounds, and NAME=VALUE for the sweeps")
    words = parser.parse_args().words
    more = [word for word in words if "=" in word]
    with arguments.refused(parser):
        numbers = [arguments.positive(word) for word in words if "=" not in word]
        if len(numbers) > 2:
            raise ValueError(f"at most two numbers, of samples and of rounds; got {numbers}")
        read_config([*WORDS, *more])
    num_samples, rounds = [*numbers, *[64, 5][len(numbers) :]]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {rounds} rounds, median [lowest, highest]")
    with tempfile.TemporaryDirectory() as folder:
        write_videos(Path(folder), num_samples)
        shapes, files = [f"data.num_clips={num_samples}", *more], ["data=video_folder", f"data.root={folder}", *more]
        compare("mp4 files, budgets", [*BUDGETS, *files], rounds)
        compare("mp4 files, from layer 2 on", [*LATER, *files], rounds)
        compare("moving shapes, budgets", [*BUDGETS, *shapes], rounds)
        compare("moving shapes, from layer 2 on", [*LATER, *shapes], rounds)


def compare(name: str, words: list[str], rounds: int) -> None:
    config = read_config([*WORDS, "timing.rounds=0", *words])
    data = create_data(**config.data)
    plan = make_plan(config, data)
    times_s: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
    for number in range(rounds):
        found = {}
        for way in random.Random(number).sample(WAYS, len(WAYS)):
            with tempfile.TemporaryDirectory() as folder:
                store = Store(folder).create()
                start = time.perf_counter()
                way(plan, config, data, store)
                times_s[way.__name__].append(time.perf_counter() - start)
                found[way.__name__] = contents(store, plan)
        assert found["single"] == found["apart"] == found["together"], "the results differ"
    num_cells = sum(len(group.cells) for group in plan)
    print(f"{name}: {len(data)} clips, {num_cells} cells, the same results")
    for way in times_s:
        print(f"  {way:<9} {spread(times_s[way])} s")
    for way in ("apart", "single"):
        ratios = [one / other for one, other in zip(times_s["together"], times_s[way], strict=True)]
        print(f"  together / {way:<7} {spread(ratios)}")


def single(plan: list[Group], config: SweepConfig, data: DataSource, store: Store) -> None:
    for group in plan:
        for cell in group.cells:
            # a run's first cell is the unreduced one, to which others are compared; here its record is there already
            run_plan(
                [replace(group, cells=(group.cells[0], *([cell] if cell is not group.cells[0] else [])))],
                config,
                data,
                store,
                SILENT,
            )


def apart(plan: list[Group], config: SweepConfig, data: DataSource, store: Store) -> None:
    run_plan(plan, replace(config, cells_per_pass=1), data, store, SILENT)


def together(plan: list[Group], config: SweepConfig, data: DataSource, store: Store) -> None:
    run_plan(plan, config, data, store, SILENT)


WAYS: list[Callable[[list[Group], SweepConfig, DataSource, Store], None]] = [single, apart, together]


def contents(store: Store, plan: list[Group]) -> dict[str, object]:
    """Results and predictions by cell."""
    found: dict[str, object] = {}
    for cell in (cell for group in plan for cell in group.cells):
        record = store.get(cell.key)
        assert record is not None and record.status == "done", (cell.label, record and record.reason)
        arrays = {name: array.tolist() for name, array in store.predictions(cell.key).items()}
        found[cell.key] = (record.result, arrays)
    return found


def spread(values: list[float]) -> str:
    return f"{median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def write_videos(folder: Path, number: int) -> None:
    """Coloured blocks that move, another pattern in each file."""
    for place in range(number):
        path = folder / f"{'ab'[place % 2]}" / f"{place:03}.mp4"
        path.parent.mkdir(exist_ok=True)
        blocks = np.random.RandomState(place).randint(0, 256, (30, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.pix_fmt, stream.height, stream.width = "yuv420p", 240, 320
            for frame in range(50):
                pixels = np.ascontiguousarray(np.roll(blocks, 2 * frame, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


if __name__ == "__main__":
    main()
