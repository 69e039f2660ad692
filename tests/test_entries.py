"""Entries of annotation files, and lists of answers: what comes out of them, and what is said of those that are not right."""

import json
from contextlib import contextmanager

import pytest

from tokred.data.entries import Entry, read_answers, read_entries


def entry(**fields) -> Entry:
    return Entry("list.json[3]", fields)


@contextmanager
def refused(text: str):
    """A ValueError whose message is one line and holds the text."""
    with pytest.raises(ValueError) as caught:
        yield
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_field_comes_as_it_is():
    assert entry(answer="A Dog!").string("answer") == "A Dog!"
    assert entry(video=["a", "b"]).strings("video") == ["a", "b"] and entry(video="a").strings("video") == ["a"]


def test_a_field_that_is_not_there_is_named_with_those_that_are():
    with refused("list.json[3] must have a field 'video', but it has 'a', 'b'"):
        entry(a=1, b=2).field("video")
    with refused("list.json[3] must have a field 'video', but it has none"):
        entry().field("video")


@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": "b"}, True])
def test_a_string_is_nothing_else(value):
    with refused("list.json[3]: answer must be a string, not "):
        entry(answer=value).string("answer")


@pytest.mark.parametrize("value", [None, 5, [], ["a", 5], [["a"]], {"a": "b"}])
def test_strings_are_nothing_else(value):
    with refused("list.json[3]: video must be a string or a list of strings, not "):
        entry(video=value).strings("video")


def test_a_wrong_value_is_shown_in_short():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    for value in ("word " * 1000, ["word"] * 1000, nested):
        message = str(entry(caption=value).wrong("caption", "short"))
        assert message.startswith("list.json[3]: caption must be short, not ") and len(message) < 200


def test_a_text_is_cleaned_and_must_hold_something():
    assert entry(caption="A Dog!").clean("caption", "A Dog!") == "a dog"
    with refused("caption must be text of which something is left when it is cleaned, not '?!'"):
        entry(caption="?!").clean("caption", "?!")


@pytest.mark.parametrize("value", ["a \ud83d b", ["a", "\ude00"]])
def test_half_a_character_is_refused(tmp_path, value):
    """JSON has a pair of escapes for what is beyond 16 bits, and either half can stand alone."""
    with refused("list.json[3]: caption must be whole characters, but '\\ud"):
        entry(caption=value).strings("caption")
    (tmp_path / "a.json").write_text(json.dumps(value if isinstance(value, list) else [value]))
    with refused("must be whole characters, but '\\ud"):
        read_answers(str(tmp_path / "a.json"))


def test_a_whole_one_is_read(tmp_path):
    (tmp_path / "a.json").write_text(r'["\ud83d\ude00"]')
    assert read_answers(str(tmp_path / "a.json")) == ("😀",)


def test_a_path_comes_in_its_normal_form(tmp_path):
    assert [entry().path(text, str(tmp_path)) for text in ("a.mp4", "./a.mp4", "x//a.mp4", "x/../a.mp4")] == [
        *("a.mp4", "a.mp4", "x/a.mp4", "a.mp4")
    ]


@pytest.mark.parametrize("text", ["../a.mp4", "x/../../a.mp4", "..", ".", "", "a\0.mp4", "link/a.mp4", "link"])
def test_a_path_that_leads_out_is_refused(tmp_path, text):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "link").symlink_to(tmp_path)
    with refused(f"list.json[3]: {text!r} leads out of {tmp_path / 'videos'}; a video's path must be relative"):
        entry().path(text, str(tmp_path / "videos"))


def test_an_absolute_path_is_refused(tmp_path):
    with refused("leads out of"):
        entry().path(str(tmp_path / "a.mp4"), str(tmp_path))


def test_the_path_that_is_checked_is_the_one_that_is_opened(tmp_path):
    """By its links, x/../a.mp4 is videos/far/a.mp4, which is inside; without its dots, which are taken out, it is a.mp4."""
    (tmp_path / "videos" / "far" / "away").mkdir(parents=True)
    (tmp_path / "videos" / "x").symlink_to(tmp_path / "videos" / "far" / "away")
    (tmp_path / "videos" / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    with refused("'x/../a.mp4' leads out of"):
        entry().path("x/../a.mp4", str(tmp_path / "videos"))


def test_entries_know_their_place(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"a": 1}, {"a": 2}]', encoding="utf-8-sig")  # as some editors write it
    assert read_entries(str(path)) == [Entry(f"{path}[0]", {"a": 1}), Entry(f"{path}[1]", {"a": 2})]


def test_entries_are_objects(tmp_path):
    (tmp_path / "list.json").write_text('[{"a": 1}, ["a"]]')
    with refused("list.json[1] must be an object with fields, not list"):
        read_entries(str(tmp_path / "list.json"))


def test_a_text_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "list.json").write_bytes('[{"caption": "Ä"}]'.encode("latin-1"))
    with refused("list.json must be a JSON file in UTF-8: "):
        read_entries(str(tmp_path / "list.json"))
