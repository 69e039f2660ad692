"""UMT: the models that vid-TLDR was published on (Li et al., ICCV 2023, arXiv 2303.16058).

``umt_base`` and ``umt_large`` match videos with texts (task=retrieval) and answer questions (task=qa);
``umt_base_patch16_224`` and ``umt_large_patch16_224`` are their vision encoder, and with ``num_classes`` UMT's models of action
recognition. Official checkpoints are read as they are.
"""

from typing import Any

from torch import Tensor

from tokred import BACKBONES, Backbone, VideoTransformer
from tokred.hub import fetched
from tokred.tokenizer import WordPieces, from_hub
from tokred.video_text import MODELS
from tokred.weights import load_strictly, read_state

VISION = {
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
TEXT = {
    "base": {"text_dim": 768, "text_depth": 12, "text_heads": 12, "fusion_layer": 9},
    "large": {"text_dim": 1024, "text_depth": 24, "text_heads": 16, "fusion_layer": 19},
}
JOINT_DIM = {"base": 512, "large": 768}
VOCABULARY_SIZE = 30522
HUB_REPOSITORY = "OpenGVLab/UMT"
HUB_FILES = {"base": "b16_25m.pth", "large": "l16_25m.pth"}
POSITIONS_FROM = (8, 14, 14)  # the grid that the positions of action recognition are interpolated from


@BACKBONES.register("umt")
class UMT(VideoTransformer):
    """UMT's video encoder; with num_classes its action recognition (Li et al., ICCV 2023).

    Clips (B, T, 3, H, W) to the pooled feature (B, C), from the unweighted mean of the tokens, reduced or not, as in the official
    code; 12 frames by default. With ``num_classes`` no final norm, positions interpolated from 8 frames, 8 frames by default.
    """

    @classmethod
    def names(cls) -> list[str]:
        return [f"umt_{size}_patch16_224" for size in VISION]

    @classmethod
    def build(cls, name: str, *, weights: str | None = None, **sizes: Any) -> "UMT":
        size = name.split("_")[1]
        state, weights = _read(weights, size)
        if sizes.get("num_classes"):
            form = {"num_frames": 8, "final_norm": False, "positions_from": POSITIONS_FROM}
            model = cls.made(**form | VISION[size] | sizes)
            state = state and of_actions(state, model, weights)
        else:
            # UMT's encoders pre-trained on video alone have no norm after pooling
            headless = state is not None and not any(name.endswith("pool_norm.weight") for name in state)
            model = cls.made(**{"num_frames": 12, "pool_norm": not headless} | VISION[size] | sizes)
            state = state and vision_part(state)
        if state is not None:
            load_strictly(model, state, weights)
        return model


@BACKBONES.register("umt_text")
class UMTText(Backbone):
    """UMT's models of retrieval and question answering, on which vid-TLDR was published."""

    @classmethod
    def names(cls) -> list[str]:
        return [f"umt_{size}" for size in VISION]

    @classmethod
    def tasks(cls, name: str) -> tuple[str, ...]:
        return ("retrieval", "qa")

    @classmethod
    def build(
        cls,
        name: str,
        *,
        weights: str | None = None,
        task: str = "retrieval",
        vocabulary: str | None = None,
        **sizes: Any,
    ) -> Backbone:
        size = name.removeprefix("umt_")
        words = _words(vocabulary, asked="pretrained" in (weights, vocabulary))
        joint = {"joint_dim": JOINT_DIM[size]} if task == "retrieval" else {}
        given = {"num_frames": 12, "vocab_size": VOCABULARY_SIZE} | VISION[size] | TEXT[size] | joint | sizes
        model = MODELS[task].made(words, **given)
        state, weights = _read(weights, size)
        if state is not None:
            load_strictly(model, for_retrieval(state) if task == "retrieval" else for_answers(state, weights), weights)
        return model


def vision_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision encoder's tensors of a full UMT checkpoint, or all of one that holds only them."""
    prefix = "vision_encoder."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in state.items() if not name.startswith(("clip_decoder.", "clip_teacher."))}


def for_retrieval(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A fine-tuned checkpoint, or a pre-trained one for zero-shot retrieval, whose text encoder stands one level deeper."""
    plain = {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in _without_rest(state).items()}
    return {name: value for name, value in plain.items() if not name.startswith("text_encoder.cls.")}


def for_answers(state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """A checkpoint fine-tuned for question answering. The decoder's output matrix is that of its words, stored twice."""
    state = _without_rest(state)
    if any(name.startswith("text_encoder.bert.") for name in state):
        raise ValueError(
            f"{path} is pre-trained and has no decoder of answers yet; give a checkpoint fine-tuned for qa"
        )
    head, words = "text_decoder.cls.predictions", "text_decoder.bert.embeddings.word_embeddings.weight"
    for twin, own in ((f"{head}.decoder.weight", words), (f"{head}.decoder.bias", f"{head}.bias")):
        if twin in state and own in state and not state[twin].equal(state[own]):
            raise ValueError(f"{path}: {twin} must be {own} once more, and differs; it is no checkpoint of UMT's")
        state.pop(twin, None)
    return state


def of_actions(state: dict[str, Tensor], model: VideoTransformer, path: str) -> dict[str, Tensor]:
    """A checkpoint of action recognition, or one that tokred wrote, in tokred's names.

    A head of Kinetics-710 gives its first 400 rows to Kinetics-400, as officially.
    """
    state = {name.removeprefix("backbone.").removeprefix("encoder."): value for name, value in state.items()}
    names = {"fc_norm": "pool_norm", "head": "classifier", "pos_embed": "positions"}
    names |= {own: own for own in names.values()}
    found = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        new = f"{names.get(first, f'encoder.{first}')}{'.' + rest if rest else ''}"
        if new.startswith("classifier") and value.shape[:1] == (710,) and model.classifier.out_features == 400:
            value = value[:400]
        found[new] = value
    stored = found.pop("positions", None)
    if stored is not None:
        try:
            model.set_positions(stored)
        except ValueError as error:
            raise ValueError(f"{path} does not fit this model: {error}") from error
    return found


def _without_rest(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what only training needs, and buffers that old versions stored."""
    rest = ("clip_teacher.", "vision_encoder.clip_decoder.")
    buffers = ("embeddings.position_ids", "vision_encoder.encoder.pos_embed", "vision_encoder.encoder.img_pos_embed")
    return {name: value for name, value in state.items() if not name.startswith(rest) and not name.endswith(buffers)}


def _words(vocabulary: str | None, *, asked: bool) -> WordPieces:
    return from_hub(asked=asked) if vocabulary in (None, "pretrained") else WordPieces.read(vocabulary)


def _read(weights: str | None, size: str) -> tuple[dict[str, Tensor] | None, str]:
    """The tensors, None for random weights; and where they are from."""
    if weights in (None, "random"):
        return None, ""
    path = (
        fetched(HUB_REPOSITORY, HUB_FILES[size], instead="give weights=PATH")
        if weights == "pretrained"
        else str(weights)
    )
    return read_state(path), path
