"""The feature map of any timm backbone as Tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.helpers import to_2tuple
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.utils.model import freeze
from torch import Tensor, nn

from plures.errors import PluresError, did_you_mean
from plures.models.backbones import backbones
from plures.models.outputs import Tokens, grid_boxes
from plures.models.weights.hub_access import ask_hub


@backbones.register("timm", title="Feature map of a timm backbone")
class TimmMap(nn.Module):
    """Images [B, 3, H, W] -> the backbone's last feature map, one token [D] for each cell of its grid.

    model: a name of timm.list_models(). pretrained: with the weights that timm downloads for it. weights: with those of
    a local safetensors file instead, which must fit exactly (a classifier in it is left out). image_size: the side in
    pixels; None for the backbone's own. model_options: passed on to timm.create_model. mean, std: of the channels for
    images in [0, 1]; None for the backbone's own. frozen: names of parts of the backbone that are not trained
    (`("conv1", "bn1", "layer1")` for a ResNet's stem and first stage); their batch norms keep their statistics.
    class_token: every token carries the class token behind its own features (D is then twice as wide), so that the mean
    over the grid is what DINOv2 judges linear classifiers on, and region logits still add up to the image's.
    frozen_norm: all batch norms keep their weights and statistics, as detectors and Query2Label train a ResNet.

    `folded_norm` says that the weights' batch norms were folded into their convolutions (a converted or quantised
    model): without statistics of their own, they would spoil the features as soon as they normalise a training batch.
    """

    def __init__(
        self,
        model: str = "mobilenetv2_100",
        pretrained: bool = False,
        weights: str | None = None,
        image_size: int | None = None,
        model_options: dict[str, Any] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        frozen: Sequence[str] = (),
        frozen_norm: bool = False,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = create(model, pretrained and not weights, image_size, dict(model_options or {}))
        cfg = self.backbone.pretrained_cfg
        if weights:
            load_weights(self.backbone, model, Path(weights))
        self.folded_norm = bool(pretrained or weights) and not frozen_norm and norms_are_empty(self.backbone)
        if frozen_norm:
            self.backbone = freeze_batch_norm_2d(self.backbone)  # type: ignore[no-untyped-call]
        if frozen:
            freeze(self.backbone, list(frozen))  # type: ignore[no-untyped-call]
        self.class_token = class_token
        if class_token and getattr(self.backbone, "cls_token", None) is None:
            raise ValueError(f"class_token: '{model}' has no class token; leave it out")
        self.width: int = self.backbone.num_features * (2 if class_token else 1)
        self.image_size: int = image_size or cfg["input_size"][-1]
        self.mean: tuple[float, float, float] = tuple(mean or cfg["mean"])
        self.std: tuple[float, float, float] = tuple(std or cfg["std"])

    def forward(self, images: Tensor) -> Tokens:
        features = self.backbone.forward_features(images)
        if features.ndim == 4:
            if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
                features = features.permute(0, 3, 1, 2)  # [B, D, rows, columns]
            rows, columns = features.shape[2:]
            features = features.flatten(2).transpose(1, 2)  # [B, P, D]
        else:
            whole, features = features, features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]  # [B, P, D]
            if self.class_token:  # the first one; registers come behind it
                features = torch.cat([features, whole[:, :1].expand_as(features)], -1)
            rows, columns = grid_of(features.shape[1], images.shape[2], images.shape[3])
        return Tokens(features, grid_boxes(rows, columns, features.device))


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a grid of square cells over an image. Raises ValueError where there is no such grid."""
    cell = (height * width / tokens) ** 0.5
    rows, columns = round(height / cell), round(width / cell)
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens are no grid over {height} x {width} pixels")
    return rows, columns


def norms_are_empty(backbone: nn.Module) -> bool:
    """Whether there are batch norms and none has ever seen a batch: every running mean is zero."""
    means = [m.running_mean for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    return bool(means) and not any(bool(mean.any()) for mean in means)


def create(name: str, pretrained: bool, image_size: int | None, options: dict[str, Any]) -> Any:
    """The timm model without its classifier. Raises PluresError if there is no such model or no such weights."""
    plain = name.split("/")[-1].split(".")[0]
    if "/" not in name and not timm.is_model(plain):
        raise PluresError(f"timm has no model '{name}'{did_you_mean(plain, timm.list_models())[:300]}")
    if pretrained and "/" not in name and not timm.is_model_pretrained(name):
        raise PluresError(f"timm has no pretrained weights for '{name}'; use backbone.pretrained=false or weights=FILE")
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if image_size and cfg is not None and cfg.fixed_input_size:
        options.setdefault("img_size", image_size)
    if not pretrained:
        return _of_whole_patches(timm.create_model(name, num_classes=0, **options), image_size)
    try:
        made = ask_hub(lambda: timm.create_model(name, pretrained=True, num_classes=0, **options))
    except OSError as error:
        raise PluresError(
            f"the pretrained weights of timm's '{name}' are not on this machine and cannot be downloaded; connect"
            " once, or give backbone.weights=FILE.safetensors, or train from scratch with backbone=small_conv"
        ) from error
    return _of_whole_patches(made, image_size)


def _of_whole_patches(backbone: Any, image_size: int | None) -> Any:
    """The backbone. Raises PluresError where its patches do not divide the image."""
    side = max(to_2tuple(getattr(getattr(backbone, "patch_embed", None), "patch_size", 1)))
    if image_size and image_size % side:
        low = image_size // side * side
        fits = f"{low} or {low + side}" if low else f"{side}"
        raise PluresError(f"image_size={image_size} is not a multiple of the backbone's patch of {side}; use {fits}")
    return backbone


def load_weights(backbone: nn.Module, name: str, path: Path) -> None:
    """Fill the backbone from a safetensors file. Raises PluresError unless every tensor fits."""
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise PluresError(f"backbone.weights: there is no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise PluresError(f"backbone.weights: {path} is not a valid safetensors file ({error})") from None
    classifier = backbone.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier or ()))
    expected = backbone.state_dict()
    adapt = getattr(inspect.getmodule(type(backbone)), "checkpoint_filter_fn", None)
    if adapt is not None and any(key not in state or state[key].shape != expected[key].shape for key in expected):
        with suppress(Exception):  # of another architecture, which is said below
            state = adapt(state, backbone)  # as timm adapts what it downloads: positions of another size, other names
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected and not key.startswith(heads)]
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    wrong = [f"{len(keys)} {what} ({keys[0]}, ...)" for what, keys in
             (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)) if keys]  # fmt: skip
    if wrong:
        raise PluresError(f"backbone.weights: {path} does not fit timm's '{name}': tensors {', '.join(wrong)}")
    backbone.load_state_dict({key: tensor for key, tensor in state.items() if key in expected}, strict=False)
