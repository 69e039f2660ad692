"""A sweep that is spread over processes, of this machine, of Ray or of Slurm, comes to what one process comes to."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.test_crowd_of_sweeps import WORDS, outcome, words_for
from tokred.record import Store, key_of
from tokred.sealed import write_json
from tokred.sweeps.claims import SWEEP, Claims
from tokred.sweeps.cli import sweep
from tokred.sweeps.config import read_config
from tokred.sweeps.executors import Ray, _is_queued, _Job, executor_of
from tokred.sweeps.spread import TRIES, End, Executor, Handle, Work, spread, words_of
from tokred.sweeps.status import read_status
from tokred.sweeps.watch import Watch
from tokred.sweeps.work import join

WORK = Work(("r=8",), "", "/", "cells", "")


class Planned(Handle):
    def __init__(self, ends):
        self.ends, self.killed = ends, False

    def ended(self):
        return self.ends.pop(0) if self.ends else End()

    def kill(self):
        self.killed = True


class Fake(Executor):
    """Its processes end as ``ends`` says, by the order in which they are started."""

    def __init__(self, *ends):
        self.ends, self.started, self.handles = list(ends), [], []

    def num_processes(self):
        return 1

    def start(self, work):
        self.started.append(work.name)
        self.handles.append(Planned(self.ends.pop(0) if self.ends else []))
        return self.handles[-1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tokred.sweeps.spread.POLL_S", 0.0)
    return Store(tmp_path).create()


def spread_over(executor, store, num=1):
    said = []
    spread(executor, replace(WORK, folder=str(store.folder)), num, store, said.append, lambda: None)
    return said


def test_a_lost_process_is_followed_by_another(folder):
    executor = Fake([None, End(lost="was killed")])
    assert spread_over(executor, folder) == ["process cells was killed: another takes its place"]
    assert executor.started == ["cells", "cells"]


def test_one_that_is_lost_again_and_again_without_a_cell_in_between_ends_the_sweep(folder):
    executor = Fake(*[[End(lost="was killed")] for _ in range(TRIES + 1)])
    with pytest.raises(ValueError, match=rf"lost {TRIES + 1} times in a row.*the same command goes on from here"):
        spread_over(executor, folder)


def test_one_that_is_lost_after_each_of_many_cells_goes_on(folder):
    num = 3 * TRIES
    executor = Fake(*[[End(lost="was killed")] for _ in range(num)])
    start = executor.start

    def start_and_finish_a_cell(work):
        (folder.cells / f"{len(executor.started)}.json").touch()
        return start(work)

    executor.start = start_and_finish_a_cell
    assert len(spread_over(executor, folder)) == num


def test_a_process_that_cannot_do_its_work_ends_the_sweep_and_the_others(folder):
    executor = Fake([None, None], [End(error="no weights at x.pth")])
    with pytest.raises(
        ValueError, match=r"process cells-1 of the sweep stopped: no weights at x.pth; see .*cells-1.log"
    ):
        spread_over(executor, folder, num=2)
    assert all(handle.killed for handle in executor.handles)


def test_what_is_for_the_sweep_alone_is_not_told_to_its_processes():
    own = ["out=x", "executor=ray", "processes=2", "resources.cpus=2", "retry=failed", "+slurm.time=3"]
    assert words_of(["r=8", *own, "methods=[tome]"]) == ("r=8", "methods=[tome]")


class Here(Executor):
    """Its processes are this very one: their work is done as they are started, ``before`` that something else."""

    def __init__(self, before=lambda: None):
        self.before, self.logs = before, []

    def num_processes(self):
        return 2

    def start(self, work):
        self.logs.append(work.log.name)
        self.before()
        join(work, list(work.words), Watch())
        return Planned([End()])


@pytest.fixture
def sweep_over(tmp_path, monkeypatch):
    monkeypatch.setattr("tokred.timing.WARM_UP_S", 0.0)
    monkeypatch.setattr("tokred.timing.MIN_BLOCK_MS", 0.0)

    def run_over(executor, *words):
        monkeypatch.setattr("tokred.sweeps.run.executor_of", lambda config: executor)
        return sweep([*WORDS, "timing.rounds=20", "processes=2", "loggers=[]", f"out={tmp_path / 'run'}", *words])

    return run_over


def test_a_part_of_a_sweep_that_has_nothing_open_starts_no_process(sweep_over, tmp_path, capsys):
    first, again, anew = Here(), Here(), Here()
    assert sweep_over(first) == 0 and first.logs == ["cells-0.log", "cells-1.log", "timings.log"]
    assert sweep_over(again) == 0 and again.logs == []
    assert capsys.readouterr().out.count("processes (local)") == 1
    assert sweep_over(anew, "timing.rounds=21") == 0 and anew.logs == ["timings.log"]


def test_a_sweep_goes_by_its_own_plan_while_another_runs_in_its_folder(sweep_over, tmp_path, capsys):
    out, seen = tmp_path / "run", []

    def another_begins():
        seen.append(read_status(Store(out)))
        write_json(out / "plan.json", {"keys": ["0" * 64], "timings": [], "words": [], "kept": 0})

    executor = Here(another_begins)
    with Claims(out) as others:
        others.take_first(SWEEP)
        assert sweep_over(executor, "timing.rounds=0") == 0
    assert executor.logs == ["cells-0-of-sweep-1.log", "cells-1-of-sweep-1.log"]
    assert seen[0].begun and not seen[0].busy
    assert (out / "results.csv").read_text().count("random_drop") == 1


# Settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["executor=cloud"], "executor must be one of local, ray, slurm; got 'cloud'"),
        (["executor=slurm"], "executor=slurm needs the number of jobs: add processes=8"),
        (["processes=0"], "processes must be at least 1; got 0"),
        (["resources.cpus=0.5"], "resources.cpus must be a whole number from 0, or null; got 0.5"),
        (
            ["resources.disk=1"],
            "no setting resources.disk; there are resources.cpus, resources.gpus, resources.memory_gb",
        ),
        (
            ["executor=slurm", "processes=2", "resources.gpus=0.5"],
            "must be a whole number with executor=slurm; got 0.5",
        ),
        (["slurm.partition=gpu"], "slurm.partition is set, but the executor is local; add executor=slurm"),
        (["executor=slurm", "processes=2", "slurm.setup=x"], "no setting slurm.setup; there are slurm.cluster"),
        (["executor=slurm", "processes=2", "slurm.time='1:00'"], "slurm.time must be a number of minutes; got '1:00'"),
        (["executor=slurm", "processes=2", "slurm.account='a b'"], "slurm.account must be one word"),
        (["executor=slurm", "processes=2", "slurm.qos='$(touch x)'"], "slurm.qos must be one word"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(words, said):
    with pytest.raises(ValueError) as error:
        read_config(words)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_extra_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r'executor=ray needs ray: pip install "tokred\[ray\]"'):
        executor_of(read_config(["executor=ray"]))


class Rays:
    """A cluster of two nodes that are there and one that is gone."""

    def nodes(self):
        node = {"CPU": 4.0, "memory": 8 * 2.0**30}
        return [{"Alive": alive, "Resources": node} for alive in (True, True, False)]

    def cluster_resources(self):
        return {"CPU": 8.0, "memory": 16 * 2.0**30}


@pytest.mark.parametrize(
    ("words", "num"), [([], 8), (["resources.cpus=3"], 2), (["resources.memory_gb=4"], 4), (["processes=3"], 3)]
)
def test_a_ray_cluster_has_as_many_processes_as_its_nodes_have_room_for(words, num):
    assert Ray(read_config(["executor=ray", *words]), Rays()).num_processes() == num


def test_what_no_node_of_a_ray_cluster_has_is_not_waited_for():
    with pytest.raises(ValueError, match="no node of the Ray cluster has 5 CPU, which a process asks for"):
        Ray(read_config(["executor=ray", "resources.cpus=5", "processes=1"]), Rays()).num_processes()


class NoRay:
    """It cannot be reached at first, or no longer."""

    is_initialized = staticmethod(lambda: False)

    def __getattr__(self, name):
        def fail(*_, **__):
            raise ConnectionError("no address\n  and advice " + "x" * 1000)

        return fail


def test_a_ray_that_is_not_there_is_one_line():
    ray = Ray(read_config(["executor=ray"]), NoRay())
    with pytest.raises(ValueError, match=r"^Ray cannot be reached, nor started: no address and advice \.\.\.$"):
        ray.__enter__()
    for ask in (ray.num_processes, lambda: ray.start(WORK)):
        with pytest.raises(ValueError, match=r"^the connection to Ray is lost: no address"):
            ask()


@pytest.mark.parametrize(
    ("threads", "words", "given"), [("3", [], "3"), ("3", ["resources.cpus=2"], "2"), (None, [], "4")]
)
def test_a_process_has_the_threads_that_the_user_gave_or_its_share(threads, words, given, monkeypatch):
    begun = []
    monkeypatch.setattr("tokred.sweeps.executors.started", lambda work, environment: begun.append(environment))
    monkeypatch.setattr("tokred.sweeps.executors.os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    executor_of(read_config(["processes=2", *words])).start(replace(WORK, total=2))
    assert begun[0]["OMP_NUM_THREADS"] == given


# For real


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process comes to."""
    out = tmp_path_factory.mktemp("alone")
    assert sweep([*words_for(12, cells_per_pass=2), "timing.rounds=0", f"out={out}"]) == 0
    return outcome(out)


def run(out, *words):
    code = sweep([*words_for(12, cells_per_pass=2), *words, f"out={out}"])
    return code, outcome(out)


@pytest.mark.slow
def test_two_processes_come_to_the_same_as_one_though_one_is_killed(tmp_path, alone, capsys):
    killer = threading.Thread(target=kill_the_first_at_work, args=(tmp_path / "run",))
    killer.start()
    assert run(tmp_path / "run", "processes=2") == (0, alone)
    killer.join()
    said = capsys.readouterr().out
    assert "2 processes (local)" in said and "was killed (signal 9): another takes its place" in said
    assert not [log for log in (tmp_path / "run").glob("logs/*.log") if "Traceback" in log.read_text()]


def kill_the_first_at_work(out):
    """The process ``cells-0``, once a cell is done."""
    while not (children := list(processes_of("cells", out))) or not list(out.glob("cells/*.json")):
        time.sleep(0.05)
    os.kill(children[0], signal.SIGKILL)


def processes_of(part, out):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode()
        except OSError:
            continue
        if "sweeps.work" in words and f'"part": "{part}"' in words and str(out) in words:
            yield int(path.parent.name)


def test_one_that_would_plan_other_cells_says_so(tmp_path):
    said = "it plans other cells than the sweep: tokred, a plugin, weights or data are others where it runs, or by now"
    with pytest.raises(ValueError, match=said):
        join(Work(tuple(WORDS), str(tmp_path), str(tmp_path), "cells", key_of(["a", "b"])), WORDS, Watch())


@pytest.mark.slow
def test_jobs_of_slurm_come_to_the_same(tmp_path, alone):
    pytest.importorskip("submitit")
    assert run(tmp_path / "run", "executor=slurm", "slurm.cluster=local", "processes=2") == (0, alone)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ray_cluster_that_loses_a_node_comes_to_the_same(tmp_path, alone, monkeypatch, capsys):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster, out = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}), tmp_path / "run"
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)

    def lose_a_node():
        while len(list(out.glob("logs/*.log"))) < 2 or not list(out.glob("cells/*.json")):
            time.sleep(0.05)  # until both nodes have begun
        cluster.remove_node(nodes[0], allow_graceful=False)

    loser = threading.Thread(target=lose_a_node)
    loser.start()
    try:
        assert run(out, "executor=ray") == (0, alone)
    finally:
        loser.join()
        cluster.shutdown()
    said = capsys.readouterr().out
    assert "2 processes (ray)" in said and "was lost by Ray" in said


class Job:
    """One of Slurm that left nothing behind, where there is no accounting: submitit takes it for running."""

    job_id = "7"

    def done(self):
        return False


def test_a_job_that_left_the_queue_without_a_word_is_lost_at_the_second_look(monkeypatch, tmp_path):
    monkeypatch.setattr("tokred.sweeps.executors.QUEUE_S", -1.0)
    monkeypatch.setattr("tokred.sweeps.executors._is_queued", lambda job: False)
    handle = _Job(Job(), replace(WORK, folder=str(tmp_path)))
    assert handle.ended() is None
    assert handle.ended() == End(lost="left the queue before its end (job 7)")


def test_a_job_that_is_queued_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr("tokred.sweeps.executors.QUEUE_S", -1.0)
    monkeypatch.setattr("tokred.sweeps.executors._is_queued", lambda job: True)
    handle = _Job(Job(), replace(WORK, folder=str(tmp_path)))
    assert [handle.ended() for _ in range(4)] == [None] * 4


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "queued"),
    [
        ("  7 all tokred R", "", 0, True),
        ("", "", 0, False),
        ("", "slurm_load_jobs error: Invalid job id specified", 1, False),
        ("", "slurm_load_jobs error: Unable to contact slurm controller", 1, True),  # it says nothing of the job
    ],
)
def test_what_the_queue_says_of_a_job(stdout, stderr, code, queued, monkeypatch):
    result = SimpleNamespace(stdout=stdout, stderr=stderr, returncode=code)
    monkeypatch.setattr("tokred.sweeps.executors.subprocess.run", lambda *_, **__: result)
    assert _is_queued(Job()) == queued
