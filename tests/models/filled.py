"""Weights that follow from their names: the fill rule and the images of the recorded reference runs.

Integer tensors and attention masks are not filled; of the rules below the first match wins.
"""

import zlib

import numpy as np
import torch

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def filled(name, shape):
    """The tensor of this name, float32."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif name.endswith(("running_mean", "bias")):
        x = 0.1 * x
    elif len(shape) == 1 and name.endswith(".weight"):
        x = 1 + 0.1 * x
    elif name.endswith(("query_embed.weight", "cls_token", "relative_position_bias_table")):
        x = 0.5 * x
    elif name == "fc.W":
        x = x / np.sqrt(shape[-1])
    elif len(shape) >= 2 and name != "fc.b":
        x = x / np.sqrt(np.prod(shape[1:]))
    else:
        x = 0.1 * x
    return torch.from_numpy(np.asarray(x, np.float32))


def filled_state(keys, integers=(), code=None):
    """A state dict for names -> shapes; `code` is the position code, integer tensors and masks are left at zero."""
    state = {}
    for name, shape in keys.items():
        if name in integers or name.endswith("attn_mask"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif name == "backbone.1.pe":
            state[name] = code
        else:
            state[name] = filled(name, tuple(shape))
    return state


def picture(kind, size):
    """[1, 3, size, size] float64, normalised."""
    if kind == "random":
        pixels = np.random.RandomState(7).uniform(0, 1, (1, 3, size, size))
    else:
        u, v = np.meshgrid(*[np.arange(size) / (size - 1)] * 2, indexing="ij")
        waves = [(1, 2, 0), (2, -1, 1), (3, 1, 2)]
        pixels = np.stack([0.5 + 0.5 * np.sin(2 * np.pi * (a * u + b * v) + phase) for a, b, phase in waves])[None]
    return torch.from_numpy((pixels - MEAN[:, None, None]) / STD[:, None, None])
