"""One pass on several devices: this process leads, and has a follower for each further device. Each runs the models on its own
batches, every so-many-th, and no sample twice; what arrives at the heads is sent to the leader, who alone keeps evaluations.

(Lightning's sampler for evaluation on several devices repeats samples until all have as many, which would count them twice.)
"""

import multiprocessing
import os
import pickle
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from tokred.open_files import Died
from tokred.registry import load_file, loaded_files
from tokred.tokens import NO_LOGS, Tokens

Follow = Callable[..., None]  # (*arguments, peers): a function that a new process finds by its name


@dataclass(frozen=True)
class Peers:
    """Of a pass, ``rank`` 0 the leader's; ``num``: devices."""

    rank: int
    num: int

    def gathered(self, own: Any) -> list[Any]:
        """The others' by rank at the leader, whose own is not sent; empty elsewhere. Everybody calls it as often."""
        found: list[Any] | None = [None] * self.num if self.rank == 0 else None
        dist.gather_object(None if self.rank == 0 else own, found)
        return [] if found is None else found[1:]

    def led(self, value: Any) -> Any:
        """The leader's."""
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def strategy(self) -> DDPStrategy:
        """For Lightning, which starts no processes then, and finds the group as it is."""
        return DDPStrategy(cluster_environment=_Place(self))


class _Place(LightningEnvironment):
    """Where a process stands."""

    def __init__(self, peers: Peers):
        super().__init__()
        self._peers = peers

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self._peers.num

    def global_rank(self) -> int:
        return self._peers.rank

    def local_rank(self) -> int:
        return self._peers.rank


@contextmanager
def led(num: int, follow: Follow, *arguments: Any) -> Iterator[Peers]:
    """``num - 1`` followers that run ``follow(*arguments, peers)`` meanwhile. Where one of them is why the leader cannot go on,
    raises RuntimeError with what went wrong in it, or Died where its process ended over it."""
    content = pickle.dumps((follow, arguments))  # here, as bytes: else tensors would be shared through /dev/shm
    with tempfile.TemporaryDirectory(prefix=f"tokred-of-{os.getpid()}-") as folder:
        followers: list[_Follower] = []
        try:
            for rank in range(1, num):
                followers.append(_Follower(content, Peers(rank, num), folder))
            for follower in followers:  # one that does not get as far would be waited for in the group
                follower.hear()
            with _group(Peers(0, num), folder):
                try:
                    yield Peers(0, num)
                except Exception as error:  # before the group ends, which its followers would take for what went wrong
                    raise _theirs(followers) or error from error
        finally:
            for follower in followers:
                follower.end()


class _Follower:
    """A process for a further device."""

    def __init__(self, content: bytes, peers: Peers, folder: str):
        context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        self.told, told = context.Pipe(duplex=False)
        arguments = (content, loaded_files(), peers, folder, told, dict(os.environ))
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()
        told.close()

    def hear(self) -> None:
        """Waits for it to say that all is well; raises what is not."""
        try:
            reason = self.told.recv()
        except EOFError:
            self._process.join()
            raise Died(self._process.pid, self._process.exitcode) from None
        if reason is not None:
            raise RuntimeError(reason)

    def end(self) -> None:
        self._process.join(10)
        self._process.kill()
        self._process.join()


def _theirs(followers: Sequence[_Follower]) -> Exception | None:
    """What went wrong in a follower; one that died is why others say that they lost it."""
    found: list[Exception] = []
    for follower in followers:
        try:
            if follower.told.poll(1.0):
                follower.hear()
        except (RuntimeError, Died) as error:
            found.append(error)
    return min(found, key=lambda error: not isinstance(error, Died), default=None)


def _run(
    content: bytes,
    plugins: Sequence[Path],
    peers: Peers,
    folder: str,
    told: connection.Connection,
    environment: dict[str, str],
) -> None:
    """In a follower's process. It says when it is ready, and what goes wrong."""
    os.environ.update(environment)
    threading.Thread(target=_end_with_leader, daemon=True).start()
    warnings.filterwarnings("ignore", module=r"lightning\..*")  # its leader has been told
    try:
        for path in plugins:
            load_file(path)
        follow, arguments = pickle.loads(content)  # noqa: S301  # of the process that started this one
        told.send(None)
        with _group(peers, folder):
            follow(*arguments, peers)
        told.send(None)
    except Exception as error:
        told.send(f"on device {peers.rank}: {type(error).__name__}: {error}")


def _end_with_leader() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _group(peers: Peers, folder: str) -> Iterator[None]:
    """They talk on this machine alone, and of objects in its memory: what arrives at heads is little."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{Path(folder) / 'group'}", rank=peers.rank, world_size=peers.num
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def moved(tokens: Tokens, device: Any) -> Tokens:
    """With all their tensors on ``device``, but for the logs, which can be made anew."""
    values = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    on_device: Any = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(tokens, **on_device, logs=NO_LOGS)
