"""VideoMAE and ViViT of transformers: with nothing removed, their own outputs; what cannot be cut, refused."""

import copy
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokred
import tokred.backbones.hf_video
from tokred import BACKBONES, METHODS
from tokred.preprocess import Preprocess
from tokred.reduction import as_backbone
from tokred.testing import CLAIMS, Case, option_variants, spread_, what_it_cannot_run_on_is_refused

transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "image_size": 32,
    "num_frames": 4,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}
VARIANTS = {
    "videomae": ("VideoMAEForVideoClassification", {"patch_size": 8, "num_labels": 5}),
    "videomae without bias": ("VideoMAEForVideoClassification", {"patch_size": 8, "num_labels": 5, "qv_bias": False}),
    "videomae not square": ("VideoMAEForVideoClassification", {"patch_size": (8, 16), "image_size": (32, 16)}),
    "videomae with no classes": ("VideoMAEForVideoClassification", {"patch_size": 8, "num_labels": 0}),
    "videomae encoder": ("VideoMAEModel", {"patch_size": 8}),
    "videomae encoder with a final norm": ("VideoMAEModel", {"patch_size": 8, "use_mean_pooling": False}),
    "vivit": ("VivitForVideoClassification", {"tubelet_size": (2, 8, 8), "num_labels": 5}),
    "vivit without bias": ("VivitForVideoClassification", {"tubelet_size": (2, 8, 8), "qkv_bias": False}),
    "vivit not square": ("VivitForVideoClassification", {"tubelet_size": (1, 8, 16), "image_size": (16, 32)}),
    "vivit encoder": ("VivitModel", {"tubelet_size": (2, 8, 8)}),
    "vivit encoder with another pooler": ("VivitModel", {"tubelet_size": (2, 8, 8), "pooler_output_size": 7}),
}
CLASSIFIERS = ("videomae", "vivit")


def model_of(variant: str, **more) -> nn.Module:
    """With weights spread so that every part of it counts."""
    kind, sizes = VARIANTS[variant]
    config = getattr(transformers, kind).config_class(**(TINY | sizes | more))
    model = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return model


def clips(model: nn.Module, num: int = 2) -> Tensor:
    return torch.randn(num, *as_backbone(model).sample_shape, generator=torch.Generator().manual_seed(1))


def given_by(model: nn.Module, clip_BTCHW: Tensor) -> Tensor:
    """Logits, the pooler's output, or the mean over the tokens, as transformers computes them."""
    output = model(clip_BTCHW)
    if "logits" in output:
        return output.logits
    return output.pooler_output if "pooler_output" in output else output.last_hidden_state.mean(1)


def layers_of(model: nn.Module) -> nn.ModuleList:
    return as_backbone(model).layers


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # the same sums in float32


# What it computes


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_nothing_removed_the_outputs_are_the_models_own(variant):
    model = model_of(variant)
    with torch.no_grad():
        assert same(tokred.reduce(model, "tome")(clips(model)), given_by(model, clips(model)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_nothing_removed_the_features_are_the_models_own(variant):
    model = model_of(variant)
    with torch.no_grad():
        theirs = model.base_model(clips(model)).last_hidden_state
        assert same(tokred.reduce(model, "tome", r=0).forward_features(clips(model)), theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_tokens_removed_the_outputs_have_the_models_shape(variant):
    model = model_of(variant)
    reduced = tokred.reduce(model, "tome", r=[3, 1])
    with torch.no_grad():
        assert reduced.trace(clips(model)).tokens[-1] == as_backbone(model).num_tokens - 4
        assert reduced(clips(model)).shape == given_by(model, clips(model)).shape


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_vid_tldr_reduces_a_model_built_elsewhere(variant):
    model = model_of(variant)
    reduced = tokred.reduce(model, "vid_tldr", r=[8, 4])
    with torch.no_grad():
        num = as_backbone(model).num_tokens
        assert reduced.trace(clips(model)).tokens == (num - 8, num - 12, num - 12)


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_dropping_tokens_is_running_the_library_on_those_that_stay(variant):
    """They go after the attention of a layer: what follows is the library's own on the tokens gathered there."""
    model = model_of(variant)
    backbone, layers = as_backbone(model), layers_of(model)
    reduced = tokred.reduce(model, "random_drop", r=[0, 6])
    with torch.no_grad():
        source_BM = reduced.trace(clips(model)).source_BM[1]
        kept_BK = (source_BM >= 0).nonzero()[:, 1].view(2, -1)
        x_BNC = layers[0](backbone.embed(clips(model)).x_BNC)
        halfway = _before_the_mlp(layers[1], x_BNC)
        gathered = halfway.gather(1, kept_BK[..., None].expand(-1, -1, 24))
        x_BKC = layers[2](_mlp_alone(layers[1], gathered))
        theirs = _head_of(model, x_BKC)
        assert kept_BK.shape[1] == backbone.num_tokens - 6
        assert same(reduced(clips(model)), theirs)


def _before_the_mlp(layer: nn.Module, x_BNC: Tensor) -> Tensor:
    """The library's layer where its MLP gives nothing."""
    silent = copy.deepcopy(layer)
    last = silent.mlp.fc2 if hasattr(silent, "mlp") else silent.output.dense
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    return silent(x_BNC)


def _mlp_alone(layer: nn.Module, x_BNC: Tensor) -> Tensor:
    """The library's layer where its attention gives nothing."""
    silent = copy.deepcopy(layer)
    last = silent.attention.o_proj if hasattr(silent, "mlp") else silent.attention.output.dense
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    return silent(x_BNC)


def _head_of(model: nn.Module, x_BNC: Tensor) -> Tensor:
    if model.config.model_type == "vivit":
        return model.classifier(model.vivit.layernorm(x_BNC)[:, 0])
    return model.classifier(model.fc_norm(x_BNC.mean(1)))


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_proportional_attention_is_attention_to_copies(variant):
    """A token of size 3 is looked at like three equal tokens."""
    backbone = as_backbone(model_of(variant))
    x_BNC = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    size_BN = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0]])
    with torch.no_grad():
        weighed, _ = backbone.attend(0, tokred.Tokens(x_BNC), size_BN.log())
        copies, _ = backbone.attend(0, tokred.Tokens(x_BNC.repeat_interleave(size_BN[0].long(), 1)))
    assert same(weighed.x_BNC, copies.x_BNC[:, [0, 1, 4, 5, 7]])


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_tokens_that_are_only_room_are_not_looked_at(variant):
    backbone = as_backbone(model_of(variant))
    x_BNC = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(0))
    valid_BN = torch.tensor([[True, True, False, True, True, False]])
    with torch.no_grad():
        among, _ = backbone.attend(0, tokred.Tokens(x_BNC, valid_BN=valid_BN))
        alone, _ = backbone.attend(0, tokred.Tokens(x_BNC[valid_BN][None]))
    assert same(among.x_BNC[valid_BN][None], alone.x_BNC)


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_in_training_both_branches_are_dropped_out(variant):
    """With a probability of 1."""
    backbone = as_backbone(model_of(variant, hidden_dropout_prob=1.0).train())
    tokens = tokred.Tokens(torch.randn(1, 5, 24))
    halfway, _ = backbone.attend(0, tokens)
    assert halfway.x_BNC.equal(tokens.x_BNC)
    assert backbone.feedforward(0, tokens).x_BNC.equal(tokens.x_BNC)


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_statistics_are_those_of_the_librarys_attention(variant):
    model = model_of(variant)
    model.set_attn_implementation("eager")
    backbone = as_backbone(model)
    with torch.no_grad():
        theirs = model(clips(model), output_attentions=True).attentions[0]
        _, attention = backbone.attend(0, backbone.embed(clips(model)), statistics=("map", "received"))
    assert same(attention.map_BHNN, theirs)
    assert same(attention.received_BN, theirs.mean((1, 2)))


@pytest.mark.parametrize(
    ("variant", "prefix", "has_cls", "gives_classes", "grid"),
    [
        ("videomae", 0, False, True, (2, 4, 4)),
        ("videomae not square", 0, False, True, (2, 4, 1)),
        ("videomae encoder", 0, False, False, (2, 4, 4)),
        ("vivit", 1, True, True, (2, 4, 4)),
        ("vivit not square", 1, True, True, (4, 2, 2)),
        ("vivit encoder", 1, True, False, (2, 4, 4)),
    ],
)
def test_tokens_and_their_places_are_known(variant, prefix, has_cls, gives_classes, grid):
    backbone = as_backbone(model_of(variant))
    assert (backbone.prefix, backbone.has_cls, backbone.gives_classes) == (prefix, has_cls, gives_classes)
    assert backbone.grid == grid
    assert backbone.embed(torch.zeros(1, *backbone.sample_shape)).num == backbone.num_tokens


def test_a_patch_is_where_the_grid_says():
    backbone = as_backbone(model_of("vivit"))
    clip = torch.zeros(1, *backbone.sample_shape)
    changed = clip.clone()
    changed[0, 2:, :, 8:16, 24:] = 1  # second pair of frames, second row, fourth column
    differs = (backbone.embed(clip).x_BNC != backbone.embed(changed).x_BNC).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [1 + 16 + 4 + 3]


def macs_of(model: nn.Module, clip_BTCHW: Tensor) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it sees no fused one
        model(clip_BTCHW)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_costs_are_those_that_are_counted(variant):
    model = model_of(variant).requires_grad_(False)
    reduced, clip_BTCHW = tokred.reduce(model, "tome", r=[3, 1]), clips(model, 1)
    assert reduced.cost().macs == macs_of(reduced, clip_BTCHW)
    assert reduced.unreduced_cost().macs == macs_of(model, clip_BTCHW)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_a_model_of_another_precision_passes_the_self_test(variant, dtype):
    assert next(as_backbone(model_of(variant).to(dtype)).parameters()).dtype == dtype


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_the_self_test_is_done_without_dropout_and_leaves_the_model_as_it_was(variant):
    model = model_of(variant, hidden_dropout_prob=0.5).train()
    before = {name: (type(part), part.training) for name, part in model.named_modules()}
    as_backbone(model)
    assert {name: (type(part), part.training) for name, part in model.named_modules()} == before


def contract() -> list:
    """Every method with its default options, or with the first that let it run, on one model of each kind; what dynamo does is
    seen with one method, since it takes more than a second to trace one."""
    found = []
    for variant in CLASSIFIERS:
        backbone = spread_(as_backbone(model_of(variant)))
        for method in METHODS.names():
            of_method = [Case(method, backbone, options, variant) for options in option_variants(METHODS[method])]
            case = next((case for case in of_method if case.runs()), None)
            for claim in CLAIMS if case else ():
                traced = claim.__name__ != "compiles_to_one_graph" or method == "tome"
                marks = [] if traced else [pytest.mark.slow]
                found.append(pytest.param(case, claim, marks=marks, id=f"{case}-{claim.__name__}"))
    return found


@pytest.mark.parametrize(("case", "claim"), contract())
def test_contract(case, claim):
    claim(case)


def test_a_method_that_needs_a_class_token_is_refused_on_videomae():
    what_it_cannot_run_on_is_refused(Case("evit", as_backbone(model_of("videomae"))))


# What is refused

VJEPA = {"crop_size": 32, "frames_per_clip": 4, "hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
TIMESFORMER = {"image_size": 32, "num_frames": 2, "hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
REFUSED = {
    "rope": (
        lambda: transformers.VJEPA2Model(
            transformers.VJEPA2Config(
                **VJEPA, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1
            )
        ),
        "VJEPA2Model cannot be reduced: its rotary positions would have to follow the tokens that stay",
    ),
    "divided attention": (
        lambda: transformers.TimesformerModel(transformers.TimesformerConfig(**TIMESFORMER)),
        "TimesformerModel cannot be reduced: its divided attention over space and time",
    ),
    "pre-training": (
        lambda: transformers.VideoMAEForPreTraining(
            transformers.VideoMAEConfig(**TINY, decoder_hidden_size=24, decoder_num_attention_heads=2)
        ),
        "VideoMAEForPreTraining cannot be reduced: of transformers, the encoders of VideoMAE and ViViT can",
    ),
    "dropout on attention": (
        lambda: model_of("vivit", attention_probs_dropout_prob=0.1),
        r"cannot be reduced with dropout on attention weights \(attention_probs_dropout_prob=0.1\)",
    ),
    "a head on the first patch": (
        lambda: model_of("videomae", use_mean_pooling=False),
        "cannot be reduced with use_mean_pooling=False: it classifies the first patch",
    ),
    "biases as old versions kept them": (
        lambda: with_q_bias(model_of("videomae")),
        r"has biases beside the linear maps of its attention; it is not supported \(transformers .*constraints.txt names",
    ),
    "other names": (
        lambda: renamed(model_of("vivit")),
        "VivitForVideoClassification is not built as known here: .*mlp",
    ),
    "a layer changed": (lambda: post_norm(model_of("vivit")), "layer 1 of a Vivit.* does not give what it gives whole"),
    "a branch left out": (lambda: no_mlp(model_of("videomae")), "layer 0 of a VideoMAE.* does not give what it gives"),
}


def with_q_bias(model: nn.Module) -> nn.Module:
    model.videomae.encoder.layer[0].attention.attention.q_bias = nn.Parameter(torch.zeros(24))
    return model


def renamed(model: nn.Module) -> nn.Module:
    for layer in model.vivit.layers:
        layer.ffn = layer.mlp
        del layer.mlp
    return model


def post_norm(model: nn.Module) -> nn.Module:
    kind = type(model.vivit.layers[1])
    own = type("Own", (kind,), {"forward": lambda self, x, *_, **__: x + self.layernorm_before(self.attention(x)[0])})
    model.vivit.layers[1].__class__ = own
    return model


def no_mlp(model: nn.Module) -> nn.Module:
    kind = type(model.videomae.encoder.layer[0])
    own = type("Own", (kind,), {"forward": lambda self, x, **_: x + self.attention(self.layernorm_before(x))})
    model.videomae.encoder.layer[0].__class__ = own
    return model


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_reason_in_one_line(what):
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as error:
        tokred.reduce(make(), "tome", r=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["VideoMAEForVideoClassification", "VivitForVideoClassification"])
def test_a_model_that_changes_the_forward_pass_is_refused(kind):
    theirs = getattr(transformers, kind)
    own = type("Own", (theirs,), {"forward": lambda self, x, **more: theirs.forward(self, x.flip(-1), **more)})
    model = own(theirs.config_class(**TINY))
    with pytest.raises(ValueError, match="a Own run in two halves does not give what it gives whole"):
        as_backbone(model)


@pytest.mark.parametrize("shape", [(2, 4, 3, 48, 48), (2, 4, 1, 32, 32), (4, 3, 32, 32), (2, 8, 3, 32, 32)])
def test_clips_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"clips must be \(B, 4, 3, 32, 32\); got "):
        tokred.reduce(model_of("videomae"), "tome", r=1)(torch.zeros(shape))


# Built by name


def test_its_names_are_listed():
    names = BACKBONES["hf_video"].names()
    assert names == ["hf/videomae_base", "hf/vivit_base"]
    assert set(tokred.list_backbones("hf/*")) == set(names)


@pytest.mark.parametrize(("name", "num"), [("videomae_base", 8), ("vivit_base", 9)])
def test_a_backbone_of_random_weights_is_built_by_name_with_its_sizes(name, num):
    backbone = tokred.create_backbone(f"hf/{name}", weights="random", **TINY)
    assert (backbone.depth, backbone.num_tokens, backbone.training) == (3, num, False)
    assert backbone(torch.zeros(2, 4, 3, 32, 32)).shape == (2, 24)


@pytest.mark.parametrize("name", ["videomae_base", "vivit_base"])
def test_tokreds_own_words_for_sizes_are_known(name):
    sizes = {key: value for key, value in TINY.items() if key != "image_size"}
    backbone = tokred.create_backbone(f"hf/{name}", img_size=32, num_classes=7, **sizes)
    assert backbone.gives_classes and backbone(torch.zeros(2, 4, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("name", "tokens", "millions"), [("videomae_base", 1568, 86.2), ("vivit_base", 3137, 89.2)])
def test_the_base_models_have_their_sizes(name, tokens, millions):
    with torch.device("meta"):
        backbone = tokred.create_backbone(f"hf/{name}")
    assert backbone.num_tokens == tokens
    assert sum(value.numel() for value in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"embed_dim": 24}, "no 'embed_dim' in sizes"),
        ({"num_atention_heads": 3}, "Did you mean 'num_attention_heads'?"),
        ({"num_hidden_layers": 0}, "VideoMAEModel is not built as known here"),
        ({"hidden_size": "wide"}, "videomae_base does not take .*expected int, got str"),
        ({"hidden_size": 25, "num_attention_heads": 3}, "videomae_base does not take .*not a multiple of"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        tokred.create_backbone("hf/videomae_base", weights="random", **sizes)
    assert "\n" not in str(error.value)


# From a folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_is_loaded_by_its_folder(variant, tmp_path):
    model = model_of(variant)
    model.save_pretrained(tmp_path)
    backbone = tokred.create_backbone(f"hf/{tmp_path}", weights="pretrained")
    with torch.no_grad():
        assert type(backbone.model) is type(model)
        assert same(backbone(clips(model)), given_by(model, clips(model)))


def test_a_folder_stands_for_the_weights_of_a_name(tmp_path):
    model = model_of("videomae")
    model.save_pretrained(tmp_path)
    for name in ("hf/videomae_base", "hf/MCG-NJU/videomae-base-finetuned-kinetics"):
        state = tokred.create_backbone(name, weights=str(tmp_path)).model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_positions_of_videomae_are_computed_so_that_another_number_of_frames_is_taken(tmp_path):
    model_of("videomae").save_pretrained(tmp_path)
    assert tokred.create_backbone(f"hf/{tmp_path}", num_frames=8).num_tokens == 64


def test_weights_of_half_precision_are_loaded_as_float32(tmp_path):
    model_of("videomae").half().save_pretrained(tmp_path)
    assert next(tokred.create_backbone(f"hf/{tmp_path}").parameters()).dtype == torch.float32


def test_a_folder_with_random_weights_gives_its_sizes_only(tmp_path):
    model = model_of("vivit")
    model.save_pretrained(tmp_path)
    backbone = tokred.create_backbone(f"hf/{tmp_path}", weights="random")
    assert backbone.num_tokens == 33
    assert not torch.equal(backbone.model.classifier.weight, model.classifier.weight)


def test_the_encoder_of_a_pretrained_videomae_is_loaded(tmp_path):
    sizes = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    model = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**TINY, patch_size=8, **sizes))
    model.save_pretrained(tmp_path)
    state = tokred.create_backbone(f"hf/{tmp_path}").model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.videomae.state_dict().items())


OLD_NAMES = {  # as the files on the hub, which are from the years before transformers 5
    "videomae": [("attention.query.bias", "attention.q_bias"), ("attention.value.bias", "attention.v_bias")],
    "vivit": [
        ("vivit.layers.", "vivit.encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ],
}


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_weights_under_the_names_of_transformers_4_are_loaded(variant, tmp_path):
    model = model_of(variant)
    model.save_pretrained(tmp_path)
    state = {}
    for name, value in model.state_dict().items():
        for new, old in OLD_NAMES[variant]:
            name = name.replace(new, old)
        state[name] = value
    assert set(state) != set(model.state_dict())
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = tokred.create_backbone(f"hf/{tmp_path}").model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_a_pickled_state_dict_is_read_without_unpickling(variant, tmp_path, monkeypatch):
    model = model_of(variant)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the pickle was loaded"))
    state = tokred.create_backbone(f"hf/{tmp_path}").model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    model = model_of("videomae")
    model.config.save_pretrained(tmp_path)
    torch.save(model, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin holds transformers.models.videomae.* is not loaded"):
        tokred.create_backbone(f"hf/{tmp_path}")


def test_weights_in_parts_are_loaded(tmp_path):
    model = model_of("vivit")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = tokred.create_backbone(f"hf/{tmp_path}").model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match="does not fit a Vivit.* missing"):
        tokred.create_backbone(f"hf/{tmp_path}")


@pytest.mark.parametrize(("file", "asked"), [("model.safetensors", 1), ("pytorch_model.bin", 2)])
def test_from_the_hub_pickled_weights_are_fetched_only_where_there_are_no_others(file, asked, tmp_path, monkeypatch):
    model, there, calls = model_of("vivit"), tmp_path / "there", []
    model.save_pretrained(there)
    torch.save(model.state_dict(), there / "pytorch_model.bin")
    if file == "pytorch_model.bin":
        (there / "model.safetensors").unlink()

    def fetch(name, allow_patterns, local_files_only=False):
        """As the hub's client does, from a folder."""
        calls.append(name)
        here = tmp_path / "here"
        here.mkdir(exist_ok=True)
        for path in there.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, here)
        return str(here)

    monkeypatch.setattr(tokred.backbones.hf_video, "snapshot_download", fetch)
    state = tokred.create_backbone("hf/own/vivit").model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert calls == ["own/vivit"] * asked
    assert [path.name for path in (tmp_path / "here").iterdir() if path.suffix != ".json"] == [file]


def test_a_folder_without_weights_is_refused(tmp_path):
    model_of("vivit").config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no weights, of the files model.safetensors, .*pytorch_model.bin"):
        tokred.create_backbone(f"hf/{tmp_path}")


def with_state(tmp_path: Path, change) -> Path:
    model_of("videomae").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fc_norm.weight"), r"1 missing \(fc_norm.weight\)"),
        (lambda state: state.update(more=torch.zeros(1)), r"1 unexpected \(more\)"),
        (
            lambda state: state.update({"classifier.bias": torch.zeros(9)}),
            r"1 of another shape \(classifier.bias is \[9\], not \[5\]\)",
        ),
    ],
)
def test_weights_of_another_model_are_refused_in_one_line_and_no_other_is_printed(change, message, tmp_path, capfd):
    folder, bars = with_state(tmp_path, change), transformers.logging.is_progress_bar_enabled()
    capfd.readouterr()
    with pytest.raises(ValueError, match=message) as error:
        tokred.create_backbone(f"hf/{folder}")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.is_progress_bar_enabled() == bars


def test_a_file_cut_short_is_refused(tmp_path):
    model_of("videomae").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model.safetensors is not a readable checkpoint .*fetch it again"):
        tokred.create_backbone(f"hf/{tmp_path}")


def test_a_classifier_that_a_folder_does_not_hold_is_not_made_up(tmp_path):
    model_of("videomae encoder").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing \(classifier.bias\)"):
        tokred.create_backbone(f"hf/{tmp_path}", num_classes=5)


def test_code_beside_the_weights_is_not_run(tmp_path):
    model_of("videomae").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="a own cannot be reduced"):
        tokred.create_backbone(f"hf/{tmp_path}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "field",
    [
        {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}},
        {"_attn_implementation": "somebody/kernel"},
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation_internal": "somebody/kernel"},
        {"_name_or_path": "somebody/model"},
        {"quantization_config": {"quant_method": "awq"}},
        {"transformers_weights": "/etc/passwd"},
        {"dtype": "float16"},
    ],
    ids=lambda field: next(iter(field)),
)
def test_fields_of_a_config_that_are_no_sizes_are_passed_over(field, tmp_path):
    model = model_of("videomae")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | field))
    loaded = tokred.create_backbone(f"hf/{tmp_path}").model
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers of .* must be a whole number up to 1024"),
        (
            {"num_hidden_layers": 1000, "hidden_size": 2**15, "intermediate_size": 2**17},
            "parameters, and .* are the most",
        ),
        ({"num_frames": 1000, "image_size": 2**17}, "parameters, and .* are the most"),
        ({"patch_size": 0}, "has no config.json that transformers can read|does not take|division"),
        ("[" * 1000, "has no config.json that can be read"),
        ("[]", "has no config.json that can be read: it is no object"),
        (" " * 2**21, "has no config.json that can be read: it has more than"),
    ],
    ids=["layers", "width", "positions", "patches of nothing", "deep", "list", "long"],
)
def test_a_config_of_more_than_there_is_makes_no_model(config, message, tmp_path):
    model_of("videomae").save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(whole | config))
    with pytest.raises(ValueError, match=message):
        tokred.create_backbone(f"hf/{tmp_path}", weights="random")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "hf/vivit_base",
            "pretrained",
            "hf/vivit_base has no pretrained weights; name a model of the hub, as hf/MCG-NJU/",
        ),
        ("hf/vivit_base", "/no/such/folder", "no folder at /no/such/folder; .* a folder as save_pretrained makes it"),
        ("hf/MCG-NJU/videomae-base-finetuned-kinetics", "pretrained", "could not be had from the hub .*weights=FOLDER"),
        ("hf/google/vivit-b-16x2-kinetics400", None, "could not be had from the hub .*weights=FOLDER"),
        ("hf/a/b/c", None, "'a/b/c' is no folder here, and could not be had from the hub"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_with_what_to_do(name, weights, message):
    with pytest.raises(ValueError, match=message) as error:
        tokred.create_backbone(name, weights=weights)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_kind_than_the_name_is_refused(tmp_path):
    model_of("videomae").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the weights are those of a videomae, not of hf/vivit_base"):
        tokred.create_backbone("hf/vivit_base", weights=str(tmp_path))


def test_a_folder_of_another_family_is_refused(tmp_path):
    transformers.VJEPA2Config(**VJEPA).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a vjepa2 cannot be reduced: its rotary positions"):
        tokred.create_backbone(f"hf/{tmp_path}")


# How clips are prepared

PREPARED = {
    "VideoMAE's own": (
        transformers.VideoMAEImageProcessor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
        Preprocess(interpolation="bilinear", crop_pct=1.0, antialias=True),
    ),
    "a larger short side": (
        transformers.VideoMAEImageProcessor(size={"shortest_edge": 256}, resample=3),
        Preprocess((0.5,) * 3, (0.5,) * 3, "bicubic", 224 / 256, antialias=True),
    ),
    "squashed": (
        transformers.VideoMAEImageProcessor(
            size={"height": 224, "width": 224}, do_center_crop=False, do_normalize=False
        ),
        Preprocess((0.0,) * 3, (1.0,) * 3, "bilinear", None, antialias=True),
    ),
    "ViViT's range without a norm": (
        transformers.VivitImageProcessor(do_normalize=False),
        Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", 224 / 256, antialias=True),
    ),
    "ViViT's range and a norm after it": (
        transformers.VivitImageProcessor(),
        Preprocess((0.75,) * 3, (0.25,) * 3, "bilinear", 224 / 256, antialias=True),
    ),
    "a video processor": (
        transformers.VideoMAEVideoProcessor(),
        Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, antialias=True),
    ),
}


@pytest.mark.parametrize("what", PREPARED)
def test_clips_are_prepared_as_the_file_beside_the_weights_says(what, tmp_path):
    processor, prepared = PREPARED[what]
    model_of("vivit").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert tokred.create_backbone(f"hf/{tmp_path}").preprocess() == prepared


@pytest.mark.parametrize("what", [what for what in PREPARED if "video" not in what.split()])
def test_a_grey_picture_gets_the_value_that_the_processor_gives(what, tmp_path):
    processor, prepared = PREPARED[what]
    size = (
        processor.size.get("shortest_edge", 224)
        if isinstance(processor.size, dict)
        else processor.size.shortest_edge or 224
    )
    picture = torch.full((3, size, size), 200, dtype=torch.uint8).numpy()
    theirs = processor([[picture]], return_tensors="pt")["pixel_values"].flatten(3)[0, 0, :, 0]
    ours = (200 / 255 - torch.tensor(prepared.mean)) / torch.tensor(prepared.std)
    assert torch.allclose(ours, theirs.float(), atol=1e-4)  # means are kept to six digits


def test_an_old_file_that_gives_the_size_as_a_number_is_read(tmp_path):
    model_of("videomae").save_pretrained(tmp_path)
    old = {"feature_extractor_type": "VideoMAEFeatureExtractor", "size": 224, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(old | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    prepared = Preprocess((0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, antialias=True)
    assert tokred.create_backbone(f"hf/{tmp_path}").preprocess() == prepared


def test_a_rule_that_cannot_be_said_is_refused_when_it_is_asked_for(tmp_path):
    model_of("videomae").save_pretrained(tmp_path)
    transformers.VideoMAEImageProcessor(size={"shortest_edge": 224}, do_center_crop=False).save_pretrained(tmp_path)
    backbone = tokred.create_backbone(f"hf/{tmp_path}")
    with pytest.raises(ValueError, match="pictures resized to .* and cut to None, .* are not supported"):
        backbone.preprocess()


@pytest.mark.parametrize(("name", "mean", "crop_pct"), [("videomae_base", 0.485, 1.0), ("vivit_base", 0.5, 0.875)])
def test_without_a_file_clips_are_prepared_as_the_kind_was_trained(name, mean, crop_pct):
    prepared = tokred.create_backbone(f"hf/{name}", **TINY).preprocess()
    assert (prepared.mean[0], prepared.crop_pct, prepared.interpolation) == (mean, crop_pct, "bilinear")


# Without transformers


def test_without_transformers_the_names_are_still_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "hf/videomae_base" in tokred.list_backbones("hf/*")


@pytest.mark.parametrize(
    "do", [lambda: tokred.create_backbone("hf/vivit_base"), lambda: BACKBONES["hf_video"].wrap(nn.Linear(1, 1))]
)
def test_without_transformers_what_to_install_is_said(do, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers: pip install tokred\[hf\]"):
        do()


def test_tokred_does_not_import_transformers():
    ask = "import sys, tokred; tokred.list_backbones(); tokred.create_backbone('mini_cls'); print('transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
