"""Claims: one process at a time, whatever becomes of it."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest

from tokred.sweeps import claims
from tokred.sweeps.claims import Claims, Owner, claimed


@pytest.fixture
def mine(tmp_path):
    with Claims(tmp_path) as found:
        yield found


@pytest.fixture
def others(tmp_path):
    with Claims(tmp_path) as found:
        yield found


def claim(folder, owner, number=0):
    (folder / "claims").mkdir(exist_ok=True)
    path = folder / "claims" / f"a.{number}"
    path.write_text(json.dumps(asdict(owner)))
    return path


@pytest.fixture
def dead():
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(claims._self(), pid=process.pid)


def test_what_one_has_no_other_gets(mine, others):
    assert mine.take("a") and not others.take("a") and others.take("b")


def test_what_was_released_another_gets(mine, others):
    mine.take("a")
    mine.release("a")
    assert others.take("a") and not mine.take("a")


def test_all_are_released_at_the_end(tmp_path, others):
    with Claims(tmp_path) as mine:
        mine.take("a")
    assert others.take("a") and [path.name for path in others.folder.iterdir()] == ["a.0"]


def test_of_many_who_take_at_once_one_gets_it(tmp_path):
    several, taken, together = [Claims(tmp_path) for _ in range(16)], [], threading.Barrier(16)
    several[0].folder.mkdir()

    def take(one):
        together.wait()
        taken.append(one.take("a"))

    threads = [threading.Thread(target=take, args=(one,)) for one in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1


def test_the_claim_of_a_process_that_died_is_taken_over_by_one(dead, tmp_path, mine, others):
    claim(tmp_path, dead)
    assert mine.take("a") and not others.take("a")
    mine.release("a")
    assert list(mine.folder.iterdir()) == []


def test_a_later_process_of_the_same_number_is_another(tmp_path, mine):
    claim(tmp_path, replace(claims._self(), began="1"))
    assert mine.take("a")


def test_the_claim_of_another_machine_is_taken_over_when_it_is_not_renewed(tmp_path, mine, monkeypatch):
    path, now = claim(tmp_path, Owner("elsewhere", 1, "1")), [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    assert not mine.take("a")
    now[0] = 59
    assert not mine.take("a")
    os.utime(path, (1, 1))  # renewed, by whatever clock
    now[0] = 70
    assert not mine.take("a")
    now[0] = 131
    assert mine.take("a")


def test_a_claim_without_its_owner_yet_is_not_taken_over(tmp_path, mine):
    mine.folder.joinpath("a.0").touch()
    assert not mine.take("a")


DEEP = "[" * 4000
NO_CLAIMS = {
    "deep": f'{{"place": {DEEP}',
    "no text": "\udcff",
    "long": json.dumps({"place": "a" * 5000, "pid": 1, "began": "1"}),
    "a path for a number": json.dumps({"place": claims._place(), "pid": "../1", "began": "1"}),
    "none for a number": json.dumps({"place": claims._place(), "pid": None, "began": "1"}),
    "true": json.dumps({"place": claims._place(), "pid": True, "began": "1"}),
    "negative": json.dumps({"place": claims._place(), "pid": -1, "began": "1"}),
    "too many digits": f'{{"place": "", "pid": {"9" * 4000}, "began": ""}}',
    "a number for a place": json.dumps({"place": 3, "pid": 1, "began": []}),
}


@pytest.mark.parametrize("kind", NO_CLAIMS)
def test_a_file_that_is_no_claim_counts_until_it_is_not_renewed(kind, tmp_path, mine, monkeypatch):
    path, now = mine.folder / "a.0", [0.0]
    path.write_bytes(NO_CLAIMS[kind].encode(errors="surrogateescape"))
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    assert claims._read(path)[0] is None and claimed(tmp_path) == {"a"} and not mine.take("a")
    now[0] = 61
    assert mine.take("a")


def test_claims_are_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEWED_S", 0.01)
    with Claims(tmp_path) as mine:
        mine.take("a")
        path = mine.folder / "a.0"
        os.utime(path, (1, 1))
        for _ in range(500):
            if path.stat().st_mtime > 1:
                break
            threading.Event().wait(0.01)
        assert path.stat().st_mtime > 1


def test_each_waits_for_what_others_hold_until_that_is_done(mine, others, monkeypatch):
    still_open = {"a", "b"}
    others.take("a")

    def finish(_):
        still_open.discard("a")

    monkeypatch.setattr(claims.time, "sleep", finish)
    assert list(mine.each(["a", "b"], still_open.__contains__)) == ["b"]


def test_each_takes_over_what_others_gave_up(mine, others, monkeypatch):
    others.take("a")
    monkeypatch.setattr(claims.time, "sleep", lambda _: others.release("a"))
    assert list(mine.each(["a", "b"], lambda name: True)) == ["b", "a"]


def test_claimed_are_those_of_processes_that_live(dead, tmp_path, mine):
    claim(tmp_path, dead)
    mine.take("b")
    assert claimed(tmp_path) == {"b"}
