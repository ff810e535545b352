"""Multi-resolution patches through one small CNN.

Jouanneau et al., "A patch-based architecture for multi-label classification from single positive annotations",
blocks 1 and 2. The paper names the CNN "the first five EfficientNet blocks"; the five MBConv blocks 1a to 3b of
EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946) are the reading that meets its "250K" parameters: 248,850 with the
codebook head for 80 classes. 640 x 640 pixels and three downsized levels are the reading that meets its 130 patches.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from plures.models.backbones import backbones
from plures.models.outputs import Tokens

PATCHES_AT_ONCE = 16  # on a CPU, without gradient: what lies between two layers then stays in its cache


def variance_scaling(module: nn.Module) -> None:
    """Draw the weights of a convolution or linear layer with variance 1 / fan_in (truncated normal), bias zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        std = module.weight[0].numel() ** -0.5 / 0.8796  # cutting the tails at 2 leaves 0.8796 of the deviation
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def folded(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in which each convolution does the work of the batch norm that follows it."""
    copy = deepcopy(network).eval()
    for parent in copy.modules():
        before: tuple[str, nn.Module] = "", parent
        for name, child in parent.named_children():
            if isinstance(child, BatchNormAct2d) and isinstance(before[1], nn.Conv2d):
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, child.act)
            before = name, child
    return copy


class _Depthwise(nn.Conv2d):
    """A depthwise convolution that is trained in float32 on a CPU: oneDNN's backward pass in bfloat16 falls back to a
    plain loop for strides and 5 x 5 kernels, 20 to 40 times slower."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_autocast_enabled("cpu") and x.is_cpu):  # last: a tracer's x has no value
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


@backbones.register("patches", title="Multi-resolution patches", source="Jouanneau et al., blocks 1-2")
class Patches(nn.Module):
    """Images [B, 3, H, W] -> one token [D] for each patch of the image and of its downsized copies.

    levels: how many downsized copies besides the original, each `ratio` times smaller than the one before (bilinear).
    patch, stride: side of the window and its step in pixels, the same on every level; what is left over at the right
    and lower edge is dropped. subsample: keep only this share (float in (0, 1)) or at most this many (int) of the
    patches of each level while training, drawn anew for each batch. width: D. activation: after the last fully
    connected layer; the paper, whose swish is that of the convolutions, has "none". silu halves the tokens at first.
    """

    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD

    def __init__(
        self,
        image_size: int = 640,
        levels: int = 3,
        ratio: float = 2.0,
        patch: int = 64,
        stride: int = 64,
        width: int = 256,
        subsample: float | int | None = None,
        activation: Literal["silu", "none"] = "silu",
    ) -> None:
        super().__init__()
        smallest = int(image_size / ratio**levels)
        if ratio <= 1 or smallest < patch:
            raise ValueError(
                f"{levels} levels of ratio {ratio:g} bring {image_size} pixels down to {smallest}, less than a patch"
                f" of {patch}; use a ratio above 1, fewer levels, a smaller patch or larger images"
            )
        if subsample is not None and (subsample <= 0 or (isinstance(subsample, float) and subsample >= 1)):
            raise ValueError(f"subsample is a share in (0, 1) or a number of patches from 1 on, got {subsample}")
        if activation not in ("silu", "none"):
            raise ValueError(f"activation is silu or none, got {activation}")
        self.activation = activation
        self.image_size, self.levels, self.ratio = image_size, levels, ratio
        self.patch, self.stride, self.width, self.subsample = patch, stride, width, subsample
        network: Any = timm.create_model("efficientnet_b0", num_classes=0)
        self.cnn = nn.Sequential(network.conv_stem, network.bn1, network.blocks[:3])
        self.project = nn.Linear(40, width)
        self.apply(variance_scaling)
        self.to(memory_format=torch.channels_last)
        for module in self.cnn.modules():
            if type(module) is nn.Conv2d and module.groups > 1 and (module.kernel_size[0] > 3 or module.stride[0] > 1):
                module.__class__ = _Depthwise

    def forward(self, images: Tensor) -> Tokens:
        patches, boxes = self.extract(images)
        flat = patches.flatten(0, 1)  # [B * P, 3, patch, patch]
        if flat.is_cpu and not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            cnn = folded(self.cnn)
            features = torch.cat([cnn(some).mean((2, 3)) for some in torch.split(flat, PATCHES_AT_ONCE)])  # [B * P, 40]
        else:
            features = self.cnn(flat).mean((2, 3))  # of [B * P, 40, patch / 8, patch / 8]
        features = self.project(features)  # [B * P, D]
        if self.activation == "silu":
            features = F.silu(features)
        return Tokens(features.view(*patches.shape[:2], self.width), boxes)  # [B, P, D]

    def train(self, mode: bool = True) -> Patches:
        """As nn.Module does. In place, an activation saves memory traffic without gradient, but costs a copy with."""
        for module in self.modules():
            if isinstance(module, nn.SiLU):
                module.inplace = not mode
        return super().train(mode)

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Block 1: images [B, 3, H, W] -> patches [B, P, 3, patch, patch] (channels last in memory), boxes [P, 4]."""
        levels = self._pyramid(images)
        grids = [(self._steps(level.shape[2]), self._steps(level.shape[3])) for level in levels]
        kept = [self._kept(rows * columns) for rows, columns in grids]
        patches = images.new_empty(images.shape[0], sum(map(len, kept)), self.patch, self.patch, images.shape[1])
        start = 0
        for level, (rows, columns), keep in zip(levels, grids, kept, strict=True):
            windows = level.unfold(2, self.patch, self.stride).unfold(3, self.patch, self.stride)
            windows = windows.permute(0, 2, 3, 4, 5, 1)  # [B, rows, columns, patch, patch, 3], a view
            target = patches[:, start : start + len(keep)]
            if len(keep) == rows * columns:  # a single copy, from the image to its place in the batch of patches
                target.view(windows.shape).copy_(windows)
            else:
                target.copy_(windows[:, keep // columns, keep % columns])
            start += len(keep)
        boxes = torch.cat(
            [self._boxes(level, grid)[keep] for level, grid, keep in zip(levels, grids, kept, strict=True)]
        )
        return patches.movedim(-1, 2), boxes.to(images.device)

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        """The images and their downsized copies, as far as these still hold a patch."""
        if min(images.shape[2:]) < self.patch:
            raise ValueError(f"a patch has {self.patch} pixels per side, the images only {tuple(images.shape[2:])}")
        levels = [images]
        for _ in range(self.levels):
            size = [int(side / self.ratio) for side in levels[-1].shape[2:]]
            if min(size) < self.patch:
                break
            levels.append(F.interpolate(levels[-1], size=size, mode="bilinear", align_corners=False))
        return levels

    def _steps(self, side: int) -> int:
        """How many windows fit into a side."""
        return (side - self.patch) // self.stride + 1

    def _kept(self, count: int) -> Tensor:
        """Which of a level's patches to use in this batch: sorted indices."""
        if not self.training or self.subsample is None:
            return torch.arange(count)
        share = isinstance(self.subsample, float)
        keep = max(1, round(self.subsample * count)) if share else min(int(self.subsample), count)
        return torch.randperm(count)[:keep].sort().values

    def _boxes(self, level: Tensor, grid: tuple[int, int]) -> Tensor:
        """Where a level's patches lie in the image: [rows * columns, 4] in [0, 1], row by row."""
        height, width = level.shape[2:]
        top, left = torch.meshgrid(*(torch.arange(n) * self.stride for n in grid), indexing="ij")  # [rows, columns]
        corners = torch.stack([left, top, left + self.patch, top + self.patch], dim=-1)
        return corners.reshape(-1, 4) / torch.tensor([width, height, width, height])  # [P, 4]
