"""Video-text models: to methods they are their video encoder; sizes, MACs of the fusion, and what is refused."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tokred import create_backbone
from tokred.data.moving_shapes import clip_tensor, make_clip
from tokred.data.texts import clean
from tokred.tokenizer import SPECIAL, WordPieces
from tokred.video_text import MODELS, AnsweringModel, RetrievalModel

WORDS = WordPieces([*SPECIAL, "a", "red", "square"])
VISION = {"img_size": 16, "num_frames": 2, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 3}
SIZES = VISION | {"text_dim": 32, "text_heads": 4, "text_depth": 4, "fusion_layer": 2, "max_positions": 16}


def made(task, **sizes):
    torch.manual_seed(0)
    return MODELS[task].made(WORDS, **SIZES | sizes).eval()


def clips(number=2):
    return torch.randn(number, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("task", list(MODELS))
def test_tokens_are_those_of_the_video_encoder(task):
    model = made(task)
    for name in ("depth", "sample_shape", "num_tokens", "prefix", "has_cls"):
        assert getattr(model, name) == getattr(model.vision_encoder, name)
    with torch.no_grad():
        assert torch.equal(model.forward_features(clips()), model.vision_encoder.forward_features(clips()))


@torch.no_grad()
def test_a_retrieval_model_gives_places_of_length_one():
    model = made("retrieval", joint_dim=5)
    place = model(clips())
    pooled = model.vision_encoder.pool_norm(model.forward_features(clips()).mean(1))
    expected = pooled @ model.vision_proj.weight.mT + model.vision_proj.bias
    torch.testing.assert_close(place, expected / expected.norm(dim=1, keepdim=True))


@torch.no_grad()
def test_an_answering_model_gives_tokens():
    model = made("qa")
    assert torch.equal(model(clips()), model.forward_features(clips())) and model(clips()).shape == (2, 8, 24)


@torch.no_grad()
@pytest.mark.parametrize("task", list(MODELS))
def test_a_method_reduces_the_tokens_that_texts_look_at(task):
    model = made(task)
    reduced = tokred.reduce(model, "tome", r=[2, 1])
    assert reduced.run(clips()).x_BNC.shape == (2, 5, 24)
    assert reduced(clips()).shape[:1] == (2,) and not torch.equal(reduced(clips())[:, :1], model(clips())[:, :1])


@pytest.mark.parametrize("task", list(MODELS))
def test_macs_are_those_of_the_video_encoder_and_the_projection(task):
    model = made(task)
    alone = tokred.reduce(model.vision_encoder, "tome", r=2).cost().macs
    projection = model.vision_proj.weight.numel() if task == "retrieval" else 0
    assert tokred.reduce(model, "tome", r=2).cost().macs - alone == projection


@pytest.mark.parametrize(("num_tokens", "length"), [(8, 5), (3, 7)])
def test_macs_of_the_fusion_are_those_that_torch_counts(num_tokens, length):
    model = made("retrieval")
    x_GNC, mask_PL = torch.randn(1, num_tokens, 24), torch.ones(4, length, dtype=torch.bool)
    states_PLC = torch.randn(4, length, 32)
    of_video, of_pair = model.fusion_macs(num_tokens, length)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        contexts = model.text_encoder.contexts(x_GNC)
    assert counter.get_total_flops() == 2 * of_video
    # torch 2.11 counts nothing of fused attention on a CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.text_encoder.fuse(states_PLC, mask_PL, contexts, places=1)
    assert counter.get_total_flops() == 2 * 4 * of_pair


def test_a_base_models_pair_costs_what_the_formula_says():
    """UMT's code takes 14 L D^2 + 2 L^2 D + 2 N D^2 + 2 L N D a layer, 9.5 GMACs with 32 word pieces and 2352 tokens; of the last
    of three layers only the first place is wanted."""
    from tokred.backbones.umt import TEXT, VISION

    with torch.device("meta"):
        model = MODELS["retrieval"].made(None, num_frames=12, vocab_size=30522, **VISION["base"] | TEXT["base"])
    L, N, D = 32, 2352, 768
    official = 3 * (14 * L * D**2 + 2 * L**2 * D + 2 * N * D**2 + 2 * L * N * D)
    assert official / 1e9 == pytest.approx(9.5, abs=0.05)
    spared = (L - 1) * (2 * D**2 + 2 * L * D + 2 * D**2 + 2 * N * D + 8 * D**2)
    assert sum(model.fusion_macs(N, L)) == official - spared


# Sizes and vocabularies


def test_an_unknown_size_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no 'text_deth' in sizes. Did you mean 'text_depth'"):
        made("qa", text_deth=3)


def test_only_a_retrieval_model_has_a_joint_space():
    with pytest.raises(ValueError, match="no 'joint_dim' in sizes"):
        made("qa", joint_dim=3)


def test_a_vocabulary_larger_than_the_models_is_refused():
    with pytest.raises(ValueError, match="the model knows 7 words, the vocabulary has 8; give its own"):
        made("retrieval", vocab_size=7)


def test_without_a_vocabulary_texts_cannot_be_cut():
    model = MODELS["qa"].made(None, **SIZES, vocab_size=8)
    with pytest.raises(ValueError, match=r"give vocabulary=PATH of its vocab\.txt"):
        model.cut(["a red square"], 5)


@pytest.mark.parametrize("sizes", [{"fusion_layer": 0}, {"fusion_layer": 4}, {"text_heads": 5}])
def test_text_sizes_that_do_not_go_together_are_refused(sizes):
    with pytest.raises(ValueError, match="fusion_layer must lie between|text_dim must be a multiple of text_heads"):
        made("qa", **sizes)


# The embedded twins


@pytest.mark.parametrize(("task", "kind"), [("retrieval", RetrievalModel), ("qa", AnsweringModel)])
def test_the_embedded_twin_sees_pixels_as_it_was_trained(task, kind):
    from tokred.data import MovingShapes

    model = create_backbone("mini_umt", task=task)
    assert isinstance(model, kind)
    read = MovingShapes(1).read(0, model.sample_shape, model.preprocess())
    torch.testing.assert_close(read, clip_tensor(make_clip("test", 0)))


@torch.no_grad()
def test_the_embedded_twin_tells_a_clip_from_its_opposite():
    """A caption against the same with the other direction, on 40 clips: chance is 20."""
    from tokred.data import MovingShapes

    model, data = create_backbone("mini_umt", task="retrieval"), MovingShapes(40)
    opposite, right = {"left": "right", "right": "left", "up": "down", "down": "up"}, 0
    for index, text in enumerate(data.captions().texts):
        (way,) = [word for word in text.split() if word in opposite]
        ids_PL, mask_PL = model.cut([text, text.replace(way, opposite[way])], 48)
        clip = data.read(index, model.sample_shape, model.preprocess())[None]
        contexts = model.text_encoder.contexts(model.forward_features(clip))
        own, other = model.match(model.text_encoder.read(ids_PL, mask_PL), mask_PL, contexts).tolist()
        right += own > other
    assert right >= 34


def test_the_vocabulary_holds_every_word_of_the_data_set():
    from tokred.data import MovingShapes

    model, data = create_backbone("mini_umt", task="qa", weights="random"), MovingShapes(300)
    texts = [*data.captions().texts, *data.questions().texts, *map(clean, data.questions().answers)]
    ids_PL, _ = model.cut(texts, 48)
    unknown = model.cut(["zebra"], 3)[0][0, 1]
    assert not (ids_PL == unknown).any()
