"""UMT's vision encoder: joint space-time attention, sinusoid positions, no class token (Li et al., ICCV 2023, arXiv 2303.16058).

The model that vid-TLDR was published on. State-dict keys are those of the official encoder (``encoder.*``, ``pool_norm.*``).
"""

from typing import Any

from tokred import BACKBONES, VideoTransformer
from tokred.weights import load_strictly, read_state

SIZES = {
    "umt_base_patch16_224": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "umt_large_patch16_224": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
HUB_REPOSITORY = "OpenGVLab/UMT"
HUB_FILES = {"umt_base_patch16_224": "b16_25m.pth", "umt_large_patch16_224": "l16_25m.pth"}


@BACKBONES.register("umt")
class UMT(VideoTransformer):
    """Clips (B, T, 3, H, W) to the pooled feature (B, C), or to logits with ``num_classes``; 12 frames by default.

    Pools the unweighted mean of the tokens, reduced or not, as the official code does.
    """

    @classmethod
    def names(cls) -> list[str]:
        return list(SIZES)

    @classmethod
    def build(cls, name: str, *, weights: str | None = None, **sizes: Any) -> "UMT":
        model = cls.made(**{"num_frames": 12} | SIZES[name] | sizes)
        if weights == "pretrained":
            weights = _from_hub(name)
        if weights not in (None, "random"):
            load_strictly(model, vision_part(read_state(weights)), weights)
        return model


def vision_part(state: dict[str, Any]) -> dict[str, Any]:
    """The vision encoder's tensors of a full UMT checkpoint, or all of one that holds only them; the decoders of its
    pre-training (``clip_decoder``) are left out."""
    prefix = "vision_encoder."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in state.items() if not name.startswith("clip_decoder.")}


def _from_hub(name: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(HUB_REPOSITORY, HUB_FILES[name])
    except Exception as error:  # the hub client raises many kinds, of its own and of the libraries below it
        raise ValueError(
            f"{HUB_FILES[name]} could not be fetched from {HUB_REPOSITORY} ({type(error).__name__}); fetch it by hand and "
            "give weights=PATH"
        ) from error
