"""What a backbone is, and the registry of backbones."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from plures.models.outputs import Tokens
from plures.registry import Registry


class Backbone(Protocol):
    """An nn.Module: normalised images [B, 3, H, W] -> Tokens [B, P, D], or a feature map [B, D, h, w].

    width: D. image_size: the side in pixels it likes best. mean, std: of the three channels, for images in [0, 1].
    """

    width: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tokens: ...


MODULE = ("a torch.nn.Module", lambda made: issubclass(made, nn.Module))
backbones: Registry[Backbone] = Registry("backbone", "plures.models.backbones", (), "plures.backbones", MODULE)
