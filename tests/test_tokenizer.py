"""Texts to word pieces: no [SEP] at the end, and vocabularies that are none. The official cases are in test_official_umt."""

import huggingface_hub
import pytest

from tokred import tokenizer
from tokred.tokenizer import SPECIAL, WordPieces

WORDS = [*SPECIAL, "a", "man", "run", "##ning", "is"]


@pytest.fixture
def words():
    return WordPieces(WORDS)


def pieces(words, text, length=10):
    ids_BL, mask_BL = words([text], length)
    assert mask_BL.all()
    return [WORDS[number] for number in ids_BL[0].tolist()]


def test_a_text_begins_with_cls_and_has_no_sep(words):
    assert pieces(words, "A man is running") == ["[CLS]", "a", "man", "is", "run", "##ning"]


def test_a_long_text_is_cut_and_keeps_its_cls(words):
    assert pieces(words, "a man is running", 3) == ["[CLS]", "a", "man"]


def test_sep_in_a_text_is_one_piece(words):
    assert pieces(words, "man [SEP]") == ["[CLS]", "man", "[SEP]"]


def test_a_word_it_does_not_know_is_unk(words):
    assert pieces(words, "a zebra") == ["[CLS]", "a", "[UNK]"]


def test_an_empty_text_is_cls_alone(words):
    assert pieces(words, "") == ["[CLS]"]


def test_shorter_texts_are_padded(words):
    ids_BL, mask_BL = words(["a", "a man is"], 10)
    assert ids_BL.tolist() == [[2, 5, 0, 0], [2, 5, 6, 9]]
    assert mask_BL.tolist() == [[True, True, False, False], [True] * 4]


def test_no_texts_are_an_empty_batch(words):
    ids_BL, mask_BL = words([], 10)
    assert len(ids_BL) == len(mask_BL) == 0


def test_a_vocabulary_is_read_a_word_a_line(tmp_path, words):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    read = WordPieces.read(tmp_path / "vocab.txt")
    assert len(read) == len(WORDS) and read.digest() == words.digest()


def test_another_vocabulary_has_another_digest(words):
    assert WordPieces([*WORDS, "ball"]).digest() != words.digest()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "is no vocabulary: it must be text in UTF-8, a word a line"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na\n", "it has a word twice"),
        (b"[PAD]\n[UNK]\n[SEP]\na\n", "it has no \\[CLS\\]"),
        (b"", "it has no \\[PAD\\]"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(content, said, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"vocab.txt.*{said}"):
        WordPieces.read(tmp_path / "vocab.txt")


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no vocabulary at .*; give the path of BERT's vocab.txt"):
        WordPieces.read(tmp_path)


def test_a_file_too_large_for_a_vocabulary_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "MAX_BYTES", 10)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(ValueError, match="no vocabulary at"):
        WordPieces.read(tmp_path / "vocab.txt")


def test_without_a_network_it_is_said_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        ValueError, match=r"vocab.txt could not be fetched from google-bert/bert-base-uncased .* give vocabulary=PATH"
    ):
        tokenizer.from_hub()


def test_from_the_hub_it_is_that_file(tmp_path, monkeypatch, words):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: str(tmp_path / names[-1]))
    assert tokenizer.from_hub().digest() == words.digest()
