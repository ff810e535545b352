"""What an embedder and a head are, and the shelves they stand on."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from plures.models.output import Output, Tokens
from plures.shelf import Shelf


class Embedder(Protocol):
    """An nn.Module: normalised images [B, 3, H, W] -> Tokens [B, P, D], or a feature map [B, D, h, w].

    width: D. image_size: the side in pixels it likes best. mean, std: of the three channels, for images in [0, 1].
    """

    width: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tokens: ...


class Head(Protocol):
    """An nn.Module: Tokens [B, P, D], or a feature map [B, D, H, W] (`Tokens.of` makes tokens of it) -> Output with
    logits [B, K]. Built with `width` (D) and `classes` (K).

    gives: which optional fields of Output it fills ("attention", "region_logits", "embeddings").
    mean_is_enough (optional, True): the mean of an image's tokens gives the same logits as the tokens themselves, so
    that frozen features can be kept pooled.
    maps: whether `attention` and `region_logits` are wanted. Without them a head leaves out the work that only heat
    maps need and may leave these two fields None; logits and embeddings are the same either way.
    """

    gives: frozenset[str]

    def __call__(self, tokens: Tokens | Tensor, maps: bool = True) -> Output: ...


@runtime_checkable
class FitsFeatures(Protocol):
    """A head that wants to know the frozen features it will be trained on: mean and standard deviation [D] over the
    training images (of each image's mean token), given once before training."""

    def fit_features(self, mean: Tensor, deviation: Tensor) -> None: ...


MODULE = ("a torch.nn.Module", lambda made: issubclass(made, nn.Module))
embedders: Shelf[Embedder] = Shelf("embedder", "plures.models", (), "plures.backbones", MODULE)
heads: Shelf[Head] = Shelf("head", "plures.models", ("width", "classes"), "plures.heads", MODULE)
