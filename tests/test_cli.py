"""The commands as a user types them, in processes of their own: help, list, a sweep that is stopped and goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tokred import list_methods
from tokred.sweeps.cli import main, sweep
from tokred.sweeps.config import CONF

ROOT = Path(__file__).parent.parent
SMALL = {"depth": 3, "embed_dim": 24, "patch_size": 16}  # 64 tokens a clip
METHODS = ["tome", "evit", "random_drop"]
NUM_CELLS = 2 * (1 + 3)  # two backbones, each unreduced too


def command(*words, cwd, **options):
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(ROOT / "sweep.py"), *words]
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=cwd, env=environment, preexec_fn=_heed_interrupts, **options)


def _heed_interrupts():
    """As in a terminal: what a shell runs in the background ignores Ctrl+C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Ran(NamedTuple):
    code: int
    out: str
    err: str
    num_records: int
    left: list[str]  # processes that were there when the command had ended


class Story(NamedTuple):
    """One sweep: stopped after its first record by somebody with little patience, started again, and again. ``folder`` is its run folder."""

    stopped: Ran
    finished: Ran
    repeated: Ran
    folder: Path


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("cwd")
    words = [
        *(
            f"methods=[{','.join(METHODS)}]",
            "backbones=[mini_cls,mini_mean]",
            "weights=random",
            "r=8",
        ),
        *(f"sizes.{name}={n}" for name, n in SMALL.items()),
        *("seeds=1", "data.num_clips=40", "batch_size=8", "timing.rounds=20", "timing.batch_size=1", "traces=0"),
    ]
    return Story(*(_run(words, cwd, stop=number == 0) for number in range(3)), *(cwd / "runs").iterdir())


def _run(words, cwd, *, stop):
    process = command(*words, cwd=cwd)
    try:
        while stop and process.poll() is None and not _records(cwd):
            time.sleep(0.01)
        for _ in range(3 if stop else 0):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        left = _processes_in(cwd) if stop and process.wait(60) else []
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    return Ran(process.returncode, out, err, len(_records(cwd)), left)


def _processes_in(cwd):
    """What Python calls its tracker of resources ends by itself, a moment later."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_text() if (path / "cwd").readlink() == cwd else ""
        except OSError:
            continue
        if line and "resource_tracker" not in line:
            found.append(line)
    return found


def _records(cwd):
    return list(cwd.glob("runs/*/cells/*.json"))


# A sweep


def test_a_stopped_sweep_says_that_it_goes_on(story):
    assert story.stopped.code == 130 and 1 <= story.stopped.num_records < NUM_CELLS
    assert story.stopped.err.strip().endswith(
        "stopped; the finished cells are kept: the same command goes on from here"
    )
    assert "Traceback" not in story.stopped.err and story.stopped.left == []


def test_the_same_command_goes_on_in_the_same_folder(story):
    kept = story.stopped.num_records
    assert story.finished.code == 0 and story.finished.num_records == NUM_CELLS
    assert f"{kept} of {NUM_CELLS} cells were there already" in story.finished.out


def test_the_same_command_once_more_runs_nothing(story):
    assert story.repeated.code == 0 and ": done" not in story.repeated.out
    assert f"{NUM_CELLS} of {NUM_CELLS} cells were there already and were not run again" in story.repeated.out


def test_the_same_records_make_the_same_table(story):
    tables = [out[out.index("mini_cls, random weights") :] for out in (story.finished.out, story.repeated.out)]
    assert tables[0] == tables[1]


def test_the_first_line_says_how_much_there_is_to_do_and_where_it_goes(story):
    line = story.finished.out.splitlines()[0]
    assert line == f"{NUM_CELLS} cells, 40 samples each, on cpu; records in runs/{story.folder.name}"


def test_each_cell_says_what_it_is_and_how_it_ended(story):
    lines = story.stopped.out.splitlines() + story.finished.out.splitlines()
    assert "mini_mean (2/2): tome r 8: done" in lines and "mini_mean (2/2): evit r 8: refused" in lines


def test_the_table_shows_every_column(story):
    header = story.finished.out.splitlines()[:60]
    for title in ("method", "schedule", "agreement", "% [95 %]", "difference", "GMACs", "MACs", "tokens", "speed-up"):
        assert any(title in line for line in header), title


def test_a_row_holds_value_and_interval_difference_share_and_speedup(story):
    (row,) = [line for line in story.finished.out.splitlines() if re.match(r"tome .*\br 8\b", line)][:1]
    number = r"[+-]?\d+(\.\d+)?"
    interval = rf"{number} \[{number}, {number}\]"
    assert len(re.findall(interval, row)) == 3, row  # agreement, difference, speed-up


def test_a_refused_cell_stands_below_the_table_with_its_reason(story):
    assert "mini_mean, evit (r 8): refused: evit reads the attention of a class token" in story.finished.out


@pytest.mark.parametrize("name", ["results.csv", "timings.csv"])
def test_tables_are_written_and_named(name, story):
    assert (story.folder / name).stat().st_size > 100
    assert f"runs/{story.folder.name}/{name}" in story.finished.out


@pytest.mark.parametrize("name", ["pareto_gmacs.png", "pareto_gmacs.svg", "pareto_speedup.png", "pareto_speedup.svg"])
def test_figures_are_drawn_in_a_folder_that_is_named(name, story):
    assert (story.folder / "figures" / name).stat().st_size > 100
    assert f"runs/{story.folder.name}/figures" in story.finished.out


def test_the_report_is_written_and_named_last(story):
    assert story.finished.out.splitlines()[-1] == f"report: runs/{story.folder.name}/report.html"
    assert (story.folder / "report.html").stat().st_size > 500_000


def test_nothing_is_said_on_the_error_stream(story):
    assert story.finished.err == story.repeated.err == ""


def test_no_rounds_skip_the_speed(tmp_path, capsys):
    words = [f"sizes.{name}={n}" for name, n in SMALL.items()]
    words += ["backbones=mini_mean", "weights=random", "methods=tome", "r=8", "data.num_clips=2", "timing.rounds=0"]
    assert sweep([*words, f"out={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "speed-up" not in said and "Speed was not measured." in said
    drawn = [path.name for path in (tmp_path / "run" / "figures").glob("*.png")]
    assert "pareto_gmacs.png" in drawn and "pareto_speedup.png" not in drawn


@pytest.mark.parametrize("axis", ["shape=[constant,front]", "layers=[[0],[1,2]]"])
def test_several_shapes_or_layers_are_drawn_as_a_heat_map(axis, tmp_path, capsys):
    words = [f"sizes.{name}={n}" for name, n in SMALL.items()]
    words += [
        "backbones=mini_mean",
        "weights=random",
        "methods=tome",
        "data.num_clips=2",
        "timing.rounds=0",
        "traces=0",
    ]
    assert sweep([*words, axis, "budget=0.8", f"out={tmp_path / 'run'}"]) == 0
    figures = tmp_path / "run" / "figures"
    assert str(figures) in capsys.readouterr().out
    assert all((figures / f"heatmap-mini_mean.{kind}").is_file() for kind in ("png", "svg"))
    assert len((figures / "heatmap-mini_mean.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("kind", ["json", "predictions.npz"])
def test_a_damaged_file_is_set_aside_in_one_line_and_its_cell_run_again(kind, tmp_path, capsys):
    words = [f"sizes.{name}={n}" for name, n in SMALL.items()]
    words += [
        "backbones=mini_mean",
        "weights=random",
        "methods=none",
        "data.num_clips=2",
        "timing.rounds=0",
        "traces=0",
    ]
    words.append(f"out={tmp_path / 'run'}")
    assert sweep(words) == 0
    capsys.readouterr()
    (path,) = (tmp_path / "run" / "cells").glob(f"*.{kind}")
    whole = path.read_bytes()
    path.write_bytes(whole[:-70] + bytes([whole[-70] ^ 1]) + whole[-69:])
    assert sweep(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"damaged: {path}: set aside in {tmp_path / 'run' / 'damaged'}, and its cell is run again" in said
    assert "mini_mean (1/1): none: done" in said and len(list((tmp_path / "run" / "cells").glob("*.json"))) == 1


# Help and list


@pytest.fixture(scope="module")
def help_text(tmp_path_factory):
    process = command("--help", cwd=tmp_path_factory.mktemp("help"))
    out, err = process.communicate(timeout=280)
    assert (process.returncode, err) == (0, "")
    return out


def test_help_names_every_method_with_its_options(help_text):
    for name in list_methods():
        assert re.search(rf"^  {name} ", help_text, re.MULTILINE), name
    assert "[matching, proportional_attention, seed]" in help_text


def test_help_names_the_backbones(help_text):
    for name in ("mini_cls", "mini_mean", "umt_base_patch16_224", "timm/NAME"):
        assert re.search(rf"^  {name} ", help_text, re.MULTILINE), name


@pytest.mark.parametrize(
    "axis",
    ["methods", "options", "backbones", "weights", "budget", "r", "keep_rate", "tokens", "shape", "layers", "seeds"],
)
def test_help_explains_every_axis(axis, help_text):
    assert re.search(rf"^  {axis} ", help_text, re.MULTILINE)


def test_help_names_every_setting(help_text):
    settings = re.findall(r"^(\w+):", (CONF / "config.yaml").read_text(), re.MULTILINE)
    assert [name for name in settings if name not in ("defaults", "timing") and name not in help_text] == []
    assert all(f"timing.{name}" in help_text for name in ("rounds", "batch_size", "modes"))


def test_help_names_every_data_set_and_experiment(help_text):
    files = [path for group in ("data", "experiment") for path in (CONF / group).rglob("*.yaml")]
    assert files and [path.stem for path in files if path.stem not in help_text] == []


def test_help_fits_a_wide_terminal(help_text):
    assert max(map(len, help_text.splitlines())) <= 160


def test_list_has_a_line_for_each_method_and_backbone(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if re.match(r"  \S", line)]  # a line of options alone lies further in
    assert len(names) == len(set(names)) and {*list_methods(), "mini_cls", "mini_mean"} < set(names)


def test_list_takes_a_pattern(capsys):
    assert main(["list", "timm/*small*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Backbones:" and all(re.match(r"  timm/\S*small", line) for line in lines[1:]) and len(lines) > 5


def test_list_says_when_nothing_matches(capsys):
    assert main(["list", "no_such_thing"]) == 2
    assert "no method or backbone matches 'no_such_thing'" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--help"], 0), (["swepe"], 2)])
def test_the_command_without_a_task_says_how_it_is_used(words, code, capsys):
    assert main(words) == code
    said = capsys.readouterr()
    assert "usage: tokred sweep" in (said.err if code else said.out)


def test_power_prints_the_smallest_difference_that_is_found(capsys):
    assert main(["power", "n=10000", "discordant=0.06"]) == 0
    assert "a true difference of 0.69 points is found in 4 of 5 sweeps" in capsys.readouterr().out


def test_power_counts_the_comparisons_of_a_report(capsys):
    assert main(["power", "n=10000", "discordant=0.06", "comparisons=225"]) == 0
    # the normal quantiles of 1 - 0.05 / 2 / 225, 3.691 by the table, and of 80 %, 0.842
    assert f"{100 * (3.691 + 0.842) * (0.06 / 10000) ** 0.5:.2f} points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("n=10", "takes n=10000 discordant=0.06"),
        ("", "got nothing"),
        ("n=ten discordant=0.1", "all numbers, n and comparisons whole; got n=ten discordant=0.1"),
        ("n=10 discordant=0.1 power=0.9", "takes n=10000 discordant=0.06"),
        ("n=0 discordant=0.1", "are counted from 1; got 0 and 1"),
        ("n=10 discordant=6", "above 0 and at most 1; got 6"),
    ],
)
def test_power_refuses_what_it_does_not_know_in_one_line(words, why, capsys):
    assert main(["power", *words.split()]) == 2
    assert why in capsys.readouterr().err
    assert capsys.readouterr().err.count("\n") <= 1
