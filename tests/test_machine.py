"""What a timing says of the machine under it: from files as Linux writes them, and where there are none."""

import os
import subprocess
from dataclasses import replace

import pytest
import torch

from tokred.sweeps import machine
from tokred.sweeps.machine import Moment, between, moment, processor

X86 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: A Processor: 16-Core
stepping\t: 1

processor\t: 1
cpu family\t: 6
model name\t: other
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c
"""
PRESSURE = "some avg10=1.53 avg60=0.87 avg300=0.73 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
STAT = "cpu  {user} 0 100 {idle} 50 0 25 {stolen} {user} 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"  # all of user's is guests'


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A folder in the place of /proc."""
    monkeypatch.setattr(machine, "PROC", tmp_path)
    (tmp_path / "pressure").mkdir()
    processor.cache_clear()
    yield tmp_path
    processor.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (X86, "A Processor: 16-Core, family 25 model 17"),
        (ARM, "this one, implementer 0x41 part 0xd0c"),
        ("processor\t: 0\nhart\t: 0\n", "this one"),
        (None, "this one"),
    ],
)
def test_the_processor_is_named_by_its_model_and_by_its_numbers(proc, monkeypatch, cpuinfo, name):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "this one")
    if cpuinfo is not None:
        (proc / "cpuinfo").write_text(cpuinfo)
    assert processor() == name


@pytest.mark.parametrize(("called", "name"), [("", "this one"), ("A vendor's", "A vendor's")])
def test_on_windows_it_is_what_python_says(proc, monkeypatch, called, name):
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr("platform.processor", lambda: called)
    monkeypatch.setattr("platform.machine", lambda: "this one")
    assert processor() == name


@pytest.mark.parametrize(("said", "name"), [("A brand\n", "A brand"), ("", "this one"), (None, "this one")])
def test_on_a_mac_it_is_its_brand(proc, monkeypatch, said, name):
    def run(command, **_):
        if said is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, stdout=said)

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "this one")
    monkeypatch.setattr(subprocess, "run", run)
    assert processor() == name


def test_pressure_and_stolen_time_are_shares_of_what_passed(proc, monkeypatch):
    ticks = os.sysconf("SC_CLK_TCK")
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    found = []
    for waited, times in [
        (5_000_000, (1000, 500, 40)),
        (7_500_000, (1000 + 12 * ticks, 500 + 5 * ticks, 40 + 3 * ticks)),
    ]:
        (proc / "pressure" / "cpu").write_text(PRESSURE.format(waited))
        (proc / "stat").write_text(STAT.format(user=times[0], idle=times[1], stolen=times[2]))
        found.append(moment("cpu"))
    said = between(*found)
    assert said["cpu_pressure"] == 0.25  # 2.5 of 10 s
    assert said["cpu_stolen"] == 0.15  # 3 of 12 + 5 + 3 s of cores
    assert said["cores"] >= 1 and len(said["load"]) == 2
    assert "clock_mhz" not in said and "temperature_c" not in said


@pytest.mark.parametrize("stat", ["cpu  1 2 3 4\n", "cpu  a b c d e f g h\n", "cpu  1.5 2 3 4 5 6 7 8\n", ""])
@pytest.mark.parametrize("pressure", ["some avg10=0.00 total=\n", "some\n", ""])
def test_what_the_system_does_not_count_is_none(proc, monkeypatch, stat, pressure):
    monkeypatch.delattr(os, "getloadavg")
    monkeypatch.delattr(os, "sched_getaffinity")
    (proc / "stat").write_text(stat)
    (proc / "pressure" / "cpu").write_text(pressure)
    said = between(moment("cpu"), moment("cpu"))
    assert said == {"cores": os.cpu_count(), "load": [None, None], "cpu_pressure": None, "cpu_stolen": None}


def test_a_share_lies_between_nothing_and_all_and_of_no_time_is_none():
    one = Moment(at=1.0, load=0.0, waited=0.0, stolen=0.0, passed=0.0, clock_mhz=None, temperature_c=None)
    assert between(one, replace(one, at=2.0, waited=1.01))["cpu_pressure"] == 1
    assert between(one, replace(one, waited=1.0))["cpu_pressure"] is None
    later = replace(one, at=2.0, passed=1.0, stolen=-0.1)
    assert between(one, later)["cpu_stolen"] == 0


def test_a_gpu_says_its_clock_and_temperature_where_it_can_be_asked(monkeypatch):
    clocks, temperatures = iter([1980, 1200]), iter([41, 84])
    monkeypatch.setattr(torch.cuda, "clock_rate", lambda: next(clocks))
    monkeypatch.setattr(torch.cuda, "temperature", lambda: next(temperatures))
    said = between(moment("cuda"), moment("cuda"))
    assert said["clock_mhz"] == [1980, 1200] and said["temperature_c"] == [41, 84]


def test_a_gpu_that_cannot_be_asked_says_nothing(monkeypatch):
    def without():
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "clock_rate", without)
    said = between(moment("cuda"), moment("cuda"))
    assert "clock_mhz" not in said and said["cores"] >= 1
