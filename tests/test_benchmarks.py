"""What benchmarks are asked for is checked before anything is timed: a line that says what must hold, and no ratio of nothing."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *((f"{name} --batch 0", "whole number of at least 1; got 0") for name in ("vid_tldr", "vit", "attention")),
        *((f"{name} --threads 0", "number from 1 to the ") for name in ("vid_tldr", "vit", "attention", "same_model")),
        ("vit --threads 1000000", "cores there are; got 1000000"),
        ("vit --backbone swin_tiny_patch4_window7_224", "plain VisionTransformers of timm can"),
        ("vit --backbone vit_tiny_patch16_224 --methods tome --threads two", "cores there are; got two"),
        ("attention --chunks 0", "whole number of at least 1; got 0"),
        ("same_model --windows 0", "whole number of at least 1; got 0"),
        ("vit --rounds 19", "an interval needs at least 20 rounds; got 19"),
        ("vit --official .", "must be a clone of the official code, with tome/patch/timm.py in it; got ."),
        ("vid_tldr --mode cuda_graph", "--mode cuda_graph goes with --device cuda"),
        ("vid_tldr --r 3000", "r=[3000] asks vid_tldr to leave -648 of the 2352 tokens"),
        ("one_pass 0", "whole number of at least 1; got 0"),
        ("one_pass 4 x", "whole number of at least 1; got x"),
        ("one_pass 4 1 batch_size=0", "batch_size must be at least 1; got 0"),
        ("retrieval_pairs umt_base 0", "whole number of at least 1; got 0"),
        ("coverage --samples 0", "whole number of at least 1; got 0"),
        ("bootstrap --draws 0", "whole number of at least 1; got 0"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, said, monkeypatch, capsys):
    name, *rest = words.split()
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *rest])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"{name}.py: error: ") and said in error
