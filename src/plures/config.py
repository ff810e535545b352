"""The noun Experiment: everything that decides a training run, one value with three spellings.

Python:        Experiment(data="tags.csv", loss="role", lr=1e-3)
YAML:          data: tags.csv            (Experiment.load / .save; a run folder holds its own)
command line:  plures train tags.csv loss=role loss.expected_positives=1.5 lr=1e-3
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from plures.errors import PluresError, clipped, did_you_mean
from plures.files import parse_yaml, read_yaml
from plures.registry import Registry, is_text

RENAMED = {"embedder": "backbone"}  # settings of plures 0.1.0, in the files of its runs
AUTO = "auto"  # the loss that training chooses for the labels and the head
EXACT = "exact"  # the optimizer of the closed-form ridge
EXACT_L2 = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # its strengths, unless others are given


class Part(BaseModel):
    """A part by name, with the options that differ from its defaults. Written `name` or `{name: ..., option: ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    options: dict[str, Any] = {}


def _read_part(value: Any) -> Any:
    if isinstance(value, str):
        return Part(name=value)
    if isinstance(value, dict) and "name" in value and "options" not in value:
        return Part(name=value["name"], options={k: v for k, v in value.items() if k != "name"})
    return value


def _write_part(part: Part) -> Any:
    return {"name": part.name, **part.options} if part.options else part.name


PartField = Annotated[Part, BeforeValidator(_read_part), PlainSerializer(_write_part)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Experiment(BaseModel):
    """One training run.

    recipe: the recipe, or recipe:row, that the values began with. start: a run folder whose weights training starts
      from; it must have the same parts and classes.
    data: path, `format:path` or `scenes`, with the reader's options.
    supervision: what of the training labels is shown: full, single_positive, fraction, as_given, none; options
      seed, bias, fraction.
    split: how rows without a given split are divided: stratified, or `mlspl` (the official MLSPL cut);
      val_share, test_share in (0, 1); a split that the data give is kept.
    backbone, head, loss: by name, see `plures components`; loss auto: chosen for the labels and the head, with the
      reason said (training/auto.py).
    mode: end_to_end; frozen (the backbone is fixed, its features are computed once); frozen_then_end_to_end.
    image_size: side in pixels; None: what the backbone likes. augment: none, flip, crop,
      cutout_randaugment; auto: flip end to end.
    batch_size: images per step, over all processes; accumulate: in how many pieces, one after another, to save
      memory (a loss that looks at a batch as a whole then sees a piece).
    optimizer: any name that timm or torch knows, or `exact` (no steps: a linear head on frozen features and the loss
      least_squares in closed form, for each strength of its option l2); lr: of the backbone; head_lr: times lr, head.
    schedule: constant, step, cosine, onecycle. clip: largest gradient norm. ema: decay of the weights' average.
    precision: as Lightning Fabric names it. select: the metric that picks the best epoch, on the validation split:
      val_map (known labels), val_map_observed (unobserved counted as absent), val_positives (by observed positives
      alone), last; auto: see `runs/data.py`.
    patience: a phase stops after so many epochs in turn that were no better by it. history: keep the mean score of
      every training cell over the epochs, for `plures suggest` (one more pass over the training images per epoch).
    average_precision: the definition used for it. threshold: of the probability, to call a tag.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str | None = None
    start: str | None = None
    data: PartField = Part(name="scenes")
    supervision: PartField = Part(name="as_given")
    split: Literal["stratified", "mlspl"] = "stratified"
    val_share: Share = 0.2
    test_share: Share = 0.2

    backbone: PartField = Part(name="small_conv")
    head: PartField = Part(name="codebook")
    loss: PartField = Part(name="auto")
    mode: Literal["end_to_end", "frozen", "frozen_then_end_to_end"] = "end_to_end"
    image_size: Annotated[int, Field(ge=8, le=8192)] | None = None
    augment: Literal["auto", "none", "flip", "crop", "cutout_randaugment"] = "auto"

    epochs: Annotated[int, Field(ge=1)] = 10
    frozen_epochs: Annotated[int, Field(ge=1)] = 25
    batch_size: Annotated[int, Field(ge=1)] = 16
    drop_last: bool = False
    accumulate: Annotated[int, Field(ge=1)] = 1
    optimizer: PartField = Part(name="adam")
    lr: Annotated[float, Field(gt=0)] = 1e-3
    frozen_lr: Annotated[float, Field(gt=0)] = 1e-3
    head_lr: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: PartField = Part(name="constant")
    clip: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    channels_last: bool = True
    compile: bool = False

    select: Literal["auto", "val_map", "val_map_observed", "val_positives", "last"] = "auto"
    patience: Annotated[int, Field(ge=1)] | None = None
    history: bool = False
    average_precision: Literal["plain", "voc", "voc07", "mlspl", "mlgcn", "asl"] = "plain"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5

    seed: int = 0
    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] | None = None
    tensorboard: bool = False

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise PluresError(_explain(error)) from None

    @model_validator(mode="after")
    def _parts_exist(self) -> Experiment:
        self._check_components()
        return self

    def _check_components(self) -> None:
        from plures.losses import losses
        from plures.models.backbones import backbones
        from plures.models.heads import heads

        for registry, part in ((backbones, self.backbone), (heads, self.head), (losses, self.loss)):
            _refuse_null(part)
            if part.name != AUTO or registry is not losses:
                registry.check(part.name, part.options, named=True)
            elif part.options:
                raise PluresError(f"loss=auto has no options, got {', '.join(part.options)}; name the loss to set them")
        if self.optimizer.name == EXACT:
            _check_exact(self)
        if self.mode == "frozen" and self.augment not in ("auto", "none"):
            raise PluresError(f"mode=frozen uses features computed once: augment={self.augment} has no effect there")

    @property
    def augmentation(self) -> Literal["none", "flip", "crop", "cutout_randaugment"]:
        """`augment` with `auto` resolved."""
        if self.augment == "auto":
            return "none" if self.mode == "frozen" else "flip"
        return self.augment

    # ------------------------------------------------------------------------------------------ the three spellings

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, every field; `Experiment(**e.to_dict()) == e`."""
        return self.model_dump(mode="json")

    def save(self, path: str | Path) -> None:
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """From a YAML file (safe loader: it cannot run code). Raises PluresError on anything unexpected."""
        values = {RENAMED.get(key, key): value for key, value in read_yaml(path).items()}
        return cls(**refuse_imports(values, path))

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._check_components()  # another process of the same program: import what this one named

    def change(self, settings: Iterable[str]) -> Experiment:
        """A copy with command-line settings applied: `lr=1e-3`, `loss=role`, `loss.expected_positives=1.5`."""
        return Experiment(**apply_settings(self.to_dict(), settings))

    def to_settings(self) -> list[str]:
        """The command-line spelling of what differs from the defaults; `change` reads it back to the same values."""
        default, settings = Experiment().to_dict(), []
        for key, value in self.to_dict().items():
            if value == default[key]:
                continue
            options = [o for o in value if o != "name"] if isinstance(value, dict) else []
            plain = [f"{key}={_spell(value['name'] if options else value)}"]
            plain += [f"{key}.{o}={_spell(value[o])}" for o in options]
            if apply_settings({}, plain).get(key) != value:  # text that these would read as something else
                whole = {"name": value} if isinstance(value, str) else value
                plain = [f"{key}={_as_yaml(whole)}"]
            settings += plain
        return settings


def refuse_imports(values: dict[str, Any], where: str | Path) -> dict[str, Any]:
    """The values of a file, which anybody may have written: PluresError if they name code that may not be imported."""
    from plures.data.dataset import formats
    from plures.data.read import OWN_FORMAT
    from plures.losses import losses
    from plures.models.backbones import backbones
    from plures.models.heads import heads

    components: dict[str, Registry[Any]] = {"backbone": backbones, "head": heads, "loss": losses, "data": formats}
    for field, registry in components.items():
        value = values.get(field, "")
        name = value.get("name", "") if isinstance(value, dict) else value
        if field != "data" or OWN_FORMAT.match(str(name)):
            registry.refuse_import(str(name), str(where))
    return values


def apply_settings(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Experiment values changed by `key=value` and `component.option=value`.

    A value whose declared type is text (`data.separator`, `backbone.weights`, a component's name, `start`) is taken as
    written, character for character; any other is read as YAML. Naming a component anew drops the options of the old
    one. Raises PluresError on a key that does not exist.
    """
    values = dict(values)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise PluresError(f"'{setting}' is not a setting; write key=value, for example lr=1e-3")
        field, dot, option = key.strip().partition(".")
        if field not in Experiment.model_fields:
            raise PluresError(f"there is no setting '{field}'{did_you_mean(field, Experiment.model_fields)}")
        kind = Experiment.model_fields[field].annotation
        if not dot:
            literal = is_text(kind) or (kind is Part and not text.lstrip().startswith("{"))
            values[field] = _read_text(text, NoneType in get_args(kind)) if literal else _read_value(text)
            continue
        part = values.get(field, Experiment.model_fields[field].default)
        part = _write_part(part) if isinstance(part, Part) else part
        if kind is not Part:
            raise PluresError(f"'{field}' has no options: write {field}=value")
        part = {"name": part} if isinstance(part, str) else dict(part)
        optional = _text_option(field, str(part.get("name", "")), option)
        values[field] = {**part, option: _read_value(text) if optional is None else _read_text(text, optional)}
    return values


def _text_option(field: str, name: str, option: str) -> bool | None:
    """None unless the option of a component is text; then whether it may be left open, as `null`.

    The format of data is known only when the path is looked at, so there an option is text if it is in any format.
    """
    from plures.data.dataset import formats
    from plures.losses import losses
    from plures.models.backbones import backbones
    from plures.models.heads import heads

    if field == "data":
        found = [entry.text_options[option] for entry in formats if option in entry.text_options]
        return found[0] if found else None
    registries: dict[str, Registry[Any]] = {"backbone": backbones, "head": heads, "loss": losses}
    if field not in registries or name not in registries[field].names():
        return None
    return registries[field][name].text_options.get(option)


def _read_text(text: str, optional: bool) -> str | None:
    return None if optional and text in ("", "null", "~") else text


def _read_value(text: str) -> Any:
    """YAML, but 1e-3 is a number too (YAML 1.1 requires 1.0e-3)."""
    try:
        return float(text) if "e" in text.lower() and not text.isalpha() else parse_yaml(text)
    except ValueError:
        pass
    try:
        return parse_yaml(text)
    except ValueError:
        return text


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else _as_yaml(value)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n...\n").strip()


def _refuse_null(part: Part) -> None:
    """Raise PluresError where a mapping in an option has a key without a value, as YAML reads {pad_type:same}."""
    for option, mapping in part.options.items():
        for key in [key for key, value in mapping.items() if value is None] if isinstance(mapping, dict) else ():
            name, colon, value = str(key).partition(":")
            hint = (
                f"YAML requires a blank after the colon: {{{name}: {value}}}" if colon else f"expected {{{key}: VALUE}}"
            )
            raise PluresError(f"{part.name}, {option}: '{key}' has no value; {hint}")


def _check_exact(e: Experiment) -> None:
    """Raise PluresError unless optimizer=exact can solve this experiment."""
    wrong = {
        f"mode={e.mode}": e.mode != "frozen",
        f"head={e.head.name}": e.head.name != "linear",
        "head.boost": e.head.options.get("boost", 1) != 1,
        f"loss={e.loss.name}": e.loss.name not in (AUTO, "least_squares"),
        "history=true": e.history,
        "ema": e.ema is not None,
    }
    found = [what for what, holds in wrong.items() if holds]
    if found:
        raise PluresError(
            f"optimizer=exact solves least squares of a linear head on frozen features, not {', '.join(found)};"
            " use mode=frozen head=linear loss=least_squares, or another optimizer"
        )
    unknown = e.optimizer.options.keys() - {"l2"}
    l2 = e.optimizer.options.get("l2", list(EXACT_L2))
    if unknown or not isinstance(l2, list) or not l2 or not all(isinstance(x, int | float) and x > 0 for x in l2):
        raise PluresError(
            f"optimizer=exact has one option, l2: a list of strengths above 0 such as [0.3, 1, 3],"
            f" got {e.optimizer.options}"
        )


def _explain(error: ValidationError) -> str:
    """The first validation error in one line: which key, what came, what was expected."""
    first = error.errors()[0]
    key = ".".join(str(place) for place in first["loc"] if place != "Part")
    if first["type"] == "extra_forbidden":
        return f"there is no setting '{key}'{did_you_mean(key, Experiment.model_fields)}"
    return f"{key}={clipped(repr(first['input']))}: {first['msg'].lower()}"
