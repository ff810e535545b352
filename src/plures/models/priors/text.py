"""An image-text model of open_clip (CLIP, SigLIP, ...): how well a photograph goes with the names of the classes.

Every class is described by its name and synonyms in each of the templates, and by its own prompts in a classes.yaml;
the mean of their text features is compared with the image's feature (cosine times the model's scale). Text features are
computed once and kept with the model. A frozen timm backbone that is the image-text model's own image network (SigLIP)
is used for both: a photograph goes through it once. So are data that come as image features of this model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plures.data.class_names import ClassNames, read_class_names, spoken
from plures.errors import PluresError, require
from plures.models.backbones.features import Features
from plures.models.backbones.timm_map import TimmMap
from plures.models.outputs import Tokens
from plures.models.priors.base import Given, priors
from plures.models.priors.imagenet import seen_by
from plures.models.weights.hub_access import ask_hub

TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a photo of a {} in the background.", "a close-up of a {}.")
TOLERANCE = 1e-3  # of image features, between two ways to compute them


@priors.register("text", title="Image-text model of open_clip: class names and prompts against the photograph")
class Text(nn.Module):
    """model: as open_clip names it; local-dir:FOLDER and hf-hub:NAME too. pretrained: a tag of open_clip's or a file of
    weights. names: a classes.yaml with prompts and synonyms. templates: sentences in which {} stands for a name.

    config: of the image network, by `fill`: whether it is the prior's "own", "shared" with the backbone or the data are
    its "features"; its width, scale, image size, mean and std, and what open_clip builds it of.
    """

    said: Tensor
    texts: Tensor

    def __init__(
        self,
        classes: tuple[str, ...],
        width: int,
        model: str = "ViT-B-16-SigLIP2",
        pretrained: str = "webli",
        names: str = "",
        templates: Sequence[str] = TEMPLATES,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(templates, str) or not templates or not all("{}" in str(one) for one in templates):
            raise ValueError("templates is a list of sentences with {} in place of the class")
        self.classes, self.width = classes, width
        self.options: dict[str, Any] = {"model": model, "pretrained": pretrained, "names": names}
        self.options |= {"templates": list(templates), "config": config}
        self.register_buffer("said", torch.ones(len(classes), dtype=torch.bool))
        self.tower: nn.Module | None = None
        self.head: nn.Module | None = None
        if config is not None:
            self._build(_visual(config) if config["image"] != "features" else None)

    def _build(self, visual: nn.Module | None) -> None:
        config = self.options["config"]
        if config["image"] == "own":
            self.tower = Tower(visual, config)
        elif config["image"] == "shared":
            self.head = cast(nn.Module, cast(Any, visual).head)
        self.register_buffer("texts", torch.zeros(len(self.classes), config["width"]))

    def fill(self, backbone: Given) -> None:
        require("prior=text", "text", ("open_clip",))
        clip, tokenizer, config = _loaded(self.options["model"], self.options["pretrained"])
        said = read_class_names(self.options["names"], self.classes) if self.options["names"] else {}
        texts = [self._sentences(name, said.get(name, ClassNames())) for name in self.classes]
        described = torch.stack([_text_feature(clip, tokenizer, sentences) for sentences in texts])
        visual = clip.visual
        config["width"], network = described.shape[1], backbone.module
        if isinstance(network, Features):
            if network.width != described.shape[1]:
                raise PluresError(
                    f"prior=text: the data are features of {network.width:,} numbers per image, and"
                    f" {self.options['model']} has {described.shape[1]:,}; name the model that they come from with"
                    " prior.model"
                )
            config["image"] = "features"
        else:
            config["image"] = "shared" if backbone.frozen and _is_image_network(network, visual, config) else "own"
        self.options["config"] = config
        self._build(visual.float().eval().requires_grad_(False))
        self.texts = described

    def _sentences(self, name: str, said: ClassNames) -> list[str]:
        words = [spoken(name), *said.synonyms]
        return [*(template.format(word) for template in self.options["templates"] for word in words),
                *(prompt.replace("{}", words[0]) for prompt in said.prompts)]  # fmt: skip

    @property
    def network(self) -> nn.Module | None:
        return self.head if self.tower is None else self.tower

    def extra(self, images: Tensor, tokens: Tokens, backbone: Any) -> Tensor | None:
        if self.tower is not None:
            return self.tower.features(images)  # type: ignore[no-any-return, operator]
        return None if self.head is None else _of_tokens(backbone, self.head, tokens)

    def forward(self, features: Tensor) -> Tensor:
        own = features[..., self.width :] if self.options["config"]["image"] != "features" else features
        image = F.normalize(own.mean(1).to(self.texts.dtype), dim=1)
        scale: float = self.options["config"]["scale"]
        return scale * image @ self.texts.T


class Tower(nn.Module):
    """The image network with its own resize and normalisation."""

    def __init__(self, visual: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.visual, self.image_size = visual, int(config["image_size"])
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])

    def forward(self, pixels: Tensor) -> Tensor:
        feature: Any = self.visual(pixels)
        one: Tensor = feature[0] if isinstance(feature, tuple) else feature
        return one

    def features(self, images: Tensor) -> Tensor:
        feature: Tensor = seen_by(self, images)
        return feature


def _of_tokens(backbone: Any, head: nn.Module, tokens: Tokens) -> Tensor:
    """The image feature [B, E] from the tokens of a timm backbone: its own pooling, then the model's projection."""
    features, network = tokens.features, backbone.backbone
    if not hasattr(network, "num_prefix_tokens"):  # a convolutional network pools its map [B, D, rows, columns]
        features = features.transpose(1, 2).unflatten(2, (math.isqrt(features.shape[1]), -1))  # type: ignore[no-untyped-call]
    feature: Tensor = head(network.forward_head(features))
    return feature


@torch.inference_mode()
def _is_image_network(network: Any, visual: Any, config: dict[str, Any]) -> bool:
    """Whether a timm backbone's tokens give the image-text model's own image features."""
    alike = isinstance(network, TimmMap) and (network.image_size, list(network.mean), list(network.std)) == (
        config["image_size"], config["mean"], config["std"])  # fmt: skip
    if not alike or not hasattr(visual, "head"):
        return False
    where = next(network.parameters()).device
    side = config["image_size"]
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(where)
    try:
        mine = _of_tokens(network, visual.head.to(where), network.eval()(pixels))
        theirs = visual.to(where).eval()(pixels)
    except (RuntimeError, AttributeError, TypeError, ValueError):  # another architecture
        return False
    return mine.shape == theirs.shape and bool((mine - theirs).abs().max() <= TOLERANCE * theirs.abs().max())


def _loaded(name: str, pretrained: str) -> tuple[Any, Any, dict[str, Any]]:
    """The image-text model, its tokenizer, and what the image network is made of. Raises PluresError in one line."""
    import open_clip

    local = ":" in name
    try:
        made = ask_hub(lambda: open_clip.get_model_config(name))
        if made is None:
            raise PluresError(f"prior=text: open_clip has no model '{name}'; see open_clip.list_models()")
        weights = {"pretrained": None if local else pretrained, "require_pretrained": not local}
        clip = ask_hub(lambda: open_clip.create_model(name, **weights))
        tokenizer = ask_hub(lambda: open_clip.get_tokenizer(name))
    except PluresError:
        raise
    except Exception as error:  # open_clip and the hubs behind it raise many kinds
        line = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise PluresError(
            f"prior=text: {name} ({pretrained}) is not on this machine and cannot be loaded ({line}); connect once, or"
            " give prior.pretrained=FILE or prior.model=local-dir:FOLDER"
        ) from error
    shown = open_clip.model.get_model_preprocess_cfg(clip)
    size = shown["size"][0] if isinstance(shown["size"], list | tuple) else shown["size"]
    config = {"image_size": int(size), "mean": list(shown["mean"]), "std": list(shown["std"])}
    config |= {"scale": float(clip.logit_scale.exp()), "embed_dim": made["embed_dim"]}
    config |= {"vision": made["vision_cfg"], "quick_gelu": bool(made.get("quick_gelu", False))}
    return clip.float().eval(), tokenizer, config


def _visual(config: dict[str, Any]) -> Any:
    """An image network without its weights, as open_clip builds it."""
    require("a model with prior=text", "text", ("open_clip",))
    from open_clip.model import _build_vision_tower

    vision = dict(config["vision"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    return _build_vision_tower(config["embed_dim"], vision, config["quick_gelu"]).eval().requires_grad_(False)


@torch.inference_mode()
def _text_feature(clip: Any, tokenizer: Any, sentences: list[str]) -> Tensor:
    """The mean of the sentences' directions, of length 1: [D]."""
    features = F.normalize(clip.encode_text(tokenizer(sentences)).float(), dim=1)
    return F.normalize(features.mean(0), dim=0)
