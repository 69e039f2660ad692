"""Where the processes of a sweep run: on this machine, on a Ray cluster, as Slurm jobs. What they do is the same everywhere
(``tokred.sweeps.work``), and each has the resources that it asks for.

Ray, and submitit, which talks to Slurm, are extras: ``pip install "tokred[ray]"``, ``"tokred[slurm]"``.
"""

import importlib
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

import torch

from tokred.sealed import write_whole
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.spread import End, Executor, Handle, Work
from tokred.sweeps.supervisor import own_environment
from tokred.sweeps.work import end, last_line, started

LOST = "the connection to Ray is lost"
SLURM_MINUTES = 240  # a job that the clock ends is followed by another
LEAVES_S = 5.0  # for a process to leave
QUEUE_S = 30.0  # between two looks at the queue; as long may a file take to be seen from another machine


def executor_of(config: SweepConfig) -> Executor:
    """Raises ValueError with what to install, where something is missing."""
    if config.executor == "ray":
        return Ray(config, _extra("ray", "ray"))
    if config.executor == "slurm":
        return Slurm(config, _extra("submitit", "slurm"))
    return Local(config)


def _extra(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f'executor={extra} needs {name}: pip install "tokred[{extra}]"') from error


def _end(code: int, work: Work) -> End:
    """Of a process that ended so."""
    if code < 0:
        return End(lost=f"was killed (signal {-code})")
    return End(error=last_line(work)) if code else End()


class Local(Executor):
    """Processes of this machine, which share its cores, and take turns in its GPUs."""

    def __init__(self, config: SweepConfig):
        self._cpus, self._device, self._num = config.resources.cpus, config.device, config.processes or 1
        self._num_devices = config.devices

    def num_processes(self) -> int:
        return self._num

    def start(self, work: Work) -> Handle:
        return _Process(work, own_environment() | self._threads(work) | self._gpu(work))

    def _threads(self, work: Work) -> dict[str, str]:
        """As the user has it; one that is alone takes as many as a sweep in one process."""
        share = max(1, (os.cpu_count() or 1) // work.total)
        cpus = self._cpus or os.environ.get("OMP_NUM_THREADS", share)
        return {"OMP_NUM_THREADS": str(cpus)} if self._cpus or work.total > 1 else {}

    def _gpu(self, work: Work) -> dict[str, str]:
        if self._device == "cpu" or not torch.cuda.is_available():
            return {}
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
        own = [devices[(work.index * self._num_devices + number) % len(devices)] for number in range(self._num_devices)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}


class _Process(Handle):
    def __init__(self, work: Work, environment: dict[str, str]):
        self._work, self._process = work, started(work, environment)

    def ended(self) -> End | None:
        code = self._process.poll()
        return None if code is None else _end(code, self._work)

    def kill(self) -> None:
        """It leaves by itself when its input ends; what then is still there of its group has no time."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVES_S)
        end(self._process.pid)
        self._process.wait()


class Ray(Executor):
    """Actors of a Ray cluster: of the one that RAY_ADDRESS names or that runs on this machine; else one is started here."""

    def __init__(self, config: SweepConfig, ray: ModuleType):
        self._config, self._ray = config, ray

    def __enter__(self) -> "Ray":
        ours = {name: own_environment()[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            with _in_one_line("Ray cannot be reached, nor started"):
                self._ray.init(runtime_env={"env_vars": ours}, log_to_driver=False, logging_level=logging.ERROR)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def num_processes(self) -> int:
        """As many as the nodes of the cluster have room for, where it is not said. Raises ValueError where none has."""
        with _in_one_line(LOST):
            asked = self._asked()
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = {"CPU": asked["num_cpus"], "GPU": asked["num_gpus"], "memory": asked.get("memory", 0)}
        fits = sum(min(int(node.get(name, 0) / amount) for name, amount in wanted.items() if amount) for node in nodes)
        if not fits:
            each = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
            raise ValueError(f"no node of the Ray cluster has {each}, which a process asks for; lower resources.*")
        return self._config.processes or fits

    def start(self, work: Work) -> Handle:
        with _in_one_line(LOST):
            return _Actor(self._ray, self._ray.remote(**self._asked())(_Worker).remote(), work)

    def _asked(self) -> dict[str, Any]:
        asked, has_gpus = self._config.resources, self._ray.cluster_resources().get("GPU", 0) > 0
        gpus = (
            asked.gpus
            if asked.gpus is not None
            else float(has_gpus and self._config.device != "cpu") * self._config.devices
        )
        memory = {} if asked.memory_gb is None else {"memory": int(asked.memory_gb * 2**30)}
        return {"num_cpus": asked.cpus or self._config.devices, "num_gpus": gpus, **memory}


class _Worker:
    """Somewhere else."""

    def run(self, work: Work) -> int:
        return started(work).wait()

    def run_and_say(self, work: Work) -> None:
        """The code it ended with to a file."""
        write_whole(_code_of(work), str(self.run(work)).encode())


class _Actor(Handle):
    def __init__(self, ray: ModuleType, actor: Any, work: Work):
        self._ray, self._actor, self._work, self._code = ray, actor, work, actor.run.remote(work)

    def ended(self) -> End | None:
        with _in_one_line(LOST):
            if not self._ray.wait([self._code], timeout=0)[0]:
                return None
            try:
                return _end(self._ray.get(self._code), self._work)
            except self._ray.exceptions.RayTaskError as error:  # raised by us
                return End(error=str(error.cause))
            except self._ray.exceptions.RayError as error:
                return End(lost=f"was lost by Ray ({type(error).__name__})")

    def kill(self) -> None:
        with suppress(Exception):  # where Ray is lost its processes end by themselves
            self._ray.kill(self._actor)


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """What Ray raises beside its own errors, of many kinds and with much advice, as ValueError."""
    try:
        yield
    except Exception as error:
        said = shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
        raise ValueError(f"{what}: {said}") from error


class Slurm(Executor):
    """Jobs, through submitit. ``slurm.cluster=local``: processes of this machine in their place, to try it."""

    def __init__(self, config: SweepConfig, submitit: ModuleType):
        self._config, self._submitit = config, submitit
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it complains each minute where there is no accounting

    def num_processes(self) -> int:
        assert self._config.processes is not None  # the configuration sees to it
        return self._config.processes

    def start(self, work: Work) -> Handle:
        settings, asked = dict(self._config.slurm), self._config.resources
        gpus = asked.gpus if asked.gpus is not None else (self._config.device == "cuda") * self._config.devices
        memory = {} if asked.memory_gb is None else {"mem_gb": asked.memory_gb}
        _code_of(work).unlink(missing_ok=True)
        try:
            executor = self._submitit.AutoExecutor(work.log.parent / "slurm", cluster=settings.pop("cluster", None))
            executor.update_parameters(
                name="tokred",
                timeout_min=int(settings.pop("time", SLURM_MINUTES)),
                cpus_per_task=asked.cpus or self._config.devices,
                gpus_per_node=int(gpus),
                **memory,
                **{f"slurm_{name}": value for name, value in settings.items()},
            )
            return _Job(executor.submit(_Worker().run_and_say, work), work)
        except (self._submitit.core.utils.FailedJobError, RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"Slurm takes no such job: {' '.join(str(error).split())}") from error


class _Job(Handle):
    """What it came to is read from the file it writes and, where it left none, asked of the queue: many clusters keep no
    accounts, and without them submitit waits for ever for a job that was killed."""

    def __init__(self, job: Any, work: Work):
        self._job, self._work = job, work
        self._looked, self._gone = time.monotonic(), False

    def ended(self) -> End | None:
        if _code_of(self._work).is_file():
            return _end(int(_code_of(self._work).read_text()), self._work)
        if self._gone_for_long():
            return End(lost=f"left the queue before its end (job {self._job.job_id})")
        return None

    def kill(self) -> None:
        if not _code_of(self._work).is_file():
            self._job.cancel(check=False)

    def _gone_for_long(self) -> bool:
        """At the second look."""
        if time.monotonic() - self._looked < QUEUE_S:
            return False
        self._looked, before = time.monotonic(), self._gone
        self._gone = self._job.done() or not _is_queued(self._job)
        return before and self._gone


def _is_queued(job: Any) -> bool:
    """Where there is no squeue, it is another cluster's matter."""
    try:
        line = [
            "squeue",
            "--noheader",
            "--jobs",
            job.job_id,
        ]  # found as submitit finds sbatch: each site has it elsewhere
        found = subprocess.run(line, capture_output=True, text=True)
    except FileNotFoundError:
        return True
    gone = "Invalid job id" in found.stderr or (found.returncode == 0 and not found.stdout.strip())
    return not gone


def _code_of(work: Work) -> Path:
    return work.log.with_suffix(".code")
