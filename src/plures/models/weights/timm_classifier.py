"""Classifiers that timm or torchvision trained, as plures models: the backbone's feature map and a linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.models.model import Model, Parts
from plures.models.weights.checkpoint_file import read_state
from plures.models.weights.released import build, class_names, fill, keep_known, read_config

TOLERANCE = 1e-3  # of logits, between timm's own pooling and classifier and the linear head's


def import_timm(
    checkpoint: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    reinitialise: bool = False,
) -> Model:
    """Weights of a timm model, or of torchvision where the names agree (ResNet), with or without its classifier.

    config: JSON with `architecture` (timm's name; timm's published config.json has it) and, if they differ from
    timm's defaults, `image_size`, `mean`, `std` and `model_args` (passed on to timm.create_model).
    classes, reinitialise: as in `import_q2l`; a checkpoint without classifier requires both.
    Raises PluresError if the tensors do not fit, or if the model pools in a way that the linear head does not.
    """
    state, options = read_state(checkpoint), read_config(config)
    name = options.get("architecture")
    if not name or not timm.is_model(name):
        raise PluresError(
            f"{checkpoint}: a timm checkpoint does not say which model it is; give --config with a JSON file such as"
            f' {{"architecture": "resnet50"}}' + (f", where '{name}' is not a model of timm" if name else "")
        )
    backbone: dict[str, Any] = {"model": name}
    backbone |= {key: options[key] for key in ("image_size", "mean", "std") if key in options}
    if options.get("model_args"):
        backbone["model_options"] = dict(options["model_args"])
    place = timm.get_pretrained_cfg(name).classifier  # type: ignore[union-attr]
    weight, bias = state.pop(f"{place}.weight", None), state.pop(f"{place}.bias", None)
    if weight is None or bias is None:
        if not (classes and reinitialise):
            raise PluresError(f"{checkpoint} has no classifier '{place}'; name classes, and use reinitialise")
        wanted, known = tuple(classes), tuple[str, ...]()
        model = build(Parts("timm", "linear", backbone), wanted)
        fresh = model.state_dict()
        weight, bias = fresh["head.classifier.weight"], fresh["head.classifier.bias"]
    else:
        known, wanted = class_names(len(weight), classes, reinitialise, str(checkpoint))
        model = build(Parts("timm", "linear", backbone), wanted)
    mapped = {f"backbone.backbone.{key}": tensor for key, tensor in state.items()}
    mapped |= {"head.classifier.weight": weight.flatten(1), "head.classifier.bias": bias}  # [K, D, 1, 1] -> [K, D]
    if reinitialise and known:
        keep_known(model, mapped, known)
    fill(model, mapped, str(checkpoint))
    _check_pooling(model, name, backbone, state, weight.flatten(1), known)
    return model


@torch.inference_mode()
def _check_pooling(
    model: Model, name: str, backbone: dict[str, Any], state: dict[str, Tensor], weight: Tensor, known: tuple[str, ...]
) -> None:
    """Raise PluresError unless the mean of the feature map is what timm's classifier sees (moot for a new head)."""
    if not known:
        return
    net = timm.create_model(name, num_classes=0, **backbone.get("model_options", {}))
    net.load_state_dict(state, strict=False)
    size = model.preprocessing.image_size
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    theirs = net.eval()(pixels) @ weight.T
    mine = model.backbone(pixels).features.mean(1) @ weight.T
    if (theirs - mine).abs().max() > TOLERANCE * theirs.abs().max().clamp(min=1):
        raise PluresError(
            f"timm's '{name}' does not classify the mean of its feature map, so its classifier does not fit the linear"
            " head; import the backbone alone: backbone.weights=FILE.safetensors in `plures train`"
        )
