"""Retrieval: recalls from scores, the two shortlists, and each pair looked at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate

from tokred import ReducedModel, create_backbone
from tokred.data import MovingShapes
from tokred.data.loading import Unreadable
from tokred.lit import EvaluationData, evaluate, finish
from tokred.reduction import create_method, plan_schedule
from tokred.tasks import Retrieval
from tokred.tasks.retrieval import METRICS, NOT_LISTED, Scores, ranks

SMALL = {
    "depth": 2,
    "embed_dim": 24,
    "patch_size": 16,
    "text_dim": 24,
    "text_depth": 3,
    "fusion_layer": 2,
    "joint_dim": 16,
}
NUM_CLIPS = 7


class Broken(MovingShapes):
    """Moving shapes whose clips of some numbers cannot be read."""

    def __init__(self, num_clips, broken):
        super().__init__(num_clips)
        self.broken = broken

    def read(self, index, sample_shape, preprocess):
        if index in self.broken:
            raise Unreadable(f"{index}.mp4", "cut short")
        return super().read(index, sample_shape, preprocess)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    model = create_backbone("mini_umt", task="retrieval", weights="random", **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():  # so that texts and videos are told apart
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ran(backbone, data=None, *, method="none", shortlist=None, batch_size=3, precision="32-true", **amount):
    """The evaluation of a cell, after its run."""
    data = data or MovingShapes(NUM_CLIPS)
    chosen = create_method(method)
    model = ReducedModel(backbone, chosen, plan_schedule(backbone, chosen, **amount)).eval()
    evaluation = Retrieval(data, backbone, shortlist=shortlist).evaluation(model)
    evaluate([evaluation], EvaluationData(data, backbone, batch_size=batch_size), precision=precision)
    finish(evaluation, precision=precision)
    return evaluation


def scores(match_VP, match_PV=None, near_VP=None):
    match_VP = torch.as_tensor(match_VP, dtype=torch.float)
    return Scores(match_VP if near_VP is None else near_VP, match_VP, match_VP.mT if match_PV is None else match_PV)


# Recalls from scores


def test_the_rank_is_the_number_of_candidates_before_the_true_one():
    found = ranks(scores([[3, 1, 0], [2, 5, 4], [1, 9, 2]]), [0, 1, 2], [(0,), (1,), (2,)])
    # texts see the columns: text 1 has videos in the order 2, 1, 0; text 2 in the order 1, 2, 0
    assert found["text_rank"].tolist() == [0, 1, 1] and found["prediction"].tolist() == [0, 2, 1]
    assert found["video_rank"].tolist() == [0, 0, 1]


def test_of_several_captions_of_a_video_the_best_counts():
    found = ranks(scores([[0.0, 3, 1], [5, 4, 9]]), [0, 1], [(0,), (0,), (1,)])
    assert found["video_rank"].tolist() == [0, 0] and found["text_rank"].tolist() == [1, 1, 0]


def test_of_several_videos_of_a_caption_the_best_counts():
    found = ranks(scores([[1.0], [5], [3]]), [0, 1, 2], [(0, 2)])
    assert found["text_rank"].tolist() == [1] and found["video_rank"].tolist() == [0, 0]
    assert found["video_index"].tolist() == [0, 2], "video 1 has no text, so there is nothing to find"


def test_of_equal_scores_the_earlier_comes_first():
    found = ranks(scores(torch.ones(3, 3)), [0, 1, 2], [(0,), (1,), (2,)])
    assert found["text_rank"].tolist() == found["video_rank"].tolist() == [0, 1, 2]


def test_a_text_whose_video_was_not_read_is_no_query_but_a_candidate():
    found = ranks(scores([[1.0, 5, 2], [0, 9, 3]]), [0, 2], [(0,), (1,), (2,)])
    assert found["index"].tolist() == [0, 2] and found["text_rank"].tolist() == [0, 0]
    assert found["video_index"].tolist() == [0, 2] and found["video_rank"].tolist() == [2, 1]


def test_texts_of_one_video_are_one_cluster():
    found = ranks(scores(torch.rand(2, 3)), [0, 1], [(0,), (0,), (1,)])
    assert found["cluster"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("way", ["T2V", "V2T"])
@pytest.mark.parametrize("at", [1, 5, 10])
def test_recalls_are_those_of_torchmetrics(way, at):
    generator = torch.Generator().manual_seed(at)
    score_VP = torch.rand(15, 40, generator=generator)
    videos_of_text = [(int(video),) for video in torch.randint(15, (40,), generator=generator)]
    truth_VP = torch.zeros(15, 40, dtype=torch.bool)
    truth_VP[[video for (video,) in videos_of_text], range(40)] = True
    metric = METRICS[""][f"{way} R@{at}"]
    ours = metric.right(ranks(scores(score_VP), range(15), videos_of_text)).mean()
    score_QC, truth_QC = (score_VP, truth_VP) if way == "V2T" else (score_VP.mT, truth_VP.mT)
    query_QC = torch.arange(len(score_QC))[:, None].expand(score_QC.shape)
    hits = RetrievalHitRate(top_k=at, empty_target_action="skip")
    assert ours == pytest.approx(hits(score_QC.flatten(), truth_QC.flatten(), query_QC.flatten()).item())


def test_the_mean_is_that_of_the_six_recalls(backbone):
    outcome = ran(backbone).outcome()
    six = [metric.right(outcome.arrays).mean() for metric in METRICS[""].values()]
    assert len(six) == 6 and outcome.metrics["mean R"] == pytest.approx(np.mean(six))
    assert next(iter(outcome.metrics)) == "T2V R@1" and "ITC V2T R@10" in outcome.metrics


# Scores of pairs


@torch.no_grad()
def slow(backbone, data, model):
    """Cosine and matching logit of every pair: one clip, one text at a time, no padding, nothing shared."""
    captions, number = data.captions(), len(data)
    near_VP, match_VP = torch.zeros(number, number), torch.zeros(number, number)
    for video in range(number):
        clip = data.read(video, backbone.sample_shape, backbone.preprocess())[None]
        tokens = backbone.normed(model.run(clip))
        for text in range(number):
            ids_PL, mask_PL = backbone.cut([captions.texts[text]], captions.max_length)
            states_PLC = backbone.text_encoder.read(ids_PL, mask_PL)
            near_VP[video, text] = (model(clip) @ backbone.place_text(states_PLC).mT).item()
            contexts = backbone.text_encoder.contexts(tokens.x_BNC)
            match_VP[video, text] = backbone.match(states_PLC, mask_PL, contexts).item()
    return near_VP, match_VP


@pytest.mark.parametrize(("method", "amount"), [("none", {}), ("vid_tldr", {"r": [20, 5]})])
def test_scores_are_those_of_a_slow_loop_over_pairs(method, amount, backbone):
    data = MovingShapes(NUM_CLIPS)
    evaluation = ran(backbone, data, method=method, **amount)
    near_VP, match_VP = slow(backbone, data, evaluation.model)
    assert match_VP.std() > 1e-3 and near_VP.std() > 1e-3
    torch.testing.assert_close(evaluation.scores.near_VP, near_VP, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(evaluation.scores.match_VP, match_VP, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(evaluation.scores.match_PV, match_VP.mT, atol=1e-5, rtol=1e-4)


def test_only_what_is_nearest_in_the_joint_space_is_matched(backbone):
    short, whole = (ran(backbone, shortlist=number).scores for number in (2, NUM_CLIPS))
    for near, match, every in (
        (short.near_VP, short.match_VP, whole.match_VP),
        (short.near_VP.mT, short.match_PV, whole.match_PV),
    ):
        for near_C, match_C, every_C in zip(near, match, every, strict=True):
            listed = sorted(near_C.argsort(descending=True)[:2].tolist())
            assert (match_C != NOT_LISTED).nonzero().flatten().tolist() == listed
            torch.testing.assert_close(match_C[listed], every_C[listed], atol=1e-5, rtol=1e-4)


def test_each_pair_is_matched_once_and_each_video_projected_once(backbone, monkeypatch):
    pairs, projected = [], []
    match, contexts = type(backbone).match, backbone.text_encoder.contexts
    monkeypatch.setattr(
        type(backbone), "match", lambda self, x, mask, c: (pairs.append(len(x)), match(self, x, mask, c))[1]
    )
    monkeypatch.setattr(backbone.text_encoder, "contexts", lambda x, *m: (projected.append(len(x)), contexts(x, *m))[1])
    found = ran(backbone, shortlist=2).scores
    union = (found.match_VP != NOT_LISTED) | (found.match_PV.mT != NOT_LISTED)
    assert sum(pairs) == union.sum().item() < 2 * 2 * NUM_CLIPS
    assert projected == [1] * NUM_CLIPS


def test_what_is_on_no_shortlist_comes_after_what_is(backbone):
    evaluation = ran(backbone, shortlist=1)
    outcome = evaluation.outcome()
    nearest_P = evaluation.scores.near_VP.argmax(0).tolist()
    assert outcome.arrays["prediction"].tolist() == nearest_P
    right = [rank for rank, near, own in zip(outcome.arrays["text_rank"], nearest_P, range(NUM_CLIPS)) if near == own]
    assert right == [0] * len(right)


def test_a_shortlist_longer_than_the_data_takes_all(backbone):
    assert (ran(backbone, shortlist=128).scores.match_VP != NOT_LISTED).all()


def test_the_shortlist_is_the_data_sets_own_unless_given(backbone):
    data = MovingShapes(NUM_CLIPS)
    assert Retrieval(data, backbone).shortlist == data.captions().shortlist
    assert Retrieval(data, backbone, shortlist=5).shortlist == 5


def test_scores_do_not_depend_on_the_batch_size(backbone):
    one, all_ = (ran(backbone, batch_size=size).scores for size in (1, NUM_CLIPS))
    torch.testing.assert_close(one.match_VP, all_.match_VP, atol=1e-5, rtol=1e-4)


def test_half_precision_gives_nearly_the_same(backbone):
    half, whole = (ran(backbone, precision=precision).scores for precision in ("bf16-mixed", "32-true"))
    assert half.near_VP.dtype == torch.float32 and not torch.equal(half.match_VP, whole.match_VP)
    torch.testing.assert_close(half.match_VP.float(), whole.match_VP, atol=0.1, rtol=0.1)  # bfloat16 has 8 bits


# What goes wrong


def test_a_video_that_cannot_be_read_is_named_and_its_text_left_out(backbone):
    outcome = ran(backbone, Broken(NUM_CLIPS, {2, 4})).outcome()
    assert [problem.path for problem in outcome.problems] == ["2.mp4", "4.mp4"]
    assert outcome.arrays["index"].tolist() == outcome.arrays["video_index"].tolist() == [0, 1, 3, 5, 6]


def test_where_no_video_can_be_read_the_first_is_named(backbone):
    with pytest.raises(ValueError, match=r"not one of the 2 files could be read; the first: 0.mp4: cut short"):
        ran(backbone, Broken(2, {0, 1})).outcome()


def test_a_video_whose_place_is_not_finite_is_named(backbone, monkeypatch):
    place = type(backbone).place
    monkeypatch.setattr(type(backbone), "place", lambda self, x: place(self, x) * float("nan"))
    assert ran(backbone).outcome().invalid == tuple(range(NUM_CLIPS))


def test_matching_scores_that_are_not_finite_make_the_cell_invalid(backbone, monkeypatch):
    match = type(backbone).match
    monkeypatch.setattr(type(backbone), "match", lambda self, *given: match(self, *given) * float("nan"))
    outcome = ran(backbone).outcome()
    assert outcome.invalid == tuple(range(NUM_CLIPS)) and outcome.arrays == {}


def test_the_features_are_freed_once_the_pairs_are_scored(backbone):
    assert len(ran(backbone)._features) == 0


def test_a_model_without_texts_is_refused():
    with pytest.raises(ValueError, match="retrieval needs a model of videos and texts, and Mini is none; try umt_base"):
        Retrieval(MovingShapes(2), create_backbone("mini_mean", weights="random"))


def test_data_without_captions_is_refused(backbone):
    data = SimpleNamespace(captions=MovingShapes.__mro__[1].captions.__get__(MovingShapes(2)))
    with pytest.raises(ValueError, match="moving_shapes"):
        Retrieval(data, backbone)


def test_shortlist_and_vocabulary_make_another_result(backbone):
    data = MovingShapes(2)
    first, second = (Retrieval(data, backbone, shortlist=number).identity() for number in (1, 2))
    assert first != second and first["vocabulary"] == backbone.words.digest()
