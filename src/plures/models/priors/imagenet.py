"""The ImageNet-1k classifier that a backbone was pretrained with, its classes matched to one's own by their names.

The probabilities of ImageNet's classes that a class is made of (`imagenet_names.py`, and synonyms from a classes.yaml)
are added up; the logarithm of the sum is the evidence. Where the backbone is frozen and is this very network, its
features are used: a photograph goes through it once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from plures.data.class_names import read_class_names, spoken
from plures.errors import PluresError
from plures.models.backbones.features import Features
from plures.models.backbones.timm_map import TimmMap
from plures.models.outputs import Tokens
from plures.models.priors.base import Given, priors
from plures.models.priors.imagenet_names import CLASSES, match
from plures.models.weights.hub_access import ask_hub

MODEL = "mobilenetv2_100"
TOLERANCE = 1e-3  # of logits, between timm's own pooling and the mean of the feature map
LEAST = 1e-9  # a probability below counts as this


@priors.register("imagenet", title="ImageNet-1k classifier of a timm model, its classes matched by name; works offline")
class ImageNet(nn.Module):
    """model: a timm model with an ImageNet-1k classifier; by default that of the backbone. weights: its weights in a
    safetensors file, classifier included; by default the backbone's, else what timm downloads. names: a classes.yaml
    with synonyms. model_options: passed on to timm.create_model.

    shared: whether the model's own features are classified, or a network of the prior's own, which `fill` finds out.
    """

    said: Tensor
    groups: Tensor

    def __init__(
        self,
        classes: tuple[str, ...],
        width: int,
        model: str = "",
        weights: str = "",
        names: str = "",
        model_options: dict[str, Any] | None = None,
        shared: bool | None = None,
    ) -> None:
        super().__init__()
        self.classes, self.width, self.names = classes, width, names
        self.options: dict[str, Any] = {"model": model, "weights": weights, "names": names}
        self.options |= {"model_options": dict(model_options or {}), "shared": shared}
        self.register_buffer("said", torch.zeros(len(classes), dtype=torch.bool))
        self.register_buffer("groups", torch.zeros(len(classes), CLASSES))
        self.tower: TimmMap | None = None
        if shared is not None:
            self._build()

    def _build(self) -> None:
        o = self.options
        if not o["shared"]:
            self.tower = TimmMap(o["model"], model_options=o["model_options"]).eval().requires_grad_(False)
        self.classifier = nn.Linear(self.tower.width if self.tower else self.width, CLASSES).requires_grad_(False)

    def fill(self, backbone: Given) -> None:
        o, given = self.options, backbone.options
        if isinstance(backbone.module, Features):
            raise PluresError(
                "prior=imagenet looks at photographs, and the data are features; use prior=FILE, or prior=text where"
                " they are image features of an image-text model"
            )
        of_backbone = given.get("model", "") if isinstance(backbone.module, TimmMap) else ""
        if not o["model"]:
            o["model"] = _named_after(o["weights"]) or of_backbone or MODEL
        if o["model"] == of_backbone and not o["weights"]:
            o |= {"weights": given.get("weights") or "", "model_options": dict(given.get("model_options") or {})}
        same = o["model"] == of_backbone and o["weights"] == (given.get("weights") or "")
        began = bool(given.get("weights") or given.get("pretrained"))
        o["shared"] = bool(backbone.frozen and same and began and given.get("model_options", {}) == o["model_options"])
        classifier = _classifier(o["model"], o["weights"], o["model_options"])
        self._build()
        if self.tower is not None:
            source = {"weights": o["weights"]} if o["weights"] else {"pretrained": True}
            self.tower = TimmMap(o["model"], model_options=o["model_options"], **source).eval().requires_grad_(False)
        self.classifier.load_state_dict(classifier)
        _refuse_other_pooling(backbone.module if o["shared"] else self.tower, o, classifier)
        more = read_class_names(self.names, self.classes) if self.names else {}
        for k, name in enumerate(self.classes):
            self.groups[k, match([spoken(name), *(more[name].synonyms if more else ())])] = 1
        self.said = self.groups.any(1)

    @property
    def network(self) -> nn.Module | None:
        return self.tower

    def extra(self, images: Tensor, tokens: Tokens, backbone: Any) -> Tensor | None:
        return None if self.tower is None else seen_by(self.tower, images).features.mean(1)

    def forward(self, features: Tensor) -> Tensor:
        own = features[..., self.width :] if self.tower is not None else features[..., : self.width]
        chances = torch.softmax(self.classifier(own.mean(1).to(self.groups.dtype)), 1)  # [B, 1000]
        return torch.log((chances @ self.groups.T).clamp(min=LEAST)) * self.said


def seen_by(tower: Any, images: Tensor) -> Any:
    """What a network with its own image_size, mean and std says of images, uint8 or in [0, 1], of any size."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    if pixels.shape[-1] != tower.image_size:
        pixels = F.interpolate(pixels, (tower.image_size,) * 2, mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(one, device=pixels.device).view(1, 3, 1, 1) for one in (tower.mean, tower.std))
    return tower((pixels - mean) / std)


def _named_after(weights: str) -> str:
    """The model of timm that a file of weights is called after, or ""."""
    stem = Path(weights).name.partition(".")[0]
    return stem if weights and timm.is_model(stem) else ""


def _classifier(model: str, weights: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """Weight [1000, D] and bias [1000] of ImageNet's classifier. Raises PluresError if there is none to be had."""
    if not timm.is_model(model.split("/")[-1].split(".")[0]):
        raise PluresError(f"prior=imagenet: timm has no model '{model}'; name one as in prior.model={MODEL}")
    if weights:
        place = timm.get_pretrained_cfg(model).classifier  # type: ignore[union-attr]
        try:
            state = load_file(weights)
        except FileNotFoundError:
            raise PluresError(f"prior.weights: there is no file {weights}") from None
        except (SafetensorError, OSError) as error:
            raise PluresError(f"prior.weights: {weights} is not a valid safetensors file ({error})") from None
        found = {name: state.get(f"{place}.{name}") for name in ("weight", "bias")}
    else:
        try:
            net: Any = ask_hub(lambda: timm.create_model(model, pretrained=True, **options))
        except (OSError, RuntimeError) as error:
            raise PluresError(
                f"prior=imagenet: the weights of timm's '{model}' are not on this machine and cannot be downloaded"
                f" ({type(error).__name__}); connect once, or give prior.weights=FILE.safetensors"
            ) from error
        found = {name: getattr(net.get_classifier(), name, None) for name in ("weight", "bias")}
    weight, bias = found["weight"], found["bias"]
    if weight is None or bias is None or len(bias) != CLASSES:
        there = "no classifier" if bias is None else f"a classifier of {len(bias):,} classes"
        raise PluresError(f"prior=imagenet: {weights or model} has {there}; expected ImageNet's {CLASSES:,}")
    return {"weight": weight.detach().flatten(1), "bias": bias.detach()}


@torch.inference_mode()
def _refuse_other_pooling(network: Any, o: dict[str, Any], classifier: dict[str, Tensor]) -> None:
    """Raise PluresError unless timm classifies the mean of the feature map, as is done here."""
    net: Any = timm.create_model(o["model"], **o["model_options"]).eval()
    own = network.backbone.state_dict()
    place = net.pretrained_cfg["classifier"]
    fits = classifier["weight"].shape[1] == network.width
    if fits:
        last = {f"{place}.{name}": tensor.reshape(net.state_dict()[f"{place}.{name}"].shape)
                for name, tensor in classifier.items()}  # fmt: skip
        net.load_state_dict({**own, **last}, strict=False)
        pixels = torch.rand(1, 3, network.image_size, network.image_size, generator=torch.Generator().manual_seed(0))
        where = next(network.parameters()).device
        theirs = net.to(where)(pixels.to(where))
        features = Tokens.of(network.eval()(pixels.to(where))).features.mean(1)
        ours = features @ classifier["weight"].T.to(where) + classifier["bias"].to(where)
        fits = bool((theirs - ours).abs().max() <= TOLERANCE * theirs.abs().max().clamp(min=1))
    if not fits:
        raise PluresError(
            f"prior=imagenet: timm's '{o['model']}' does not classify the mean of its feature map; name another one, as"
            f" in prior.model={MODEL}"
        )
