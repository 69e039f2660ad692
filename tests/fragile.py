"""A sweep of nothing, whose cells do what their names say: what a supervisor is tested on, without waiting for torch."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tokred.open_files import Died, OpenFiles
from tokred.sweeps.watch import Task, Watch


def fail_with_another() -> None:
    """As where a method crashes one of the processes that share a pass."""
    raise Died(os.getpid() + 1, -signal.SIGSEGV)


ACTS = {
    "fine": lambda: None,
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "leaves": lambda: os._exit(0),
    "exits": lambda: exit(3),
    "hangs": lambda: time.sleep(600),
    "another": fail_with_another,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def run(words: Sequence[str], watch: Watch) -> int:
    """``words``: the folder, how many cells share a pass, and the cells: ACT or ACT-NUMBER, of the method ACT; after the pass
    of ACT-NUMBER-killed the process is killed; file-ACT is no cell, but a file that each pass reads first. Of each cell that came to an end there is a file, which holds how; likewise of each file
    that was refused; ``passes`` has a line for each pass with its batch size."""
    folder, size, cells = Path(words[0]), int(words[1]), [word for word in words[2:] if not word.startswith("file-")]
    files = [word for word in words[2:] if word.startswith("file-")]
    if cells == ["planning"]:
        ACTS["crashes"]()
    while left := [cell for cell in cells if not (folder / cell).exists()]:
        some = left[:1] if left[0] in watch.orders.alone else left[:size]
        _run_pass([cell for cell in some if not _is_over(cell, folder, watch)], files, folder, watch)
        if some[0].endswith("-killed"):
            ACTS["killed"]()
    for cell in cells:
        _trace(cell, folder, watch)
    return 3 if any((folder / cell).read_text() != "done" for cell in cells) else 0


def _is_over(cell: str, folder: Path, watch: Watch) -> bool:
    if death := watch.orders.death_of(cell, _act(cell)):
        (folder / cell).write_text(f"{death.kind}: {death.reason}")
    return death is not None


def _run_pass(cells: list[str], files: list[str], folder: Path, watch: Watch) -> None:
    if not cells:
        return
    size = watch.orders.batch_sizes.get(cells[0], 4)
    with open(folder / "passes", "a") as file:
        print(*cells, size, file=file)
    with watch.during(Task("pass", tuple(cells), tuple(map(_act, cells)), size, limit_s=0.5)):
        for name in files:
            _read(name, folder, watch)
        for cell in cells:
            if not cell.endswith("-later"):
                ACTS[_act(cell)]()
            watch.beat()
        for cell in cells:
            (folder / cell).write_text("done")


def _read(file: str, folder: Path, watch: Watch) -> None:
    known = OpenFiles(watch.orders.open_files, watch.orders.refused)
    if reason := known.refused.get(file):
        (folder / file).write_text(reason)
        return
    with known.reading(file):
        ACTS[file.removeprefix("file-")]()


def _trace(cell: str, folder: Path, watch: Watch) -> None:
    if not cell.endswith("-later"):
        return
    if reason := watch.orders.skipped.get(("trace", cell)):
        (folder / "said").write_text(reason)
        return
    with watch.during(Task("trace", (cell,), limit_s=0.5)):
        ACTS[_act(cell)]()


def _act(cell: str) -> str:
    return cell.partition("-")[0]
