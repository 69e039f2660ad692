"""What was read once is not read again while its file is the same, and no more is kept than there is room for."""

import os

import pytest

from tokred.memo import FileMemo


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a").write_text("one")
    return tmp_path / "a"


def test_a_file_that_stays_the_same_is_read_once(path):
    memo, reads = FileMemo(), []
    for _ in range(2):
        assert memo.read(path, lambda: reads.append(1) or path.read_text()) == "one"
    assert len(reads) == 1


def test_a_file_that_was_replaced_is_read_again(path):
    memo = FileMemo()
    memo.read(path, path.read_text)
    (path.parent / "b").write_text("two")
    os.utime(path.parent / "b", ns=(path.stat().st_mtime_ns,) * 2)
    os.replace(path.parent / "b", path)
    assert memo.read(path, path.read_text) == "two"


def test_what_there_is_no_room_for_is_read_each_time(path):
    memo, reads = FileMemo(room=2), []
    for _ in range(2):
        memo.read(path, lambda: reads.append(1))
    assert len(reads) == 2


def test_parts_of_a_file_are_told_apart(path):
    memo = FileMemo()
    assert memo.read(path, lambda: 1, what="first") == 1 and memo.read(path, lambda: 2, what="second") == 2


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileMemo().read(tmp_path / "none", lambda: 1)
