"""UMT's encoder: names, sizes and checkpoints. What it computes is compared with the official code in test_official.py."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tokred
import tokred.backbones.umt
from tokred import BACKBONES

TINY = {"num_frames": 4, "img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}


def umt(**more):
    return tokred.create_backbone("umt_base_patch16_224", **(TINY | more))


def checkpoint(**more) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return umt(**more).state_dict()


@pytest.mark.parametrize(
    ("name", "num_tensors", "num_parameters"),
    # of the official encoder with pool_norm: golden/vid_tldr.json has the base model's; the large one has 303.08 M
    [("umt_base_patch16_224", 162, 85638912), ("umt_large_patch16_224", 13 * 24 + 6, 303_080_000)],
)
def test_the_models_have_the_official_sizes(name, num_tensors, num_parameters):
    with torch.device("meta"):
        model = tokred.create_backbone(name)
    assert len(model.state_dict()) == num_tensors
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(num_parameters, abs=5000)
    assert model.sample_shape == (12, 3, 224, 224)
    assert (model.num_tokens, model.grid) == (2352, (12, 14, 14))


def test_its_names_are_listed():
    assert BACKBONES["umt"].names() == ["umt_base_patch16_224", "umt_large_patch16_224"]


def test_it_is_in_evaluation_mode():
    assert not umt().training


def test_a_clip_gives_the_pooled_feature():
    assert umt()(torch.zeros(2, 4, 3, 32, 32)).shape == (2, 24)


def test_a_clip_gives_logits_where_there_are_classes():
    assert umt(num_classes=7)(torch.zeros(2, 4, 3, 32, 32)).shape == (2, 7)


def test_patches_are_taken_frame_by_frame():
    clip = torch.zeros(1, 4, 3, 32, 32)
    clip[0, 2, :, 16:, :16] = 1  # frame 2, second row, first column
    model = umt()
    changed = (model.embed(clip).x_BNC != model.embed(torch.zeros_like(clip)).x_BNC).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 * 4 + 2]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_the_weights_of_an_encoder_are_loaded(suffix, tmp_path):
    state, path = checkpoint(), tmp_path / f"umt.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    assert all(torch.equal(value, state[name]) for name, value in umt(weights=str(path)).state_dict().items())


def test_the_encoder_of_a_whole_checkpoint_is_loaded(tmp_path):
    """As published: with the text encoder, the projections, and the decoders of the pre-training."""
    state, path = checkpoint(), tmp_path / "umt.pth"
    whole = {f"vision_encoder.{name}": value for name, value in state.items()}
    more = {
        "vision_encoder.clip_decoder.0.head.weight": torch.zeros(3),
        "text_encoder.a": torch.zeros(2),
        "temp": torch.tensor(0.07),
    }
    torch.save({"model": whole | more}, path)
    assert all(torch.equal(value, state[name]) for name, value in umt(weights=str(path)).state_dict().items())


def test_weights_of_another_size_are_refused(tmp_path):
    save_file(checkpoint(embed_dim=48), tmp_path / "umt.safetensors")
    with pytest.raises(ValueError, match="of another shape .*; give the model's own sizes or another checkpoint"):
        umt(weights=str(tmp_path / "umt.safetensors"))


def test_weights_of_a_deeper_model_are_refused(tmp_path):
    save_file(checkpoint(depth=3), tmp_path / "umt.safetensors")
    with pytest.raises(ValueError, match=r"13 unexpected \(encoder.blocks.2"):
        umt(weights=str(tmp_path / "umt.safetensors"))


def test_frames_need_no_weights_of_their_own(tmp_path):
    """Positions are computed, so that a checkpoint of 4 frames runs on 8."""
    save_file(checkpoint(), tmp_path / "umt.safetensors")
    assert umt(weights=str(tmp_path / "umt.safetensors"), num_frames=8).num_tokens == 32


def test_pretrained_weights_without_a_network_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="b16_25m.pth could not be fetched from OpenGVLab/UMT .*give weights=PATH"):
        umt(weights="pretrained")


# Whole models from files in the official forms


VOCABULARY = str(Path(__file__).parent / "golden" / "umt_data" / "vocab.txt")
WHOLE = TINY | {
    "text_dim": 32,
    "text_depth": 4,
    "text_heads": 4,
    "fusion_layer": 2,
    "vocab_size": 171,
    "max_positions": 40,
}


def whole(task, **more):
    joint = {"joint_dim": 16} if task == "retrieval" else {}
    return tokred.create_backbone("umt_base", task=task, vocabulary=VOCABULARY, **(WHOLE | joint | more))


class EasyDict(dict):
    """Settings as UMT's own class has them."""


def saved(state, path, monkeypatch):
    """As UMT's training saves: settings of a class of its own beside the weights."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "utils", types.ModuleType("utils"))
        patch.setitem(sys.modules, "utils.easydict", module := types.ModuleType("utils.easydict"))
        patch.setattr(EasyDict, "__module__", "utils.easydict")
        module.EasyDict = EasyDict
        config = EasyDict(num_frames=4, optimizer=EasyDict(lr=1e-5))
        torch.save({"model": state, "optimizer": {"state": {}}, "config": config, "epoch": 3, "global_step": 7}, path)
    return str(path)


def fine_tuned(task):
    torch.manual_seed(1)
    return whole(task).state_dict()


def with_rest(state):
    """What official files hold besides: the teacher, its decoders, a buffer of old versions."""
    encoders = {name.partition("embeddings.")[0] for name in state if "embeddings." in name}
    rest = {f"{encoder}embeddings.position_ids": torch.arange(40)[None] for encoder in encoders}
    rest |= {
        f"vision_encoder.clip_decoder.0.{name}": torch.zeros(3) for name in ("head.weight", "head.bias", "norm.weight")
    }
    return state | rest | {"clip_teacher.conv1.weight": torch.zeros(3), "clip_teacher.proj": torch.zeros(2, 2)}


def pretrained():
    """As the released pre-trained files are: the text encoder one level deeper, and a head of masked words."""
    state = {
        re.sub(r"^text_encoder\.", "text_encoder.bert.", name): value for name, value in fine_tuned("retrieval").items()
    }
    head, words = "text_encoder.cls.predictions", state["text_encoder.bert.embeddings.word_embeddings.weight"]
    return with_rest(state) | {f"{head}.bias": torch.zeros(171), f"{head}.decoder.weight": words}


def with_twin(state):
    """The decoder's words and bias stored twice, as its tied modules save them."""
    head, words = "text_decoder.cls.predictions", state["text_decoder.bert.embeddings.word_embeddings.weight"]
    return state | {f"{head}.decoder.weight": words, f"{head}.decoder.bias": state[f"{head}.bias"]}


@pytest.mark.parametrize(
    ("task", "state"),
    [
        ("retrieval", lambda: with_rest(fine_tuned("retrieval"))),
        ("retrieval", pretrained),
        ("qa", lambda: with_rest(with_twin(fine_tuned("qa")))),
    ],
    ids=["fine-tuned retrieval", "pre-trained", "fine-tuned qa"],
)
def test_an_official_file_is_loaded_whole(task, state, tmp_path, monkeypatch):
    path = saved(state(), tmp_path / "umt.pth", monkeypatch)
    expected = fine_tuned(task)
    found = whole(task, weights=path).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_default_sizes_are_the_published_ones(monkeypatch):
    monkeypatch.setattr(tokred.backbones.umt, "from_hub", lambda asked: None)
    with torch.device("meta"):
        base, large = (
            tokred.create_backbone(f"umt_{size}", task="retrieval", weights="random") for size in ("base", "large")
        )
    for model, dim, depth, fusion, joint in ((base, 768, 12, 3, 512), (large, 1024, 24, 5, 768)):
        sizes = model.text_encoder.sizes
        assert (sizes.dim, sizes.depth, sizes.num_fusion_layers, sizes.vocab_size) == (dim, depth, fusion, 30522)
        assert model.vision_proj.weight.shape == (joint, dim) and model.num_tokens == 2352
        crossing = [hasattr(layer, "crossattention") for layer in model.text_encoder.encoder.layer]
        assert crossing == [False] * (depth - fusion) + [True] * fusion


WRONG = {
    "a missing key": (
        lambda: {
            name: value for name, value in fine_tuned("qa").items() if "layer.3.crossattention.self.query" not in name
        },
        "2 missing .*text_encoder.encoder.layer.3.crossattention.self.query.weight",
    ),
    "an unexpected key": (
        lambda: fine_tuned("qa") | {"text_decoder.new": torch.zeros(2)},
        r"1 unexpected \(text_decoder.new\)",
    ),
    "a tensor of another size": (
        lambda: fine_tuned("qa") | {"vision_encoder.encoder.norm.weight": torch.zeros(5)},
        r"1 of another shape \(vision_encoder.encoder.norm.weight is \[5\], not \[24\]\)",
    ),
    "output words that are not the input's": (
        lambda: with_twin(fine_tuned("qa")) | {"text_decoder.cls.predictions.decoder.weight": torch.ones(171, 32)},
        "text_decoder.cls.predictions.decoder.weight must be text_decoder.bert.embeddings.word_embeddings.weight once more",
    ),
    "twins of no words": (
        lambda: {
            name: value for name, value in with_twin(fine_tuned("qa")).items() if "bert.embeddings.word" not in name
        },
        r"1 missing \(text_decoder.bert.embeddings.word_embeddings.weight\)",
    ),
    "twins that differ": (
        lambda: with_twin(fine_tuned("qa")) | {"text_decoder.cls.predictions.decoder.bias": torch.ones(171)},
        "text_decoder.cls.predictions.decoder.bias must be text_decoder.cls.predictions.bias once more, and differs",
    ),
    "a pre-trained file": (
        pretrained,
        "is pre-trained and has no decoder of answers yet; give a checkpoint fine-tuned for qa",
    ),
    "a file of retrieval": (lambda: fine_tuned("retrieval"), r"missing \(text_decoder.*unexpected \(.*temp"),
}


def test_a_file_of_answers_is_none_of_retrieval(tmp_path, monkeypatch):
    path = saved(with_twin(fine_tuned("qa")), tmp_path / "umt.pth", monkeypatch)
    with pytest.raises(ValueError, match=r"umt.pth .* missing \(temp, .* unexpected \(text_decoder.*") as error:
        whole("retrieval", weights=path)
    assert "\n" not in str(error.value)


def test_the_encoder_of_a_model_of_answers_has_no_norm_after_pooling(tmp_path, monkeypatch):
    """Nor has the file: https://github.com/OpenGVLab/unmasked_teacher builds it with add_pool_norm=False."""
    state = fine_tuned("qa")
    model = umt(weights=saved(with_twin(state), tmp_path / "umt.pth", monkeypatch))
    own = {f"vision_encoder.{name}": value for name, value in model.state_dict().items()}
    assert own.keys() == {name for name in state if name.startswith("vision_encoder.")}
    assert all(torch.equal(value, state[name]) for name, value in own.items())


@pytest.mark.parametrize("what", list(WRONG))
def test_a_file_that_does_not_fit_is_one_line_that_names_what(what, tmp_path, monkeypatch):
    state, said = WRONG[what]
    path = saved(state(), tmp_path / "umt.pth", monkeypatch)
    with pytest.raises(ValueError, match=f"umt.pth.*{said}") as error:
        whole("qa", weights=path)
    assert "\n" not in str(error.value)


def test_a_file_of_the_other_size_says_so(tmp_path, monkeypatch):
    path = saved(fine_tuned("retrieval"), tmp_path / "umt.pth", monkeypatch)
    with pytest.raises(ValueError, match="of another shape"):
        whole("retrieval", weights=path, embed_dim=48)


def test_a_k710_head_gives_its_first_400_rows_to_kinetics_400(tmp_path):
    official = umt(num_classes=710).state_dict()
    theirs = {"encoder.": "", "pool_norm.": "fc_norm.", "classifier.": "head."}
    state = {re.sub(r"^\w+\.", lambda own: theirs[own.group()], name): value for name, value in official.items()}
    torch.save({"module": state}, tmp_path / "k710.pth")
    found = umt(num_classes=400, weights=str(tmp_path / "k710.pth"))
    assert torch.equal(found.classifier.weight, official["classifier.weight"][:400])
    with pytest.raises(ValueError, match=r"classifier.weight is \[710, 24\], not \[300, 24\]"):
        umt(num_classes=300, weights=str(tmp_path / "k710.pth"))
