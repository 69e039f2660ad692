"""Question answering: the ranking of answers, and each video encoded once for all its questions."""

from dataclasses import replace

import pytest
import torch

from tokred import ReducedModel, create_backbone
from tokred.data import MovingShapes
from tokred.data.loading import Unreadable
from tokred.lit import EvaluationData, evaluate
from tokred.reduction import create_method, plan_schedule
from tokred.tasks import QuestionAnswering

SMALL = {"depth": 2, "embed_dim": 24, "patch_size": 16, "text_dim": 24, "text_depth": 4, "fusion_layer": 2}
NUM_CLIPS = 5


class Asked(MovingShapes):
    """``change`` is what becomes of the questions; clips of the numbers ``broken`` cannot be read."""

    def __init__(self, change=lambda questions: questions, broken=()):
        super().__init__(NUM_CLIPS)
        self.change, self.broken = change, broken

    def questions(self):
        return self.change(super().questions())

    def read(self, index, sample_shape, preprocess):
        if index in self.broken:
            raise Unreadable(f"{index}.mp4", "cut short")
        return super().read(index, sample_shape, preprocess)


def with_answers(*answers):
    return lambda questions: replace(questions, answers=answers)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    model = create_backbone("mini_umt", task="qa", weights="random", **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():  # so that answers are told apart
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ran(backbone, data=None, *, method="none", shortlist=None, batch_size=2, **amount):
    data = data or Asked()
    chosen = create_method(method)
    model = ReducedModel(backbone, chosen, plan_schedule(backbone, chosen, **amount)).eval()
    evaluation = QuestionAnswering(data, backbone, shortlist=shortlist).evaluation(model)
    evaluate([evaluation], EvaluationData(data, backbone, batch_size=batch_size))
    return evaluation


# The ranking


@torch.no_grad()
def slow_scores(backbone, states_PLC, mask_PL, answers, max_length):
    """(P, A): log p(first piece) and the log-likelihood of the answer, a question, an answer and a piece at a time."""
    decoder = backbone.text_decoder
    rows = []
    for states_LC, mask_L in zip(states_PLC, mask_PL, strict=True):
        contexts = decoder.contexts(states_LC[mask_L][None], torch.ones(1, int(mask_L.sum()), dtype=torch.bool))
        row = []
        for answer in answers:
            ids = backbone.cut([answer], max_length)[0][0].tolist()
            logs = []
            for place, piece in enumerate(ids[1:], start=1):
                before = torch.tensor([ids[:place]])
                last = decoder(before, torch.ones_like(before, dtype=torch.bool), contexts)[0, -1]
                logs.append(decoder.logits(last).log_softmax(-1)[piece].item())
            row.append(logs[0] + sum(logs))
        rows.append(row)
    return torch.tensor(rows)


@torch.no_grad()
def asked(backbone, texts, clip):
    """States and mask of questions on one clip, and what the decoder looks at."""
    x_NC = backbone(clip)
    contexts = backbone.text_encoder.contexts(x_NC)
    ids_PL, mask_PL = backbone.cut(texts, 25)
    states = backbone.text_encoder.fuse(backbone.text_encoder.read(ids_PL, mask_PL), mask_PL, contexts)
    return states, mask_PL, backbone.ask(ids_PL, mask_PL, contexts)


QUESTIONS = ["what shape is the moving object", "what colour", "how many objects are there"]
ANSWERS = ["red [SEP]", "blue square [SEP]", "left [SEP]", "red disc moves left past a square [SEP]", "cross [SEP]"]


def test_scores_are_those_of_a_slow_loop_over_answers_and_pieces(backbone):
    clip = torch.randn(1, *backbone.sample_shape, generator=torch.Generator().manual_seed(0))
    states, mask_PL, contexts = asked(backbone, QUESTIONS, clip)
    expected_PA = slow_scores(backbone, states, mask_PL, ANSWERS, 5)
    best_PA, score_PA = backbone.rank(contexts, *backbone.cut(ANSWERS, 5), shortlist=128)
    order_PA = expected_PA.argsort(dim=1, descending=True)
    assert best_PA.tolist() == order_PA.tolist()
    torch.testing.assert_close(score_PA, expected_PA.gather(1, order_PA), atol=1e-4, rtol=1e-4)


def test_a_long_answer_is_cut_and_has_no_end(backbone):
    ids_AL, mask_AL = backbone.cut([ANSWERS[3]], 5)
    assert ids_AL.shape == (1, 5) and mask_AL.all()
    assert backbone.words.__len__() > ids_AL.max() and ids_AL[0, -1] != backbone.cut(["[SEP]"], 5)[0][0, 1]


def test_only_the_answers_of_the_likeliest_first_pieces_are_ranked(backbone):
    clip = torch.randn(1, *backbone.sample_shape, generator=torch.Generator().manual_seed(1))
    _, _, contexts = asked(backbone, QUESTIONS, clip)
    cut = backbone.cut(ANSWERS, 5)
    whole, _ = backbone.rank(contexts, *cut, shortlist=5)
    start = cut[0][:1, :1].expand(len(QUESTIONS), 1)
    with torch.no_grad():
        first = backbone.text_decoder.logits(
            backbone.text_decoder(start, torch.ones_like(start, dtype=torch.bool), contexts)[:, 0]
        )
    for question, best in enumerate(backbone.rank(contexts, *cut, shortlist=2)[0].tolist()):
        nearest = first[question, cut[0][:, 1]].sort(descending=True, stable=True).indices[:2].tolist()
        assert best == [answer for answer in whole[question].tolist() if answer in nearest]


def test_of_equal_answers_the_earlier_comes_first(backbone):
    clip = torch.randn(1, *backbone.sample_shape, generator=torch.Generator().manual_seed(2))
    _, _, contexts = asked(backbone, QUESTIONS, clip)
    best, score = backbone.rank(contexts, *backbone.cut(["red [SEP]"] * 3, 5), shortlist=3)
    assert best.tolist() == [[0, 1, 2]] * 3 and (score == score[:, :1]).all()


# A run


@pytest.mark.parametrize(("method", "amount"), [("none", {}), ("tome", {"r": [20, 5]})])
@torch.no_grad()
def test_predictions_are_those_of_each_question_alone(method, amount, backbone):
    data = Asked()
    evaluation = ran(backbone, data, method=method, **amount)
    questions, found = data.questions(), evaluation.outcome().arrays
    answers = [f"{answer} [SEP]" for answer in questions.answers]
    expected = []
    for text, video in zip(questions.texts, questions.video, strict=True):
        clip = data.read(video, backbone.sample_shape, backbone.preprocess())[None]
        contexts = backbone.text_encoder.contexts(backbone.normed(evaluation.model.run(clip)).x_BNC)
        best, _ = backbone.rank(
            backbone.ask(*backbone.cut([text], 25), contexts), *backbone.cut(answers, 5), shortlist=128
        )
        expected.append(best[0, 0].item())
    assert found["prediction"].tolist() == expected and len(set(expected)) > 1
    assert [questions.answers[label] for label in found["label"]] == list(questions.answer)
    assert found["cluster"].tolist() == list(questions.video)


def test_a_video_is_encoded_once_for_all_its_questions(backbone, monkeypatch):
    clips, embedded = [], ReducedModel.embedded
    monkeypatch.setattr(ReducedModel, "embedded", lambda self, x: (clips.append(len(x)), embedded(self, x))[1])
    assert len(ran(backbone).outcome().arrays["index"]) == 5 * NUM_CLIPS
    assert sum(clips) == NUM_CLIPS


def test_videos_with_different_numbers_of_questions_go_together(backbone):
    def fewer(questions):
        keep = [n for n, video in enumerate(questions.video) if video != 1 and (video != 2 or n % 5 < 2)]
        some = {name: tuple(getattr(questions, name)[n] for n in keep) for name in ("texts", "video", "answer", "ids")}
        return replace(questions, **some)

    data, every = Asked(fewer), ran(backbone).outcome().arrays["prediction"]
    found = ran(backbone, data, batch_size=NUM_CLIPS).outcome().arrays
    keep = [n for n in range(25) if n // 5 != 1 and (n // 5 != 2 or n % 5 < 2)]
    assert found["index"].tolist() == list(range(17))
    assert found["prediction"].tolist() == every[keep].tolist()


def test_an_answer_that_is_not_on_the_list_is_never_right(backbone):
    outcome = ran(backbone, Asked(with_answers("red"))).outcome()
    right = outcome.metrics["accuracy"].right(outcome.arrays)
    assert right.tolist() == [answer == "red" for answer in Asked().questions().answer]


def test_questions_on_a_video_that_cannot_be_read_are_left_out(backbone):
    outcome = ran(backbone, Asked(broken={1})).outcome()
    assert [problem.path for problem in outcome.problems] == ["1.mp4"]
    assert outcome.arrays["index"].tolist() == [n for n in range(25) if n // 5 != 1]


def test_where_no_video_can_be_read_the_first_is_named(backbone):
    with pytest.raises(ValueError, match="not one of the 5 files could be read; the first: 0.mp4: cut short"):
        ran(backbone, Asked(broken=range(NUM_CLIPS))).outcome()


def test_scores_that_are_not_finite_are_named_by_question(backbone, monkeypatch):
    rank = type(backbone).rank

    def broken(self, *arguments, **options):
        best, score = rank(self, *arguments, **options)
        return best, score * float("nan")

    monkeypatch.setattr(type(backbone), "rank", broken)
    assert sorted(ran(backbone).outcome().invalid) == list(range(25))


def test_a_model_without_a_decoder_is_refused():
    matching = create_backbone("mini_umt", task="retrieval", weights="random", **SMALL)
    with pytest.raises(ValueError, match="qa needs a model that answers questions, and RetrievalModel is none"):
        QuestionAnswering(MovingShapes(2), matching)
