"""CvT, the convolutional vision transformer, which timm does not have.

Wu et al. 2021, "CvT: Introducing convolutions to vision transformers", arXiv 2103.15808. As in the published code, the
attention scores are scaled by (stage width)^-1/2, not by (head width)^-1/2, and the activation is QuickGELU.
Parameter names are those of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from plures.models.backbones import backbones
from plures.models.outputs import Tokens, grid_boxes


class ConvNorm(nn.Module):
    """Depthwise 3 x 3 convolution and batch norm, flattened: [B, D, H, W] -> [B, H W / stride^2, D]."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, grid: Tensor) -> Tensor:
        mapped: Tensor = self.bn(self.conv(grid))
        return mapped.flatten(2).transpose(1, 2)


class ConvAttention(nn.Module):
    """Self-attention whose queries, keys and values are convolved first; keys and values on a grid halved in size."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.conv_proj_q, self.conv_proj_k, self.conv_proj_v = (ConvNorm(width, stride) for stride in (1, 2, 2))
        self.proj_q, self.proj_k, self.proj_v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """x [B, P or 1 + P, D]; a class token comes first and is not convolved."""
        extra = x.shape[1] - rows * columns
        token, grid = x[:, :extra], _grid(x[:, extra:], rows, columns)  # [B, D, rows, columns]
        q, k, v = (
            self._split(project(torch.cat([token, convolve(grid)], dim=1)))
            for convolve, project in (
                (self.conv_proj_q, self.proj_q),
                (self.conv_proj_k, self.proj_k),
                (self.conv_proj_v, self.proj_v),
            )
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=x.shape[2] ** -0.5)
        mixed: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, heads, P, D / heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Linear, QuickGELU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(self.act(self.fc1(x)))
        return mixed


class Block(nn.Module):
    """Normalise, attend, add; normalise, transform, add."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), ConvAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        x = x + self.attn(self.norm1(x), rows, columns)
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class PatchEmbed(nn.Module):
    """Overlapping convolution that shrinks the grid, then layer norm over channels."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, width, kernel, stride, padding)
        self.norm = nn.LayerNorm(width)

    def forward(self, grid: Tensor) -> tuple[Tensor, int, int]:
        """[B, before, H, W] -> [B, P, width], rows, columns."""
        grid = self.proj(grid)
        return self.norm(grid.flatten(2).transpose(1, 2)), grid.shape[2], grid.shape[3]


class Stage(nn.Module):
    """Patch embedding and blocks; the last stage has a class token."""

    def __init__(self, embed: PatchEmbed, width: int, depth: int, heads: int, token: bool) -> None:
        super().__init__()
        if token:
            self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.token = token
        self.patch_embed = embed
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, grid: Tensor) -> tuple[Tensor, int, int]:
        """[B, before, H, W] -> tokens without the class token [B, P, D], rows, columns."""
        x, rows, columns = self.patch_embed(grid)
        if self.token:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, rows, columns)
        return x[:, int(self.token) :], rows, columns


@backbones.register("cvt", title="Convolutional vision transformer", source="Wu et al. 2021, arXiv 2103.15808")
class CvT(nn.Module):
    """Images [B, 3, H, W] -> one token [D] for each cell of a grid of H / 16 x W / 16.

    widths, depths, attention_heads: of the three stages; the defaults are CvT-W24. D is the last width.
    """

    def __init__(
        self,
        image_size: int = 384,
        widths: Sequence[int] = (192, 768, 1024),
        depths: Sequence[int] = (2, 2, 20),
        attention_heads: Sequence[int] = (3, 12, 16),
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        if not len(widths) == len(depths) == len(attention_heads) == 3:
            raise ValueError("widths, depths and attention_heads have three entries, one per stage")
        self.image_size, self.width, self.mean, self.std = image_size, widths[-1], mean, std
        self.stage0, self.stage1, self.stage2 = (
            Stage(PatchEmbed(before, width, *window), width, depth, heads, token)
            for before, width, window, depth, heads, token in zip(
                (3, *widths), widths, ((7, 4, 2), (3, 2, 1), (3, 2, 1)), depths, attention_heads,
                (False, False, True), strict=False,
            )
        )  # fmt: skip
        self.norm = nn.LayerNorm(self.width)
        self.apply(_start)

    def forward(self, images: Tensor) -> Tokens:
        grid, rows, columns = images, 0, 0
        for number, stage in enumerate((self.stage0, self.stage1, self.stage2)):
            if number:
                grid = _grid(grid, rows, columns)
            grid, rows, columns = stage(grid)  # [B, P, D]
        return Tokens(self.norm(grid), grid_boxes(rows, columns, images.device))


def _grid(x: Tensor, rows: int, columns: int) -> Tensor:
    """[B, P, D] -> [B, D, rows, columns]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], rows, columns)


def _start(module: nn.Module) -> None:
    """Linear weights from a narrow truncated normal, as transformers begin."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
