"""Reading checkpoints of other programs: tensors by name, without running what a pickle may hold."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plures.errors import PluresError

# What published checkpoints hold beside tensors: scores kept as numpy numbers, the command line that trained them.
NUMPY_SCALAR = np.float64(0).__reduce__()[0]  # how numpy pickles a number; its module has moved between versions
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The model's tensors by name, without `module.` in front.

    A checkpoint may be a plain state dict or hold it under `state_dict`, `state_dict_ema`, `model_ema` or `model`.
    Raises PluresError if the file is missing, truncated, holds code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise PluresError(f"there is no checkpoint file {path}")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)
    for key in ("state_dict", "state_dict_ema", "model_ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise PluresError(f"{path} holds no tensors by name; expected a checkpoint with a state dict")
    return {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise PluresError(f"{path} is not a valid safetensors file ({error})") from None


def _pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise PluresError(f"{path} is not a PyTorch checkpoint of tensors alone, or a damaged one") from None
        raise PluresError(
            f"{path} holds code or objects besides tensors ({named[1]}), which plures never loads; save its state dict"
            " alone with the program that made it"
        ) from None
    except Exception:  # torch raises many kinds on a damaged file
        raise PluresError(f"{path} is not a PyTorch checkpoint, or a truncated one; fetch it again") from None


def to_safetensors(checkpoint: str | Path, out: str | Path) -> None:
    """Turn weights of torchvision, timm or the like into a file for `backbone.weights`."""
    save_file({name: tensor.contiguous() for name, tensor in read_state(checkpoint).items()}, out)
