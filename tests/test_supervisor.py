"""A sweep whose processes crash, hang, leave and are killed: each cell ends as its own does, and the sweep goes on."""

import os
import signal
from types import SimpleNamespace

import pytest

from tests import fragile
from tokred.sweeps import supervisor
from tokred.sweeps.supervisor import supervised
from tokred.sweeps.watch import IN_A_ROW, Death, Orders, Task


class Ran:
    """``ends``: of each cell how it ended; ``passes``: of each pass the cells and the batch size."""

    def __init__(self, folder, *cells, size=8):
        self.code = supervised([str(folder), str(size), *cells], fragile.run)
        self.ends = {cell: (folder / cell).read_text() for cell in cells if (folder / cell).exists()}
        self.passes = [line.split() for line in (folder / "passes").read_text().splitlines()]


def test_the_code_is_that_of_the_sweep(tmp_path):
    ran = Ran(tmp_path, "fine-1", "fine-2")
    assert ran.code == 0 and ran.ends == {"fine-1": "done", "fine-2": "done"} and len(ran.passes) == 1


ENDS = {
    "crashes": "crashed: crashed its process (SIGSEGV)",
    "another": "crashed: crashed its process (SIGSEGV)",
    "leaves": "crashed: ended its process, with exit code 0",
    "exits": "crashed: ended its process, with exit code 3",
    "hangs": "timeout: gave no sign of progress for 0.5 s (timeout=0.5)",
    "killed": "killed: was killed from outside (SIGKILL), as a system does that runs out of memory",
}


@pytest.mark.parametrize("act", ENDS)
def test_only_the_cell_that_breaks_its_process_fails(act, tmp_path):
    ran = Ran(tmp_path, "fine-1", act, "fine-2")
    assert ran.code == 3 and ran.ends == {"fine-1": "done", act: ENDS[act], "fine-2": "done"}


def test_a_pass_that_broke_is_run_again_cell_by_cell_and_the_next_ones_are_not(tmp_path):
    ran = Ran(tmp_path, "fine-1", "crashes", "fine-2", "fine-3", size=2)
    assert ran.passes == [
        ["fine-1", "crashes", "4"],
        ["fine-1", "4"],
        ["crashes", "4"],
        ["fine-2", "fine-3", "4"],
    ]


def test_what_is_killed_is_tried_again_then_on_smaller_batches(tmp_path):
    assert [size for _, size in Ran(tmp_path, "killed", size=1).passes] == ["4", "4", "2", "1"]


def test_what_crashes_alone_is_not_tried_again(tmp_path):
    assert len(Ran(tmp_path, "crashes", size=1).passes) == 1


def test_after_three_cells_in_a_row_the_other_cells_of_a_method_are_not_tried(tmp_path):
    cells = [f"leaves-{number}" for number in range(5)]
    ran = Ran(tmp_path, *cells, "fine", size=1)
    assert [names[0] for names in ran.passes] == [*cells[:3], "fine"]
    assert ran.ends["leaves-2"] == ENDS["leaves"] and ran.ends["fine"] == "done"
    reason = "not tried: with leaves 3 cells in a row ended their process; of the last it ended its process, with exit code 0"
    assert {ran.ends["leaves-3"], ran.ends["leaves-4"]} == {f"crashed: {reason}"}


def test_what_breaks_after_the_cells_is_left_out_and_said(tmp_path):
    ran = Ran(tmp_path, "crashes-later", "fine-later")
    assert ran.code == 0 and set(ran.ends.values()) == {"done"}
    assert (tmp_path / "said").read_text() == "crashed its process (SIGSEGV)"


def test_what_is_there_only_while_a_sweep_runs_goes_with_its_supervisor(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(supervisor.multiprocessing, "parent_process", lambda: SimpleNamespace(sentinel=None))
    monkeypatch.setattr(supervisor.connection, "wait", lambda _: None)
    monkeypatch.setattr(supervisor.os, "killpg", lambda *given: ended.append(given))
    monkeypatch.setattr(supervisor.os, "_exit", lambda code: None)
    monkeypatch.setattr(supervisor.tempfile, "tempdir", str(tmp_path))
    for name in ("tokred-open", f"tokred-of-{os.getpid()}-a", f"tokred-of-{os.getpid()}0-b"):
        (tmp_path / name).mkdir()
    supervisor._end_with_supervisor(tmp_path / "tokred-open")
    assert [path.name for path in tmp_path.iterdir()] == [f"tokred-of-{os.getpid()}0-b"]
    assert ended == [(0, signal.SIGKILL)]


def test_a_sweep_that_breaks_before_its_first_cell_ends_in_one_line(tmp_path, capsys):
    assert supervised([str(tmp_path), "1", "planning"], fragile.run) == 4
    said = "error: the process of the sweep crashed its process (SIGSEGV), in planning, 3 times in a row\n"
    assert capsys.readouterr().err == said


def test_a_process_that_is_killed_between_two_cells_is_followed_by_another(tmp_path):
    cells = [f"fine-{number}-killed" for number in range(2 * IN_A_ROW)]
    ran = Ran(tmp_path, *cells, size=1)
    assert ran.code == 0 and len(ran.ends) == len(ran.passes) == len(cells)


def test_a_sweep_that_died_while_it_planned_begins_anew_and_one_with_a_plan_goes_on():
    died = Death("killed", "was killed")
    planning = Orders().after(Task("planning"), died)
    assert not planning.again and planning.after(Task("between two cells"), died).again


FILES = {
    "file-crashes": "reading it crashed its process (SIGSEGV)",
    "file-hangs": "reading it gave no sign of progress for 0.5 s (timeout=0.5)",
    "file-killed": "reading it was killed from outside (SIGKILL), as a system does that runs out of memory",
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_breaks_the_process_that_reads_it_is_refused_and_no_cell_fails(file, tmp_path):
    ran = Ran(tmp_path, "fine-1", "fine-2", file)
    assert ran.code == 0 and ran.ends == {"fine-1": "done", "fine-2": "done", file: FILES[file]}


def test_the_pass_that_a_file_broke_is_not_taken_apart(tmp_path):
    assert Ran(tmp_path, "fine-1", "fine-2", "file-crashes").passes == 2 * [["fine-1", "fine-2", "4"]]


def test_a_file_is_refused_the_second_time_that_its_process_is_killed(tmp_path):
    assert len(Ran(tmp_path, "fine", "file-killed").passes) == 3


def test_a_cell_that_is_killed_is_not_laid_on_the_file_that_was_read_before(tmp_path):
    ran = Ran(tmp_path, "killed", "file-fine", size=1)
    assert ran.ends == {"killed": ENDS["killed"]}
