"""Who works on what, where several processes share a run folder: each piece of work has one at a time.

A claim is a file that only one process can create (O_EXCL, which network file systems keep too); it says who that is, and its
time is renewed while that one lives. A claim whose process died is followed by one of the next number, which again only one
process can create; so nobody has to delete what another may have just taken.

    RUN/claims/NAME.0, NAME.1, ...    the last one counts
"""

import itertools
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Self

RENEWED_S = 10.0
MOST_BYTES = 4096  # of a claim, which takes some 150
STALE_S = 60.0  # not renewed for as long: of another machine that is gone, or stopped
POLL_S = 0.5
SWEEP = "sweep"  # begins the claims of whole sweeps, which have no piece of work


@dataclass(frozen=True)
class Owner:
    """A process. ``place``: machine, its boot, and the name space of its process ids; ``began`` tells it from a later one."""

    place: str
    pid: int
    began: str

    @property
    def is_gone(self) -> bool:
        """As far as can be known here: of another machine it cannot."""
        return self.place == _place() and bool(self.began) and _began(self.pid) != self.began


class Claims:
    """Those of this process, in a ``with`` block: all are released at its end."""

    def __init__(self, folder: Path):
        self.folder = folder / "claims"
        self._held: dict[str, Path] = {}
        self._seen: dict[
            Path, tuple[float, float]
        ] = {}  # when a claim of another was renewed, and when that was first seen
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Whether this process has it now."""
        number = 0
        while name not in self._held:
            path, before = self.folder / f"{name}.{number}", self.folder / f"{name}.{number - 1}"
            if not _create(path):
                if not self._is_stale(path):
                    return False
                number += 1
            elif number and not before.exists():  # released meanwhile, so that another may have begun at 0
                path.unlink()
                number = 0
            else:
                self._held[name] = path
        return True

    def take_first(self, stem: str) -> int:
        """The first number of which nobody else has STEM-NUMBER."""
        return next(number for number in itertools.count() if self.take(f"{stem}-{number}"))

    def holds(self, name: str) -> bool:
        return name in self._held

    def release(self, name: str) -> None:
        """The stale ones before it first: while its own is there, nobody takes more than those."""
        path = self._held.pop(name)
        stem, _, number = path.name.rpartition(".")
        for earlier in range(int(number) + 1):
            (self.folder / f"{stem}.{earlier}").unlink(missing_ok=True)

    def each(self, names: Iterable[str], is_open: Callable[[str], bool]) -> Iterator[str]:
        """One after the other, each held by this process alone. Waits for those of others for as long as they are open."""
        left = list(names)
        while left := [name for name in left if is_open(name)]:
            for name in list(left):
                if self.take(name):
                    left.remove(name)
                    try:
                        if is_open(name):
                            yield name
                    finally:
                        self.release(name)
            if left:
                time.sleep(POLL_S)

    def _is_stale(self, path: Path) -> bool:
        try:
            owner, renewed = _read(path)
        except FileNotFoundError:
            return False  # released just now: the next try finds it free
        if owner is not None and owner.is_gone:
            return True
        known, since = self._seen.setdefault(path, (renewed, time.monotonic()))
        if known != renewed:  # by this machine's clock alone: those of others may be wrong
            self._seen[path] = (renewed, time.monotonic())
            return False
        return time.monotonic() - since > STALE_S

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_S):
            for path in list(self._held.values()):
                with suppress(OSError):  # released just now, or the file system is away for a moment
                    os.utime(path)


def claimed(folder: Path) -> set[str]:
    """The names of what processes have now, as far as can be seen from here without waiting."""
    found = set()
    for path in (folder / "claims").glob("*"):
        try:
            owner, renewed = _read(path)
        except FileNotFoundError:
            continue
        if time.time() - renewed < STALE_S and (owner is None or not owner.is_gone):
            found.add(path.name.rpartition(".")[0])
    return found


def _create(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(_self()), file)
    return True


def _read(path: Path) -> tuple[Owner | None, float]:
    """Whose it is, and when it was renewed."""
    with open(path, "rb") as file:  # opened anew: on network file systems that asks the server
        return _owner(file.read(MOST_BYTES)), os.fstat(file.fileno()).st_mtime


def _owner(content: bytes) -> Owner | None:
    """None while it is being written, where the machine stopped in between, and where it is no claim: anybody may have put it
    there."""
    try:
        owner = Owner(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return None
    is_one = isinstance(owner.place, str) and isinstance(owner.began, str) and type(owner.pid) is int
    return owner if is_one and 0 < owner.pid < 2**31 else None


@cache
def _place() -> str:
    parts = [platform.node()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            parts.append(read().strip())
        except OSError:  # not Linux
            parts.append("")
    return " ".join(parts)


def _self() -> Owner:
    return Owner(_place(), os.getpid(), _began(os.getpid()) or "")


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None where there is none, or its end is only waiting to be noticed."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]  # field 22; the first of these is field 3
