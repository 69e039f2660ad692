"""Files of torch.save are read without unpickling: all that a training checkpoint holds is walked over, and nothing of it is run."""

import argparse
import os
import pickle
import struct
import sys
import types
from collections import Counter, OrderedDict
from io import BytesIO
from pathlib import Path, PurePosixPath
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import pytest
import torch
from torch import nn

from tokred import weights
from tokred.unpickle import unpickle
from tokred.weights import read_state


class EasyDict(dict):
    """Settings as UMT's utils/easydict.py has them: every entry is an item and an attribute."""

    def __init__(self, entries):
        super().__init__()
        for name, value in entries.items():
            setattr(self, name, value)

    def __setattr__(self, name, value):
        if isinstance(value, (list, tuple)):
            value = type(value)(EasyDict(x) if isinstance(x, dict) else x for x in value)
        elif isinstance(value, dict) and not isinstance(value, EasyDict):
            value = EasyDict(value)
        super().__setattr__(name, value)
        super().__setitem__(name, value)


@pytest.fixture
def easydict(monkeypatch):
    """A class that pickles as utils.easydict.EasyDict and that no reader can import."""

    def save(value, path, **how):
        module = types.ModuleType("utils.easydict")
        module.EasyDict = EasyDict
        with monkeypatch.context() as patch:
            patch.setattr(EasyDict, "__module__", "utils.easydict")
            patch.setitem(sys.modules, "utils", types.ModuleType("utils"))
            patch.setitem(sys.modules, "utils.easydict", module)
            torch.save(value, path, **how)

    return save


SETTINGS = {
    "model": {"vision_encoder": {"name": "vit_b16", "img_size": 224, "checkpoint_num": 0, "pretrained": None}},
    "train_file": [["anno.json", "videos", "video"], {"root": "s3://x", "nested": [{"a": (1, {"b": 2})}]}],
    "optimizer": {"opt": "adamW", "lr": 2e-5, "opt_betas": (0.9, 0.999), "different_lr": {"enable": False}},
    "seed": 2**70,
    "text": "ä \n 汉",
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def training_checkpoint(entry="model", config=SETTINGS) -> dict:
    trained = model()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    trained(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    return {
        entry: trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict() | {"scale": 65536.0, "growth_factor": 2.0},
        "config": EasyDict(config),
        "epoch": 9,
        "global_step": 12345,
    }


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_checkpoint_as_umt_saves_it_gives_its_weights(how, easydict, tmp_path):
    easydict(training_checkpoint(), tmp_path / "umt.pth", **how)
    with pytest.raises(pickle.UnpicklingError, match="utils.easydict.EasyDict"):
        torch.load(tmp_path / "umt.pth", weights_only=True)
    found = read_state(tmp_path / "umt.pth")
    assert found.keys() == model().state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model().state_dict().items())
    assert "utils" not in sys.modules


def test_a_module_of_the_classs_name_is_not_imported(easydict, tmp_path, monkeypatch):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "easydict.py").write_text("raise SystemExit('imported')")
    easydict(training_checkpoint(), tmp_path / "umt.pth")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_state(tmp_path / "umt.pth")


@pytest.mark.parametrize("entry", ["model", "module", "state_dict"])
def test_the_weights_lie_under_any_of_three_entries(entry, easydict, tmp_path):
    easydict(training_checkpoint(entry), tmp_path / "umt.pth")
    assert read_state(tmp_path / "umt.pth").keys() == model().state_dict().keys()


def test_what_deepspeed_and_argparse_leave_beside_the_weights_is_read_over(tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, device=torch.device("cuda", 3), betas=[0.9, 0.95], model="vit", eval=False),
        "lr_scheduler": {"milestones": Counter({30: 1, 60: 1}), "gamma": 0.1},  # MultiStepLR's
        "sparse_tensor_module_names": set(),
        "names": {"a", "b"},
        "param_shapes": [OrderedDict(w=torch.Size([3, 4]))],
        "dtype": torch.float16,
        "ds_version": "0.10.3",
        "best": (1.5, -3, 300, 70_000, None, True),
    }
    torch.save({"module": model().state_dict()} | beside, tmp_path / "model.pth")
    assert read_state(tmp_path / "model.pth").keys() == model().state_dict().keys()


def tree_of(path: Path):
    """What the pickle of an archive says."""
    with ZipFile(path) as archive:
        return unpickle(BytesIO(archive.read(f"{path.stem}/data.pkl")))[0]


def test_the_settings_come_as_plain_dicts(easydict, tmp_path):
    easydict({"config": EasyDict(SETTINGS)}, tmp_path / "umt.pth")
    config = tree_of(tmp_path / "umt.pth")["config"]
    assert config == SETTINGS
    assert {type(config), type(config["model"]), type(config["train_file"][1]["nested"][0]["a"][1])} == {dict}


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]
KINDS = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
KINDS |= {
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 7),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "a part": torch.arange(100.0)[90::3],
    "parameter": nn.Parameter(torch.ones(2)),
    "one element expanded": torch.ones(1)[:, None].expand(1, 1),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_comes_back_as_it_was(kind, legacy, tmp_path):
    value = KINDS[kind]
    torch.save({"other": torch.ones(3), "w": value}, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    found = read_state(tmp_path / "m.pth")["w"]
    assert torch.equal(found, value)
    assert (found.dtype, found.shape, found.stride()) == (value.dtype, value.shape, value.stride())


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_share_storages_as_they_did(legacy, tmp_path):
    whole = torch.arange(10.0)
    state = {"whole": whole, "part": whole[4:], "tied": whole, "other": whole.clone()}
    torch.save(state, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    found = read_state(tmp_path / "model.pth")
    found["part"][0] = 99
    assert found["whole"][4] == found["tied"][4] == 99
    assert found["other"][4] == 4


def test_of_what_is_not_wanted_no_storage_is_read(easydict, tmp_path):
    """The optimizer's state is twice the model."""
    easydict(training_checkpoint(), tmp_path / "umt.pth")
    num_wanted = len(model().state_dict())
    with ZipFile(tmp_path / "umt.pth") as archive:
        infos = {info.filename: info for info in archive.infolist() if "/data/" in info.filename}
    assert len(infos) > num_wanted
    damaged = bytearray((tmp_path / "umt.pth").read_bytes())
    for index in range(num_wanted, len(infos)):  # storages are numbered in their order; the model comes first
        damaged[infos[f"umt/data/{index}"].header_offset] ^= 0xFF
    (tmp_path / "umt.pth").write_bytes(damaged)
    assert read_state(tmp_path / "umt.pth").keys() == model().state_dict().keys()


def test_a_flipped_bit_in_a_weight_is_noticed(easydict, tmp_path):
    easydict(training_checkpoint(), tmp_path / "umt.pth")
    data = (tmp_path / "umt.pth").read_bytes()
    weight = model()[0].weight.detach().numpy().tobytes()
    (tmp_path / "umt.pth").write_bytes(data.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    with pytest.raises(ValueError, match=r"umt.pth is not a readable checkpoint \(Bad CRC-32 .*fetch it again"):
        read_state(tmp_path / "umt.pth")


# Pickles by hand, in the opcodes of protocol 2. STORAGE is the id of a stored one with four numbers, TENSOR a whole tensor.
def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, qualified: str) -> bytes:
    return f"c{module}\n{qualified}\n".encode()


def storage(kind="FloatStorage", key="0", numel=b"K\x04") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + numel + b"tQ"


def tensor(offset=b"K\x00", size=b"K\x04\x85", stride=b"K\x01\x85", more=b"", **stored) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + b"(" + storage(**stored) + offset + size + stride + b"\x89}" + more + b"tR"


def entry(key: str, value: bytes) -> bytes:
    """SETITEM of one entry in the dict on the stack."""
    return text(key) + value + b"s"


EMPTY_EASYDICT = name("utils.easydict", "EasyDict") + b")\x81"


def pickled(value: bytes, place="config") -> bytes:
    """A checkpoint with an EasyDict in it, so that torch.load is out, and ``value`` in its config or its weights."""
    config = EMPTY_EASYDICT + (entry("x", value) if place == "config" else b"")
    weights = b"}" + entry("w", tensor()) + (entry("x", value) if place == "model" else b"")
    return b"\x80\x02}" + entry("model", weights) + entry("config", config) + b"."


def write(path: Path, data_pkl: bytes, entries=(("model/data/0", bytes(16)),)) -> Path:
    with ZipFile(path, "w", ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", data_pkl)
        archive.writestr("model/version", b"3\n")  # or torch does not open it
        for at, content in entries:
            archive.writestr(at, content)
    return path


# Before 1.6: a number, a version, the machine, the tree, the keys of the storages; the count of numbers and the numbers of each.
MAGIC, VERSION = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02M\xe9\x03."
LITTLE = b"\x80\x02}" + entry("protocol_version", VERSION[2:-1]) + entry("little_endian", b"\x88") + b"."
KEYS, NUMBERS = b"\x80\x02]" + text("0") + b"a.", struct.pack("<q", 4) + bytes(16)


def write_legacy(path: Path, tree: bytes) -> Path:
    tree = tree.replace(b"K\x04tQ", b"K\x04NtQ")  # an id has a sixth part here, of views
    path.write_bytes(MAGIC + VERSION + LITTLE + tree + KEYS + NUMBERS)
    return path


def refused(path: Path, match: str) -> str:
    with pytest.raises(ValueError, match=match) as error:
        read_state(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_pickles_made_by_hand_are_read_where_nothing_is_wrong(tmp_path):
    for place in ("config", "model"):
        for written in (write, write_legacy):
            path = written(tmp_path / "model.pth", pickled(tensor(), place))
            assert torch.equal(read_state(path)["w"], torch.zeros(4))


def test_torch_reads_the_files_made_by_hand_too(tmp_path):
    plain = b"\x80\x02}" + entry("w", tensor()) + b"."
    for written in (write, write_legacy):
        assert torch.equal(torch.load(written(tmp_path / "model.pth", plain), weights_only=True)["w"], torch.zeros(4))


def call(module: str, qualified: str, arguments: bytes) -> bytes:
    return name(module, qualified) + arguments + b"R"


NAMES = [
    ("posix", "system"),
    ("os", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "memoryview"),
    ("builtins", "bytearray"),
    ("__builtin__", "bytearray"),
    ("builtins", "set.__class__"),
    ("torch.hub", "load"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.jit", "load"),
    ("torch", "Tensor"),
    ("torch._utils", "_rebuild_wrapper_subclass"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch.nn.modules.linear", "Linear"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("collections", "OrderedDict.__init__.__globals__"),
    ("collections", "defaultdict"),
    ("utils.easydict", "EasyDict.__init__"),
    ("utils.easydict", "os.system"),
    ("utils.easydict.os", "system"),
    ("argparse", "Namespace.__class__"),
    ("argparse", "ArgumentParser"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("_codecs", "encode"),
    ("codecs", "decode"),
    ("copy_reg", "_reconstructor"),
    ("copyreg", "__newobj__"),
    ("pathlib", "PosixPath"),
    ("pip", "main"),
    ("", ""),
    (" builtins", "eval"),
    ("__main__", "x" * 5000),
    ("__main__", "\\n\\x1b[31mred"),
]


@pytest.mark.parametrize("place", ["config", "model"])
@pytest.mark.parametrize(("module", "qualified"), NAMES, ids=[f"{m}.{q[:40]!a}" for m, q in NAMES])
def test_any_other_name_is_refused_and_told(module, qualified, place, tmp_path):
    canary = tmp_path / "canary"
    path = write(tmp_path / "hostile.pth", pickled(call(module, qualified, text(f"mkdir {canary}") + b"\x85"), place))
    message = refused(
        path, "hostile.pth holds .*, which is not tensors; it is not loaded, since unpickling can run code"
    )
    assert f"{module}.{qualified}".replace(" ", ".")[:97] in message or "\\" in message
    assert len(message.removeprefix(str(path))) < 300
    assert message.isprintable()
    assert not canary.exists()


class Runs:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class RunsAsDict(dict):
    path = ""

    def __reduce__(self):
        return os.mkdir, (self.path,)


class RunsByBuild:
    """Its state is set by a function of the file's choice."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return OrderedDict, (), self.path, None, None, os.mkdir


class RunsBySetstate:
    """Its state puts a function where Python's unpickler looks for the method that sets the next."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return OrderedDict, (), {"__setstate__": os.mkdir, "path": self.path}


@pytest.mark.parametrize("place", ["config", "model"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", [Runs, RunsByBuild, RunsBySetstate])
def test_an_object_that_runs_code_when_unpickled_is_refused_and_not_run(kind, protocol, legacy, place, tmp_path):
    value = {"model": model().state_dict(), "config": {"lr": 0.1}, "args": argparse.Namespace()}
    value[place]["x"] = kind(str(tmp_path / "canary"))
    how = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not legacy}
    torch.save(value, tmp_path / "hostile.pth", **how)
    held = f"{os.mkdir.__module__}.mkdir" if protocol == 2 else "the pickle opcode [A-Z_]*"
    refused(tmp_path / "hostile.pth", f"hostile.pth holds {held}, .*; save its state dict as safetensors first")
    assert not (tmp_path / "canary").exists()


def test_a_class_that_only_has_the_name_of_easydict_is_not_run_either(easydict, tmp_path, monkeypatch):
    monkeypatch.setattr(EasyDict, "__reduce_ex__", lambda self, _: (os.mkdir, (str(tmp_path / "canary"),)))
    easydict(training_checkpoint(), tmp_path / "hostile.pth")
    refused(tmp_path / "hostile.pth", f"holds {os.mkdir.__module__}.mkdir, which is not tensors")
    assert not (tmp_path / "canary").exists()


def test_a_dict_of_a_class_of_its_own_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(RunsAsDict, "path", str(tmp_path / "canary"))
    torch.save({"model": RunsAsDict(w=torch.zeros(1))}, tmp_path / "hostile.pth")
    refused(tmp_path / "hostile.pth", f"holds {os.mkdir.__module__}.mkdir, which is not tensors")
    assert not (tmp_path / "canary").exists()


def test_a_whole_module_is_refused_with_its_class(tmp_path):
    torch.save(model(), tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "holds torch.nn.modules.container.Sequential, which is not tensors")


def test_a_path_in_the_settings_is_refused_with_its_class(easydict, tmp_path):
    easydict(training_checkpoint(config={"out": PurePosixPath("/tmp")}), tmp_path / "umt.pth")
    refused(tmp_path / "umt.pth", "holds pathlib.PurePosixPath, which is not tensors")


def test_dotted_names_of_protocol_4_are_refused(tmp_path):
    """There the name is taken from the stack: ("collections", "OrderedDict.__init__.__globals__")."""
    taken = b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93."
    assert type(pickle.loads(taken.replace(b"\x20OrderedDict.__init__.__globals__", b"\x0bOrderedDict"))) is type
    path = write(tmp_path / "hostile.pth", taken)
    refused(path, "holds the pickle opcode SHORT_BINUNICODE, which torch.save .protocol 2. does not write; save its")


# With allowed names only: nothing of what they stand for in Python may be reached.
MISUSES = {
    "attributes of a function": name("torch._utils", "_rebuild_tensor_v2") + b"}" + entry("__defaults__", b")") + b"b",
    "attributes of a class": name("utils.easydict", "EasyDict") + b"}" + entry("__init__", b"N") + b"b",
    "attributes of a tensor": tensor() + b"}" + entry("data", b"N") + b"b",
    "attributes of a list": b"]}b",
    "a dtype called": call("torch", "float32", b")"),
    "a storage class called": call("torch", "FloatStorage", b"\x8a\x05\x00\x00\x00\x00\x01\x85"),  # of 2^32 numbers
    "a dict made of arguments": call("collections", "OrderedDict", b"]\x85"),
    "an easydict made of arguments": name("utils.easydict", "EasyDict") + b"}\x85\x81",
    "text called": text("posix") + b")R",
    "a result called": call("torch", "Size", b")\x85") + b")R",
    "a tensor's items": tensor() + b"K\x00K\x01s",
    "a tensor appended to": tensor() + b"K\x01a",
    "a dict appended to": b"}K\x01a",
    "a tuple's items": b")K\x00K\x01s",
    "a key that is a tensor": b"}" + tensor() + b"Ns",
    "a key that is a tuple": b"})Ns",
    "a key that is a list": b"}]Ns",
    "an odd number of items": b"}(K\x01u",
    "a parameter of no tensor": call("torch._utils", "_rebuild_parameter", b"}\x85"),
    "a tensor of too few arguments": call("torch._utils", "_rebuild_tensor_v2", b")"),
    "a tensor of no storage": call("torch._utils", "_rebuild_tensor_v2", b"(NK\x00))\x89}t"),
    "a storage of another kind": b"(" + text("module") + b"NNNNtQ",
    "a storage that is text": text("abcde") + b"Q",
    "a storage of a storage": b"(" + text("storage") + storage() + text("0") + text("cpu") + b"K\x04tQ",
    "a storage whose key is a storage": b"("
    + text("storage")
    + name("torch", "FloatStorage")
    + storage()
    + b"NK\x04tQ",
    "a storage of two kinds": b"]" + storage() + b"a" + storage(kind="IntStorage") + b"a",
    "a view of a storage": storage()[:-2] + text("0") + b"tQ",
    "a storage of 2^62 numbers": storage(numel=b"\x8a\x08" + bytes(7) + b"\x40"),
    "an id of many parts": b"(" + b"N" * 100 + b"tQ",
    "an id in text": b"Pstorage\n",
    "a storage of a dtype": storage(kind="float32"),
    "a storage that is not there": storage(key="1"),
    "a storage outside its folder": storage(key="../data.pkl"),
    "a storage of too few bytes": storage(numel=b"K\x05"),
    "a storage of too many bytes": storage(numel=b"K\x03"),
    "a storage of fewer than no numbers": storage(numel=b"J\xff\xff\xff\xff"),
    "a storage of a true number": storage(numel=b"\x88"),
    "a storage of wider numbers": storage(kind="DoubleStorage"),
    "a tensor beyond its storage": tensor(offset=b"K\x01"),
    "a tensor of negative offset": tensor(offset=b"J\xff\xff\xff\xff", size=b"K\x02\x85"),
    "a tensor of negative size": tensor(size=b"J\xff\xff\xff\xff\x85"),
    "a tensor of negative stride": tensor(stride=b"J\xff\xff\xff\xff\x85"),
    "a tensor of stride 0": tensor(size=b"K\x05\x85", stride=b"K\x00\x85"),
    "a tensor of a long stride": tensor(size=b"K\x02\x85", stride=b"K\x04\x85"),
    "a tensor of more strides than sizes": tensor(stride=b"K\x01K\x01\x86"),
    "an empty tensor beyond its storage": tensor(offset=b"K\x05", size=b"K\x00\x85"),
    "a tensor of a size beyond 64 bits": tensor(
        size=b"K\x00\x8a\x0a" + b"\x01" * 10 + b"\x86", stride=b"K\x01K\x01\x86"
    ),
    "a tensor of 65 dimensions": tensor(size=b"(" + b"K\x01" * 65 + b"t", stride=b"(" + b"K\x01" * 65 + b"t"),
    "a conjugated tensor": tensor(more=b"}" + entry("conj", b"\x88")),
    "an unknown memo": b"h\x07",
    "an empty stack": b"00000000",
    "a mark that is not there": b"tttt",
    "a wide string": b"\x8d" + b"\xff" * 7 + b"\x00",
    "a byte array of 2^62": b"\x96" + struct.pack("<Q", 2**62),
    "a number of 2^31 digits": b"\x8b\xff\xff\xff\x7f",
    "digits of text": b"L" + b"9" * 100_000 + b"L\n",
    "an extension code": b"\x82\x01",
    "an instance of old": b"(iposix\nsystem\n",
    "an unknown opcode": b"\xff",
}


@pytest.mark.parametrize("place", ["config", "model"])
@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("written", [write, write_legacy])
def test_what_is_misused_is_refused(written, misuse, place, tmp_path):
    path = written(tmp_path / "hostile.pth", pickled(MISUSES[misuse], place))
    assert len(refused(path, "hostile.pth (holds|has|gives|calls) .*(save its state dict|fetch it again)")) < 500


def test_misuse_leaves_pythons_own_as_it_was():
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


def test_a_pickle_that_breaks_off_is_refused_anywhere(tmp_path):
    whole = pickled(tensor())
    for end in range(len(whole)):
        refused(write(tmp_path / "model.pth", whole[:end]), "model.pth ")


def test_a_string_longer_than_the_file_takes_no_memory(tmp_path):
    refused(
        write(tmp_path / "model.pth", b"\x80\x02}X\xff\xff\xff\xff"),
        r"has a damaged pickle .near byte 2.; fetch it again",
    )


def test_a_memo_of_the_highest_number_takes_no_memory(tmp_path):
    """Python's own unpickler would make room for 2^32 of them."""
    path = write(tmp_path / "model.pth", pickled(b"]r\xff\xff\xff\xff"))
    assert read_state(path).keys() == {"w"}


@pytest.mark.parametrize(
    "nested",
    [b")" + b"\x85" * 10**5, b"]" + b"]" * 10**5 + b"a" * 10**5, b")" + b"q\x01h\x01\x86" * 200],
    ids=["tuples", "lists", "2^200 tuples"],
)
def test_deep_nesting_is_walked_over(nested, tmp_path):
    assert read_state(write(tmp_path / "model.pth", pickled(nested))).keys() == {"w"}
    refused(write(tmp_path / "model.pth", pickled(nested, "model")), "names to tensors, but x is of type (tuple|list)")
    refused(write(tmp_path / "model.pth", pickled(b"}" + nested + b"Ns")), "holds a dict with a (tuple|list) as a key")


def test_a_dict_may_hold_itself(tmp_path):
    assert read_state(write(tmp_path / "model.pth", pickled(b"}q\x01" + entry("self", b"h\x01")))).keys() == {"w"}


def test_a_pickle_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MOST_PICKLE_BYTES", 1000)
    path = write(tmp_path / "model.pth", pickled(text("a" * 1000)))
    refused(path, r"model.pth has a data.pkl of 1\d\d\d bytes, where 1000 are the most; save its state dict as safe")


def rewritten(path: Path, change) -> Path:
    """A checkpoint as torch.save writes it, its entries as ``change`` makes them of a list of (name, bytes)."""
    torch.save({"w": torch.zeros(4)}, path)
    with ZipFile(path) as archive:
        entries = [(at, archive.read(at)) for at in archive.namelist()]
    with ZipFile(path, "w") as archive:
        for at, content in change(entries):
            archive.writestr(at, content)
    return path


ARCHIVES = {
    "big-endian": (lambda e: [(n, b"big" if "byteorder" in n else c) for n, c in e], "numbers of byte order big"),
    "an unknown byte order": (
        lambda e: [(n, b"\n" * 500 if "byteorder" in n else c) for n, c in e],
        r"of byte order (\\n)*\\?\.\.\. and",
    ),
    "TorchScript's constants": (lambda e: [*e, ("model/constants.pkl", b"")], "is a TorchScript archive"),
    "two pickles": (lambda e: [*e, ("other/data.pkl", b"")], "that has one FOLDER/data.pkl, this 2"),
    "no pickle": (lambda e: [x for x in e if "data.pkl" not in x[0]], "that has one FOLDER/data.pkl, this 0"),
    "a pickle two folders down": (lambda e: [("a/" + n, c) for n, c in e], "is not an archive of torch.save"),
    "a name with and without its folder": (lambda e: [*e, ("data/0", b"")], "has two entries of one name"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_torch_does_not_write_is_refused(kind, tmp_path):
    change, message = ARCHIVES[kind]
    refused(rewritten(tmp_path / "model.pth", change), message)


def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = rewritten(tmp_path / "model.pth", lambda entries: [*entries, ("model/data/0", bytes(16))])
    refused(path, "has two entries of one name, so that it is unclear what it holds; save its")


def test_entries_that_lie_over_each_other_are_refused(tmp_path):
    """Each would be read: a file of 1 MB with 1000 such entries is 1 GB in memory."""
    path = write(tmp_path / "model.pth", pickled(tensor()), [("model/data/0", bytes(10_000))])
    with ZipFile(path, "a") as archive:
        for index in range(1, 4):
            again = ZipInfo(f"model/data/{index}")
            first = archive.getinfo("model/data/0")
            again.header_offset, again.CRC = first.header_offset, first.CRC
            again.file_size = again.compress_size = first.file_size
            archive.filelist.append(again)
            archive._didModify = True
    refused(path, r"model.pth has entries of more bytes than the file's own 1\d{4}; fetch it again")


LEGACY = {
    "another number": (MAGIC.replace(b"P", b"Q") + VERSION + LITTLE, "is a pickle that torch.save did not write"),
    "another version": (MAGIC + b"\x80\x02K\x01." + LITTLE, "is a pickle that torch.save did not write; save its"),
    "a hostile number": (name("posix", "system") + b".", "holds posix.system, which is not tensors"),
    "big-endian": (MAGIC + VERSION + LITTLE.replace(b"\x88", b"\x89"), "has numbers of byte order big"),
    "no machine": (MAGIC + VERSION + b"\x80\x02}.", "is not a readable checkpoint"),
}


@pytest.mark.parametrize("kind", LEGACY)
def test_an_old_file_that_torch_does_not_write_is_refused(kind, tmp_path):
    begin, message = LEGACY[kind]
    (tmp_path / "model.pth").write_bytes(
        b"\x80\x02"[: 2 * (begin[:1] != b"\x80")] + begin + pickled(tensor()) + KEYS + NUMBERS
    )
    refused(tmp_path / "model.pth", message)


LEGACY_ENDS = {
    "no keys": (b"\x80\x02].", b"", "has no bytes for a storage of 4 numbers"),
    "another key": (KEYS.replace(b"0", b"1"), NUMBERS, "is not a readable checkpoint"),
    "keys that are a number": (b"\x80\x02K\x01.", NUMBERS, "is not a readable checkpoint"),
    "keys that are lists": (b"\x80\x02]]a.", NUMBERS, "is not a readable checkpoint"),
    "fewer numbers than said": (KEYS, NUMBERS[:-1], r"is not a readable checkpoint \(it ends early\)"),
    "another count of numbers": (KEYS, struct.pack("<q", 3) + bytes(16), "has 12 bytes for a storage of 4 numbers"),
    "a negative count": (KEYS, struct.pack("<q", -4) + bytes(16), "bytes for a storage of 4 numbers"),
    "no count": (KEYS, b"", "has 0 bytes for a storage of 4 numbers"),
}


@pytest.mark.parametrize("kind", LEGACY_ENDS)
def test_an_old_file_whose_numbers_do_not_fit_its_tree_is_refused(kind, tmp_path):
    keys, numbers, message = LEGACY_ENDS[kind]
    (tmp_path / "model.pth").write_bytes(MAGIC + VERSION + LITTLE + pickled(tensor()) + keys + numbers)
    refused(tmp_path / "model.pth", message)


def test_an_old_file_that_claims_far_more_than_it_holds_takes_no_memory(tmp_path):
    """Tree and count agree on 2^50 numbers."""
    many = b"\x8a\x07" + bytes(6) + b"\x04"
    tree = b"\x80\x02}" + entry("w", tensor(numel=many, size=many + b"\x85")) + b"."
    (tmp_path / "model.pth").write_bytes(MAGIC + VERSION + LITTLE + tree + KEYS + struct.pack("<q", 2**50) + bytes(16))
    refused(tmp_path / "model.pth", r"is not a readable checkpoint \(it ends early\)")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_a_file_with_random_bytes_in_it_is_read_or_refused_in_one_line(seed, legacy, easydict, tmp_path):
    easydict(training_checkpoint(), tmp_path / "umt.pth", _use_new_zipfile_serialization=not legacy)
    whole, draw = (tmp_path / "umt.pth").read_bytes(), torch.Generator().manual_seed(seed)
    for _ in range(100):
        damaged = bytearray(whole)
        for at in torch.randint(len(whole), (20,), generator=draw).tolist():
            damaged[at] = int(torch.randint(256, (), generator=draw))
        (tmp_path / "umt.pth").write_bytes(damaged)
        try:
            read_state(tmp_path / "umt.pth")
        except ValueError as error:
            assert "\n" not in str(error)
