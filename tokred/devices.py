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

from tokred.tokens import Tokens

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
    """``num - 1`` followers that run ``follow(*arguments, peers)`` meanwhile. Raises RuntimeError with what went wrong in one of
    them, where that is why the leader cannot go on."""
    context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    content = pickle.dumps((follow, arguments))  # here, as bytes: else tensors would be shared through /dev/shm
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(1, num):
            own, other = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(content, Peers(rank, num), folder, other, dict(os.environ)))
            process.start()
            other.close()
            ends.append(own)
            processes.append(process)
        try:
            with _group(Peers(0, num), folder):
                yield Peers(0, num)
        except Exception as error:
            raise _their(ends) or error from error
        finally:
            for process in processes:
                process.join(10)
                process.kill()
                process.join()


def _their(ends: Sequence[connection.Connection]) -> RuntimeError | None:
    """What a follower said before it ended."""
    for end in ends:
        try:
            if end.poll(1.0):
                return RuntimeError(end.recv())
        except EOFError:
            continue
    return None


def _run(content: bytes, peers: Peers, folder: str, told: connection.Connection, environment: dict[str, str]) -> None:
    """In a follower's process."""
    os.environ.update(environment)
    threading.Thread(target=_end_with_leader, daemon=True).start()
    warnings.filterwarnings("ignore", module=r"lightning\..*")  # its leader has been told
    try:
        follow, arguments = pickle.loads(content)  # noqa: S301  # of the process that started this one
        with _group(peers, folder):
            follow(*arguments, peers)
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
    """With all their tensors on ``device``."""
    values = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    on_device: Any = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(tokens, **on_device)
