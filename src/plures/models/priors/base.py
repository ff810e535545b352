"""What a prior is, the registry of priors, and the head that joins one with a trained head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.outputs import Output, Tokens
from plures.registry import Registry

NONE = "none"  # the prior of a run that has none
FILE = "file"  # a table of scores


@dataclass(frozen=True)
class Given:
    """The backbone that a prior stands beside. options: it was made with; frozen: whether training leaves it alone."""

    module: Any
    options: dict[str, Any]
    frozen: bool


class Prior(Protocol):
    """An nn.Module: features of the regions [B, P, D + E] -> evidence [B, K] for each class, more where it is likelier,
    always finite. Built with `classes` (K names) and `width` (D, of the model's backbone), empty; `fill` gives it its
    contents once, which a saved model then brings along. It takes the mean over the regions, or features of its own.

    said: bool [K], for which classes it says anything at all. options: plain values, by which an empty one of the same
    shape is built. network: what computes further features of an image, or None. extra: these E features [B, E], of
    images uint8 or float in [0, 1] [B, 3, H, W], the backbone's tokens and the backbone; None for none.
    """

    said: Tensor
    options: dict[str, Any]

    @property
    def network(self) -> nn.Module | None: ...

    def fill(self, backbone: Given) -> None: ...

    def extra(self, images: Tensor, tokens: Tokens, backbone: Any) -> Tensor | None: ...

    def __call__(self, features: Tensor) -> Tensor: ...


MODULE = ("a torch.nn.Module", lambda made: issubclass(made, nn.Module))
FOUND = ("shared", "config", "rows", "letters")  # options that `fill` finds out, and nobody sets
priors: Registry[Prior] = Registry(
    "prior", "plures.models.priors", ("classes", "width", *FOUND), "plures.priors", MODULE
)


class Fused(nn.Module):
    """A head and a prior as one head: logits head_weight * logit + prior_weight * evidence + offset, each [K].

    As made, the head alone speaks; `training/fusing.py` chooses the weights.
    """

    head_weight: Tensor
    prior_weight: Tensor
    offset: Tensor

    def __init__(self, head: nn.Module, prior: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.head, self.prior, self.width = head, prior, width
        self.register_buffer("head_weight", torch.ones(classes))
        self.register_buffer("prior_weight", torch.zeros(classes))
        self.register_buffer("offset", torch.zeros(classes))
        self.gives: frozenset[str] = getattr(head, "gives", frozenset())
        self.mean_is_enough = bool(getattr(head, "mean_is_enough", False))

    def weighed(self, head: Tensor | float, prior: Tensor | float, offset: Tensor | float = 0.0) -> Fused:
        """The same head and prior with these weights, [K] or one for all."""
        other = Fused(self.head, self.prior, self.width, len(self.offset)).to(self.offset.device)
        for name, value in (("head_weight", head), ("prior_weight", prior), ("offset", offset)):
            getattr(other, name).copy_(torch.as_tensor(value))
        return other

    def fuse(self, logits: Tensor, evidence: Tensor) -> Tensor:
        """Logits and evidence, [B, K] each -> fused logits [B, K]."""
        return self.head_weight * logits + self.prior_weight * evidence + self.offset

    def extended(self, images: Tensor, tokens: Tokens, backbone: Any) -> Tokens:
        """The tokens with the features that the prior takes beside them, the same for all regions."""
        extra = cast(Prior, self.prior).extra(images, tokens, backbone)
        if extra is None:
            return tokens
        wide = extra.to(tokens.features.dtype)[:, None].expand(-1, tokens.features.shape[1], -1)
        return Tokens(torch.cat([tokens.features, wide], 2), tokens.boxes)

    def forward(self, tokens: Tokens | Tensor, maps: bool = True) -> Output:
        tokens = Tokens.of(tokens)
        output: Output = self.head(Tokens(tokens.features[..., : self.width], tokens.boxes), maps=maps)
        return replace(output, logits=self.fuse(output.logits, self.prior(tokens.features)))


def check_prior(name: str, options: dict[str, Any]) -> None:
    """Raise PluresError if there is no such prior or it does not take one of the options."""
    if name != NONE:
        priors.check(name, options, named=True)
        if name == FILE and not options.get("path"):
            raise PluresError("prior=file requires the table of scores: write prior=FILE.csv (.tsv, .parquet, .npz)")
    elif options:
        raise PluresError(f"prior=none has no options, got {', '.join(options)}; name the prior to set them")
