"""Video question answering, as UMT evaluates it: a list of answers is ranked, and right is who says the annotated one.

An answer that is not on the list can never be right. All questions on a video look at one encoding of it.

Dimension key: B videos, P questions, A answers of the list, L word pieces.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.data import Batch, DataSource
from tokred.model import Backbone
from tokred.reduction import ReducedModel
from tokred.tasks.task import Evaluation, Metric, Outcome, Task
from tokred.text import Context
from tokred.tokens import Tokens
from tokred.video_text import AnsweringModel

SHORTLIST = 128  # answers that are ranked by their whole likelihood
PIECES_AT_ONCE = 2**15  # of shortlisted answers


class QuestionAnswering(Task):
    """Accuracy over the data's questions."""

    name = "qa"

    def __init__(self, data: DataSource, backbone: Backbone, *, shortlist: int | None = None):
        super().__init__(data, backbone, shortlist=shortlist)
        if not isinstance(backbone, AnsweringModel):
            raise ValueError(
                f"qa needs a model that answers questions, and {type(backbone).__name__} is none; try umt_base"
            )
        self.model, self.questions = backbone, data.questions()
        self.shortlist = shortlist or SHORTLIST
        place = {answer: number for number, answer in enumerate(self.questions.answers)}
        self.truth = [place.get(answer, len(place)) for answer in self.questions.answer]  # beyond the list: never right
        self.of_video: dict[int, list[int]] = {}
        for number, video in enumerate(self.questions.video):
            self.of_video.setdefault(video, []).append(number)

    def evaluation(self, model: ReducedModel) -> "Answering":
        return Answering(self, model)

    def identity(self) -> dict[str, Any]:
        words = self.model.words
        return super().identity() | {"shortlist": self.shortlist, "vocabulary": words.digest() if words else None}

    def answers(self) -> tuple[Tensor, Tensor]:
        """Ids and mask (A, L) of the list, each answer with [SEP] at its end."""
        texts = [f"{answer} [SEP]" for answer in self.questions.answers]
        return self.model.cut(texts, self.questions.max_answer_length)


class Answering(Evaluation):
    def __init__(self, task: QuestionAnswering, model: ReducedModel):
        super().__init__(model)
        self.task = task
        self._answers: tuple[Tensor, Tensor] | None = None  # cut where the model is when it runs
        self._predicted: dict[int, int] = {}

    def take(self, tokens: Tokens, batch: Batch) -> None:
        model, self._answers = self.task.model, self._answers or self.task.answers()
        tokens = model.normed(tokens)
        contexts = model.text_encoder.contexts(tokens.x_BNC, tokens.valid_BN)
        rows: dict[int, list[int]] = {}  # number of questions -> the videos that have so many, which go together
        for row, video in enumerate(batch.index_B.tolist()):
            rows.setdefault(len(self.task.of_video.get(video, ())), []).append(row)
        for number, some in rows.items():
            if number:
                numbers = [one for row in some for one in self.task.of_video[int(batch.index_B[row])]]
                self._ask(numbers, [context.of(some) for context in contexts])

    @property
    def has_read(self) -> bool:
        return self._answers is not None

    def _ask(self, numbers: list[int], contexts: list[Context]) -> None:
        """The same number of questions on each of the videos, those on the first video first."""
        model, questions = self.task.model, self.task.questions
        assert self._answers is not None  # take cut them
        ids_PL, mask_PL = model.cut([questions.texts[number] for number in numbers], questions.max_length)
        asked = model.ask(ids_PL, mask_PL, contexts)
        shortlist = min(self.task.shortlist, len(questions.answers))
        at_once = max(1, PIECES_AT_ONCE // (shortlist * self._answers[0].shape[1]))
        for start in range(0, len(numbers), at_once):
            some = list(range(start, min(start + at_once, len(numbers))))
            best_PK, score_PK = model.rank([one.of(some) for one in asked], *self._answers, shortlist=shortlist)
            finite_P = torch.isfinite(score_PK).all(1)
            for place, best, finite in zip(some, best_PK[:, 0].tolist(), finite_P.tolist(), strict=True):
                self._predicted[numbers[place]] = best
                if not finite:
                    self.invalid.append(numbers[place])

    def found(self) -> Outcome:
        index = sorted(self._predicted)
        arrays = {
            "index": np.array(index),
            "cluster": np.array([self.task.questions.video[number] for number in index]),
            "label": np.array([self.task.truth[number] for number in index]),
            "prediction": np.array([self._predicted[number] for number in index]),
        }
        return Outcome(arrays, {"accuracy": Metric()}, invalid=tuple(self.invalid), problems=tuple(self.problems))
