"""The nouns between the packages: Tokens (what a backbone says of an image) and Output (what a head says of it)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.errors import WorkFailed


@dataclass(frozen=True)
class Tokens:
    """Features of the regions of B images.

    features: [B, P, D], one vector a region (a grid cell, a patch of some scale, or the whole image).
    boxes: [P, 4], where each region lies: x1 y1 x2 y2 as fractions of the image in [0, 1].
    """

    features: Tensor
    boxes: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or self.boxes.shape != (self.features.shape[1], 4):
            raise ValueError(
                f"Tokens are features [B, P, D] and boxes [P, 4], got {tuple(self.features.shape)}"
                f" and {tuple(self.boxes.shape)}"
            )

    @classmethod
    def of(cls, features: Tokens | Tensor) -> Tokens:
        """The tokens of a feature map [B, D, H, W], such as a convolutional network's: P = H W regions, row by row.

        Tokens stay as they are.
        """
        if isinstance(features, Tokens):
            return features
        if features.ndim != 4:
            raise ValueError(f"a head takes Tokens or a feature map [B, D, H, W], got {list(features.shape)}")
        rows, columns = features.shape[2:]
        return cls(features.flatten(2).transpose(1, 2), grid_boxes(rows, columns, features.device))


@dataclass(frozen=True)
class Output:
    """What a head says of B images.

    logits: [B, K]; sigmoid of them is the probability that the class is present.
    attention: [B, K, P] or None; where each class looked; sums to 1 over P.
    region_logits: [B, K, P] or None; class activation, a logit for each region before pooling.
    embeddings: [B, K, D] or None; what the head gathered for each class.
    boxes: [P, 4] or None; where the P regions lie, as in Tokens.
    """

    logits: Tensor
    attention: Tensor | None = None
    region_logits: Tensor | None = None
    embeddings: Tensor | None = None
    boxes: Tensor | None = None

    def has(self, need: str) -> bool:
        """Whether the head gave this field ("embeddings", "attention", "region_logits")."""
        return getattr(self, need) is not None


def checked_logits(logits: Tensor) -> NDArray[np.float32]:
    """Logits [B, K] as every score, tag and table is made of them. Raises WorkFailed if the model gave nan."""
    values: NDArray[np.float32] = logits.float().cpu().numpy()
    bad = int(np.isnan(values).any(-1).sum())
    if bad:
        raise WorkFailed(
            f"the model gives nan (no number) for {bad:,} of {len(values):,} images: its weights are damaged or its"
            " training diverged; train again, with a smaller lr or clip=1"
        )
    return values


def grid_boxes(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Boxes of a rows x columns grid over the whole image, row by row. Returns [rows * columns, 4] in [0, 1]."""
    y = torch.arange(rows, device=device, dtype=torch.float32) / rows
    x = torch.arange(columns, device=device, dtype=torch.float32) / columns
    top, left = torch.meshgrid(y, x, indexing="ij")  # [rows, columns]
    boxes = torch.stack([left, top, left + 1 / columns, top + 1 / rows], dim=-1)
    return boxes.reshape(rows * columns, 4)  # [P, 4]
