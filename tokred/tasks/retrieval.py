"""Text-to-video and video-to-text retrieval, as UMT evaluates it (Li et al., ICCV 2023; official ``retrieval_utils``).

Two steps: the joint space (ITC) gives each video and each text a shortlist, and matching (ITM) ranks what is on it by looking
at text and video together. The final score is the matching logit alone; what is not on a shortlist comes after it. Of equal
scores the earlier video or text of the data set comes first.

The two shortlists share pairs, and a video's keys and values are the same for every text: each pair is scored once, video by
video, with one projection.

Dimension key: V videos, P texts, E channels of the joint space, N tokens of a video, L word pieces, C channels, K shortlist.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokred.data import Batch, DataSource
from tokred.model import Backbone
from tokred.reduction import ReducedModel
from tokred.tasks.features import Features, Room
from tokred.tasks.task import Evaluation, Metric, Outcome, Task
from tokred.tokens import Tokens
from tokred.video_text import RetrievalModel

NOT_LISTED = -100.0  # the official score of a pair that is on no shortlist
TEXTS_AT_ONCE, PIECES_AT_ONCE = 256, 4096
RECALLS = (1, 5, 10)


class Texts(NamedTuple):
    """``states``: of each text (L, C), without padding; ``place_PE``: in the joint space."""

    states: list[Tensor]
    place_PE: Tensor


class Retrieval(Task):
    """R@1, 5 and 10 both ways over the data's captions; ``shortlist`` None: as long as the data set's own evaluation has it."""

    name = "retrieval"

    def __init__(self, data: DataSource, backbone: Backbone, *, shortlist: int | None = None):
        super().__init__(data, backbone, shortlist=shortlist)
        if not isinstance(backbone, RetrievalModel):
            raise ValueError(
                f"retrieval needs a model of videos and texts, and {type(backbone).__name__} is none; try umt_base"
            )
        self.model, self.captions = backbone, data.captions()
        self.shortlist = shortlist or self.captions.shortlist
        self.room = Room()
        self._texts: Texts | None = None

    def evaluation(self, model: ReducedModel) -> "Retrieving":
        return Retrieving(self, model)

    def bytes_kept(self, num_tokens: int) -> int:
        return len(self.data) * num_tokens * self.backbone.widths().channels * 4

    def identity(self) -> dict[str, Any]:
        words = self.model.words
        return super().identity() | {"shortlist": self.shortlist, "vocabulary": words.digest() if words else None}

    def costs(self, num_tokens: int) -> dict[str, float]:
        """Of a video's keys and values, and of one text that looks at it, at the mean length of the texts."""
        _, mask_PL = self.model.cut(self.captions.texts, self.captions.max_length)
        video, pair = self.model.fusion_macs(num_tokens, round(float(mask_PL.sum(1).float().mean())))
        return {"gmacs_fusion_video": video / 1e9, "gmacs_fusion_pair": pair / 1e9}

    def texts(self) -> Texts:
        """Read once; no cell changes them."""
        if self._texts is None:
            states, places = [], []
            for start in range(0, len(self.captions.texts), TEXTS_AT_ONCE):
                some = self.captions.texts[start : start + TEXTS_AT_ONCE]
                ids_PL, mask_PL = self.model.cut(some, self.captions.max_length)
                states_PLC = self.model.text_encoder.read(ids_PL, mask_PL)
                places.append(self.model.place_text(states_PLC).float())
                states += [one[mask].clone() for one, mask in zip(states_PLC, mask_PL, strict=True)]
            self._texts = Texts(states, torch.cat(places))
        return self._texts


class Retrieving(Evaluation):
    def __init__(self, task: Retrieval, model: ReducedModel):
        super().__init__(model)
        self.task = task
        self._features = Features(task.room)
        self._places: list[Tensor] = []
        self._index: list[int] = []
        self.scores: Scores | None = None

    def take(self, tokens: Tokens, batch: Batch) -> None:
        backbone = self.task.model
        tokens = backbone.normed(tokens)
        place_BE = backbone.place(backbone.vision_encoder.pool(tokens))
        self.invalid.extend(batch.index_B[~torch.isfinite(place_BE).all(-1)].tolist())
        self._places.append(place_BE.float())
        self._index.extend(batch.index_B.tolist())
        # the norm's float32 is more than autocast leaves of it where it is looked at
        kind, dtype = tokens.x_BNC.device.type, tokens.x_BNC.dtype
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
        for row, x_NC in enumerate(tokens.x_BNC):
            self._features.append((x_NC if tokens.valid_BN is None else x_NC[tokens.valid_BN[row]]).to(dtype))

    def close(self) -> None:
        self._features.close()

    @property
    def has_read(self) -> bool:
        return bool(self._places)

    def finish(self, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        if self._places and not self.invalid:
            self.scores = self._score(autocast)
            finite_V = torch.isfinite(self.scores.near_VP).all(1) & torch.isfinite(self.scores.match_VP).all(1)
            finite_V &= torch.isfinite(self.scores.match_PV).all(0)
            self.invalid.extend(self._index[row] for row in (~finite_V).nonzero().flatten().tolist())
        self.close()

    def found(self) -> Outcome:
        problems = tuple(self.problems)
        if self.scores is None or self.invalid:
            return Outcome({}, {}, invalid=tuple(self.invalid), problems=problems)
        arrays = ranks(self.scores, self._index, self.task.captions.videos_of_text)
        metrics: dict[str, Metric | float] = {}
        for kind, recalls in METRICS.items():  # with their mean, as UMT reports it
            metrics |= recalls | {
                f"{kind}mean R": float(np.mean([one.right(arrays).mean() for one in recalls.values()]))
            }
        return Outcome(arrays, metrics, problems=problems)

    def _score(self, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> "Scores":
        with autocast():
            texts = self.task.texts()
        near_VP = torch.cat(self._places) @ texts.place_PE.mT  # not under autocast: half precision makes ties
        of_video_VP = _shortlisted(near_VP, self.task.shortlist)
        of_text_VP = _shortlisted(near_VP.mT, self.task.shortlist).mT
        match_VP = torch.full_like(near_VP, NOT_LISTED)
        with autocast():
            for video, listed_P in enumerate(of_video_VP | of_text_VP):
                self._match(video, listed_P.nonzero().flatten().tolist(), texts.states, match_VP[video])
        return Scores(near_VP, match_VP.where(of_video_VP, NOT_LISTED), match_VP.where(of_text_VP, NOT_LISTED).mT)

    def _match(self, video: int, listed: list[int], states: Sequence[Tensor], row_P: Tensor) -> None:
        """Fills the scores of one video with the texts that are listed."""
        model, device = self.task.model, row_P.device
        contexts = model.text_encoder.contexts(self._features[video].to(device)[None])
        listed = sorted(listed, key=lambda text: len(states[text]))  # like lengths together: less padding
        at_once = max(1, PIECES_AT_ONCE // len(states[listed[-1]])) if listed else 1
        for start in range(0, len(listed), at_once):
            some = listed[start : start + at_once]
            states_PLC = pad_sequence([states[text] for text in some], batch_first=True)
            length_P1 = torch.tensor([len(states[text]) for text in some], device=device)[:, None]
            mask_PL = torch.arange(states_PLC.shape[1], device=device) < length_P1
            row_P[some] = model.match(states_PLC, mask_PL, contexts).to(row_P.dtype)


class Scores(NamedTuple):
    """``near_VP``: cosines in the joint space; ``match``: the matching logits that rank a video's texts, and a text's videos."""

    near_VP: Tensor
    match_VP: Tensor
    match_PV: Tensor


def ranks(scores: Scores, index: Sequence[int], videos_of_text: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Of each text the rank of the best of its videos, and of each video that of its best text, by matching and by ITC alone.

    ``index``: which video of the data set each row is. Texts none of whose videos were read are left out, and so are videos
    without a text. ``index`` and ``prediction`` in what comes out: the texts, and the video that each ranks first;
    ``cluster``: the first video of each text.
    """
    row = {video: number for number, video in enumerate(index)}
    truth_PV = torch.zeros(scores.match_PV.shape, dtype=torch.bool)
    for text, videos in enumerate(videos_of_text):
        truth_PV[text, [row[video] for video in videos if video in row]] = True
    asked_P, asked_V = truth_PV.any(1), truth_PV.any(0)
    truth_QV, truth_QP = truth_PV[asked_P], truth_PV.mT[asked_V]
    of_text, first = _best(scores.match_PV.cpu()[asked_P], truth_QV)
    text_index = asked_P.nonzero().flatten().numpy()
    return {
        "index": text_index,
        "cluster": np.array([videos_of_text[text][0] for text in text_index]),
        "prediction": np.array(index)[first.numpy()],
        "text_rank": of_text.numpy(),
        "text_rank_itc": _best(scores.near_VP.cpu().mT[asked_P], truth_QV)[0].numpy(),
        "video_index": np.array(index)[asked_V.numpy()],
        "video_rank": _best(scores.match_VP.cpu()[asked_V], truth_QP)[0].numpy(),
        "video_rank_itc": _best(scores.near_VP.cpu()[asked_V], truth_QP)[0].numpy(),
    }


def _best(score_QC: Tensor, truth_QC: Tensor) -> tuple[Tensor, Tensor]:
    """Of each query the rank of its best true candidate, and the candidate that is first."""
    order_QC = score_QC.sort(dim=1, descending=True, stable=True).indices
    return truth_QC.gather(1, order_QC).byte().argmax(1), order_QC[:, 0]


def _shortlisted(score_QC: Tensor, length: int) -> Tensor:
    """Whether each candidate is among the best ``length`` of each query."""
    best_QK = score_QC.sort(dim=1, descending=True, stable=True).indices[:, :length]
    return torch.zeros_like(score_QC, dtype=torch.bool).scatter(1, best_QK, True)


METRICS = {
    kind: {
        f"{kind}{way} R@{at}": Metric(index, f"{ranked}_rank{suffix}", at)
        for way, ranked, index in (("T2V", "text", "index"), ("V2T", "video", "video_index"))
        for at in RECALLS
    }
    for kind, suffix in (("", ""), ("ITC ", "_itc"))
}
