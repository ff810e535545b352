"""The mathematics that losses share: logarithms of probabilities taken from logits, reductions, checks of options.

Every loss works on logits, in float32 at least: with eps = 0 the logarithm of a sigmoid is exact and finite for any
finite logit. Official code of the single-positive family adds an epsilon inside the logarithm; `eps` reproduces it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "image", "sum"]
"""mean: over all cells, sum/(B K) (MLSPL); image: sum over classes, mean over images (patch paper); sum: over all.

They differ by a factor only, which applies to every term, so the balance of the terms does not depend on it.
"""


Pull = Callable[[Tensor], Tensor] | None


def widen(values: Tensor) -> Tensor:
    """The same values in float32 if they are in half precision; float32 and float64 stay as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def negative_log(logits: Tensor, eps: float = 0.0) -> Tensor:
    """-log(sigmoid(logits) + eps), elementwise. For -log(1 - p + eps) give -logits."""
    return -F.logsigmoid(logits) if eps == 0 else -torch.log(torch.sigmoid(logits) + eps)


def slope(logits: Tensor, yes: Tensor, no: Tensor, eps: float, reduction: Reduction, pull: Pull = None) -> Tensor:
    """The gradient by logits [B, ..., K] of yes * -log(p + eps) + no * -log(1 - p + eps), reduced over B and K.

    yes, no: weights of the cells. What stands between B and K are runs apart from each other.
    pull: from the p to what is added to the gradient by p [B, ..., K] of this sum.
    Where p rounds to 1 its slope p (1 - p) is 0, as in autograd; Adam would make much of the 1e-9 that it really is.
    """
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    if eps == 0:
        cells = torch.addcmul(no * p, yes, q, value=-1)
    else:
        falls = torch.ops.aten.sigmoid_backward  # (weight, p): weight p (1 - p)
        cells = falls(no, q).div_(q + eps).sub_(falls(yes, p).div_(p + eps))
    if pull is not None:
        cells = cells.add_(p * (1 - p) * pull(p))
    return cells.mul_(scale(logits.shape, reduction) / (len(logits) * logits.shape[-1]))


def cross_entropy(targets: Tensor, logits: Tensor, eps: float = 0.0) -> Tensor:
    """Binary cross entropy of soft targets in [0, 1], elementwise."""
    return targets * negative_log(logits, eps) + (1 - targets) * negative_log(-logits, eps)


def entropy(logits: Tensor, eps: float = 0.0) -> Tensor:
    """Entropy in nats of each sigmoid probability, elementwise; gradients flow through both factors."""
    return cross_entropy(torch.sigmoid(logits), logits, eps)


def power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent for base in [0, 1] and exponent >= 0; the gradient stays finite at base 0."""
    return base.clamp(min=torch.finfo(base.dtype).tiny).pow(exponent)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """[K] numbers beside `like`; the copy to a GPU does not wait for it."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def scale(shape: torch.Size, reduction: Reduction) -> float:
    """What a mean over [B, ..., K] cells is multiplied by to give this reduction of each of the runs between."""
    B, K = shape[0], shape[-1]
    return {"mean": 1.0, "image": float(K), "sum": float(B * K)}[reduction]


def reduce(cells: Tensor, reduction: Reduction) -> Tensor:
    """Cells [B, K] to one number; see Reduction."""
    return cells.mean() if reduction == "mean" else cells.sum() / (len(cells) if reduction == "image" else 1)


def check_common(reduction: str, eps: float) -> None:
    """Raise ValueError for an unknown reduction or a negative epsilon."""
    check_choice("reduction", reduction, get_args(Reduction))
    check_range("eps", eps, 0.0, 1.0)


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raise ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(allowed)}, got {value!r}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high (nan fails)."""
    if not low <= value <= high:
        raise ValueError(f"{name} is between {low:g} and {high:g}, got {value:g}")
