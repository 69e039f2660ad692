"""Training of the embedded video-text models on moving shapes: retrieval and question answering together, from one encoder.

Both models share the vision encoder and the text encoder while they are trained, and are written as two files. The negatives
that teach most are captions of the clip itself with one attribute changed.

Dimension key: B clips, N tokens, C channels, L word pieces, P texts.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tokred.data.moving_shapes import (
    COLOURS,
    DIRECTIONS,
    FILLS,
    SHAPES,
    Clip,
    Scene,
    caption,
    clip_tensor,
    make_clip,
    questions,
)
from tokred.data.texts import clean
from tokred.text import Context
from tokred.training import MOTIONS, Recipe, token_targets
from tokred.video_text import AnsweringModel, RetrievalModel

CAPTION_LENGTH, QUESTION_LENGTH, ANSWER_LENGTH = 48, 25, 5
NUM_CHANGED = 4  # false captions of each clip
_LOOKS = (FILLS, MOTIONS, tuple(COLOURS), SHAPES)  # what is told of the object that a token shows


class Lessons(NamedTuple):
    """Clips, and in their order captions, captions with one thing changed (``NUM_CHANGED`` of each), questions and answers."""

    clips: Tensor
    looks_BNA: (
        Tensor  # of each token: pattern, motion, colour and shape of what it shows; the last number of each: background
    )
    captions: list[str]
    changed: list[str]
    questions: list[str]
    answers: list[str]


class TextClips(Dataset):
    """Clips by index, from ``start`` on, with what is said of them."""

    def __init__(self, split: str, start: int, stop: int, grid: tuple[int, int, int]):
        self.split, self.start, self.stop, self.grid = split, start, stop, grid

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> tuple:
        index += self.start
        clip = make_clip(self.split, index)
        asked, random = questions(clip.scene), np.random.RandomState(index)
        return (
            clip_tensor(clip),
            torch.from_numpy(_looks(clip, self.grid)),
            [clean(caption(clip.scene))],
            [clean(caption(one_thing_changed(clip.scene, random))) for _ in range(NUM_CHANGED)],
            [clean(question) for question, _ in asked],
            [f"{answer} [SEP]" for _, answer in asked],
        )


def collate(items: Sequence[tuple]) -> Lessons:
    clips, looks, *texts = zip(*items, strict=True)
    return Lessons(torch.stack(clips), torch.stack(looks), *(list(chain(*rows)) for rows in texts))


def one_thing_changed(scene: Scene, random: np.random.RandomState) -> Scene:
    """The scene with another pattern, direction, colour or shape of the traveller, or another colour or shape of the rest."""
    number = 0 if random.rand() < 0.7 else random.randint(len(scene.things))
    thing = scene.things[number]
    choices = {"colour": tuple(COLOURS), "shape": SHAPES}
    if number == 0:
        choices |= {"fill": FILLS, "motion": DIRECTIONS}
    name = list(choices)[random.randint(len(choices))]
    others = [value for value in choices[name] if value != getattr(thing, name)]
    things = list(scene.things)
    changed: dict[str, Any] = {name: others[random.randint(len(others))]}
    things[number] = replace(thing, **changed)
    return replace(scene, things=tuple(things))


class TextTraining(Recipe):
    """Contrast of videos and captions, matching of pairs, and the likelihood of answers; and what each token shows."""

    def __init__(self, retrieval: RetrievalModel, answering: AnsweringModel, config):
        super().__init__(config)
        self.retrieval, self.answering = retrieval, answering
        share(retrieval, answering)
        dim = retrieval.vision_encoder.embed_dim
        self.of_token = nn.Linear(dim, sum(len(look) + 1 for look in _LOOKS))

    def training_step(self, batch: Lessons, step: int) -> Tensor:
        model = self.retrieval
        tokens = model.vision_encoder.last_tokens(batch.clips)
        x_BNC = model.normed(tokens).x_BNC
        losses = {"token": self._of_tokens(x_BNC, batch.looks_BNA)}
        place_BE = model.place(model.vision_encoder.pool_norm(x_BNC.mean(1)))
        ids_PL, mask_PL = model.cut([*batch.captions, *batch.changed], CAPTION_LENGTH)
        states_PLC = model.text_encoder.read(ids_PL, mask_PL)
        with torch.no_grad():
            model.temp.clamp_(0.02, 0.5)
        sim_BP = place_BE @ model.place_text(states_PLC).mT / model.temp
        num = len(batch.clips)
        own = torch.arange(num, device=sim_BP.device)
        losses["contrast"] = (F.cross_entropy(sim_BP, own) + F.cross_entropy(sim_BP[:, :num].mT, own)) / 2
        contexts = model.text_encoder.contexts(x_BNC)
        losses["match"] = self._of_pairs(states_PLC, mask_PL, sim_BP.detach(), contexts)
        losses["answer"] = self._of_answers(batch, contexts)
        self.log_dict({f"loss_{name}": loss for name, loss in losses.items()}, prog_bar=True, batch_size=num)
        return sum(losses.values(), torch.zeros((), device=x_BNC.device))

    def _of_tokens(self, x_BNC: Tensor, looks_BNA: Tensor) -> Tensor:
        parts = self.of_token(x_BNC).split([len(look) + 1 for look in _LOOKS], -1)
        losses = []
        for look, logits_BNK, target_BN in zip(_LOOKS, parts, looks_BNA.unbind(-1), strict=True):
            weight = torch.tensor([1.0] * len(look) + [0.1], device=x_BNC.device)  # most tokens show background
            losses.append(F.cross_entropy(logits_BNK.mT, target_BN, weight=weight))
        return torch.stack(losses).mean()

    def _of_pairs(self, states_PLC: Tensor, mask_PL: Tensor, sim_BP: Tensor, contexts: list[Context]) -> Tensor:
        """Of each video its own caption, the changed ones and a like one of the batch; of each caption a like video."""
        num = len(sim_BP)
        own = torch.arange(num, device=sim_BP.device)
        sim_BB = sim_BP[:, :num].float().masked_fill(torch.eye(num, dtype=torch.bool, device=sim_BP.device), -torch.inf)
        like_text = sim_BB.softmax(1).multinomial(1).squeeze(1)
        like_video = sim_BB.mT.softmax(1).multinomial(1).squeeze(1)
        changed = num + torch.arange(num * NUM_CHANGED, device=sim_BP.device).view(num, NUM_CHANGED)
        texts = torch.cat([own[:, None], changed, like_text[:, None]], 1)
        scores = [self._scores(states_PLC[texts.flatten()], mask_PL[texts.flatten()], contexts)]
        moved = [Context(one.k_GHND[like_video], one.v_GHND[like_video]) for one in contexts]
        scores.append(self._scores(states_PLC[own], mask_PL[own], moved))
        target = torch.zeros_like(texts)
        target[:, 0] = 1
        return F.cross_entropy(torch.cat(scores), torch.cat([target.flatten(), torch.zeros_like(own)]))

    def _scores(self, states_PLC: Tensor, mask_PL: Tensor, contexts: list[Context]) -> Tensor:
        return self.retrieval.itm_head(self.retrieval.text_encoder.fuse(states_PLC, mask_PL, contexts)[:, 0])

    def _of_answers(self, batch: Lessons, contexts: list[Context]) -> Tensor:
        ids_PL, mask_PL = self.answering.cut(batch.questions, QUESTION_LENGTH)
        asked = self.answering.ask(ids_PL, mask_PL, contexts)
        answer_ids, answer_mask = self.answering.cut(batch.answers, ANSWER_LENGTH)
        return -self.answering.text_decoder.log_likelihood(answer_ids, answer_mask, asked).mean()

    def validation_step(self, batch: Lessons, step: int) -> None:
        """Of 64 clips: how often the own caption is the likeliest, and answers that are right."""
        model = self.retrieval
        x_BNC = model.forward_features(batch.clips)
        place_BE = model.place(model.vision_encoder.pool_norm(x_BNC.mean(1)))
        ids_PL, mask_PL = model.cut(batch.captions, CAPTION_LENGTH)
        states_PLC = model.text_encoder.read(ids_PL, mask_PL)
        num, own = len(place_BE), torch.arange(len(place_BE), device=place_BE.device)
        contrast = ((place_BE @ model.place_text(states_PLC).mT).argmax(1) == own).float().mean()
        contexts = model.text_encoder.contexts(x_BNC)
        every = own.repeat(num)
        match_BP = self._scores(states_PLC[every], mask_PL[every], contexts)[:, 1].view(num, num)
        answers = sorted(set(batch.answers))
        asked_ids = self.answering.cut(batch.questions, QUESTION_LENGTH)
        best, _ = self.answering.rank(
            self.answering.ask(*asked_ids, contexts), *self.answering.cut(answers, ANSWER_LENGTH), shortlist=128
        )
        right = [answers[i] == answer for i, answer in zip(best[:, 0].tolist(), batch.answers, strict=True)]
        found = {
            "val_contrast": contrast,
            "val_match": (match_BP.argmax(1) == own).float().mean(),
            "val_answers": torch.tensor(right).float().mean(),
        }
        self.log_dict(found, prog_bar=True, on_epoch=True, batch_size=num)


def share(retrieval: RetrievalModel, answering: AnsweringModel) -> None:
    """From here on the second has the first's vision encoder (but for its ``pool_norm``) and text encoder."""
    answering.text_encoder = retrieval.text_encoder
    answering.vision_encoder.encoder = retrieval.vision_encoder.encoder
    answering.vision_encoder.positions = retrieval.vision_encoder.positions


def _looks(clip: Clip, grid: tuple[int, int, int]) -> np.ndarray:
    things = clip.scene.things
    numbers = [
        [look.index(value) for look, value in zip(_LOOKS, (t.fill, t.motion, t.colour, t.shape), strict=True)]
        for t in things
    ]
    return np.array([*numbers, [len(look) for look in _LOOKS]])[token_targets(clip, grid)]
