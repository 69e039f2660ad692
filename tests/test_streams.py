"""Commands whose output goes nowhere: a reader that has left, a full disk, closed streams, an alphabet without their letters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokred.record import Store

ROOT = Path(__file__).parent.parent
FULL = Path("/dev/full")  # takes nothing, as a disk that is full
MAIN = "import sys; from tokred.sweeps.cli import main; sys.exit(main(sys.argv[1:]))"
TINY = [
    *(
        "methods=[tome]",
        "backbones=mini_mean",
        "sizes.depth=3",
        "sizes.embed_dim=24",
        "sizes.patch_size=16",
        "weights=random",
    ),
    *("data.num_clips=8", "batch_size=4", "timing.rounds=0", "traces=0", "r=8"),
]

needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")


def ran(shell, *words, folder=None, **environment):
    """The command with what a shell adds to it: code, stdout and stderr."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    line = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-c", MAIN, *words]
    return subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, timeout=280)


GONE = "| true; exit ${PIPESTATUS[0]}"  # a reader that reads nothing


@pytest.mark.parametrize("words", [[], ["profile", "--help"], ["power", "n=9", "discordant=0.1"]])
def test_a_command_whose_reader_has_left_says_nothing_and_gives_the_code_of_a_closed_pipe(words):
    gone = ran(GONE, *words)
    assert (gone.returncode, gone.stderr) == (141, "")


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A sweep whose reader takes one line and leaves; how many records it left; then the same command with all streams closed."""
    folder = tmp_path_factory.mktemp("left")
    words = ["sweep", *TINY, "out=run"]
    first = ran("| head -1; exit ${PIPESTATUS[0]}", *words, folder=folder)
    kept = len(Store(folder / "run").records())
    return first, kept, ran(">&- 2>&- <&-", *words, folder=folder), folder / "run"


def test_a_sweep_whose_reader_has_left_stops_in_one_line(left):
    first, kept, _, _ = left
    line = (
        "stopped: nobody reads the output any more; the finished cells are kept: the same command goes on from here\n"
    )
    assert (first.returncode, first.stderr) == (141, line) and kept >= 1


def test_the_same_sweep_goes_on_and_closed_streams_do_not_hinder_it(left):
    _, kept, second, folder = left
    assert second.returncode == 0 and (folder / "results.csv").is_file()
    assert Store(folder).plan()["kept"] == kept and len(Store(folder).records()) == 2


@needs_full
def test_an_output_that_cannot_be_written_is_one_line():
    full = ran(">/dev/full", "power", "n=9", "discordant=0.1")
    assert (full.returncode, full.stderr) == (2, "error: No space left on device: no file named\n")


@needs_full
def test_an_error_that_cannot_be_written_keeps_its_code():
    assert ran("2>/dev/full", "power").returncode == 2


def test_letters_that_the_output_has_not_are_written_as_their_codes():
    missing = ran("", "status", "größe", PYTHONIOENCODING="ascii:strict")
    assert missing.returncode == 2 and "gr\\xf6\\xdfe is no run folder" in missing.stderr
