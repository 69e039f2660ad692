"""The experiments of vid-TLDR's published rows: each is what the paper's repository ran, and each runs, on small files."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import tokred
from tokred.sweeps.cli import sweep
from tokred.sweeps.config import CONF, experiments, read_config
from tokred.tokenizer import SPECIAL, WordPieces

GOLDEN = Path(__file__).parent / "golden" / "umt_data"
PUBLISHED = [name for name in experiments() if name.startswith("vid_tldr/")]
# From the README of mlvlab/vid-TLDR (a25051d4): tokens removed in the first layers of UMT-B and UMT-L, and how many of the
# 2352 are left. The word pieces of a text are those of its configs; paragraph: ActivityNet and DiDeMo.
SCHEDULES = {
    "msrvtt": ([600, 200, 100], 1452, [550, 400], 1402, 32),
    "msvd": ([450, 250, 200], 1452, [600, 200, 100, 100], 1352, 64),
    "anet": ([500], 1852, [600, 300], 1452, 150),
    "didemo": ([250, 150, 150, 150], 1652, [800, 100], 1452, 64),
    "lsmdc": ([400, 150, 150], 1652, [250, 250, 200, 200], 1452, 96),
    "ssv2_label": ([200, 200, 200, 100], 1652, [450, 250, 100], 1552, 25),
    "ssv2_template": ([400, 300], 1652, [350, 300, 100, 50], 1552, 25),
    "msrvtt_qa": ([600, 200], 1552, [400, 400, 100], 1452, 25),
    "msvd_qa": ([600, 200], 1552, [400, 400, 100], 1452, 25),
}
ZERO_SHOT = ("msrvtt", "msvd", "anet", "didemo", "lsmdc")  # which UMT publishes; there is no config for SSv2


def parts(name):
    """Data set, size and kind: ("msrvtt", "base", "equal")."""
    return re.fullmatch(r"vid_tldr/(\w+?)_(base|large)_?(\w*)", name).groups()


def test_every_published_row_has_its_experiment_and_every_data_set_a_comparison():
    found = {parts(name) for name in PUBLISHED}
    kinds = [(dataset, kind) for dataset in SCHEDULES for kind in ("", "equal")]
    kinds += [(dataset, "zero_shot") for dataset in ZERO_SHOT]
    assert found == {(dataset, size, kind) for dataset, kind in kinds for size in ("base", "large")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_experiment_says_its_command_first(name):
    first, second, *_ = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert first == "# @package _global_"
    command = second.removeprefix("# python sweep.py ").split()
    assert command[0] == f"experiment={name}" and [word.split("=")[0] for word in command[1:]] == [
        "data.root",
        "weights",
    ]
    read_config(command)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_experiment_is_on_the_published_data_model_and_schedule(name):
    dataset, size, kind = parts(name)
    config = read_config([f"experiment={name}", "data.root=somewhere"])
    of_base, _, of_large, _, length = SCHEDULES[dataset]
    r = of_base if size == "base" else of_large
    if kind == "zero_shot":
        r, length = [number // 3 for number in r], 64 if (dataset, size) == ("lsmdc", "base") else length
    qa = dataset.endswith("_qa")
    assert config.task == ("qa" if qa else "retrieval") and config.backbones == [f"umt_{size}"]
    assert config.amounts == [("r", r)] and config.layers == [None]
    assert config.sizes == ({"num_frames": 4} if kind == "zero_shot" else {})
    assert config.data["max_question_length" if qa else "max_text_length"] == length
    if not qa:
        assert config.data["paragraph"] == (dataset in ("anet", "didemo"))
        assert config.data["several_videos"] == dataset.startswith("ssv2")
        assert config.data["max_seconds"] == (30 if dataset == "didemo" else None)
    methods = ["vid_tldr", "tome", "random_drop"] if kind == "equal" else ["vid_tldr"]
    assert config.methods == methods and config.match == ("vid_tldr" if kind == "equal" else None)


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("dataset", list(SCHEDULES))
def test_a_schedule_leaves_the_published_number_of_tokens(dataset, size):
    of_base, left_of_base, of_large, left_of_large, _ = SCHEDULES[dataset]
    r, left = (of_base, left_of_base) if size == "base" else (of_large, left_of_large)
    with torch.device("meta"):
        model = tokred.create_backbone(f"umt_{size}_patch16_224", num_frames=12, weights="random")
    assert model.num_tokens == 2352
    assert tokred.reduce(model, "vid_tldr", r=r).schedule.tokens[-1] == left


# Runs, with small models on small files of the official formats

FILES = {
    "msrvtt": {"msrvtt_ret_test1k.json": "retrieval.json"},
    "msvd": {"msvd_ret_test.json": "retrieval.json"},
    "anet": {"anet_ret_val.json": "paragraph.json"},
    "didemo": {"didemo_ret_test.json": "paragraph.json"},
    "lsmdc": {"lsmdc_ret_test_1000.json": "retrieval.json"},
    "ssv2_label": {"ssv2_ret_label_val_small.json": "multi_video.json"},
    "ssv2_template": {"ssv2_ret_template_val_small.json": "multi_video.json"},
    "msrvtt_qa": {"msrvtt_qa_test.json": "qa.json", "msrvtt_qa_answer_list.json": "qa_answers.json"},
    "msvd_qa": {"msvd_qa_test.json": "qa.json", "msvd_qa_answer_list.json": "qa_answers.json"},
}
SMALL = {"img_size": 32, "num_frames": 12, "embed_dim": 24, "num_heads": 3, "depth": 4}
SMALL |= {"text_dim": 32, "text_heads": 4, "text_depth": 4, "fusion_layer": 2, "max_positions": 160}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The files of all sets, under their official names."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(GOLDEN / "videos", folder / "videos")
    for files in FILES.values():
        for official, ours in files.items():
            shutil.copy(GOLDEN / ours, folder / official)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of each task and number of frames, as a sweep finds it."""
    from safetensors.torch import save_file

    folder, words = tmp_path_factory.mktemp("weights"), str(GOLDEN / "vocab.txt")
    sizes = SMALL | {"vocab_size": len(WordPieces.read(words))}
    for task in ("retrieval", "qa"):
        torch.manual_seed(0)
        model = tokred.create_backbone("umt_base", task=task, weights="random", vocabulary=words, **sizes)
        save_file(model.state_dict(), folder / f"{task}.safetensors")
    return folder


@pytest.mark.parametrize("name", [name for name in PUBLISHED if parts(name)[1] == "base" or parts(name)[0] == "msrvtt"])
def test_an_experiment_runs(name, root, weights, tmp_path, monkeypatch, capsys):
    dataset, _, kind = parts(name)
    monkeypatch.chdir(tmp_path)
    task = "qa" if dataset.endswith("_qa") else "retrieval"
    sizes = SMALL | {"vocab_size": len(WordPieces.read(GOLDEN / "vocab.txt"))}
    if kind == "zero_shot":
        sizes.pop("num_frames")  # the experiment's own
    joint = {"joint_dim": 512} if task == "retrieval" else {}
    words = [
        f"experiment={name}",
        f"data.root={root}",
        f"weights={weights / task}.safetensors",
        "r=[[6,2]]",
        "timing.rounds=0",
    ]
    words += [f"vocabulary={GOLDEN / 'vocab.txt'}", "backbones=umt_base", "batch_size=4", "seeds=1", "out=run"]
    assert sweep([*words, *(f"sizes.{key}={value}" for key, value in (sizes | joint).items())]) == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
    assert [record["status"] for record in records] == ["done"] * (6 if kind == "equal" else 2)
    metrics = {name for record in records for name in record["result"]["metrics"]}
    assert metrics == {"accuracy"} if task == "qa" else {"T2V R@1", "V2T R@10", "mean R", "ITC mean R"} < metrics
    said = capsys.readouterr().out
    assert "tome" in said if kind == "equal" else "vid_tldr" in said
    assert SPECIAL[0] not in said
