"""Weights and inputs that are the same wherever they are made: what the golden values were computed with.

A parameter's values depend on the seed and on its own name and shape, on nothing else: not on torch's random state, its
version, the device, or the order in which a model builds its layers. Two implementations whose parameters have the same
names and shapes therefore get the same weights. Names are those of the timm model for tome and evit
(`blocks.0.attn.qkv.weight`, `fc_norm.weight`) and those of UMT's official encoder for vid_tldr
(`encoder.blocks.0.attn.qkv.weight`, `pool_norm.weight`). Whoever names them differently renames first, then fills.
"""

import math
import zlib

import numpy as np
import torch


@torch.no_grad()
def fill_(model, seed):
    """Overwrite every parameter of `model`, in place; returns `model`. Buffers stay.

    Raises ValueError for a parameter whose kind the name does not tell.
    """
    for name, parameter in model.named_parameters():
        mean, std = _moments(name, parameter.shape)
        values = np.asarray(mean + std * _normal(parameter.shape, f"{seed}/{name}"))  # of a scalar, too
        parameter.copy_(torch.from_numpy(values))
    return model


def inputs(shape, seed):
    """A float32 tensor of standard normal values: the images or clips of a golden case."""
    return torch.from_numpy(_normal(shape, f"{seed}/inputs")).float()


def _normal(shape, key):
    # RandomState's stream is frozen by numpy's compatibility policy; default_rng's is not.
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))


def _moments(name, shape):
    """Mean and standard deviation of the parameter called `name`."""
    leaf = name.rpartition(".")[2]
    if leaf.endswith("bias"):
        return 0.0, 0.05
    if leaf.startswith("gamma"):  # LayerScale
        return 0.5, 0.1
    if leaf.endswith(("_token", "_embed")):
        return 0.0, 0.5
    if leaf == "temp":  # the temperature of a contrastive loss, a scalar
        return 0.07, 0.0
    if leaf == "weight" and len(shape) == 1:  # a norm layer
        return 1.0, 0.1
    if leaf == "weight":
        # Makes attention logits spread by about 2.25 = 1.5 ** 2: far from uniform, far from one-hot.
        return 0.0, 1.5 / math.sqrt(math.prod(shape[1:]))
    raise ValueError(f"no rule for the parameter {name} of shape {tuple(shape)}; give it one in _moments")
