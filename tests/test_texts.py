"""UMT's cleaning of captions and questions, against cases worked out by hand from its rule, and what texts belong to."""

import pytest

from tokred.data import Captions, MovingShapes, Questions
from tokred.data.loading import DataSource
from tokred.data.texts import clean


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A man is playing guitar.", "a man is playing guitar"),
        ("What's he doing?", "whats he doing"),
        ('(he says: "go"); #1 * ~ !', "he says go 1"),
        ("a well-known and/or man", "a well known and or man"),
        ("and - then", "and then"),
        ("<PERSON> walks", "person walks"),
        ("<person>-<person>", "person person"),
        ("<.person> walks", "person walks"),
        ("a  b   c", "a b c"),
        ("a \n\t b", "a b"),
        ("  a ", "a"),
        ("a b\n", "a b"),
        ("a b \n\n", "a b"),
        ("a. \n", "a"),
        ("Ärger & [something]_$", "ärger & [something]_$"),
        ("...", ""),
        ("", ""),
    ],
)
def test_a_text_is_cleaned_as_umt_does(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "\na"])
def test_a_single_tab_or_line_break_stays(text):
    """UMT collapses white space from two on, and strips line breaks at the end alone."""
    assert clean(text) == text


def test_a_text_is_not_cut():
    assert clean("word " * 600) == " ".join(["word"] * 600)


@pytest.mark.parametrize("text", [None, 5, ["a"], b"a"])
def test_what_is_no_string_is_refused(text):
    with pytest.raises(ValueError, match="a text must be a string, not"):
        clean(text)


def test_texts_of_a_video_are_those_that_name_it():
    captions = Captions(("a", "b", "c"), ((0,), (2, 0), (1, 2)), max_length=32)
    by_hand = [[text for text, videos in enumerate(captions.videos_of_text) if video in videos] for video in range(3)]
    assert captions.texts_of_video == tuple(map(tuple, by_hand)) == ((0, 1), (2,), (1, 2))


def test_lengths_and_shortlist_are_umts_unless_a_source_has_its_own():
    asked = Questions(("a",), (0,), ("x",), ("1",), answers=("x",))
    assert (asked.max_length, asked.max_answer_length) == (25, 5)
    assert Captions(("a",), ((0,),), max_length=32).shortlist == 128


def test_captions_of_another_number_than_their_videos_are_refused():
    with pytest.raises(ValueError, match="2 texts need as many entries in videos_of_text"):
        Captions(("a", "b"), ((0,),), max_length=32)


@pytest.mark.parametrize("name", ["video", "answer", "ids"])
def test_questions_with_a_missing_part_are_refused(name):
    parts = {"video": (0,), "answer": ("x",), "ids": ("1",)} | {name: ()}
    with pytest.raises(ValueError, match=f"1 questions need as many entries in {name}, not 0"):
        Questions(("a",), **parts, answers=("x",))


@pytest.mark.parametrize("what", ["captions", "questions"])
def test_a_source_without_texts_says_which_have_them(what):
    with pytest.raises(ValueError, match=f"moving_shapes holds no {what}; choose data that has them, such as moving_"):
        getattr(DataSource, what)(MovingShapes(1))
