"""Sweeps that share a run folder, and sweeps that are killed: no cell twice, none lost, and the same results in the end."""

import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.test_cli import command
from tokred.data import create_data
from tokred.record import Store
from tokred.sweeps import supervisor
from tokred.sweeps.cli import sweep
from tokred.sweeps.config import read_config
from tokred.sweeps.plan import make_plan
from tokred.sweeps.run import run_plan

WORDS = [
    *("sizes.depth=2", "sizes.embed_dim=24", "sizes.patch_size=16", "backbones=mini_mean", "weights=random"),
    *("methods=random_drop", "r=8", "data.num_clips=4", "batch_size=2", "timing.rounds=0", "traces=1"),
]


def words_for(num_cells, cells_per_pass):
    return [*WORDS, f"seeds={num_cells - 1}", f"cells_per_pass={cells_per_pass}"]


def run(folder, words, said):
    """In a process of its own: a sweep without its tables."""
    config = read_config(words)
    data, store = create_data(**config.data), Store(folder).create()
    plan = make_plan(config, data)
    store.heal([cell.key for group in plan for cell in group.cells])
    with open(said, "a") as file:
        run_plan(plan, config, data, store, Console(file=file, width=200))


def start(folder, words, said):
    process = supervisor._context().Process(target=run, args=(folder, words, said))
    process.start()
    return process


def outcome(folder):
    """Results, predictions and traces by key, without the conditions."""
    store = Store(folder)
    assert store.heal(store.plan()["keys"]) == []
    return {
        record.key: (
            replace(record, conditions={}),
            store.predictions_path(record.key).read_bytes(),
            store.trace_path(record.key).read_bytes(),
        )
        for record in store.planned()
    }


def whole(folder, words):
    """What the sweep comes to where nothing happens to it."""
    run(folder, words, folder.with_suffix(".said"))
    return outcome(folder)


def share(tmp_path, num_sweeps, words):
    """Several sweeps at once: what they come to, and how often each said that it had run a cell."""
    folder = tmp_path / "shared"
    sweeps = [start(folder, words, tmp_path / f"said-{number}") for number in range(num_sweeps)]
    for process in sweeps:
        process.join()
    assert [process.exitcode for process in sweeps] == [0] * num_sweeps
    said = [line for number in range(num_sweeps) for line in (tmp_path / f"said-{number}").read_text().splitlines()]
    return outcome(folder), Counter(said)


def kill_again_and_again(tmp_path, times, words, *, seed):
    """A sweep that is killed at random moments and started again, then left alone: what it comes to."""
    drawn, folder = random.Random(seed), tmp_path / "killed"
    for _ in range(times):
        process = start(folder, words, tmp_path / "said")
        process.join(drawn.uniform(0.3, 1.5))
        process.kill()
        process.join()
    run(folder, words, tmp_path / "said")
    return outcome(folder)


@pytest.mark.parametrize(
    ("num_sweeps", "num_cells", "cells_per_pass"), [(2, 12, 2), pytest.param(4, 200, 8, marks=pytest.mark.slow)]
)
def test_of_sweeps_that_share_a_folder_each_runs_other_cells(num_sweeps, num_cells, cells_per_pass, tmp_path):
    words = words_for(num_cells, cells_per_pass)
    found, times = share(tmp_path, num_sweeps, words)
    assert len(times) == num_cells and set(times.values()) == {1}
    assert found == whole(tmp_path / "whole", words)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("num_kills", "num_cells"), [(3, 12), pytest.param(200, 400, marks=pytest.mark.slow)])
def test_a_sweep_that_is_killed_again_and_again_comes_to_the_same(num_kills, num_cells, tmp_path):
    words = words_for(num_cells, cells_per_pass=2)
    assert kill_again_and_again(tmp_path, num_kills, words, seed=num_kills) == whole(tmp_path / "whole", words)


# As a user runs it


BREAKING = '''
"""Methods that end their process."""

import ctypes
import os
import time

import torch

from tokred import METHODS, Assignment, Method


class Breaks(Method):
    def assign(self, tokens, attention, keep):
        self.act()
        return Assignment.select(torch.arange(keep).expand(len(tokens.x_BNC), keep), tokens.num)


for name, act in {
    "crashes": lambda: ctypes.string_at(0),
    "leaves": lambda: os._exit(0),
    "hangs": lambda: time.sleep(600),
    "hungry": lambda: torch.empty(2**60),
}.items():
    METHODS.register(name)(type(name.title(), (Breaks,), {"act": staticmethod(act), "__module__": __name__}))
'''


def test_methods_that_break_their_process_fail_alone(tmp_path):
    (tmp_path / "breaking.py").write_text(BREAKING)
    words = ["methods=[tome,crashes,leaves,hangs,hungry]", "plugins=breaking.py", "timeout=2", "out=run", *WORDS[:5]]
    process = command(*words, "r=8", "data.num_clips=4", "timing.rounds=0", "traces=1", cwd=tmp_path)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 3 and err == ""
    ends = {record.cell["method"]: (record.status, record.kind) for record in Store(tmp_path / "run").planned()}
    assert ends == {
        "none": ("done", None),
        "tome": ("done", None),
        "crashes": ("failed", "crashed"),
        "leaves": ("failed", "crashed"),
        "hangs": ("failed", "timeout"),
        "hungry": ("failed", "error"),
    }
    assert "mini_mean, hangs (r 8): failed: gave no sign of progress for 2 s (timeout=2)" in out
    assert out.count("6 cells, 4 samples each") == 1 and "were there already" not in out


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("who", ["supervisor", "worker"])
def test_whoever_is_killed_the_same_command_comes_to_the_same(who, tmp_path):
    drawn, words = random.Random(2), [*words_for(60, cells_per_pass=2), "out=killed"]
    for _ in range(10):
        process = command(*words, cwd=tmp_path)
        time.sleep(drawn.uniform(6.0, 20.0))
        victims = [process.pid] if who == "supervisor" else _workers_of(process.pid)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        if who == "supervisor":
            process.communicate()
        else:
            assert process.communicate(timeout=280)[0] is not None
            assert process.returncode in (0, 3)
    process = command(*words, cwd=tmp_path)
    process.communicate(timeout=280)
    assert process.returncode == 0
    assert outcome(tmp_path / "killed") == whole(tmp_path / "whole", words)


def _workers_of(pid):
    """The processes that lead a group of their own among those that descend from this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = (int(fields[1]), int(fields[2]))

    def descends(child):
        while child in parents and child != pid:
            child = parents[child][0]
        return child == pid

    return [child for child, (_, group) in parents.items() if child == group and child != pid and descends(child)]


def commanded(words, said, most_bytes):
    """In a process of its own: the whole sweep, of which no file can be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    with open(os.devnull, "w") as nowhere, open(said, "w") as file, redirect_stdout(nowhere), redirect_stderr(file):
        code = sweep(words)
    sys.exit(code)


def test_a_full_disk_ends_in_one_line_and_the_next_start_goes_on(tmp_path):
    """A limit on the size of files stands for it: the write fails in the middle."""
    words, ends = [*words_for(3, cells_per_pass=1), "traces=0", f"out={tmp_path / 'run'}"], []
    for most_bytes in (1800, 10**8):
        process = supervisor._context().Process(target=commanded, args=(words, tmp_path / "said", most_bytes))
        process.start()
        process.join()
        ends.append((process.exitcode, (tmp_path / "said").read_text()))
    (full, said), again = ends
    assert full == 2 and said.startswith("error: File too large: ") and said.count("\n") == 1
    assert again == (0, "")
    assert [record.status for record in Store(tmp_path / "run").planned()] == ["done"] * 3
