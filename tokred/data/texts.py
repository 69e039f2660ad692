"""What is said of the videos of a data set: captions to find them by, or questions about them; and UMT's cleaning of both."""

import re
from dataclasses import dataclass
from functools import cached_property

# UMT's rule (multi_modality/dataset/utils.py, pre_text): these characters go, and two of them become a space.
_CHARACTERS = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")


@dataclass(frozen=True)
class Captions:
    """``texts`` are clean; text j describes each of the videos ``videos_of_text[j]``, which are indices of the source.

    ``max_length``: word pieces of a text that the model reads, the one that stands at its start included. ``shortlist``: how
    many candidates the evaluation of this data set looks at closely (UMT: 128).
    """

    texts: tuple[str, ...]
    videos_of_text: tuple[tuple[int, ...], ...]
    max_length: int
    shortlist: int = 128

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.videos_of_text):
            raise ValueError(
                f"{len(self.texts)} texts need as many entries in videos_of_text, not {self.videos_of_text!r}"
            )

    @cached_property
    def texts_of_video(self) -> tuple[tuple[int, ...], ...]:
        """By video: the texts that describe it, in their order.

        >>> Captions(("a cat", "a dog", "pets"), ((0,), (1,), (0, 1)), max_length=8).texts_of_video
        ((0, 2), (1, 2))
        """
        found: list[list[int]] = [
            [] for _ in range(1 + max((max(videos) for videos in self.videos_of_text), default=-1))
        ]
        for text, videos in enumerate(self.videos_of_text):
            for video in videos:
                found[video].append(text)
        return tuple(map(tuple, found))


@dataclass(frozen=True)
class Questions:
    """``texts`` are clean; question j is about video ``video[j]``, and ``answer[j]``, as it was written, is right.

    ``answers``: those that a model chooses from. An answer that is not among them can never be given. ``ids``: each
    question's own. ``max_length`` and ``max_answer_length``: in word pieces, UMT's by default.
    """

    texts: tuple[str, ...]
    video: tuple[int, ...]
    answer: tuple[str, ...]
    ids: tuple[str, ...]
    answers: tuple[str, ...]
    max_length: int = 25
    max_answer_length: int = 5

    def __post_init__(self) -> None:
        counts = {"video": len(self.video), "answer": len(self.answer), "ids": len(self.ids)}
        for name, count in counts.items():
            if count != len(self.texts):
                raise ValueError(f"{len(self.texts)} questions need as many entries in {name}, not {count}")


def clean(text: str) -> str:
    """A caption or a question as UMT's text encoder was trained on it; answers stay as they are.

    Lower case; without , . ' ! ? " ( ) * # : ; ~; a space for - and /; person for <person>; one space for two or more
    of any white space, and none at the ends. A single tab or line break within stays, as in UMT.

    >>> clean("A man -- on a T-shirt: 'Hello/World'!")
    'a man on a t shirt hello world'
    """
    if not isinstance(text, str):
        raise ValueError(f"a text must be a string, not {text!r}")
    text = text.lower().translate(_CHARACTERS).replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
