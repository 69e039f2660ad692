"""The video encoders of Hugging Face transformers 5.

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602), mean pooled, and ViViT (Arnab et al., ICCV 2021, arXiv 2103.15691), with
a class token. The model is run from outside, layer by layer, in two halves; nothing in it is changed. transformers takes seconds
to import, so that this is done when a model is built or wrapped, not before.
"""

import abc
import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn

from tokred import BACKBONES, Backbone, Tokens, Widths
from tokred.foreign import evaluating, expect_close, linear_macs, other_version
from tokred.in_place import run_mlp
from tokred.preprocess import HALVES, Preprocess, as_preprocess
from tokred.registry import unknown
from tokred.weights import read_state

PREFIX = "hf/"
BASES = {"videomae_base": "VideoMAE", "vivit_base": "Vivit"}  # name -> how transformers' classes begin
EXAMPLE = "MCG-NJU/videomae-base-finetuned-kinetics"
SIZE_NAMES = {"num_classes": "num_labels", "img_size": "image_size"}  # tokred's word -> transformers'
REASONS = {
    "vjepa2": "its rotary positions would have to follow the tokens that stay, and a merged token has no single one",
    "timesformer": "its divided attention over space and time needs every token in its place",
}
REASON = "of transformers, the encoders of VideoMAE and ViViT can"
BEGINS = {begin.lower(): begin for begin in BASES.values()}  # model_type -> how its classes begin
CLASS_FIELDS = ("architectures", "id2label", "label2id", "num_labels")
MOST = dict.fromkeys(("num_hidden_layers", "num_frames", "num_channels", "tubelet_size"), 1024)
MOST |= dict.fromkeys(("hidden_size", "intermediate_size", "image_size", "patch_size", "num_labels"), 2**17)
MOST_PARAMETERS = 2**31  # 8 GiB in float32; the largest VideoMAE has half as many
MOST_BYTES = 2**20  # of a config
DECODER = ("decoder.", "encoder_to_decoder.", "mask_token")  # of the pre-training; an encoder has no use for them
WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")  # the first there is
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


@BACKBONES.register("hf_video")
class HFVideo(Backbone):
    """VideoMAE and ViViT of Hugging Face transformers; also hf/HUB_ID and hf/FOLDER, with the weights that lie there.

    Around a transformers model, whose parameters it shares: clips (B, T, 3, H, W) to its logits, or the pooled feature of an
    encoder without a classifier, as a tensor. ``hf/videomae_base`` and ``hf/vivit_base`` have random weights;
    ``weights=FOLDER`` stands for a copy fetched elsewhere. Sizes are the fields of the model's config.
    """

    prefixes = (PREFIX,)
    preprocessing: ClassVar[Preprocess]  # where the weights come without an image processor
    layers_at: ClassVar[str]
    scaled_at: ClassVar[str]  # the module of a layer that knows the scale
    model: Any  # a PreTrainedModel, which cannot be named before transformers is imported

    def __init__(self, model: nn.Module):
        super().__init__()
        _refuse_what_cannot_be_cut(model)
        self.model, config = model, model.config
        try:
            patches = self.encoder.embeddings.patch_embeddings
            self.sample_shape = (config.num_frames, config.num_channels, *patches.image_size)
            frames, _, height, width = self.sample_shape
            t, h, w = patches.projection.kernel_size
            self.grid = (frames // t, height // h, width // w)
            self.num_tokens = prod(self.grid) + self.prefix
            self.depth = len(self.layers)
            self.gives_classes = isinstance(getattr(model, "classifier", None), nn.Linear)
            self.processor = _processor(model.name_or_path)
            _prove_halves(self)
        except (AttributeError, IndexError) as error:
            raise ValueError(_other_version(f"{type(model).__name__} is not built as known here: {error}")) from error

    @classmethod
    def names(cls) -> list[str]:
        return [PREFIX + name for name in BASES]

    @classmethod
    def build(cls, name: str, *, weights: str | None = None, **sizes: Any) -> "HFVideo":
        library, name = _transformers(), name.removeprefix(PREFIX)
        sizes = {SIZE_NAMES.get(size, size): value for size, value in sizes.items()}
        folder = None if name in BASES and weights in (None, "random") else _folder(name, weights)
        config = _config(library, name, folder, sizes)
        kind = getattr(library, _class_name(name, config, classifies="num_labels" in sizes))
        if folder is not None and weights != "random":
            return cls.wrap(_load(library, kind, config, folder))
        try:
            model = kind(config)
        except (TypeError, ValueError, KeyError, RuntimeError, ZeroDivisionError) as error:
            raise ValueError(f"{name} does not take {sizes}: {_one_line(error)}") from error
        return cls.wrap(model)

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        return any(base.__module__.startswith("transformers.") for base in type(model).__mro__)

    @classmethod
    def wrap(cls, model: nn.Module) -> "HFVideo":
        library = _transformers()
        if isinstance(model, library.VideoMAEModel | library.VideoMAEForVideoClassification):
            return VideoMAE(model)
        if isinstance(model, library.VivitModel | library.VivitForVideoClassification):
            return ViViT(model)
        raise ValueError(f"{type(model).__name__} cannot be reduced: {_why_not(getattr(model, 'config', None))}")

    @abc.abstractmethod
    def _maps(self, layer: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """The linear maps of the layer's attention to queries, keys, values and output."""

    @property
    def encoder(self) -> Any:
        """The model without its classifier."""
        return self.model.base_model

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.get_submodule(self.layers_at)

    def embed(self, inputs: Tensor) -> Tokens:
        if tuple(inputs.shape[1:]) != self.sample_shape:
            raise ValueError(f"clips must be (B, {', '.join(map(str, self.sample_shape))}); got {tuple(inputs.shape)}")
        x_BNC = self.encoder.embeddings(inputs, None)  # no patch masked (VideoMAE), no position interpolated (ViViT)
        return Tokens(x_BNC, prefix=self.prefix, grid=self.grid)

    def qkv(self, layer: int, tokens: Tokens, part: str = "qkv") -> tuple[Tensor, ...]:
        query, key, value, _ = self._maps(layer)
        maps = {"qkv": (query, key, value), "qk": (query, key), "v": (value,)}[part]
        x_BNC = self.layers[layer].layernorm_before(tokens.x_BNC)
        heads = (self.model.config.num_attention_heads, -1)
        return tuple(linear(x_BNC).unflatten(-1, heads).transpose(1, 2) for linear in maps)

    def scale(self, layer: int) -> float:
        attn: Any = self.layers[layer].get_submodule(self.scaled_at)
        return attn.scaling

    def normed(self, tokens: Tokens) -> Tokens:
        norm = self.encoder.layernorm
        return tokens if norm is None else tokens.with_x(norm(tokens.x_BNC))

    def preprocess(self) -> Preprocess:
        """As the file of the image processor beside the weights says, else as models of this kind were trained."""
        return self.preprocessing if self.processor is None else as_preprocess(self.processor)

    def widths(self) -> Widths:
        layers, config = self.layers, self.model.config
        head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        query, key, value, output = zip(
            *([linear_macs(m) for m in self._maps(i)] for i in range(self.depth)), strict=True
        )
        channels = (config.num_attention_heads * head_dim,) * self.depth
        once = getattr(self.model, "classifier", None) or getattr(self.encoder, "pooler", None)
        return Widths(
            embed=prod(self.grid) * self.encoder.embeddings.patch_embeddings.projection.weight.numel(),
            query_key=tuple(map(sum, zip(query, key, strict=True))),
            value=value,
            output=output,
            logits=channels,
            mixing=channels,
            mlp=tuple(linear_macs(layer) - linear_macs(layer.attention) for layer in layers),
            head=linear_macs(once),
            channels=config.hidden_size,
            heads=config.num_attention_heads,
        )


class VideoMAE(HFVideo):
    """Its keys have no bias. The output is read off the unweighted mean of the tokens, as transformers does."""

    prefix, has_cls, layers_at, scaled_at = 0, False, "encoder.layer", "attention.attention"
    preprocessing = Preprocess(interpolation="bilinear", crop_pct=1.0, antialias=True)

    def _maps(self, layer: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        attn: Any = self.layers[layer].get_submodule("attention.attention")
        return attn.query, attn.key, attn.value, self.layers[layer].get_submodule("attention.output.dense")

    def project(self, layer: int, tokens: Tokens, out_BHND: Tensor) -> Tokens:
        output, x_BNC = self.layers[layer].attention.output, tokens.x_BNC
        return tokens.with_x(x_BNC + output(out_BHND.transpose(1, 2).flatten(2), x_BNC))

    def feedforward(self, layer: int, tokens: Tokens) -> Tokens:
        block, x_BNC = self.layers[layer], tokens.x_BNC
        return tokens.with_x(block.output(run_mlp(block.intermediate, block.layernorm_after(x_BNC)), x_BNC))

    def head(self, tokens: Tokens) -> Tensor:
        pooled_BC = self.normed(tokens).mean_pool()
        return pooled_BC if self.encoder is self.model else self.model.classifier(self.model.fc_norm(pooled_BC))


class ViViT(HFVideo):
    """The output is read off the class token."""

    prefix, has_cls, layers_at, scaled_at = 1, True, "layers", "attention"
    preprocessing = Preprocess(HALVES, HALVES, "bilinear", crop_pct=224 / 256, antialias=True)

    def _maps(self, layer: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        attn: Any = self.layers[layer].attention
        return attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj

    def project(self, layer: int, tokens: Tokens, out_BHND: Tensor) -> Tokens:
        block = self.layers[layer]
        y_BNC = block.attention.o_proj(out_BHND.transpose(1, 2).flatten(2))
        return tokens.with_x(tokens.x_BNC + block.dropout(y_BNC))

    def feedforward(self, layer: int, tokens: Tokens) -> Tokens:
        block, x_BNC = self.layers[layer], tokens.x_BNC
        return tokens.with_x(x_BNC + block.dropout(run_mlp(block.mlp, block.layernorm_after(x_BNC))))

    def head(self, tokens: Tokens) -> Tensor:
        x_BNC = self.normed(tokens).x_BNC
        if self.encoder is not self.model:
            return self.model.classifier(x_BNC[:, 0])
        return x_BNC[:, 0] if self.encoder.pooler is None else self.encoder.pooler(x_BNC)


# What is refused


def _refuse_what_cannot_be_cut(model: nn.Module) -> None:
    name, config = type(model).__name__, model.config
    if config.attention_probs_dropout_prob > 0:
        raise ValueError(
            f"{name} cannot be reduced with dropout on attention weights "
            f"(attention_probs_dropout_prob={config.attention_probs_dropout_prob})"
        )
    if any(part.rpartition(".")[2] in ("q_bias", "v_bias") for part, _ in model.named_parameters()):  # before 5.8
        raise ValueError(_other_version(f"{name} has biases beside the linear maps of its attention"))
    if not getattr(config, "use_mean_pooling", True) and hasattr(model, "classifier"):
        raise ValueError(
            f"{name} cannot be reduced with use_mean_pooling=False: it classifies the first patch, which may be taken out"
        )


def _why_not(config: Any) -> str:
    return REASONS.get(getattr(config, "model_type", ""), REASON)


def _prove_halves(backbone: HFVideo) -> None:
    """Every layer in two halves must equal the layer itself, and the whole model, with but one of its layers, what transformers
    gives. Raises ValueError where not (a release that changed a layer, a class that changes the forward pass)."""
    model, what, parameter = backbone.model, f"a {type(backbone.model).__name__}", next(backbone.model.parameters())
    if parameter.device.type == "meta":
        return
    generator = torch.Generator().manual_seed(0)
    x_BNC = torch.randn(1, 5, model.config.hidden_size, generator=generator).to(parameter)
    clip = torch.randn(1, *backbone.sample_shape, generator=generator).to(parameter)
    with torch.no_grad(), evaluating(model):
        for index, layer in enumerate(backbone.layers):
            halves = _run(backbone, index, Tokens(x_BNC)).x_BNC
            expect_close(halves, layer(x_BNC), f"layer {index} of {what}", library=_library(), before=x_BNC)
        tokens, theirs = _run(backbone, 0, backbone.embed(clip)), _of_one_layer(backbone)(clip, return_dict=True)
        if "last_hidden_state" in theirs:
            expect_close(backbone.normed(tokens).x_BNC, theirs["last_hidden_state"], what, library=_library())
        for output in {"logits", "pooler_output"} & set(theirs):
            expect_close(backbone.head(tokens), theirs[output], what, library=_library())


def _run(backbone: HFVideo, layer: int, tokens: Tokens) -> Tokens:
    return backbone.feedforward(layer, backbone.attend(layer, tokens)[0])


def _of_one_layer(backbone: HFVideo) -> nn.Module:
    """A copy of the model around the same tensors, without its other layers: base models take seconds a clip on a CPU."""
    model, layers = backbone.model, backbone.layers
    shared: dict[int, Any] = {id(part): part for part in (*model.parameters(), *model.buffers(), layers[0])}
    return copy.deepcopy(model, shared | {id(layers): layers[:1]})


def _other_version(what: str) -> str:
    return other_version(what, _library())


def _library() -> str:
    return f"transformers {_transformers().__version__}"


# By name


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("a backbone of Hugging Face needs transformers: pip install tokred[hf]") from error
    return transformers


def _folder(name: str, weights: str | None) -> Path:
    """Where config and weights lie."""
    if weights not in (None, "pretrained", "random"):
        folder = Path(weights).expanduser()
        if not folder.is_dir():
            raise ValueError(
                f"no folder at {folder}; the weights of {PREFIX}{name} are a folder as save_pretrained makes it"
            )
        return folder.resolve()
    if name in BASES:
        raise ValueError(
            f"{PREFIX}{name} has no pretrained weights; name a model of the hub, as {PREFIX}{EXAMPLE}, or give weights=FOLDER"
        )
    folder = Path(name).expanduser()
    return folder.resolve() if folder.is_dir() else _from_hub(name, asked=weights != "random")


def _from_hub(name: str, *, asked: bool) -> Path:
    """Random weights are none that anybody asked the hub for: a copy on this machine has their sizes, or there are none."""
    patterns = ["*.json"] + ["model*.safetensors"] * asked
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not asked))
        if asked and not _weight_files(folder):
            snapshot_download(name, allow_patterns=["pytorch_model*.bin"])
        return folder
    except Exception as error:  # the hub client raises many kinds, of its own and of the libraries below it
        raise ValueError(
            f"{name!r} is no folder here, and could not be had from the hub ({type(error).__name__}); without a network, give "
            f"weights=FOLDER of a copy fetched elsewhere, or {PREFIX}videomae_base or {PREFIX}vivit_base with weights=random"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def _config(library: Any, name: str, folder: Path | None, sizes: dict[str, Any]) -> Any:
    """The default one where there is no folder, else that of the folder; with other sizes.

    Of the folder's only what says how large the model is, and its classes: others have transformers fetch and run code of the hub
    (``auto_map``, the name of an attention kernel) or load what is packed in its own way.
    """
    given = {"model_type": BASES[name].lower()} if folder is None else _read_object(folder / "config.json")
    kind = _config_kind(library, given)
    known = [*kind.__annotations__, "num_labels", *SIZE_NAMES]
    if strange := [size for size in sizes if size not in known]:
        raise ValueError(unknown("sizes", strange[0], known))
    own = {field: value for field, value in given.items() if field in (*kind.__annotations__, *CLASS_FIELDS)}
    if "num_labels" in sizes:  # they would contradict it
        own = {field: value for field, value in own.items() if field not in ("id2label", "label2id")}
    try:
        config = kind(**own | sizes)
    except Exception as error:  # transformers raises many kinds, and one of its own for a value of the wrong type
        what = f"does not take {sizes}" if sizes else "has no config.json that transformers can read"
        raise ValueError(f"{folder or name} {what}: {_one_line(error)}") from error
    _check_sizes(config, folder or name)
    return config


def _config_kind(library: Any, given: dict[str, Any]) -> Any:
    kind = str(given.get("model_type"))
    begin = BEGINS.get(kind)
    if begin is None:
        raise ValueError(f"a {kind[:50]} cannot be reduced: {REASONS.get(kind, REASON)}")
    return getattr(library, f"{begin}Config")


def _check_sizes(config: Any, where: object) -> None:
    """Raises ValueError where the model would be larger than any that there is."""
    for size, most in MOST.items():
        for value in _as_tuple(getattr(config, size, None)):
            if not isinstance(value, int) or not 0 <= value <= most:
                raise ValueError(f"{size} of {where} must be a whole number up to {most}, not {str(value)[:50]}")
    (height, width), patch = (*_as_tuple(config.image_size), config.image_size)[:2], _as_tuple(config.tubelet_size)
    t, h, w = patch if len(patch) == 3 else (*patch, *(_as_tuple(config.patch_size) * 2)[:2])
    num_tokens = (config.num_frames * height * width) // max(1, t * h * w)
    of_layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    per_channel = num_tokens + t * h * w * config.num_channels + config.num_labels
    num_parameters = config.num_hidden_layers * of_layer + config.hidden_size * per_channel
    if num_parameters > MOST_PARAMETERS:
        raise ValueError(f"the sizes of {where} make {num_parameters} parameters, and {MOST_PARAMETERS} are the most")


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)


def _class_name(name: str, config: Any, *, classifies: bool) -> str:
    """Of transformers: with a classifier where the config names such a class, or classes are asked for."""
    begin = BEGINS[config.model_type]
    if begin != BASES.get(name, begin):
        raise ValueError(f"the weights are those of a {config.model_type}, not of {PREFIX}{name}")
    classifies = classifies or any(kind.endswith("ForVideoClassification") for kind in config.architectures or ())
    return begin + ("ForVideoClassification" if classifies else "Model")


def _load(library: Any, kind: Any, config: Any, folder: Path) -> nn.Module:
    """All or nothing. Files are read as data by ``read_state``; transformers knows the names of its older versions."""
    state: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        state |= read_state(file)
    if not state:
        raise ValueError(f"{folder} holds no weights, of the files {', '.join(WEIGHTS)}")
    how = {"dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with _quiet(library):
        try:
            model, found = kind.from_pretrained(None, config=config, state_dict=state, **how)
        except Exception as error:  # of many kinds
            raise ValueError(f"the weights in {folder} do not fit: {_one_line(error)}") from error
    unexpected = {name for name in found["unexpected_keys"] if not name.startswith(DECODER)}
    shapes = {f"{name} is {list(has)}, not {list(own)}" for name, has, own in found["mismatched_keys"]}
    wrong = {"missing": found["missing_keys"], "unexpected": unexpected, "of another shape": shapes}
    what = "; ".join(f"{len(names)} {kind} ({min(names)})" for kind, names in wrong.items() if names)
    if what:
        raise ValueError(f"{folder} does not fit a {type(model).__name__} of these sizes: {what}")
    model.name_or_path = str(folder)
    return model


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without transformers' own report of what does not fit, which is an error here, and its progress bars."""
    logging = library.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error(), logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# The image processor's file


def _processor(source: str) -> dict[str, Any] | None:
    """What lies beside the weights that a model came from, a folder or a hub id; None where there is none on this machine."""
    for name in PROCESSOR_FILES if source else ():
        try:
            path = Path(source, name) if Path(source).is_dir() else try_to_load_from_cache(source, name)
        except HFValidationError:  # a folder that is gone
            return None
        if isinstance(path, str | Path) and Path(path).is_file():
            return _read_object(Path(path))
    return None


def _read_object(path: Path) -> dict[str, Any]:
    """JSON as data. Raises ValueError where it is no object, or larger than any that transformers writes."""
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.parent} has no {path.name} that can be read: {_one_line(error)}") from error
    return content
