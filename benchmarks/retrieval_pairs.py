"""What is saved by looking at each pair of video and text once, with a video's keys and values computed once for all texts.

    python benchmarks/retrieval_pairs.py                    the embedded twin: 60 clips, 60 captions, shortlists of 16
    python benchmarks/retrieval_pairs.py umt_base 2 8 4     UMT-B's sizes, random weights: 2 videos, 8 texts, shortlists of 4

Compared with the order of the work in UMT's own evaluation: first the shortlist of each video, then that of each text, and keys
and values anew for every pair. Both orders run on this code, in turn in the same rounds; they give the same scores, which is
checked. What is measured is the matching alone, after videos and texts were encoded. MACs are arithmetic.
"""

import argparse

import arguments
import torch

from tokred import ReducedModel, create_backbone
from tokred.backbones.umt import TEXT, VISION
from tokred.data import MovingShapes
from tokred.lit import EvaluationData
from tokred.reduction import create_method, plan_schedule
from tokred.tasks import Retrieval
from tokred.tasks.retrieval import NOT_LISTED, Retrieving
from tokred.timing import interleave, median_interval
from tokred.tokenizer import SPECIAL, WordPieces
from tokred.video_text import RetrievalModel

ROUNDS = 20


@torch.inference_mode()
def pair_by_pair(evaluation: Retrieving) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of both shortlists in UMT's order, in batches of 32 pairs."""
    scores, states = evaluation.scores, evaluation.task.texts().states
    assert scores is not None
    found = []
    for shortlisted in (scores.match_VP != NOT_LISTED, scores.match_PV.mT != NOT_LISTED):
        pairs = shortlisted.nonzero().tolist()
        match_VP = torch.full(shortlisted.shape, NOT_LISTED)
        for start in range(0, len(pairs), 32):
            some = pairs[start : start + 32]
            video, text = map(list, zip(*some, strict=True))
            padded = torch.nn.utils.rnn.pad_sequence([states[number] for number in text], batch_first=True)
            mask = torch.arange(padded.shape[1]) < torch.tensor([len(states[number]) for number in text])[:, None]
            tokens = torch.stack([evaluation._features[number] for number in video])
            match_VP[video, text] = evaluation.task.model.match(
                padded, mask, evaluation.task.model.text_encoder.contexts(tokens)
            )
        found.append(match_VP)
    return found[0], found[1]


@torch.inference_mode()
def once(evaluation: Retrieving) -> tuple[torch.Tensor, torch.Tensor]:
    scores = evaluation._score()
    return scores.match_VP, scores.match_PV.mT


@torch.inference_mode()
def embedded() -> Retrieving:
    backbone, data = create_backbone("mini_umt", task="retrieval"), MovingShapes(60)
    evaluation = Retrieval(data, backbone, shortlist=16).evaluation(_unreduced(backbone))
    for batch in EvaluationData(data, backbone, batch_size=20).test_dataloader():
        evaluation.take(evaluation.model.run(batch.inputs), batch)
    evaluation.scores = evaluation._score()
    return evaluation


@torch.inference_mode()
def drawn(size: str, num_videos: int, num_texts: int, shortlist: int) -> Retrieving:
    """The sizes of a UMT, with random video tokens (2352 a video) and texts of 32 word pieces."""
    torch.manual_seed(0)
    words = WordPieces([*SPECIAL, *(f"w{number}" for number in range(200))])
    model = RetrievalModel.made(words, **VISION[size] | TEXT[size] | {"num_frames": 12}).eval()
    data = _Drawn(num_videos, num_texts)
    evaluation = Retrieval(data, model, shortlist=shortlist).evaluation(_unreduced(model))
    for number in range(num_videos):
        x_NC = torch.randn(model.num_tokens, model.vision_encoder.embed_dim)
        evaluation._features.append(x_NC)
        evaluation._places.append(model.place(x_NC.mean(0, keepdim=True)))
        evaluation._index.append(number)
    evaluation.scores = evaluation._score()
    return evaluation


class _Drawn(MovingShapes):
    def __init__(self, num_videos: int, num_texts: int):
        super().__init__(num_videos)
        self.num_texts = num_texts

    def captions(self):
        from tokred.data.texts import Captions

        draw = torch.randint(200, (self.num_texts, 31))
        texts = tuple(" ".join(f"w{number}" for number in row) for row in draw.tolist())
        return Captions(texts, tuple((number % self.num_clips,) for number in range(self.num_texts)), 32)


def _unreduced(backbone) -> ReducedModel:
    method = create_method("none")
    return ReducedModel(backbone, method, plan_schedule(backbone, method)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="?", choices=[f"umt_{size}" for size in VISION])
    for name, default in {"videos": 2, "texts": 8, "shortlist": 4}.items():
        parser.add_argument(name, nargs="?", type=arguments.positive, default=default)
    args = parser.parse_args()
    with arguments.refused(parser):
        size = args.size and args.size.removeprefix("umt_")
        evaluation = drawn(size, args.videos, args.texts, args.shortlist) if size else embedded()
    assert evaluation.scores is not None
    for ours, theirs in zip(once(evaluation), pair_by_pair(evaluation), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    times = interleave({"pairs": lambda: pair_by_pair(evaluation), "once": lambda: once(evaluation)}, rounds=ROUNDS)
    ratio, low, high = median_interval([a / b for a, b in zip(times["pairs"], times["once"], strict=True)])
    of_video = evaluation.scores.match_VP != NOT_LISTED
    of_text = evaluation.scores.match_PV.mT != NOT_LISTED
    pairs, union = int(of_video.sum() + of_text.sum()), int((of_video | of_text).sum())
    model, states = evaluation.task.model, evaluation.task.texts().states
    video, pair = model.fusion_macs(model.num_tokens, round(sum(map(len, states)) / len(states)))
    macs, macs_once = pairs * (video + pair), len(of_video) * video + union * pair
    print(
        f"{len(of_video)} videos of {model.num_tokens} tokens, {len(states)} texts, shortlists of {evaluation.task.shortlist}"
    )
    print(f"pairs: {pairs} in both shortlists, {union} different ones")
    print(f"GMACs: {macs / 1e9:.2f} pair by pair, {macs_once / 1e9:.2f} once: {macs / macs_once:.1f} times fewer")
    about = f"median of {ROUNDS} rounds, 95 % interval, {torch.get_num_threads()} threads"
    print(f"time:  {ratio:.2f} [{low:.2f}, {high:.2f}] times less ({about})")


if __name__ == "__main__":
    main()
