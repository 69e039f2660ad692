"""PyTorch's zip archives read without unpickling: stored numbers and their names come out, and nothing is imported or called.

For checkpoints that ``torch.load(weights_only=True)`` refuses because settings of a class of their own lie beside the
weights (UMT: ``utils.easydict.EasyDict``; others: ``argparse.Namespace``). ``pickletools`` cuts the pickle into its
opcodes; the machine below knows those that ``torch.save`` writes and a short list of names, and refuses all else.
"""

import math
import pickletools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import torch
from torch import Tensor

MOST_PICKLE_BYTES = 4 * 2**20  # a tensor takes some 90 bytes: room for 45 000; the worst such pickle takes 0.5 GiB
ADVICE = "save its state dict as safetensors first"

# Every name that a pickle may hold, as GLOBAL spells it; only compared, never looked up.
STORAGES = {
    f"torch {kind}Storage": dtype
    for kind, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
    }.items()
}
DICTS = {"collections OrderedDict", "utils.easydict EasyDict", "easydict EasyDict", "argparse Namespace"}
OPAQUE = {"torch Size", "torch device", "__builtin__ set", "builtins set"}  # may be made; what comes is a stub
REBUILD = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
DTYPES = {str(dtype).replace(".", " ") for dtype in STORAGES.values()}
NAMES = DICTS | OPAQUE | REBUILD | DTYPES | STORAGES.keys()


class Refused(ValueError):
    """What an archive holds that is not loaded; goes on after the file's name, in one line."""


def check_archive(path: str | Path) -> None:
    """Raises Refused where an archive is not one as ``torch.save`` writes it: compressed, of code, ambiguous or too big."""
    with ZipFile(path) as archive:
        _members(archive)


def read_archive(path: str | Path, pick: Callable[[Any], Any]) -> Any:
    """What ``pick`` takes of the saved tree, with the tensors that are its values; only their storages are read.

    Dicts of any kind come as dict, without the attributes they had; tensors share storages as they did when saved.
    Raises Refused, or what zipfile raises of a damaged file.
    """
    with ZipFile(path) as archive:
        members = _members(archive)
        sizes = {name.removeprefix("data/"): info.file_size for name, info in members.items() if name[:5] == "data/"}
        picked = pick(_tree(archive.read(members["data.pkl"]), sizes))
        if not isinstance(picked, dict):
            return picked
        wanted = {value.storage.key for value in picked.values() if isinstance(value, _Stored)}
        data = {key: _bytes_of(archive, members[f"data/{key}"]) for key in wanted}
    return {
        name: value.view(data[value.storage.key]) if isinstance(value, _Stored) else value
        for name, value in picked.items()
    }


def _members(archive: ZipFile) -> dict[str, ZipInfo]:
    """An archive's entries by their names below its one folder."""
    infos = archive.infolist()
    roots = [info.filename[: -len("data.pkl")] for info in infos if info.filename.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise Refused(f"is not an archive of torch.save: that has one FOLDER/data.pkl, this {len(roots)}; {ADVICE}")
    members = {info.filename.removeprefix(roots[0]): info for info in infos}
    if len({name.lower() for name in members}) != len(infos):  # torch's own reader ignores case
        raise Refused(f"has two entries of one name, so that it is unclear what it holds; {ADVICE}")
    if "constants.pkl" in members or any(name.startswith("code/") for name in members):
        raise Refused(f"is a TorchScript archive, which holds code; {ADVICE}")
    _check_sizes(archive, members)
    _check_byte_order(archive, members)
    return members


def _check_sizes(archive: ZipFile, members: Mapping[str, ZipInfo]) -> None:
    for name, info in members.items():
        if info.compress_type != ZIP_STORED or info.compress_size != info.file_size:
            raise Refused(
                f"has a compressed entry ({shown(name)}), which may be far larger than the file; torch.save stores "
                "entries as they are: pack it again without compression (zip -0)"
            )
    assert archive.fp is not None
    file_bytes = archive.fp.seek(0, 2)
    if sum(info.file_size for info in members.values()) > file_bytes:
        raise Refused(f"has entries of more bytes than the file's own {file_bytes}; fetch it again")
    if members["data.pkl"].file_size > MOST_PICKLE_BYTES:
        raise Refused(
            f"has a data.pkl of {members['data.pkl'].file_size} bytes, where {MOST_PICKLE_BYTES} are the most; {ADVICE}"
        )


def _check_byte_order(archive: ZipFile, members: Mapping[str, ZipInfo]) -> None:
    order = archive.read(members["byteorder"]) if "byteorder" in members else b"little"
    if order != b"little" or sys.byteorder != "little":
        raise Refused(f"has numbers of byte order {shown(order)} and this machine is {sys.byteorder}-endian; {ADVICE}")


@dataclass(frozen=True)
class _Name:
    """A name in a pickle, or what calling it would have made: a stub either way."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Stored:
    """A tensor before its numbers are read."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, data: Tensor) -> Tensor:
        return data.view(self.storage.dtype).as_strided(self.size, self.stride, self.offset)


def _bytes_of(archive: ZipFile, info: ZipInfo) -> Tensor:
    data = torch.empty(info.file_size, dtype=torch.uint8)
    with archive.open(info) as file:
        if file.readinto(data.numpy().data) != info.file_size:  # type: ignore[attr-defined]
            raise EOFError(f"{info.filename} ends early")
    return data


def _tree(pickled: bytes, sizes: Mapping[str, int]) -> Any:
    """What a pickle says, of dicts, lists, tuples, text, numbers and stubs; ``sizes``: bytes of the stored entries."""
    machine, position = _Machine(sizes), None
    try:
        for opcode, argument, position in pickletools.genops(pickled):  # noqa: B007 - told below
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise Refused(f"has a damaged pickle (near byte {position}); fetch it again") from error


# What opcodes of protocol 2 push: their own argument, or a new value.
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
_VALUES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_KEYS = (str, int, float, bool, type(None))  # a tuple's hash walks all it holds, which can take for ever


class _Machine:
    """A pickle's stack machine that builds plain values and stubs. No value of the file is ever called or given attributes."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        push = self.stack.append
        self.acts: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_LITERALS, push),
            **{opcode: self._pushing(make) for opcode, make in _VALUES.items()},
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._memorize),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda index: push(self.memo[index])),
            **dict.fromkeys(("PROTO", "STOP"), lambda _: None),
            **dict.fromkeys(("REDUCE", "NEWOBJ"), self._make),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "TUPLE": lambda _: push(tuple(self._since_mark())),
            "TUPLE1": lambda _: push(tuple(self._last(1))),
            "TUPLE2": lambda _: push(tuple(self._last(2))),
            "TUPLE3": lambda _: push(tuple(self._last(3))),
            "APPEND": lambda _: self._extend([self.stack.pop()]),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._set_items(self._last(2)),
            "SETITEMS": lambda _: self._set_items(self._since_mark()),
            "GLOBAL": self._name,
            "BINPERSID": self._storage,
            "BUILD": self._drop_attributes,
        }

    def step(self, opcode: str, argument: Any) -> None:
        if opcode not in self.acts:
            raise Refused(f"holds the pickle opcode {opcode}, which torch.save (protocol 2) does not write; {ADVICE}")
        self.acts[opcode](argument)

    def _pushing(self, make: Callable[[], Any]) -> Callable[[Any], None]:
        return lambda _: self.stack.append(make())

    def _memorize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise Refused(f"holds a dict with a {type(key).__name__} as a key, not text or a number; {ADVICE}")
            self.stack[-1][key] = value

    def _name(self, name: str) -> None:
        if name not in NAMES:
            raise Refused(
                f"holds {shown(name.replace(' ', '.'))}, which is not tensors; it is not loaded, since unpickling can "
                f"run code; {ADVICE}"
            )
        self.stack.append(_Name(name))

    def _storage(self, _: None) -> None:
        kind, storage, key, _device, numel = self.stack.pop()
        dtype = STORAGES[storage.name] if kind == "storage" and type(storage) is _Name else None
        if dtype is None or type(key) is not str or not _are_sizes((numel,)):
            raise TypeError
        if self.sizes.get(key) != numel * dtype.itemsize:
            raise Refused(
                f"has {self.sizes.get(key, 'no')} bytes for a storage of {numel} numbers of {dtype} (data/{shown(key)}); "
                "fetch it again"
            )
        self.stack.append(_Storage(key, dtype, numel))

    def _make(self, _: None) -> None:
        what, given = self._last(2)
        name = what.name if type(what) is _Name else ""
        if name in DICTS and type(given) is tuple and not given:
            self.stack.append({})
        elif name in OPAQUE:
            self.stack.append(_Name(f"{name}()"))
        elif name == "torch._utils _rebuild_tensor_v2":
            self.stack.append(_stored(*given))
        elif name == "torch._utils _rebuild_parameter" and type(given[0]) is _Stored:
            self.stack.append(given[0])
        else:
            raise Refused(f"calls {shown(name.replace(' ', '.') or type(what).__name__)} in its pickle; {ADVICE}")

    def _drop_attributes(self, _: None) -> None:
        target, _attributes = self._last(2)
        if type(target) is not dict:
            raise Refused(f"gives attributes to a {type(target).__name__.strip('_').lower()} in its pickle; {ADVICE}")
        self.stack.append(target)


def _stored(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> _Stored:
    """A tensor whose every element lies in its storage and which has no more elements than that.

    So an expanded tensor (stride 0) is refused: a file of 1 KB can claim 10^12 elements with it.
    """
    if type(storage) is not _Storage or not (_are_sizes((offset,)) and _are_sizes(size) and _are_sizes(stride)):
        raise TypeError
    numel = math.prod(size)
    end = offset + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else 0)
    if max(numel, end) > storage.numel:
        raise Refused(
            f"has a tensor of {numel} elements up to place {end} in a storage of {storage.numel} (data/{shown(storage.key)}); "
            f"store every element once (tensor.clone()), or {ADVICE}"
        )
    if metadata:  # lazily conjugated or negated: the stored numbers are not the tensor's
        raise Refused(f"has a conjugated or negated view; {ADVICE}")
    return _Stored(storage, offset, size, stride)


def _are_sizes(values: Any) -> bool:
    """Whether these are as many whole numbers from 0 as torch has dimensions, each small enough for it."""
    return type(values) is tuple and len(values) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in values)


def shown(text: str | bytes) -> str:
    """A file's own text, made fit for one line of a message."""
    text = ascii(text).removeprefix("b")[1:-1]
    return text if len(text) <= 100 else text[:97] + "..."
