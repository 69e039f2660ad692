"""Videos and what is said of them, from the JSON files that UMT and vid-TLDR evaluate on (those of VindLU, mostly).

    [{"video": "video7020.mp4", "caption": "a woman creating a fondant baby and flower"}, ...]      retrieval
    [{"video": "a.mp4", "caption": ["a man walks", "someone walks"]}, ...]                          several captions
    [{"video": ["1.webm", "2.webm"], "caption": "folding something"}, ...]                          several_videos=true
    [{"video": "a.mp4", "question": "what is he doing?", "answer": "walk", "question_id": 0}, ...]  question answering

ROOT/ANNOTATION names the videos relative to ROOT/VIDEOS. Nothing outside that folder is read: an absolute path, or one
that leads out of it, also by a symbolic link, is an error. So is a video that is not there, before anything is decoded.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tokred.data.entries import Entry, read_answers, read_entries
from tokred.data.files import FileSource, check_limit, real_folder, spread
from tokred.data.texts import Captions, Questions
from tokred.data.video import EXTENSIONS, read_clip
from tokred.preprocess import Preprocess


class AnnotatedVideos(FileSource):
    """What the two have in common. ``options`` are a subclass's own, for its description."""

    kind = "clip"
    max_seconds: float | None = None

    def __init__(
        self, root: str | Path, videos: str, limit: int | None, extension: str | None, options: dict[str, Any]
    ):
        check_limit(limit)
        if extension is not None and extension not in EXTENSIONS:
            raise ValueError(f"extension must be one of {', '.join(EXTENSIONS)}, or None, not {extension!r}")
        common = {"root": str(root), "videos": videos, "limit": limit, "extension": extension}
        self.limit, self.extension, self.options = limit, extension, common | options
        self._root = real_folder(root, f"root of {self.name}")
        super().__init__(real_folder(os.path.join(self._root, videos), f"videos of {self.name}"), ())
        self._known: dict[str, str] = {}  # the checked form of a path: many entries name the same video

    def pixels(self, path: str, sample_shape: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
        return read_clip(path, sample_shape[0], sample_shape[-2:], preprocess, max_seconds=self.max_seconds)

    def description(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}

    def _file(self, path: str | Path) -> str:
        return os.path.join(self._root, os.path.expanduser(path))

    def _path(self, entry: Entry, text: str) -> str:
        if text not in self._known:
            self._known[text] = entry.path(with_extension(text, self.extension), self._folder)
        return self._known[text]

    def _only_path(self, entry: Entry) -> str:
        if not isinstance(entry.field("video"), str):
            raise entry.wrong("video", "one path; a list of them goes with several_videos=true of video_captions")
        return self._path(entry, entry.string("video"))

    def _take(self, paths: list[str], videos_of_text: list[tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
        """Makes samples of the paths, within the limit; the texts that stay, and their videos. Raises as said above."""
        kept, rows = keep(len(paths), videos_of_text, self.limit)
        paths = [paths[video] for video in kept]
        missing = [path for path in paths if not os.path.isfile(os.path.join(self._folder, path))]
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(paths)} videos of {self.options['annotation']} are not in {self._folder}, the "
                f"first is {missing[0]!r}; check root and videos, set extension where the files have another one, or leave out "
                f"their entries"
            )
        self._samples = tuple((path, -1) for path in paths)
        return rows


class VideoCaptions(AnnotatedVideos):
    """Videos and captions, from a JSON file: retrieval.

    Samples are the entries of the file in their order, also where two name the same video.

    ``paragraph``: an entry's captions are one text, joined by spaces. ``several_videos``: an entry is one caption and one
    or more videos, and the samples are the videos in the order in which they are first named. (UMT takes a video that is
    named twice for two, of which only one is right. SSv2, which this is for, gives a video one label and so one caption.)

    ``max_text_length``: word pieces. ``max_seconds``: only so much from the start of a video. ``limit``: at most so many
    videos, spread evenly, and their captions. ``extension``: that of the files, where the annotation has another one or
    none (SSv2's .webm are often kept as .mp4; UMT's DiDeMo file says .mp4 of videos published in several formats).
    """

    name = "video_captions"

    def __init__(
        self,
        root: str | Path,
        annotation: str | Path,
        max_text_length: int,
        videos: str = "videos",
        paragraph: bool = False,
        several_videos: bool = False,
        max_seconds: float | None = None,
        limit: int | None = None,
        extension: str | None = None,
    ):
        check_length("max_text_length", max_text_length)
        if max_seconds is not None and not 0 < max_seconds < float("inf"):
            raise ValueError(f"max_seconds must be above 0, or None for the whole video, not {max_seconds}")
        if paragraph and several_videos:
            raise ValueError(
                "paragraph joins the captions of a video, but with several_videos an entry has one; choose"
            )
        self.max_seconds = None if max_seconds is None else float(max_seconds)  # 30 and 30.0 are one data set
        options = {"annotation": str(annotation), "max_text_length": max_text_length, "max_seconds": self.max_seconds}
        flags = {"paragraph": paragraph, "several_videos": several_videos}
        super().__init__(root, videos, limit, extension, options | flags)
        entries = read_entries(self._file(annotation))
        if several_videos:
            paths, texts, videos_of_text = self._by_caption(entries)
        else:
            paths, texts, videos_of_text = self._by_video(entries, captions_of=_paragraph if paragraph else _captions)
        rows = self._take(paths, videos_of_text)
        self._captions = Captions(tuple(texts[row] for row, _ in rows), tuple(of for _, of in rows), max_text_length)

    def captions(self) -> Captions:
        return self._captions

    def content(self) -> list[Any]:
        said = self._captions
        return [self.kind, said.texts, said.videos_of_text, said.max_length, self.max_seconds]

    def _by_video(
        self, entries: list[Entry], *, captions_of: Callable[[Entry], list[str]]
    ) -> tuple[list[str], list[str], list[tuple[int, ...]]]:
        """Paths, texts, and the video of each text."""
        paths = [self._only_path(entry) for entry in entries]
        rows = [(video, caption) for video, entry in enumerate(entries) for caption in captions_of(entry)]
        texts = [entries[video].clean("caption", caption) for video, caption in rows]
        return paths, texts, [(video,) for video, _ in rows]

    def _by_caption(self, entries: list[Entry]) -> tuple[list[str], list[str], list[tuple[int, ...]]]:
        """Paths, texts, and the videos of each text."""
        texts = [entry.clean("caption", entry.string("caption")) for entry in entries]
        paths_of_text = [[self._path(entry, path) for path in entry.strings("video")] for entry in entries]
        place = _places(path for paths in paths_of_text for path in paths)
        return list(place), texts, [tuple(dict.fromkeys(place[path] for path in paths)) for paths in paths_of_text]


class VideoQuestions(AnnotatedVideos):
    """Videos and questions about them, from a JSON file, with a list of answers: question answering.

    Samples are the videos in the order in which they are first named, each once, so that one decoding serves all its
    questions.

    ``answer_list``: JSON, a flat list of the answers to choose from. The right answer need not be among them, and is then
    never found. ``max_question_length``, ``max_answer_length``: word pieces. ``limit`` and ``extension`` are those of
    ``VideoCaptions``.
    """

    name = "video_questions"

    def __init__(
        self,
        root: str | Path,
        annotation: str | Path,
        answer_list: str | Path,
        videos: str = "videos",
        max_question_length: int = 25,
        max_answer_length: int = 5,
        limit: int | None = None,
        extension: str | None = None,
    ):
        lengths = {"max_question_length": max_question_length, "max_answer_length": max_answer_length}
        for name, length in lengths.items():
            check_length(name, length)
        options = {"annotation": str(annotation), "answer_list": str(answer_list), **lengths}
        super().__init__(root, videos, limit, extension, options)
        entries = read_entries(self._file(annotation))
        answers = read_answers(self._file(answer_list))
        paths = [self._only_path(entry) for entry in entries]
        asked = [(entry.clean("question", entry.string("question")), _answer(entry)) for entry in entries]
        names = _ids(entries)
        place = _places(paths)
        rows = self._take(list(place), [(place[path],) for path in paths])
        texts, video, answer, ids = zip(*((asked[row][0], of[0], asked[row][1], names[row]) for row, of in rows))
        self._questions = Questions(texts, video, answer, ids, answers, max_question_length, max_answer_length)

    def questions(self) -> Questions:
        return self._questions

    def content(self) -> list[Any]:
        return [self.kind, vars(self._questions)]


def with_extension(path: str, extension: str | None) -> str:
    """
    >>> with_extension("1.webm", ".mp4"), with_extension("v_a.b", ".mp4"), with_extension("1.webm", None)
    ('1.mp4', 'v_a.b.mp4', '1.webm')
    """
    if extension is None:
        return path
    stem, old = os.path.splitext(path)
    return (stem if old.lower() in EXTENSIONS else path) + extension


def keep(
    num_videos: int, videos_of_text: list[tuple[int, ...]], limit: int | None
) -> tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]:
    """The videos that stay; and for each text that has one of them: its number, and its videos, counted among those.

    >>> keep(4, [(0,), (1,), (1, 2)], 2)
    ((0, 2), [(0, (0,)), (2, (1,))])
    """
    kept = spread(tuple(range(num_videos)), limit)
    places = {video: place for place, video in enumerate(kept)}
    rows = [
        (text, tuple(places[video] for video in videos if video in places))
        for text, videos in enumerate(videos_of_text)
    ]
    return kept, [(text, videos) for text, videos in rows if videos]


def check_length(name: str, length: int) -> None:
    if length < 2:
        raise ValueError(f"{name} must be 2 or more, not {length}: the first word piece is the start token")


def _places(paths: Iterable[str]) -> dict[str, int]:
    """Each path once, numbered in the order in which they come."""
    return {path: place for place, path in enumerate(dict.fromkeys(paths))}


def _captions(entry: Entry) -> list[str]:
    return entry.strings("caption")


def _paragraph(entry: Entry) -> list[str]:
    if not isinstance(entry.field("caption"), list):  # UMT would join the letters of a string
        raise entry.wrong("caption", "a list of sentences with paragraph=true")
    return [" ".join(entry.strings("caption"))]


def _answer(entry: Entry) -> str:
    if isinstance(entry.field("answer"), list):
        raise entry.wrong("answer", "one string; a list of them is for training")
    return entry.string("answer")


def _ids(entries: list[Entry]) -> list[str]:
    places: dict[str, str] = {}
    for entry in entries:
        number = entry.field("question_id")
        if not isinstance(number, int | str) or isinstance(number, bool):
            raise entry.wrong("question_id", "a string or a whole number")
        if str(number) in places:
            raise ValueError(
                f"{entry.where}: question_id {number!r} is that of {places[str(number)]} already; ids are unique"
            )
        places[str(number)] = entry.where
    return list(places)
