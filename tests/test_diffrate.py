"""DiffRate against the official code (``tests/golden/diffrate.json``), its published lists, and cases made by hand.

Run: ``DiffRate.patch.deit`` of OpenGVLab/DiffRate @91ae3e3 in eval mode, ``set_kept_num`` with the lists of each case, on
VisionTransformer of timm 0.4.12 (tests/golden/README.md). ``margin``: the smallest gap that decided, in attention (values of about
0.02) or cosine. ``official_count``: its ``calculate_flop_inference`` with the lists of its compression_rate.json, in float32.
"""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

import tokred
from tests.golden.weights import fill_, inputs
from tokred import Attention, Tokens, create_method
from tokred.data import create_data
from tokred.record import Store
from tokred.reduction import ReducedModel, Trace
from tokred.sweeps.config import CONF, Timing, experiments, read_config
from tokred.sweeps.plan import make_plan
from tokred.sweeps.run import run_plan

GOLDEN = json.loads((Path(__file__).parent / "golden" / "diffrate.json").read_text())
CASES, PUBLISHED = list(GOLDEN["cases"]), GOLDEN["published"]


@dataclass(frozen=True)
class Run:
    case: dict[str, Any]
    reduced: ReducedModel
    trace: Trace


def left_after(pruned: list[int], merged: list[int], num: int) -> list[int]:
    """What the official code leaves: a count above what comes in removes nothing."""
    found = []
    for numbers in zip(pruned, merged, strict=True):
        found.append(num := min(num, *numbers))
    return found


@functools.cache
def run(name: str) -> Run:
    case = GOLDEN["cases"][name]
    pruned, merged = case["options"]["prune_kept_num"], case["options"]["merge_kept_num"]
    model = fill_(timm.create_model(case["model"]["name"], **case["model"]["kwargs"]).eval(), case["seed"])
    reduced = tokred.reduce(model, "diffrate", tokens=left_after(pruned, merged, 65), pruned=pruned)
    with torch.no_grad():
        return Run(case, reduced, reduced.trace(inputs(case["input_shape"], case["seed"])))


def relative(ours: torch.Tensor, official: list) -> float:
    return float((ours - torch.tensor(official)).abs().max() / torch.tensor(official).abs().max())


# The official code


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_golden_case(name):
    found = run(name)
    total = sum(p.double().sum().item() for p in found.reduced.backbone.parameters())
    assert total == pytest.approx(found.case["parameter_sum"], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_smaller_of_both_lists_is_the_official_number_of_tokens(name):
    found = run(name)
    assert list(found.trace.tokens) == found.case["tokens"]


@pytest.mark.parametrize("name", CASES)
def test_each_token_joins_its_official_group_or_is_dropped(name):
    """In the official order, where the last layer reduces; one that does not sorts there, and here does nothing."""
    found = run(name)
    assert found.trace.source_BM[-1].tolist() == found.case["groups"]


@pytest.mark.parametrize("name", CASES)
def test_masses_are_the_official_ones(name):
    found = run(name)
    assert relative(found.trace.size_BN[-1], found.case["size"]) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_official_ones(name):
    found = run(name)
    # the official float32 is within 1.3e-6 of its float64
    assert relative(found.trace.logits, found.case["logits"]) < 1e-5


# By hand: the CLS token at (1, 0), five patches, a class row that ranks them 3, 1, 2, 5, 4

X_BNC = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [3.0, 0.0], [-1.0, 0.0], [2.0, 2.0]]])
ROW_BN = torch.tensor([[0.3, 0.2, 0.15, 0.25, 0.04, 0.06]])


def once(keep: int, x_BNC: torch.Tensor = X_BNC, size_BN: torch.Tensor | None = None, **options) -> Tokens:
    q_BHND = x_BNC[:, None]
    attention = Attention(q_BHND, q_BHND, q_BHND, 1.0, found={"cls_row": ROW_BN, "received": ROW_BN.flip(1)})
    tokens = Tokens(x_BNC, prefix=1, size_BN=size_BN).traced()
    return create_method("diffrate", **options).reduce(tokens, attention, keep)


def test_the_least_attended_is_dropped_and_the_next_joins_the_most_alike_as_a_plain_mean():
    after = once(4, pruned=[5], size_BN=torch.tensor([[1.0, 4, 1, 1, 1, 3]]))  # 4 is dropped; 5 joins 1: cosine 1
    assert after.source_BM.tolist() == [[0, 2, 3, 1, -1, 2]]
    assert after.x_BNC[0].tolist() == [[1, 0], [3, 0], [1.5, 1.5], [0, 2]]
    assert after.sizes()[0].tolist() == pytest.approx([1, 1, 7, 1])


def test_mass_is_size_times_cosine():
    after = once(3, pruned=[5], size_BN=torch.tensor([[1.0, 1, 2, 1, 1, 1]]))  # 2 and 5 join 1: cosines 0.707 and 1
    assert after.sizes()[0].tolist() == pytest.approx([1, 1, 1 + 2 * 0.5**0.5 + 1])


def test_a_cosine_below_zero_takes_no_mass_away():
    """Where the official evaluation has 1 - 1 = 0, and the logarithm of that in the next layer."""
    after = once(2, X_BNC.clone().index_fill_(1, torch.tensor([1, 2, 5]), -1.0), pruned=[6])
    assert after.sizes()[0].tolist() == [1, 1]


def test_none_drops_half_of_what_goes():
    assert (once(2).source_BM == -1).sum() == 2
    assert (once(3).source_BM == -1).sum() == 1  # of three; the odd one merges


def test_a_count_above_what_comes_in_drops_nothing():
    assert (once(3, pruned=[60]).source_BM == -1).sum() == 0


def test_received_ranks_by_the_attention_that_tokens_receive():
    assert once(3, pruned=[3], scores="received").source_BM.tolist() == [[0, -1, 2, -1, -1, 1]]


def test_received_runs_without_a_class_token():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
    vit = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", **sizes).eval()
    with pytest.raises(ValueError, match="class token"):
        tokred.reduce(vit, "diffrate", r=2)
    with torch.no_grad():
        assert tokred.reduce(vit, "diffrate", r=2, scores="received")(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ([4], r"pruned\[0\] is 4, but 5 tokens are to leave layer 0"),
        ([5, 5], "one count for each of the 1 layers; got 2"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(pruned, message):
    with pytest.raises(ValueError, match=message):
        once(5, pruned=pruned)


@pytest.mark.parametrize("pruned", [197, [197, 0.5], "197"])
def test_what_is_no_list_of_counts_is_refused(pruned):
    with pytest.raises(ValueError, match="pruned must be a list with one count for each layer"):
        create_method("diffrate", pruned=pruned)


# The published lists

EXPERIMENTS = [name for name in experiments() if name.startswith("diffrate/")]


def read(name: str, root: str = "IMAGENET"):
    return read_config([f"experiment={name}", f"data.root={root}", "weights=random"])


@functools.cache
def backbone(name: str, **sizes) -> tokred.Backbone:
    with torch.device("meta"):
        return tokred.create_backbone(name, weights="random", **sizes)


@functools.cache
def at_real_size(name: str) -> ReducedModel:
    config = read(name)
    (_, tokens), (pruned,) = config.amounts[0], config.options["diffrate"]["pruned"]
    return tokred.reduce(backbone(config.backbones[0], **config.sizes), "diffrate", tokens=tokens, pruned=pruned)


def test_every_published_list_has_its_experiment():
    assert {name.removeprefix("diffrate/") for name in EXPERIMENTS} == set(PUBLISHED)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_its_command_first(name):
    first, second, *_ = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    command = f"# python sweep.py experiment={name} data.root=IMAGENET/val"
    size = name.removeprefix("diffrate/mae_").split("_")[0]
    assert first == "# @package _global_"
    assert second == command + (f" weights=mae_finetuned_vit_{size}.pth" if "mae" in name else "")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_costs_what_the_official_counter_says_beside_the_matching(name):
    """The counter takes the class token for a patch of the embedding, and neither matching nor class row is in it."""
    reduced = at_real_size(name)
    cost, widths = reduced.cost(), reduced.backbone.widths()
    patch = reduced.backbone.vit.patch_embed.proj.weight.numel()
    ours = cost.macs - cost.macs_by_part["reduction"] + patch
    # it multiplies in float32, and rounds each of its 2 x 32 terms to 6e-8
    assert ours == pytest.approx(PUBLISHED[name.removeprefix("diffrate/")]["official_count"], rel=2e-6)
    assert patch == widths.embed // reduced.backbone.vit.patch_embed.num_patches


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_the_published_list_of_pruned_tokens(name):
    method = at_real_size(name).method
    assert sum(method.pruned) == PUBLISHED[name.removeprefix("diffrate/")]["pruned_sum"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_list_of_pruned_tokens_contradicts_its_schedule(name):
    reduced = at_real_size(name)
    assert all(left >= keep for left, keep in zip(reduced.method.pruned, reduced.schedule.tokens, strict=True))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two, in a folder for each of two classes."""
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(("bird", "fish")):
        (root / name).mkdir()
        noise = (40 * inputs((40, 40, 3), number) + 128).clamp(0, 255).byte().numpy()
        Image.fromarray(noise).save(root / name / "0.png")
    return root


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs(name, pictures, tmp_path):
    """As it is, with all its tokens and layers, but for the width of the model."""
    config = read(name, str(pictures))
    narrow = config.sizes | {"embed_dim": 24, "num_heads": 3}
    config = replace(
        config, sizes=narrow, batch_size=2, timing=Timing(rounds=0, batch_size=[1], modes=["eager"]), device="cpu"
    )
    data, store = create_data(**config.data), Store(tmp_path).create()
    run_plan(make_plan(config, data), config, data, store, Console(quiet=True))
    unreduced, reduced = sorted(store.records(), key=lambda record: record.result["gmacs"], reverse=True)
    assert unreduced.status == reduced.status == "done"
    assert reduced.result["tokens"][-1] == config.amounts[0][1][-1]


def test_the_published_2_9_of_deit_small_costs_what_its_readme_says():
    """2.905 there; 2.90526 as its counter has it, 0.0003 of which is the patch that is none. Matching and class row add 0.2 %."""
    cost = at_real_size("diffrate/deit_small_2.9").cost()
    assert round(cost.gmacs - cost.gmacs_reduction, 5) == 2.90496
    assert round((cost.gmacs - cost.gmacs_reduction) + 384 * 768 / 1e9, 5) == 2.90526
    assert cost.gmacs_reduction / cost.gmacs == pytest.approx(0.0024, abs=1e-4)
