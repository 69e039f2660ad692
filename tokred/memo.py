"""What was read of files, for as long as they stay the same: tables and figures ask for the same records again and again."""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

ROOM = (
    2**28
)  # bytes, of arrays as they are in memory; a few thousand cells. What comes when it is full is read each time


class FileMemo:
    """By path and by what of it was asked for. Values are shared: nobody may change them."""

    def __init__(self, room: int = ROOM):
        self.room = room
        self._found: dict[Hashable, tuple[tuple[int, ...], Any]] = {}

    def read(self, path: Path, read: Callable[[], Any], *, what: Hashable = None) -> Any:
        """What ``read`` gives, called where the file is new or another. Raises FileNotFoundError where there is none."""
        stat = path.stat()
        same = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._found.get((path, what))
        if known is not None and known[0] == same:
            return known[1]
        value = read()
        size = _size(value, stat.st_size)
        if known is not None or self.room >= size:
            self.room -= size if known is None else 0
            self._found[path, what] = (same, value)
        return value


def _size(value: Any, of_file: int) -> int:
    """Of arrays their own: packed they may be a thousandth."""
    return sum(array.nbytes for array in value.values()) if isinstance(value, dict) else of_file
