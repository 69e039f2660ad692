"""What needs a published checkpoint and data: for whoever has them.

    TOKRED_UMT_MSRVTT=FOLDER TOKRED_UMT_WEIGHTS=b16_25m.pth TOKRED_VOCABULARY=vocab.txt \\
        python -m pytest -m slow tests/test_acceptance.py

The folder holds ``msrvtt_ret_test1k.json``, and the videos in ``videos/``. With a CUDA device it takes minutes, on a CPU hours.
``docs/umt.md`` says where all of it comes from.
"""

import os

import pytest
import torch

from tokred.record import Store
from tokred.sweeps.cli import sweep

NEEDED = ("TOKRED_UMT_MSRVTT", "TOKRED_UMT_WEIGHTS", "TOKRED_VOCABULARY")
# UMT-B, 25M, zero-shot on MSR-VTT, at 1, 5 and 10: an author's single-GPU run, issue 49 of OpenGVLab/unmasked_teacher.
PUBLISHED = {
    "T2V": (35.2, 57.8, 66.1),
    "V2T": (30.3, 50.7, 61.4),
    "ITC T2V": (27.7, 51.4, 61.3),
    "ITC V2T": (26.2, 47.6, 56.4),
}
# Points. A query of 1,000 is 0.1: half precision, another decoder of videos and another copy of a file move a few of them.
# A text encoder that was never loaded, or 12 frames, moves many.
TOLERANCE = 0.5


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
@pytest.mark.skipif(not all(map(os.environ.get, NEEDED)), reason=f"set {', '.join(NEEDED)} (see above)")
def test_zero_shot_recalls_of_umt_b_on_msrvtt_are_the_published_ones(tmp_path):
    folder, weights, vocabulary = (os.environ[name] for name in NEEDED)
    words = ["experiment=vid_tldr/msrvtt_base_zero_shot", "methods=none", f"data.root={folder}", f"out={tmp_path}"]
    words += [f"weights={weights}", f"vocabulary={vocabulary}", "timing.rounds=0"]
    if torch.cuda.is_available():
        words.append("precision=16-mixed")  # as the official run
    assert sweep(words) == 0
    (record,) = Store(tmp_path).records()
    found = {name: 100 * metric["value"] for name, metric in record.result["metrics"].items()}
    expected = {f"{way} R@{at}": r for way, three in PUBLISHED.items() for at, r in zip((1, 5, 10), three, strict=True)}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=TOLERANCE)
