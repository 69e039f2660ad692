"""The tokens of many videos between two passes: in memory while there is room, then in a temporary file.

Dimension key: N tokens of a video, C channels.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor

ROOM_BYTES = 2 * 2**30


class Room:
    """Of memory, in bytes, for all features that are kept at the same time."""

    def __init__(self, num_bytes: int = ROOM_BYTES):
        self.left = num_bytes

    def takes(self, num_bytes: int) -> bool:
        """Whether so much more has a place, which then is taken."""
        fits = num_bytes <= self.left
        self.left -= num_bytes if fits else 0
        return fits


class Features:
    """Tensors (N, C), kept in the order they came; ``features[i]`` is on the CPU."""

    def __init__(self, room: Room):
        self._room = room
        self._kept: list[Tensor | tuple[int, torch.dtype, torch.Size]] = []
        self._file: Any = None

    def __len__(self) -> int:
        return len(self._kept)

    def append(self, x_NC: Tensor) -> None:
        x_NC = x_NC.detach().cpu().contiguous().clone()  # a slice would keep the whole batch
        self._kept.append(x_NC if self._room.takes(x_NC.nbytes) else self._spill(x_NC))

    def __getitem__(self, index: int) -> Tensor:
        kept = self._kept[index]
        if isinstance(kept, Tensor):
            return kept
        start, dtype, shape = kept
        self._file.seek(start)
        content = bytearray(self._file.read(shape.numel() * dtype.itemsize))
        return torch.frombuffer(content, dtype=dtype).view(shape)

    def close(self) -> None:
        """Frees memory and file."""
        self._room.left += sum(kept.nbytes for kept in self._kept if isinstance(kept, Tensor))
        self._kept = []
        if self._file is not None:
            self._file.close()

    def _spill(self, x_NC: Tensor) -> tuple[int, torch.dtype, torch.Size]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="tokred-features-")  # noqa: SIM115  # lives as long as this does
        start = self._file.seek(0, 2)
        self._file.write(x_NC.view(torch.uint8).numpy().tobytes())
        return start, x_NC.dtype, x_NC.shape
