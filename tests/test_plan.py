"""Axes to cells: each combination once, equal MACs, refusals with reasons, keys that follow from what counts."""

import csv
import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tokred import METHODS, ReducedModel, create_backbone, list_methods
from tokred.data import create_data, files
from tokred.registry import load_file
from tokred.schedule import SHAPES
from tokred.sweeps import plan
from tokred.sweeps.calibration import MOST_SAMPLES
from tokred.sweeps.cli import sweep
from tokred.sweeps.config import experiments, read_config
from tokred.sweeps.plan import build_backbone, build_method, make_plan

SMALL = {"depth": 4, "embed_dim": 24, "patch_size": 16}  # 64 tokens a clip
TINY = [
    "backbones=mini_mean",
    "weights=random",
    "data.num_clips=2",
    *(f"sizes.{name}={n}" for name, n in SMALL.items()),
]
REAL = ["weights=random", "data.num_clips=2"]  # the embedded models' own sizes; the weights change no count
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
IMAGES = ["backbones=timm/vit_tiny_patch16_224", "data=image_folder", *(f"sizes.{name}={n}" for name, n in VIT.items())]


def planned(*words):
    config = read_config(words)
    return make_plan(config, create_data(**config.data))


def cells(*words):
    return [cell for group in planned(*words) for cell in group.cells]


def keys(*words):
    return [cell.key for cell in cells(*words)]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers goes with it."""
    list_methods()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


@pytest.fixture
def pictures(tmp_path):
    """Two classes with two pictures each."""
    for index in range(4):
        folder = tmp_path / "pictures" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(index).randint(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def saved(path, name="mini_mean", **sizes):
    """The weights of a model drawn at random, in a file."""
    save_file(create_backbone(name, weights="random", **sizes).state_dict(), path)
    return path


# Which cells


def test_every_combination_of_the_axes_is_a_cell_once():
    found = cells(
        *TINY,
        "backbones=[mini_cls,mini_mean]",
        "methods=[tome,vid_tldr]",
        "options.tome.matching=[bipartite,kth]",
        "options.tome.proportional_attention=[true,false]",
        "budget=[0.8,0.6]",
        "shape=[constant,front]",
        "layers=[[0,1,2],[1,2]]",
    )
    options = itertools.product(("bipartite", "kth"), (True, False))
    methods = [("tome", dict(zip(("matching", "proportional_attention"), one, strict=True))) for one in options]
    methods.append(("vid_tldr", {}))
    expected = [(backbone, "none", {}, None, None, None) for backbone in ("mini_cls", "mini_mean")]
    for backbone, method, budget, shape, layers in itertools.product(
        ("mini_cls", "mini_mean"), methods, (0.8, 0.6), ("constant", "front"), ([0, 1, 2], [1, 2])
    ):
        expected.append((backbone, *method, budget, shape, layers))
    made = [
        (
            spec["backbone"],
            spec["method"],
            spec["options"],
            *(spec["schedule"][part] for part in ("amount", "shape", "layers")),
        )
        for spec in (cell.spec for cell in found)
    ]
    assert sorted(map(repr, made)) == sorted(map(repr, expected))


def test_no_two_cells_have_a_key_in_common():
    found = keys(*TINY, "backbones=[mini_cls,mini_mean]", "methods=all", "r=[2,4]", "options.evit.scores=received")
    assert len(found) == len(set(found))


def test_the_unreduced_model_comes_first_in_each_group_and_once():
    groups = planned(*TINY, "backbones=[mini_cls,mini_mean]", "methods=[tome,none]", "r=2")
    assert [[cell.spec["method"] for cell in group.cells] for group in groups] == [["none", "tome"]] * 2


def test_all_means_every_method_there_is():
    assert {cell.spec["method"] for cell in cells(*TINY, "methods=all", "r=2")} == set(list_methods())


def test_shapes_are_an_axis_of_budgets_only():
    assert len(cells(*REAL, "methods=tome", "budget=[0.8]", "shape=[constant,front]", "backbones=mini_mean")) == 1 + 2
    with pytest.raises(ValueError, match="shape goes with budget: it says where one is spent; the amounts here are r"):
        cells(*TINY, "methods=tome", "r=[2,4]", "shape=[constant,front]")


def test_a_changed_core_has_other_keys(monkeypatch):
    before = keys(*TINY, "methods=tome", "r=2")
    monkeypatch.setattr(plan, "_core_hash", lambda: "of another matching.py")
    assert not set(keys(*TINY, "methods=tome", "r=2")) & set(before)


def test_a_random_method_gets_a_cell_for_each_seed():
    found = cells(*TINY, "methods=[random_drop,tome]", "options.tome.matching=[random,kth]", "r=2", "seeds=3")
    seeds = [(cell.spec["method"], cell.spec["options"].get("matching"), cell.spec["seed"]) for cell in found[1:]]
    random = [
        (method, matching, seed)
        for method, matching in (("random_drop", None), ("tome", "random"))
        for seed in range(3)
    ]
    assert seeds == [*random, ("tome", "kth", None)]


def test_a_cells_seed_reaches_its_method():
    found = cells(*TINY, "methods=random_drop", "r=2", "seeds=2")
    assert [build_method(cell).seed for cell in found[1:]] == [0, 1]


def test_a_seed_given_as_an_option_is_the_only_one():
    found = cells(*TINY, "methods=random_drop", "options.random_drop.seed=7", "r=2", "seeds=3")
    assert [build_method(cell).seed for cell in found[1:]] == [7]


# How much


@pytest.mark.parametrize("backbone", ["mini_cls", "mini_mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_cells_of_a_budget_have_equal_macs(shape, backbone):
    words = [*REAL, f"backbones={backbone}", f"shape={shape}", "methods=all", "budget=[0.8,0.65,0.5]", "seeds=1"]
    config = read_config(words)
    model = build_backbone(config, create_data(**config.data), backbone, "random")
    ran = [cell for cell in cells(*words)[1:] if cell.refused is None]
    assert {"random_drop", "tome", "vid_tldr"} <= {cell.spec["method"] for cell in ran}
    for cell in ran:
        if cell.budget is not None:  # met when the cell is run, on samples apart
            assert cell.budget == cell.spec["schedule"]["amount"]
            continue
        reduced = ReducedModel(model, build_method(cell), cell.schedule)
        share = reduced.cost().gmacs / reduced.unreduced_cost().gmacs
        assert share == pytest.approx(cell.spec["schedule"]["amount"], rel=0.005), cell.label


def test_the_default_sweep_runs_every_cell():
    assert [cell.refused for cell in cells(*REAL)] == [None] * len(cells(*REAL))


def test_r_and_tokens_are_obeyed_to_the_token():
    found = cells(*TINY, "methods=tome", "r=[5,[20,10]]")
    assert [cell.schedule.tokens for cell in found[1:]] == [(59, 54, 49, 44), (44, 34, 34, 34)]
    (_, cell) = cells(*TINY, "methods=tome", "tokens=[[60,60,40,30]]")
    assert cell.schedule.tokens == (60, 60, 40, 30)


# What cannot run


def test_a_refused_cell_stays_with_its_reason():
    found = cells(*TINY, "methods=[tome,evit]", "r=2")
    assert [(cell.spec["method"], cell.schedule is None) for cell in found] == [
        ("none", False),
        ("tome", False),
        ("evit", True),
    ]
    assert "class token" in found[2].refused


def test_a_plan_in_which_nothing_can_run_is_an_error_with_the_first_reason():
    with pytest.raises(ValueError, match="nothing can be run: evit r 2: evit reads the attention of a class token"):
        planned(*TINY, "methods=evit", "r=2")


def test_an_impossible_plan_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep([*TINY, "methods=evit", "r=2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_a_sweep_of_the_unreduced_model_alone_is_possible():
    assert [cell.spec["method"] for cell in cells(*TINY, "methods=none")] == ["none"]


# Accuracy or agreement


def metric(*words):
    (group,) = planned("methods=none", *words)
    return "agreement" if group.why else "accuracy", group.why


def test_accuracy_is_for_weights_and_labels_that_fit(tmp_path):
    path = saved(tmp_path / "mean.safetensors", **SMALL)
    assert metric(*TINY, f"weights={path}") == ("accuracy", "")


def test_random_weights_have_an_agreement():
    assert metric(*TINY) == ("agreement", "the weights are random")


def test_other_classes_than_the_models_have_an_agreement(tmp_path):
    path = saved(tmp_path / "mean.safetensors", **SMALL, num_classes=7)
    why = "the data has 24 classes, the model tells 7 apart"
    assert metric(*TINY, f"weights={path}", "sizes.num_classes=7") == ("agreement", why)


def vit_file(folder, num_classes):
    vit = create_backbone("timm/vit_tiny_patch16_224", weights="random", **VIT, num_classes=num_classes).vit
    save_file(vit.state_dict(), folder / "vit.safetensors")
    return [f"weights={folder / 'vit.safetensors'}", f"sizes.num_classes={num_classes}"]


def test_data_without_labels_has_an_agreement(pictures, tmp_path):
    words = [*IMAGES, f"data.root={pictures / 'a'}", *vit_file(tmp_path, 2)]
    assert metric(*words) == ("agreement", "the data has no labels")


@pytest.mark.parametrize(("highest", "expected"), [(1, "accuracy"), (2, "agreement")])
def test_labels_that_the_model_cannot_give_have_an_agreement(highest, expected, pictures, tmp_path):
    (tmp_path / "labels.csv").write_text(f"a/0.png,0\nb/1.png,{highest}\n")
    words = [*IMAGES, f"data.root={pictures}", f"data.csv={tmp_path / 'labels.csv'}", *vit_file(tmp_path, 2)]
    assert metric(*words)[0] == expected


def test_a_model_that_gives_features_cannot_be_compared(pictures):
    with pytest.raises(ValueError, match="gives a feature and no classes, so there is nothing to predict"):
        planned(*IMAGES, f"data.root={pictures}", "weights=random", "sizes.num_classes=0")


# Keys


def test_the_same_words_have_the_same_keys():
    assert keys(*TINY, "methods=tome", "r=2") == keys(*TINY, "methods=tome", "r=2")


def test_random_weights_are_the_same_at_any_time_and_disturb_no_draw():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = keys(*TINY, "methods=tome", "r=2")
    assert torch.equal(torch.rand(3), expected)
    assert keys(*TINY, "methods=tome", "r=2") == first


def test_the_order_of_options_and_methods_is_irrelevant():
    options = ["options.tome.matching=kth", "options.tome.proportional_attention=false"]
    one = keys(*TINY, "methods=[tome,vid_tldr]", "r=2", *options)
    other = keys(*TINY, "methods=[vid_tldr,tome]", "r=2", *reversed(options))
    assert sorted(one) == sorted(other)


def test_a_cell_keeps_its_key_in_a_larger_sweep():
    small = keys(*TINY, "methods=tome", "r=2")
    large = keys(*TINY, "methods=[vid_tldr,tome]", "r=[4,2]", "backbones=[mini_cls,mini_mean]")
    assert set(small) < set(large)


@pytest.mark.parametrize(
    "word", ["batch_size=1", "workers=1", "timing.rounds=0", "timing.batch_size=1", "out=elsewhere"]
)
def test_what_does_not_change_the_result_does_not_change_the_key(word):
    assert keys(*TINY, "methods=tome", "r=2", word) == keys(*TINY, "methods=tome", "r=2")


@pytest.mark.parametrize(
    "word",
    [
        "r=3",
        "options.tome.matching=kth",
        "precision=bf16-mixed",
        "data.num_clips=3",
        "data.split=validation",
        "sizes.depth=3",
    ],
)
def test_what_changes_the_result_changes_the_key(word):
    assert keys(*TINY, "methods=tome", "r=2", word)[1] != keys(*TINY, "methods=tome", "r=2")[1]


def test_of_weights_the_content_counts_and_not_the_path(tmp_path):
    words = [*TINY, "methods=tome", "r=2"]
    first = saved(tmp_path / "first.safetensors", **SMALL)
    before = keys(*words, f"weights={first}")
    moved = shutil.copy(first, tmp_path / "second.safetensors")
    assert keys(*words, f"weights={moved}") == before
    saved(first, **SMALL)  # another draw
    assert not set(keys(*words, f"weights={first}")) & set(before)


def test_of_data_the_content_counts_and_not_the_path(pictures, tmp_path):
    words = [*IMAGES, "weights=random", "methods=tome", "r=2"]
    before = keys(*words, f"data.root={pictures}")
    moved = shutil.copytree(pictures, tmp_path / "moved")
    assert keys(*words, f"data.root={moved}") == before
    shutil.copy(moved / "a" / "0.png", moved / "b" / "1.png")
    assert not set(keys(*words, f"data.root={moved}")) & set(before)


def test_of_a_csv_the_content_counts_and_not_the_path(pictures, tmp_path):
    found = []
    for name, label in (("one", 1), ("two", 1), ("three", 0)):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("a/0.png", 0), ("b/1.png", label)])
        words = [*IMAGES, "weights=random", "methods=none", f"data.root={pictures}"]
        found.append(keys(*words, f"data.csv={tmp_path / name}.csv"))
    assert found[0] == found[1] != found[2]


PLUGIN = '''
"""Keeps the first tokens."""

import torch

from tokred import METHODS, Assignment, Method


@METHODS.register("first")
class First(Method):
    def assign(self, tokens, attention, keep):
        index_BK = torch.arange(keep).expand(len(tokens.x_BNC), keep)
        return Assignment.select(index_BK, tokens.num)
'''


def test_a_changed_method_has_another_key(tmp_path):
    path, found = tmp_path / "first.py", []
    for text in (PLUGIN, PLUGIN, PLUGIN.replace("torch.arange(keep)", "torch.arange(keep).flip(0)")):
        path.write_text(text)
        load_file(path)
        found.append(keys(*TINY, "methods=[first,tome]", "r=2"))
    assert found[0] == found[1]
    assert [one == other for one, other in zip(found[0], found[2], strict=True)] == [True, False, True]


# The experiments that come with tokred


# those of published rows need their data: tests/test_experiments.py
@pytest.mark.parametrize("name", [name for name in experiments() if "/" not in name])
def test_an_experiment_plans_on_the_embedded_data(name):
    found = cells(*REAL, f"experiment={name}")
    assert len(found) > 2 and any(cell.refused is None for cell in found[1:])
    allowed = ("class token", "cannot spend", "works at the encoder's output")  # of a method on a backbone, of a budget
    assert all(cell.refused is None or any(text in cell.refused for text in allowed) for cell in found)


# At the MACs of another method


def matched(*words):
    """Of each cell: its method, whether it was matched, tokens, and its share of the MACs."""
    (group,) = planned(*TINY, *words)
    backbone, found = create_backbone("mini_mean", weights="random", **SMALL), {}
    for cell in group.cells[1:]:
        reduced = ReducedModel(backbone, build_method(cell), cell.schedule)
        share = reduced.cost().macs / reduced.unreduced_cost().macs
        found[cell.spec["method"], "match" in cell.spec["schedule"]] = (cell.schedule.tokens, share)
    return found


def test_the_others_also_run_at_the_macs_of_the_method_to_match():
    found = matched("methods=[vid_tldr,tome,random_drop]", "r=[[20,8]]", "match=vid_tldr", "seeds=1")
    assert set(found) == {("vid_tldr", False), *((m, own) for m in ("tome", "random_drop") for own in (False, True))}
    same = {tokens for (_, own), (tokens, _) in found.items() if not own}
    assert same == {(44, 36, 36, 36)}, "on the same schedule"
    _, share = found["vid_tldr", False]
    for method in ("tome", "random_drop"):  # each spends less on its own matching, and so keeps more tokens
        _, spent = found[method, True]
        assert spent == pytest.approx(share, abs=0.005) and found[method, False][1] < share


def test_a_matched_schedule_removes_in_the_same_layers_in_the_same_proportions():
    tokens, _ = matched("methods=[vid_tldr,random_drop]", "r=[[20,0,10]]", "match=vid_tldr", "seeds=1")[
        "random_drop", True
    ]
    removed = [64 - tokens[0], *(a - b for a, b in itertools.pairwise(tokens))]
    assert removed[1] == removed[3] == 0 and removed[0] == pytest.approx(2 * removed[2], abs=1)


def test_matched_cells_are_other_cells_and_say_so():
    found = cells(*TINY, "methods=[vid_tldr,tome]", "r=[[20,8]]", "match=vid_tldr")
    labels = [cell.label for cell in found]
    assert "tome r [20, 8] MACs of vid_tldr" in labels and len({cell.key for cell in found}) == len(found) == 4


def test_the_method_to_match_is_the_one_with_its_options():
    words = [*TINY, "methods=[evit,random_drop]", "seeds=1", "r=[[20,8]]", "match=evit", "options.evit.scores=received"]
    (cell,) = [cell for cell in cells(*words) if "match" in cell.spec["schedule"]]
    assert cell.refused is None and cell.spec["schedule"]["match_options"] == {"scores": "received"}
    with pytest.raises(ValueError, match="match needs evit with one value of each option, not several"):
        cells(*words[:-1], "options.evit.scores=[received,cls]")


def test_the_family_that_builds_a_backbone_is_in_its_key(monkeypatch):
    asked = []
    monkeypatch.setattr(plan, "_source_hash", lambda cls: (asked.append(cls.__name__), "")[1])
    cells(*RETRIEVAL, "methods=none")
    assert "MiniUMT" in asked


def test_only_one_of_the_methods_can_be_matched():
    with pytest.raises(ValueError, match="match must be one of the methods, tome, or null; got 'vid_tldr'"):
        cells(*TINY, "methods=[tome]", "match=vid_tldr")


# Tasks


RETRIEVAL = [
    "task=retrieval",
    "weights=random",
    "data.num_clips=2",
    *(f"sizes.{name}={n}" for name, n in SMALL.items()),
]


def test_a_task_brings_its_backbones_unless_others_are_named():
    assert read_config(["task=retrieval"]).backbones == read_config(["task=qa"]).backbones == ["mini_umt"]
    assert read_config(["task=qa", "backbones=umt_base"]).backbones == ["umt_base"]


def test_a_backbone_that_is_not_built_for_the_task_is_refused_with_those_that_are():
    with pytest.raises(
        ValueError, match="mini_mean is built for classification, not for retrieval; that can: mini_umt"
    ):
        cells(*RETRIEVAL, "backbones=mini_mean", "methods=tome")


def test_data_without_captions_is_refused(pictures):
    words = ["data=image_folder", f"data.root={pictures}", "task=qa", "backbones=mini_umt", "weights=random"]
    with pytest.raises(ValueError, match="image_folder holds (picture|image)s|image_folder"):
        cells(*words, "methods=tome")


@pytest.mark.parametrize("word", ["shortlist=3", "data.num_clips=3"])
def test_what_a_retrieval_depends_on_makes_another_key(word):
    assert keys(*RETRIEVAL, "methods=tome") != keys(*RETRIEVAL, "methods=tome", word)


def test_random_weights_agree_whatever_the_task():
    (group,) = planned(*RETRIEVAL, "methods=none")
    assert group.why == "the weights are random"


# Counts that differ by sample


NOT_THOSE_OF_THE_TEST = "the calibration samples must not be those of the test, and"
VARYING = [*TINY, "methods=[ltmp,tome]", "budget=[0.8,0.6]"]
PICTURES = [*IMAGES, "weights=random", "methods=ltmp", "budget=[0.9]"]


def of(method, found):
    return [cell for cell in found if cell.spec["method"] == method]


def test_a_budget_of_a_method_that_varies_is_left_to_calibration():
    found = of("ltmp", cells(*VARYING, "layers=[[1,2]]"))
    assert [cell.budget for cell in found] == [0.8, 0.6]
    assert {cell.schedule.own_layers for cell in found} == {(1, 2)} and not any(cell.refused for cell in found)
    assert {cell.budget for cell in of("tome", cells(*VARYING))} == {None}


def test_its_cells_say_which_samples_it_is_calibrated_on():
    found = cells(*VARYING)
    assert {str(cell.spec["calibration"]) for cell in of("ltmp", found)} == {
        str({"name": "moving_shapes", "num_clips": MOST_SAMPLES, "split": "validation"})
    }
    assert not any("calibration" in cell.spec for cell in of("tome", found))


def test_a_shape_is_no_axis_of_a_method_that_varies():
    found = cells(*VARYING, "shape=[constant,front]")
    assert [len(of(method, found)) for method in ("ltmp", "tome")] == [2, 4]
    assert {cell.label for cell in of("ltmp", found)} == {"ltmp budget 0.8", "ltmp budget 0.6"}


@pytest.mark.parametrize("split", ["test", "validation", "train-0"])
def test_moving_shapes_are_calibrated_on_another_split(split):
    data = create_data("moving_shapes", num_clips=5, split=split)
    apart = data.apart(7)
    assert apart.split != split and len(apart) == 7 and apart.digest() != data.digest()


def test_other_calibration_samples_make_another_key():
    words = [*TINY, "methods=ltmp", "budget=[0.8]"]
    found = [cells(*words, *more)[1].key for more in ([], ["calibration.split=train-3"], ["calibration.num_clips=9"])]
    assert len(set(found)) == 3
    assert cells(*words)[0].key == cells(*words, "calibration.split=train-3")[0].key


def test_of_calibration_samples_the_content_counts_and_not_the_path(pictures, tmp_path):
    for seed, name in ((1, "one"), (1, "two"), (2, "three")):
        noise(tmp_path / name, seed)
    words = [*PICTURES, f"data.root={pictures}"]
    one, two, three = (cells(*words, f"calibration.root={tmp_path / name}")[1] for name in ("one", "two", "three"))
    assert one.key == two.key != three.key and one.spec != two.spec


def noise(folder, seed):
    folder.mkdir()
    pixels = np.random.RandomState(100 + seed).randint(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    return folder


def test_on_folders_calibration_samples_must_be_given(pictures):
    expected = (
        "nothing can be run: ltmp budget 0.9: its counts differ by sample, so that a budget is met on samples apart from the "
        "test: give calibration.root=FOLDER (of which 256 are taken), or budget=null, and it does as its options say"
    )
    with pytest.raises(ValueError) as refused:
        planned(*PICTURES, f"data.root={pictures}")
    assert str(refused.value) == expected


def test_with_a_folder_of_others_a_budget_is_planned(pictures, tmp_path):
    other = noise(tmp_path / "other", 3)
    (cell,) = of("ltmp", cells(*PICTURES, f"data.root={pictures}", f"calibration.root={other}"))
    assert cell.refused is None and cell.budget == 0.9
    assert cell.spec["calibration"]["root"] == str(other)


def test_calibration_samples_that_are_those_of_the_test_are_refused(pictures, tmp_path):
    copied = shutil.copytree(pictures, tmp_path / "copied")
    for root in (pictures, copied):
        with pytest.raises(ValueError, match="the calibration samples must not be those of the test, and"):
            planned(*PICTURES, f"data.root={pictures}", f"calibration.root={root}")


@pytest.mark.parametrize("word", ["calibration.limit=2", "calibration.limit=64"])
def test_a_part_of_the_test_is_refused_as_calibration_samples(word, pictures):
    with pytest.raises(ValueError, match="the calibration samples must not be those of the test, and"):
        planned(*PICTURES, f"data.root={pictures}", word)


def test_some_clips_of_the_test_are_refused_as_calibration_samples():
    found = of("ltmp", cells(*VARYING, "calibration.num_clips=1", "calibration.split=test"))
    assert {cell.refused for cell in found} == {
        "the calibration samples must not be those of the test, and 1 of 1 are; give others"
    }


def test_another_number_of_calibration_clips_is_still_of_the_other_split():
    (cell, _) = of("ltmp", cells(*VARYING, "calibration.num_clips=9"))
    assert cell.spec["calibration"] == {"name": "moving_shapes", "num_clips": 9, "split": "validation"}


def test_without_an_amount_a_method_that_varies_does_as_its_options_say():
    (cell,) = of("ltmp", cells(*TINY, "methods=[ltmp,tome]", "budget=null", "layers=[[0,2]]"))
    assert cell.refused is None and cell.budget is None and cell.schedule.own_layers == (0, 2)
    assert cell.spec["schedule"]["kind"] == "own" and cell.label == "ltmp as its options say layers [0, 2]"


def test_without_an_amount_another_method_is_refused():
    (cell,) = of("tome", cells(*TINY, "methods=[ltmp,tome]", "budget=null"))
    assert cell.refused == "tome removes as much as it is told: give budget, r, keep_rate or tokens"


def test_with_tokens_a_method_that_varies_has_a_cap_and_no_calibration():
    (cell,) = of("ltmp", cells(*TINY, "methods=ltmp", "tokens=[[60,50,40,30]]"))
    assert cell.schedule.tokens == (60, 50, 40, 30) and cell.budget is None and "calibration" not in cell.spec


@pytest.mark.parametrize("method", ["visionzip", "prumerge"])
def test_a_budget_at_the_encoders_output_is_refused_with_the_way_out(method):
    words = [*TINY, f"methods=[{method},tome]", f"options.{method}.scores=received", "budget=[0.8]"]
    (cell,) = of(method, cells(*words))
    assert cell.refused == (
        f"{method} works at the encoder's output, where all of its MACs are spent; give r, keep_rate or tokens in place of a "
        "budget, or site=after_attention to work inside the encoder"
    )


def test_at_another_site_the_same_method_has_a_budget():
    words = ["methods=[prumerge,tome]", "options.prumerge={scores:received,site:after_attention}", "budget=[0.8]"]
    (cell,) = of("prumerge", cells(*TINY, *words))
    assert cell.refused is None and build_method(cell).site == "after_attention"


def test_among_all_methods_those_of_the_output_are_moved_inside_for_a_budget():
    at_output = [name for name in list_methods() if METHODS[name].site == "output" and METHODS[name].other_sites]
    found = cells(*TINY, "methods=all", "budget=[0.9]", "seeds=1")
    assert at_output
    for name in at_output:
        assert {cell.spec["options"].get("site") for cell in of(name, found)} == {METHODS[name].other_sites[0]}
    assert all("site" not in cell.spec["options"] for cell in found if cell.spec["method"] not in at_output)


def test_among_all_methods_those_of_the_output_stay_there_for_numbers():
    found = cells(*TINY, "methods=all", "r=2", "seeds=1")
    assert all("site" not in cell.spec["options"] for cell in found)


def test_only_methods_with_the_same_counts_for_all_can_be_matched():
    found = cells(*TINY, "methods=[ltmp,tome]", "budget=[0.8]", "match=ltmp")
    (cell,) = [cell for cell in of("tome", found) if "match" in cell.spec["schedule"]]
    assert cell.refused == "match needs a method with the same counts for all samples; those of ltmp differ"


def test_a_method_that_varies_is_calibrated_to_what_the_matched_one_spends():
    words = [*TINY, "methods=[ltmp,vid_tldr]", "budget=[0.8]", "match=vid_tldr"]
    (cell,) = [cell for cell in of("ltmp", cells(*words)) if "match" in cell.spec["schedule"]]
    assert cell.budget == pytest.approx(0.8, rel=0.005)


def test_the_option_that_a_budget_is_solved_for_is_refused_beside_it():
    found = cells(
        *REAL, "methods=[ltmp,tome]", "backbones=[mini_cls]", "budget=[0.7]", "options.ltmp.merge_threshold=0.5"
    )
    assert "merge_threshold of ltmp is what a budget is solved for" in found[1].refused


def test_what_is_shared_with_the_test_is_refused_wherever_it_lies(pictures, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(pictures, target_is_directory=True)
    some = tmp_path / "some"
    some.mkdir()
    shutil.copy(next(pictures.rglob("*.png")), some / "another_name.png")
    noise(some / "more", 5).joinpath("0.png").rename(some / "own.png")
    (some / "more").rmdir()
    for root, shared in ((f"{pictures}/", "4 of 4"), (link, "4 of 4"), (some, "1 of 2")):
        with pytest.raises(ValueError, match=f"{NOT_THOSE_OF_THE_TEST} {shared} are"):
            planned(*PICTURES, f"data.root={pictures}", f"calibration.root={root}", "calibration.limit=9")


def test_calibration_files_are_read_once_for_a_plan(pictures, tmp_path, monkeypatch):
    other, read = noise(tmp_path / "other", 3), []
    fingerprint = files._fingerprint
    monkeypatch.setattr(files, "_fingerprint", lambda path: (read.append(path), fingerprint(path))[1])
    planned(*PICTURES, f"data.root={pictures}", f"calibration.root={other}", "methods=[ltmp,ats]", "budget=[0.9,0.8]")
    assert len(read) == len(set(read))


def test_calibration_without_a_method_that_needs_it_is_refused():
    with pytest.raises(ValueError, match="calibration is set, but of none of the methods do counts differ by sample"):
        cells(*TINY, "methods=[tome]", "calibration.num_clips=9")


def test_an_amount_is_the_most_that_a_method_that_varies_may_leave():
    found = cells(*TINY, "methods=[ltmp,tome]", "r=[5]")
    assert [cell.label for cell in found[1:]] == ["ltmp at most r 5", "tome r 5"]
