"""One of the processes that a sweep is spread over, as the executors start it, on whatever machine: its own supervisor, and a
worker that runs a part of the plan."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.util import Finalize

from rich.console import Console

from tokred.open_files import OpenFiles
from tokred.registry import load_file
from tokred.sweeps.spread import Work
from tokred.sweeps.supervisor import supervised
from tokred.sweeps.watch import Watch

MAIN = "import sys; from tokred.sweeps.work import main; sys.exit(main(sys.argv[1]))"


def started(work: Work, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """A process that does it, and that ends with this one. Raises ValueError where the sweep's folders are not there."""
    for folder in (work.place, work.folder):
        if not os.path.isdir(folder):
            raise ValueError(f"{folder} is not there; a sweep's folders must have one path on all its machines")
    line = [sys.executable, "-c", MAIN, json.dumps(asdict(work))]
    with work.log.open("a") as log:  # its input never comes: its end says that this process is gone
        return subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=work.place, env=environment, start_new_session=True
        )


def last_line(work: Work) -> str:
    """Of what it said: where it stopped, why."""
    lines = work.log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def main(text: str) -> int:
    work = Work(**json.loads(text))
    tempfile.tempdir = folder = tempfile.mkdtemp(prefix="tokred-")
    remove = partial(shutil.rmtree, folder, ignore_errors=True)
    Finalize(None, remove, exitpriority=-200)  # after multiprocessing has removed its own in there, at -100
    threading.Thread(target=_end_with_parent, args=(remove,), daemon=True).start()
    return supervised(work.words, partial(_guarded_join, work))


def _end_with_parent(remove: Callable[[], None]) -> None:
    while os.read(0, 1):
        continue
    remove()
    end(os.getpid())  # the worker sees that its supervisor is gone


def end(pid: int) -> None:
    """At once, with all of its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except AttributeError:  # not POSIX
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:  # all gone
        return


def _guarded_join(work: Work, words: Sequence[str], watch: Watch) -> int:
    from tokred.sweeps.cli import guarded

    return guarded(lambda: join(work, words, watch))


def join(work: Work, words: Sequence[str], watch: Watch) -> int:
    """Runs a part of the plan that the sweep was started with. Raises ValueError where this process would plan other cells."""
    from tokred.data import create_data
    from tokred.record import Store, key_of
    from tokred.sweeps.config import read_config
    from tokred.sweeps.plan import make_plan
    from tokred.sweeps.run import run_part

    config = replace(read_config(words), out=work.folder)
    for path in config.plugins:
        load_file(path)
    data, store = create_data(**config.data), Store(work.folder)
    data.open_files = OpenFiles(watch.orders.open_files, watch.orders.refused)
    plan = make_plan(config, data)
    if key_of([cell.key for group in plan for cell in group.cells]) != work.plan:
        raise ValueError(
            "it plans other cells than the sweep: tokred, a plugin, weights or data are others where it runs, or by now"
        )
    run_part(plan, config, data, store, Console(width=200), watch, work)
    return 0
