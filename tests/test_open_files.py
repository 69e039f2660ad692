"""A file that breaks its reader: what is left of the process says which, and the others are read."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tokred.data import ImageFolder, pictures
from tokred.lit import _Kept
from tokred.open_files import MOST, Died, OpenFiles, end_like, how_it_ended, opened_in
from tokred.preprocess import Preprocess

SHAPE = (3, 8, 8)
BAD = "c.png"
READ = pictures.read_picture
fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="the reader is replaced in a fork"
)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    """Torch asks every 5 s whether the processes that read for it are there."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.fixture
def source(tmp_path):
    """Eight pictures a.png to h.png, whose open files are noted."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "open").mkdir()
    for letter in "abcdefgh":
        Image.fromarray(np.full((8, 8, 3), ord(letter), np.uint8)).save(tmp_path / "pictures" / f"{letter}.png")
    source = ImageFolder(tmp_path / "pictures")
    source.open_files = OpenFiles(tmp_path / "open")
    return source


def breaking(act, *names):
    def read(path):
        if os.path.basename(path) in names:
            act()
        return READ(path)

    return read


def die(number):
    return lambda: os.kill(os.getpid(), number)


def batches(source, num_workers=2):
    return list(source.loader(SHAPE, Preprocess(crop_pct=None), batch_size=2, num_workers=num_workers))


@fork
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_reading_process_that_dies_over_a_file_costs_that_file_alone(source, monkeypatch, number):
    monkeypatch.setattr(pictures, "read_picture", breaking(die(number), BAD))
    found = batches(source)
    assert [batch.index_B.tolist() for batch in found] == [[0, 1], [3], [4, 5], [6, 7]]
    ((path, reason),) = found[1].problems
    assert path == BAD and signal.Signals(number).name in reason


@fork
def test_the_death_of_a_reading_process_is_not_raised_in_what_runs_meanwhile(source, monkeypatch):
    monkeypatch.setattr(pictures, "read_picture", breaking(die(signal.SIGSEGV), "h.png"))
    seen = 0
    for batch in source.loader(SHAPE, Preprocess(crop_pct=None), batch_size=1, num_workers=1):
        seen += len(batch.index_B)
        end = time.monotonic() + 0.2 if seen == 6 else 0.0  # a model that runs while the process reads ahead and dies
        while time.monotonic() < end:
            pass
    assert seen == 7


@fork
def test_a_reading_process_that_dies_over_no_file_ends_the_pass(source, monkeypatch):
    monkeypatch.setattr(ImageFolder, "label", lambda self, index: die(signal.SIGKILL)())
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        batches(source, num_workers=1)


@fork
def test_a_reading_process_of_one_of_several_devices_may_die_too(source, monkeypatch):
    monkeypatch.setattr(pictures, "read_picture", breaking(die(signal.SIGSEGV), BAD))
    every = _Kept(source.loader(SHAPE, Preprocess(crop_pct=None), batch_size=2, num_workers=2)).every(2, 1)
    assert [batch.index_B.tolist() for batch in every] == [[3], [6, 7]]


@fork
def test_what_another_process_died_over_is_what_this_one_dies_over(tmp_path):
    (tmp_path / "1").touch()
    other = multiprocessing.get_context("fork").Process(target=end_like, args=(Died(1, -signal.SIGKILL), tmp_path))
    other.start()
    other.join()
    assert other.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [str(other.pid)]


def test_a_file_that_is_refused_is_a_problem_with_its_reason(source):
    source.open_files.refused[str(os.path.join(source._folder, BAD))] = "reading it crashed its process (SIGSEGV)"
    problems = [problem for batch in batches(source, num_workers=0) for problem in batch.problems]
    assert problems == [(BAD, "reading it crashed its process (SIGSEGV)")]


def test_what_is_read_is_noted_while_it_is(tmp_path):
    files = OpenFiles(tmp_path)
    with files.reading("/a/ü.mp4"):
        during = opened_in(tmp_path)
    assert during[os.getpid()].path == "/a/ü.mp4" and opened_in(tmp_path) == {}


def test_where_every_file_kills_it_is_not_the_files(tmp_path):
    files = OpenFiles(tmp_path, {str(number): "reading it crashed" for number in range(MOST)})
    with files.reading("one more"):
        assert not files.died({os.getpid(): -signal.SIGSEGV})


def test_a_signal_without_a_name_has_its_number():
    assert how_it_ended(-40) == ("crashed", "crashed its process (signal 40)")
