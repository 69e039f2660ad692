"""Sealed files: any other byte is found, older files are read as they are, others' readers read them too."""

import json
import zipfile

import numpy as np
import pytest

from tokred.sealed import Damaged, read_arrays, read_json, write_arrays, write_json

CONTENT = {"key": "a", "reason": 'a "sha256"\n, é', "result": {"value": 0.5, "tokens": [3, 2]}}
ARRAYS = {"index": np.arange(3), "prediction": np.array([1, 1, 2])}


@pytest.fixture(params=[1, None])
def record(request, tmp_path):
    write_json(tmp_path / "a.json", CONTENT, indent=request.param)
    return tmp_path / "a.json"


@pytest.fixture
def arrays(tmp_path):
    write_arrays(tmp_path / "a.npz", ARRAYS)
    return tmp_path / "a.npz"


def changed(content):
    """Every byte as another one, and every shorter file."""
    for place, byte in enumerate(content):
        for other in {byte ^ 1, byte ^ 0x20, 10, 32}:
            if other != byte:
                yield content[:place] + bytes([other]) + content[place + 1 :]
        yield content[:place]


def test_an_object_comes_back_as_it_was(record):
    assert read_json(record) == CONTENT


def test_arrays_come_back_as_they_were(arrays):
    found = read_arrays(arrays)
    assert found.keys() == ARRAYS.keys() and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_a_changed_byte_or_a_missing_end_of_an_object_is_found(record):
    for content in changed(record.read_bytes()):
        record.write_bytes(content)
        try:
            found = read_json(record)
        except Damaged as error:
            assert str(record) in str(error) and "\n" not in str(error)
        else:  # only the name of the seal: the rest is what was written, and no record has such a field
            assert {name: found.get(name) for name in CONTENT} == CONTENT and len(found) == len(CONTENT) + 1


def test_a_changed_byte_or_a_missing_end_of_arrays_is_found(arrays):
    whole = arrays.read_bytes()
    for content in changed(whole):
        arrays.write_bytes(content)
        if content == whole[:-64]:  # the archive without its seal: all of what was written
            assert read_arrays(arrays).keys() == ARRAYS.keys()
            continue
        with pytest.raises(Damaged, match="is not a readable record"):
            read_arrays(arrays)


def test_files_that_are_not_sealed_are_read(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(CONTENT, indent=1))
    np.savez_compressed(tmp_path / "old.npz", **ARRAYS)
    assert read_json(tmp_path / "old.json") == CONTENT and read_arrays(tmp_path / "old.npz").keys() == ARRAYS.keys()


def test_others_read_sealed_files(record, arrays):
    assert json.loads(record.read_text()).items() > CONTENT.items()
    with np.load(arrays, allow_pickle=False) as found:
        assert found["prediction"].tolist() == [1, 1, 2]


def test_the_same_arrays_make_the_same_file(arrays):
    before = arrays.read_bytes()
    write_arrays(arrays, ARRAYS)
    assert arrays.read_bytes() == before


def test_a_number_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_arrays_are_packed_stays_ctrl_c(tmp_path, monkeypatch):
    def interrupted(self):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile._ZipWriteFile, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_arrays(tmp_path / "a.npz", ARRAYS)
    assert not list(tmp_path.iterdir())
