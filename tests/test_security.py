"""SECURITY.md's promise: no config, checkpoint, annotation, picture, video or run folder has code run, files outside its root read or
written, or more memory used than is said. What is tried is in ``tests/hostile.py``.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from tests.hostile import ATTACKS
from tokred import hub
from tokred.backbone import create_backbone
from tokred.record import Store
from tokred.registry import BACKBONES
from tokred.sweeps.cli import main, sweep
from tokred.terminal import PlainConsole, plain

ROOT = Path(__file__).parents[1]
UNPICKLED = [
    name for name in ATTACKS if any(part in name for part in ("pickle", "checkpoint", "tensor", "objects", "plugin"))
]
TINY = [
    "sizes.depth=2",
    "sizes.embed_dim=24",
    "sizes.patch_size=16",
    "weights=random",
    "data.num_clips=4",
    "methods=[tome]",
]


def tried(folder, *names, **environment):
    """How these attacks ended, or all, in a process that may take one GiB more than it has, and two minutes."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", str(folder), *names],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return tried(tmp_path_factory.mktemp("attacks"))


@pytest.fixture(scope="module")
def ended_where_torch_is_told_to_unpickle(tmp_path_factory):
    return tried(tmp_path_factory.mktemp("forced"), *UNPICKLED, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")


REFUSALS = ("ValueError: ", "Damaged: ", "DecompressionBombError: ", "InvalidDataError: ", "ArgumentError: ")


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_in_one_line(name, ended):
    how, seconds, _ = ended[name]
    assert how.startswith(REFUSALS) and "\n" not in how, how
    assert seconds < 60  # not a measure of speed: none of it hangs


def test_no_attack_is_left_out(ended):
    assert set(ended) == set(ATTACKS) and len(ended) > 50


def test_nothing_of_it_ran(ended):
    assert not [name for name, (_, _, canary) in ended.items() if canary]


def test_nor_where_the_environment_tells_torch_to_unpickle(ended, ended_where_torch_is_told_to_unpickle):
    found = ended_where_torch_is_told_to_unpickle
    assert not [name for name, (_, _, canary) in found.items() if canary]
    assert set(found) == set(UNPICKLED)
    assert all(how.partition(": ")[0] == ended[name][0].partition(": ")[0] for name, (how, *_) in found.items())


# Nothing goes to a network that was not asked for


@pytest.fixture
def no_network(monkeypatch):
    """Whom anything tried to reach."""
    reached = []

    def refuse(*arguments, **_):
        reached.append(arguments)
        raise OSError("no network in this test")

    connect = socket.socket.connect

    def connect_here(self, address):
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", connect_here)
    return reached


def test_a_sweep_and_its_report_reach_no_network(tmp_path, no_network):
    assert (
        sweep([*TINY, "backbones=[mini_cls]", "r=[4]", "timing.rounds=0", "traces=2", f"out={tmp_path / 'run'}"]) == 0
    )
    assert (tmp_path / "run" / "report.html").is_file() and main(["status", str(tmp_path / "run")]) == 0
    assert no_network == []


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "umt_base_patch16_224", "hf/MCG-NJU/videomae-base"])
def test_weights_of_the_hub_are_not_the_default(name, tmp_path, monkeypatch, no_network, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep([f"backbones=[{name}]", "methods=[tome]"]) == 2
    assert "say weights=pretrained (from the hub)" in capsys.readouterr().err
    assert no_network == [] and list(tmp_path.iterdir()) == []


def test_a_vocabulary_of_the_hub_is_fetched_only_where_it_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names: asked.append(names))
    with pytest.raises(ValueError, match="nothing is fetched that was not asked for; give vocabulary=PATH"):
        create_backbone("umt_base", weights="random")
    assert asked == []
    hub.fetched("a", "b", instead="")
    assert asked == [("a", "b")]


@pytest.mark.parametrize("family", list(BACKBONES), ids=lambda family: family.name)
def test_only_families_with_weights_in_the_package_say_so(family):
    assert family.embedded == (family.__module__ == "tokred.backbones.mini")


# A run folder from somebody else


def test_drift_runs_no_plugin_that_only_the_run_folder_names(tmp_path, capsys):
    plugin, out = tmp_path / "plugin.py", tmp_path / "run"
    plugin.write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    words = [*TINY, "backbones=[mini_cls]", "r=[4]", "timing.rounds=0", "traces=0", f"plugins=[{plugin}]"]
    assert sweep([*words, f"out={out}"]) == 0
    (tmp_path / "canary").unlink()
    assert main(["drift", str(out)]) == 2
    assert f"'plugins=[{plugin}]'" in capsys.readouterr().err and not (tmp_path / "canary").exists()
    assert main(["drift", str(out), *TINY[:3], f"plugins=[{plugin}]"]) == 0
    assert (tmp_path / "canary").exists()


def test_only_its_own_leftovers_are_removed_from_a_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for path in (own := tmp_path / "cells" / ".a.json.1.tmp", other := tmp_path / "mine" / ".b.tmp"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    Store(tmp_path).heal([])
    assert not own.exists() and other.exists()


# What reaches a terminal

STEERING = "\x1b]0;title\x07\x1b[2Jname\x9b1m\u202eeman\r"


def test_no_name_steers_the_terminal(capsys):
    table = Table("method")
    table.add_row(STEERING)
    console = PlainConsole(width=120)
    console.print(STEERING, markup=False)
    console.print(table)
    said = capsys.readouterr().out
    assert said.count("name") == 2 and all(c.isprintable() or c == "\n" for c in said)


def test_no_name_in_an_error_steers_the_terminal(capsys):
    assert main(["status", STEERING]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.rstrip("\n").isprintable()


def test_plain_is_one_line():
    assert plain("a\n\x1b[31mb\x1b[0m\tc") == "a b c"


# The source: ruff's S rules hold the rest (pickle, eval, exec, yaml.load, torch.load without weights_only, shells)


@pytest.mark.parametrize(
    "pattern",
    [
        r"trust_remote_code\s*=\s*True",
        r"np\.load\(",
        r"allow_pickle\s*=\s*True",
        r"weights_only\s*=\s*False",
        r"os\.system\(",
    ],
)
def test_what_ruff_does_not_look_for_is_not_in_the_source(pattern):
    folders = ("tokred", "methods", "backbones", "sweeps", "analysis", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert not [path for path in files if re.search(pattern, path.read_text())]


def test_the_linter_looks_for_calls_that_run_what_they_read():
    rules = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^select = \[.*"S".*\]$', rules, re.M)
    assert not {"S102", "S301", "S307", "S506", "S602", "S614"} & set(re.findall(r'^  "(S\d+)"', rules, re.M))
