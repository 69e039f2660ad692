"""Texts to word pieces as UMT cuts them: BERT's uncased rules, [CLS] first, and no [SEP] at the end.

Dimension key: B texts, L word pieces.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from tokred.hub import fetched

HUB_VOCABULARY = ("google-bert/bert-base-uncased", "vocab.txt")  # of the large model too
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_BYTES = 4 * 2**20  # the largest vocabulary of BERT, of 120,000 words, has 1 MB


class WordPieces:
    """Cuts texts by a vocabulary; ``len()`` is its size."""

    def __init__(self, words: Sequence[str]):
        missing = [word for word in SPECIAL[:4] if word not in words]
        if missing or len(set(words)) != len(words):
            fault = f"no {missing[0]}" if missing else "a word twice"
            raise ValueError(
                f"a vocabulary must hold each word once, [PAD], [UNK], [CLS] and [SEP] among them; it has {fault}"
            )
        self._words = tuple(words)
        place = {word: number for number, word in enumerate(words)}
        self.pad, self.cls = place["[PAD]"], place["[CLS]"]
        self._tokenizer = Tokenizer(WordPiece(place, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106 - no password
        self._tokenizer.normalizer = BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self._tokenizer.add_special_tokens(
            [word for word in SPECIAL if word in place]
        )  # "[SEP]" in a text is one piece

    @classmethod
    def read(cls, path: str | Path) -> "WordPieces":
        """From a vocab.txt, a word a line. Raises ValueError where there is none."""
        path = Path(path).expanduser()
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise ValueError(f"no vocabulary at {path}; give the path of BERT's vocab.txt, a word a line")
        try:
            return cls(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no vocabulary: it must be text in UTF-8, a word a line") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def __len__(self) -> int:
        return len(self._words)

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L), L at most ``max_length``, [CLS] included; the mask is False at padding."""
        cut = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = [[self.cls, *one.ids[: max_length - 1]] for one in cut]
        longest = max(map(len, rows), default=1)
        ids_BL = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows]).view(len(rows), longest)
        length_B1 = torch.tensor([len(row) for row in rows]).view(-1, 1)
        return ids_BL, torch.arange(longest) < length_B1

    def digest(self) -> str:
        """sha256 of the vocabulary."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()


def from_hub(*, asked: bool = True) -> WordPieces:
    """BERT's uncased vocabulary, fetched if ``asked`` for. Raises ValueError, with what to do, where it cannot be had."""
    instead = "give vocabulary=PATH" if asked else "give vocabulary=PATH, or vocabulary=pretrained to have it fetched"
    return WordPieces.read(fetched(*HUB_VOCABULARY, instead=instead, asked=asked))
