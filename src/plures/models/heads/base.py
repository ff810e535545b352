"""What a head is, and the registry of heads."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from plures.models.outputs import Output, Tokens
from plures.registry import Registry


class Head(Protocol):
    """An nn.Module: Tokens [B, P, D], or a feature map [B, D, H, W] (`Tokens.of` makes tokens of it) -> Output with
    logits [B, K]. Built with `width` (D) and `classes` (K).

    gives: which optional fields of Output it fills ("attention", "region_logits", "embeddings").
    mean_is_enough (optional, True): the mean of an image's tokens gives the same logits as the tokens themselves, so
    that frozen features can be kept pooled.
    maps: whether `attention` and `region_logits` are asked for. Without them a head leaves out the work that only heat
    maps need and may leave these two fields None; logits and embeddings are the same either way.
    """

    gives: frozenset[str]

    def __call__(self, tokens: Tokens | Tensor, maps: bool = True) -> Output: ...


@runtime_checkable
class FitsFeatures(Protocol):
    """A head that needs to know the frozen features it will be trained on: mean and standard deviation [D] over the
    training images (of each image's mean token), given once before training."""

    def fit_features(self, mean: Tensor, deviation: Tensor) -> None: ...


MODULE = ("a torch.nn.Module", lambda made: issubclass(made, nn.Module))
heads: Registry[Head] = Registry("head", "plures.models.heads", ("width", "classes"), "plures.heads", MODULE)
