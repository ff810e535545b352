"""The pieces that query heads are built of: attention that can show where it looked, and the sine position code.

Vaswani et al. 2017, "Attention is all you need", arXiv 1706.03762; the two-dimensional code of Carion et al. 2020,
"End-to-end object detection with transformers", arXiv 2005.12872.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with the parameter names of torch's own.

    `forward` gives the attended values and, if maps are wanted, the weights averaged over heads (before dropout).
    Few queries on many keys (labels on a feature map) leave the keys and values unprojected: q (W k) = (q W) k, and
    the mean of projected values is the projected mean. That is the same number for fewer multiplications, and the
    more so where one query serves all images. Otherwise, without maps, torch's fused attention runs.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be shared by {heads} attention heads")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, maps: bool = False) -> tuple[Tensor, Tensor | None]:
        """query [B or 1, K, D], key and value [B, P, D] -> [B, K, D] and the weights [B, K, P] or None.

        A query that is the same for all images is given once (1 in place of B) and projected once.
        """
        if self._cheaper_unprojected(query, key):
            return self._unprojected(query, key, value, maps)
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (self._split(F.linear(x, w, b)) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        q = q.expand(k.shape[0], -1, -1, -1)  # [B, heads, K, D / heads]
        dropout = self.dropout if self.training else 0.0
        if not maps:
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            return self.out_proj(attended.transpose(1, 2).flatten(2)), None
        shares = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)  # [B, heads, K, P]
        attended = F.dropout(shares, dropout).to(v.dtype) @ v  # [B, heads, K, D / heads]
        return self.out_proj(attended.transpose(1, 2).flatten(2)), shares.mean(1)

    def _unprojected(self, query: Tensor, key: Tensor, value: Tensor, maps: bool) -> tuple[Tensor, Tensor | None]:
        """The same, by multiplying the projections of keys and values with what has K rows per image instead of P."""
        to_query, to_key, to_value = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)  # one bias on all keys does not change a softmax
        width, each = key.shape[2], key.shape[2] // self.heads
        q = self._split(F.linear(query, to_query, query_bias))  # [B or 1, heads, K, D / heads]
        q = torch.einsum("bhke,hed->bhkd", q / math.sqrt(each), to_key.view(self.heads, each, width)).flatten(1, 2)
        scores = q.expand(key.shape[0], -1, -1) @ key.transpose(1, 2)  # [B, heads K, P]
        shares = scores.softmax(-1)
        kept = F.dropout(shares, self.dropout, self.training).to(value.dtype)
        found = (kept @ value).view(key.shape[0], self.heads, -1, width)  # [B, heads, K, D]
        attended = torch.einsum("bhkd,hed->bkhe", found, to_value.view(self.heads, each, width)).flatten(2)
        if self.training and self.dropout:  # shares that no longer sum to 1 take their part of the bias
            total = kept.sum(-1).view(key.shape[0], self.heads, -1).transpose(1, 2)  # [B, K, heads]
            attended = attended + total.repeat_interleave(each, 2) * value_bias
        else:
            attended = attended + value_bias
        shown = shares.view(key.shape[0], self.heads, -1, shares.shape[2]).mean(1) if maps else None
        return self.out_proj(attended), shown

    def _cheaper_unprojected(self, query: Tensor, key: Tensor) -> bool:
        """Whether fewer multiplications (counted per D and image) are needed without projected keys and values."""
        (asked, classes, width), (images, regions, _) = query.shape, key.shape
        # an exported graph takes any number of images: one form for all, that of a query given for each
        share = 1.0 if torch.compiler.is_exporting() else asked / images
        projected = 2 * regions * width + 2 * classes * regions
        unprojected = (1 + share) * classes * width + 2 * self.heads * classes * regions
        return unprojected < projected

    def _split(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, heads, P, D / heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, ReLU, linear: [B, P, D] -> [B, P, D]."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.linear1(x).relu_()
        shown: Tensor = self.linear2(self.dropout(inner))
        return shown


def sine_code(boxes: Tensor, width: int) -> Tensor:
    """Boxes [P, 4] -> position code [P, width]: the first half tells y, the second x.

    On a grid this is the code of Carion et al. with normalised coordinates, which count cells from 1, so that the
    lower right corner of a cell stands for it; the 1e-6 is theirs.
    """
    if width % 4:
        raise ValueError(f"the sine position code requires a width that 4 divides, got {width}")
    x1, y1, x2, y2 = boxes.to(torch.float64).unbind(1)
    half = width // 2
    rate = 10000 ** (2 * torch.arange(half // 2, device=boxes.device, dtype=torch.float64) / half)
    halves = []
    for low, high in ((y1, y2), (x1, x2)):
        angle = 2 * math.pi * high / (1 + 1e-6 * (high - low))
        angles = angle[:, None] / rate  # [P, width / 4]
        halves.append(torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1))  # [P, width / 2]
    return torch.cat(halves, dim=1)
