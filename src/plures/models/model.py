"""Model: a backbone and a head as one module, with its preprocessing inside; saved as safetensors and JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import plures
from plures.data.photos import Transform
from plures.data.taxonomy import Taxonomy
from plures.errors import PluresError
from plures.files import parse_json, read_as, writing
from plures.models.backbones import Backbone, backbones
from plures.models.heads import Head, heads
from plures.models.outputs import Output, Tokens
from plures.models.priors.base import Fused, Given, Prior, priors

WEIGHTS, SPEC = "model.safetensors", "model.json"
CARD = "model_card.md"  # beside them in a run folder; README.md in a repository on a hub
FORMAT = 4  # of model.json: raised whenever an older plures would misread it
WITHOUT_TAXONOMY, WITHOUT_PRIOR = 3, 2  # the formats of a model without one, and without a prior either
OLD = "embedder"  # what format 1 called the backbone, also in the names of its weights
STARTING_POINT = ("weights", "pretrained")  # options that say where weights came from; a saved model brings its own


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's input.

    image_size: side in pixels of the square input; resize: "squash" changes the aspect; interpolation: of the resize.
    mean, std: of the three channels for images in [0, 1]; the model applies them itself.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["squash"] = "squash"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class Parts:
    """Which parts a model was built of: names in the registries and the options that were set; prior "": none."""

    backbone: str
    head: str
    backbone_options: dict[str, Any] = field(default_factory=dict)
    head_options: dict[str, Any] = field(default_factory=dict)
    prior: str = ""
    prior_options: dict[str, Any] = field(default_factory=dict)


class Model(nn.Module):
    """Images -> Output for the named classes. Built by `build_model` or `load`.

    Images are uint8 [B, 3, H, W], or float in [0, 1]; normalisation happens inside. taxonomy: of the classes, which
    counts where tags are called (`Thresholds`); the logits are the head's own.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        classes: tuple[str, ...],
        preprocessing: Preprocessing,
        parts: Parts,
        taxonomy: Taxonomy | None = None,
    ) -> None:
        super().__init__()
        self.taxonomy = taxonomy
        self.backbone, self.head = backbone, head
        self.classes, self.preprocessing, self.parts = tuple(classes), preprocessing, parts
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)
        # convolutions then work in this layout throughout: up to twice as fast on a CPU, six times for patches
        self.to(memory_format=torch.channels_last)

    @property
    def transform(self) -> Transform:
        """How a photograph becomes this model's input: a PIL image -> uint8 [3, H, W]."""
        return Transform(self.preprocessing.image_size, "none", self.preprocessing.interpolation)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 or float in [0, 1] [B, 3, H, W] -> what the backbone takes; features [B, D] stay as they are."""
        if images.ndim == 2:
            return images.to(self.mean.dtype)
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def tokens(self, images: Tensor) -> Tokens:
        """What the backbone says of the images, as for example to keep frozen features; with a prior that has a network
        of its own, that one's features beside."""
        tokens = Tokens.of(self.backbone(self.normalise(images)))
        return self.head.extended(images, tokens, self.backbone) if isinstance(self.head, Fused) else tokens

    def forward(self, images: Tensor, maps: bool = True) -> Output:
        return self.head(self.tokens(images), maps=maps)

    @property
    def parameter_count(self) -> int:
        """How many numbers the model learns or could learn (frozen ones included)."""
        return sum(parameter.numel() for parameter in self.parameters())


def build_model(
    backbone: str,
    head: str,
    classes: tuple[str, ...],
    backbone_options: dict[str, Any] | None = None,
    head_options: dict[str, Any] | None = None,
    image_size: int | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Model:
    """A new model of the named parts; image_size None: the backbone's own."""
    options = dict(backbone_options or {})
    if image_size is not None:
        options["image_size"] = image_size
    parts = Parts(backbone, head, options, dict(head_options or {}))
    made = backbones.make(backbone, **options)
    lacking = [name for name in ("width", "image_size", "mean", "std") if not hasattr(made, name)]
    if lacking:
        raise PluresError(f"backbone '{backbone}' lacks {', '.join(lacking)}; see plures.models.backbones.Backbone")
    preprocessing = Preprocessing(made.image_size, made.mean, made.std, interpolation=interpolation)
    return assemble(made, parts, classes, preprocessing)


def assemble(backbone: Backbone, parts: Parts, classes: tuple[str, ...], preprocessing: Preprocessing) -> Model:
    """Put the head that `parts` names on a backbone."""
    if len(set(classes)) != len(classes) or not classes:
        raise PluresError(f"a model requires one class or more, each named once, got {list(classes)[:20]}")
    given = {"width": backbone.width, "classes": len(classes)}
    head = heads.make(parts.head, given, **parts.head_options)
    if parts.prior:
        stored = {name: value for name, value in parts.prior_options.items() if name not in STARTING_POINT}
        prior = priors.make(parts.prior, {**stored, "classes": tuple(classes), "width": backbone.width})
        head = Fused(cast(nn.Module, head), cast(nn.Module, prior), backbone.width, len(classes))
    return Model(backbone, head, classes, preprocessing, parts)


def make_prior(model: Model, name: str, options: dict[str, Any], *, frozen: bool) -> Prior:
    """A prior for this model, filled. frozen: whether training leaves the backbone as it is. Raises PluresError in one
    line if its model cannot be loaded."""
    prior = priors.make(name, {"classes": model.classes, "width": model.backbone.width}, **options)
    prior.fill(Given(model.backbone, model.parts.backbone_options, frozen))
    return prior


def with_prior(model: Model, name: str, prior: Prior) -> Model:
    """The model with a prior beside its head, whose word counts nothing yet (`weighed`)."""
    parts = replace(model.parts, prior=name, prior_options=prior.options)
    head = Fused(cast(nn.Module, model.head), cast(nn.Module, prior), model.backbone.width, len(model.classes))
    return _with_head(model, head.to(next(model.parameters()).device), parts)


def weighed(model: Model, head: Any, prior: Any, offset: Any = 0.0) -> Model:
    """A model with a prior, with these weights of head and prior, [K] or one for all."""
    assert isinstance(model.head, Fused)
    return _with_head(model, model.head.weighed(head, prior, offset), model.parts)


def without_prior(model: Model) -> Model:
    """The model with its head alone."""
    if not isinstance(model.head, Fused):
        return model
    return _with_head(model, cast(Head, model.head.head), replace(model.parts, prior="", prior_options={}))


def _with_head(model: Model, head: Any, parts: Parts) -> Model:
    return Model(model.backbone, head, model.classes, model.preprocessing, parts, model.taxonomy)


def save(model: Model, folder: str | Path) -> None:
    """Write `model.safetensors` and `model.json`, each atomically."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with writing(folder / WEIGHTS) as new:
        save_file(tensors, new)
    with writing(folder / SPEC) as new:
        new.write_text(json.dumps(described(model), indent=2) + "\n", encoding="utf-8")


def described(model: Model) -> dict[str, Any]:
    """What `model.json` says: everything that the model is but its weights."""
    return {
        "format": FORMAT if model.taxonomy else WITHOUT_TAXONOMY if model.parts.prior else WITHOUT_PRIOR,
        "plures": plures.__version__,
        "classes": list(model.classes),
        "parts": asdict(model.parts),
        "preprocessing": asdict(model.preprocessing),
        **({} if model.taxonomy is None else {"taxonomy": model.taxonomy.to_dict()}),
    }


def load(folder: str | Path, device: str | torch.device = "cpu") -> Model:
    """The model that `save` wrote, in evaluation mode; needs neither network nor the weights it started from."""
    folder = Path(folder)
    parts, classes, preprocessing, taxonomy = _read_spec(folder / SPEC)
    options = {name: value for name, value in parts.backbone_options.items() if name not in STARTING_POINT}
    model = assemble(backbones.make(parts.backbone, **options), parts, classes, preprocessing)
    try:
        state = load_file(folder / WEIGHTS)
        state = {re.sub(rf"^{OLD}\.", "backbone.", name): tensor for name, tensor in state.items()}
    except (OSError, SafetensorError) as error:
        raise PluresError(f"cannot read the weights {folder / WEIGHTS}: {error}") from None
    expected = model.state_dict()
    wrong = sorted(
        name for name in expected.keys() | state.keys()
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    )  # fmt: skip
    if wrong:
        raise PluresError(
            f"{folder / WEIGHTS} does not fit {folder / SPEC}: {len(wrong)} tensors are missing, unexpected or of"
            f" another shape ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}); were the two saved together?"
        )
    model.load_state_dict(state)
    model.taxonomy = taxonomy
    return model.to(device).eval()


def read_taxonomy(folder: str | Path) -> Taxonomy | None:
    """The taxonomy of the model that `save` wrote, None if it has none or there is no model."""
    return _read_spec(Path(folder) / SPEC)[3] if (Path(folder) / SPEC).is_file() else None


def _read_spec(path: Path) -> tuple[Parts, tuple[str, ...], Preprocessing, Taxonomy | None]:
    """What `model.json` says. Raises PluresError if it is missing or not as `save` writes it."""
    try:
        spec = parse_json(path.read_text(encoding="utf-8"))
        if int(spec.get("format", 1)) > FORMAT:
            raise PluresError(
                f"{path}: written by plures {spec.get('plures', '')} in format {spec['format']}, and this is plures"
                f" {plures.__version__}, which reads formats up to {FORMAT}; upgrade with `pip install -U plures`"
            )
        named = {name.replace(OLD, "backbone"): value for name, value in spec["parts"].items()}
        parts, shown = read_as(Parts, named), read_as(Preprocessing, spec["preprocessing"])
        backbones.refuse_import(parts.backbone, str(path))
        heads.refuse_import(parts.head, str(path))
        priors.refuse_import(parts.prior, str(path))
        classes, kept = read_as(tuple[str, ...], spec["classes"]), spec.get("taxonomy")
        taxonomy = None if kept is None else Taxonomy.from_dict(kept)
        if taxonomy is not None and taxonomy.classes != classes:
            raise ValueError("its taxonomy is of other classes")
        return parts, classes, shown, taxonomy
    except OSError as error:
        raise PluresError(f"no model in {path.parent}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PluresError(f"{path} is not a model description ({type(error).__name__}: {error})") from None
