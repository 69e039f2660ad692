"""UMT's encoder: names, sizes and checkpoints. What it computes is compared with the official code in test_official.py."""

import pytest
import torch
from safetensors.torch import save_file

import tokred
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
