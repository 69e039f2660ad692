"""Pickles of ``torch.save`` read without unpickling: plain values and the places of tensors come out; nothing is called.

``torch.load(weights_only=True)`` refuses a checkpoint with settings of a class of their own beside the weights (UMT:
``utils.easydict.EasyDict``; others: ``argparse.Namespace``). Here ``pickletools`` cuts the pickle into its opcodes; the machine
below knows those that ``torch.save`` writes and a short list of names, and refuses all else.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

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
OPAQUE = {
    "torch Size",
    "torch device",
    "__builtin__ set",
    "builtins set",
    "collections Counter",
}  # a stub comes of them
REBUILD = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
DTYPES = {str(dtype).replace(".", " ") for dtype in STORAGES.values()}
NAMES = DICTS | OPAQUE | REBUILD | DTYPES | STORAGES.keys()


class Refused(ValueError):
    """What a file holds that is not loaded; goes on after the file's name, in one line."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor before its numbers are read."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, data: Tensor) -> Tensor:
        """Of the storage's bytes."""
        return data.view(self.storage.dtype).as_strided(self.size, self.stride, self.offset)


def unpickle(file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """What the pickle at this place of a file says, and all storages that it names, by key; the file is left behind it.

    Tensors come as ``Stored``, dicts of any kind as dict, without the attributes they had, what else was an object as a stub.
    Raises Refused. The file must be small enough to be read whole: of each byte may come a hundred.
    """
    machine, position = _Machine(), None
    try:
        for opcode, argument, position in pickletools.genops(file):  # noqa: B007 - told below
            machine.step(opcode.name, argument)
        return machine.stack.pop(), machine.storages
    except Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise Refused(f"has a damaged pickle (near byte {position}); fetch it again") from error


@dataclass(frozen=True, slots=True)
class _Name:
    """A name in a pickle, or what calling it would have made: a stub either way."""

    name: str


_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")  # push their own argument
_KEYS = (str, int, float, bool, type(None))  # a tuple's hash walks all it holds, which can take for ever


class _Machine:
    """A pickle's stack machine that builds plain values and stubs. No value of the file is ever called or given attributes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        push = self.stack.append
        self.acts: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(("PROTO", "STOP"), lambda _: None),
            **dict.fromkeys(_LITERALS, push),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda index: self.memo.update({index: self.stack[-1]})),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda index: push(self.memo[index])),
            **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda _: push(_made(*self._last(2)))),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_TUPLE": lambda _: push(()),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_DICT": lambda _: push({}),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "TUPLE": lambda _: push(tuple(self._since_mark())),
            "TUPLE1": lambda _: push(tuple(self._last(1))),
            "TUPLE2": lambda _: push(tuple(self._last(2))),
            "TUPLE3": lambda _: push(tuple(self._last(3))),
            "APPEND": lambda _: self._extend(self._last(1)),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._set_items(self._last(2)),
            "SETITEMS": lambda _: self._set_items(self._since_mark()),
            "GLOBAL": lambda name: push(_named(name)),
            "BINPERSID": lambda _: push(self._storage(*self.stack.pop())),
            "BUILD": lambda _: push(_without_attributes(*self._last(2))),
        }

    def step(self, opcode: str, argument: Any) -> None:
        if opcode not in self.acts:
            raise Refused(f"holds the pickle opcode {opcode}, which torch.save (protocol 2) does not write; {ADVICE}")
        self.acts[opcode](argument)

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

    def _storage(self, kind: Any, named: Any, key: Any, _device: Any, numel: Any, view: Any = None) -> Storage:
        dtype = STORAGES[named.name] if kind == "storage" and type(named) is _Name else None
        if dtype is None or type(key) is not str or not _are_sizes((numel,)) or view is not None:
            raise TypeError
        storage = self.storages.setdefault(key, Storage(key, dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise ValueError
        return storage


def _named(name: str) -> _Name:
    if name not in NAMES:
        raise Refused(
            f"holds {shown(name.replace(' ', '.'))}, which is not tensors; it is not loaded, since unpickling can run code; "
            f"{ADVICE}"
        )
    return _Name(name)


def _made(what: Any, given: Any) -> Any:
    """In the place of what a call would make."""
    name = what.name if type(what) is _Name else ""
    if name in DICTS and type(given) is tuple and not given:
        return {}
    if name in OPAQUE:
        return _Name(f"{name}()")
    if name == "torch._utils _rebuild_tensor_v2":
        return _stored(*given)
    if name == "torch._utils _rebuild_parameter" and type(given[0]) is Stored:
        return given[0]
    raise Refused(f"calls {shown(name.replace(' ', '.') or type(what).__name__)} in its pickle; {ADVICE}")


def _without_attributes(target: Any, _attributes: Any) -> Any:
    if type(target) is not dict:
        raise Refused(f"gives attributes to a {type(target).__name__.strip('_').lower()} in its pickle; {ADVICE}")
    return target


def _stored(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Stored:
    """A tensor whose every element lies in its storage and which has no more elements than that.

    So an expanded tensor (stride 0) is refused: a file of 1 KB can claim 10^12 elements with it.
    """
    if type(storage) is not Storage or not (_are_sizes((offset,)) and _are_sizes(size) and _are_sizes(stride)):
        raise TypeError
    numel = math.prod(size)
    end = offset + (1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else 0)
    if max(numel, end) > storage.numel:
        raise Refused(
            f"has a tensor of {numel} elements up to place {end} in a storage of {storage.numel} ({shown(storage.key)}); "
            f"store every element once (tensor.clone()), or {ADVICE}"
        )
    if metadata:  # lazily conjugated or negated: the stored numbers are not the tensor's
        raise Refused(f"has a conjugated or negated view; {ADVICE}")
    return Stored(storage, offset, size, stride)


def _are_sizes(values: Any) -> bool:
    """Whether these are as many whole numbers from 0 as torch has dimensions, each small enough for it."""
    return type(values) is tuple and len(values) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in values)


def shown(text: str | bytes) -> str:
    """A file's own text, made fit for one line of a message."""
    text = ascii(text).removeprefix("b")[1:-1]
    return text if len(text) <= 100 else text[:97] + "..."
