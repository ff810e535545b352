"""The noun Experiment: everything that decides a training run, one value with three spellings.

Python:        Experiment(data="tags.csv", loss="role", lr=1e-3)
YAML:          data: tags.csv            (Experiment.load / .save; a run folder holds its own)
command line:  plures train tags.csv loss=role loss.expected_positives=1.5 lr=1e-3
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from plures.data.taxonomy import is_classes_file
from plures.errors import PluresError, clipped, did_you_mean
from plures.files import parse_yaml, read_yaml
from plures.recipes import load_recipe, recipe_of
from plures.registry import Registry, check_values, fits, is_text, kinds_of

STAGES = (("auto",), ("ridge",), ("probe",), ("finetune",), ("ridge", "finetune"), ("probe", "finetune"))
OF_A_STAGE = (
    *("epochs", "batch_size", "drop_last", "accumulate", "patience", "optimizer", "lr", "head_lr", "weight_decay"),
    *("schedule", "clip", "ema"),
)  # the settings that a stage of steps may have of its own
NOW = {  # settings of plures 0.1.0, which its files may still have: what to write today
    "embedder": "backbone=NAME",
    "mode": "stages=ridge, stages=probe, stages=finetune or stages=probe,finetune",
    "frozen_epochs": "stages.probe.epochs=N",
    "frozen_lr": "stages.probe.lr=X",
}
AUTO = "auto"  # what training chooses for the data (training/auto.py)
CHOSEN = "chosen"  # thresholds that training chooses at its end
BACKBONE = "timm"  # the backbone whose options backbone=auto takes
AUTO_HEADS = ("linear", "codebook")  # the heads that head=auto may become
DEVICE = re.compile(r"(auto|cpu|mps|cuda)(:\d+)?$")
schedules: Registry[Any] = Registry("schedule", "plures.training.schedules")  # of learning rates
SCORES = "file"  # the prior that a table of scores is
TAGS = 1.5  # per image, expected where no tag is known and nobody says otherwise
CUT = 0.5  # the probability from which a tag is called where nobody chose another one
RIDGE_L2 = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # strengths of the closed-form ridge, unless others are given


class Component(BaseModel):
    """A component by name, with options that differ from its defaults. Written `name` or `{name: ..., option: ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    options: dict[str, Any] = {}


def _read_component(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return Component(name=os.fspath(value))
    if isinstance(value, dict) and "name" in value and "options" not in value:
        return Component(name=value["name"], options={k: v for k, v in value.items() if k != "name"})
    return value


def _read_prior(value: Any) -> Any:
    """A file of scores is written as its path alone."""
    from plures.models.priors.file import is_scores

    component = _read_component(value)
    if isinstance(component, Component) and is_scores(component.name) and not component.options:
        return Component(name=SCORES, options={"path": component.name})
    return component


def _read_names(value: Any) -> Any:
    """Names, or the path of a file that says them."""
    if not isinstance(value, str) or is_classes_file(value):
        return value
    return [name.strip() for name in value.split(",")]


def _write_component(component: Component) -> Any:
    return {"name": component.name, **component.options} if component.options else component.name


def _read_backbone(value: Any) -> Any:
    """A preset or a name of timm is the backbone `timm` with this model, so that a run names the model itself."""
    component = _read_component(value)
    if not isinstance(component, Component) or component.name == AUTO or ":" in component.name:
        return component
    from plures.models.backbones import backbones
    from plures.models.backbones.presets import PRESETS, timm_options

    if component.name in backbones.names():
        return component
    options = timm_options(component.name, component.options)
    if options is None:
        hint = did_you_mean(component.name, [*PRESETS, *backbones.names(), AUTO])
        raise PluresError(
            f"unknown backbone '{component.name}'{hint}; any name of timm.list_models() is one too, and your own is"
            " module:attribute, as in my_package.mine:Mine"
        )
    return Component(name=BACKBONE, options=options)


def _read_stages(value: Any) -> Any:
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return value if isinstance(value, list | tuple) else [value]


def _write_stages(stages: tuple[Component, ...]) -> Any:
    return AUTO if stages == (Component(name=AUTO),) else [_write_component(stage) for stage in stages]


ComponentField = Annotated[Component, BeforeValidator(_read_component), PlainSerializer(_write_component)]
BackboneField = Annotated[Component, BeforeValidator(_read_backbone), PlainSerializer(_write_component)]
StagesField = Annotated[tuple[ComponentField, ...], BeforeValidator(_read_stages), PlainSerializer(_write_stages)]
PriorField = Annotated[Component, BeforeValidator(_read_prior), PlainSerializer(_write_component)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Experiment(BaseModel):
    """One training run.

    recipe: the recipe, or recipe:row, that the values begin with; what is given beside it counts. start: a run folder
      whose weights training starts from; it must have the same components and classes.
    teacher: a run folder whose model is asked about the training images: unknown tags that it is sure of are taken as
      present (training/self_training.py). rounds: 2: the run is its own teacher, by models of its kind, each asked
      about training images that it was not trained on. teacher_threshold: the probability from which a tag is taken;
      None: chosen from observed positives, those of the validation images or, with rounds=2, of the training images.
    data: path, `format:path` or `scenes`, with the reader's options.
    classes: names of classes that the data do not name, beside those that they do: unknown for every image; or a file
      that says them, and which class is above which (docs/hierarchies.md): classes.yaml, or a .csv of child,parent.
    supervision: what of the training labels is shown: full, single_positive, fraction, as_given, none; options
      seed, bias, fraction.
    split: how rows without a given split are divided: stratified, or `mlspl` (the official MLSPL cut);
      val_share, test_share in (0, 1); a split that the data give is kept. group_near_copies: a photograph that is
      another one but for its size or encoding goes into the same split, where plures divides (never with mlspl).
    backbone, head, loss: components by name, see `plures components`; auto: chosen for the data, with the reason said
      (training/auto.py). backbone: one of plures, or fast, balanced or best (models/backbones/presets.py), or any name
      of timm, pretrained. backbone auto: pretrained features for photographs, small_conv for small pictures; it takes
      the options of timm, such as backbone.weights=FILE. The run's experiment.yaml holds what was chosen.
    stages: what is trained, one after another, each from the best weights of the one before. ridge: a linear head on
      the features of the frozen backbone, in closed form, for each strength of its option l2; probe: a head on those
      features, in steps; finetune: everything, backbone included. Written ridge, or probe,finetune, or as a list of
      {name: probe, epochs: 25}. probe and finetune take epochs, batch_size, drop_last, accumulate, patience,
      optimizer, lr, head_lr, weight_decay, schedule, clip and ema as options, else the values below. auto: ridge
      where backbone and head are left to plures and photographs are given, probe for other pretrained backbones,
      else finetune.
    prior: what is known without tags, joined with the model at the end of training, as far as the validation images
      prefer it (training/fusing.py): none; a table of scores by image and class (.csv, .parquet, .npz); imagenet (the
      classifier of a pretrained backbone, classes matched by name); text (an image-text model). expected_tags: per
      image, where no tag at all is known and thresholds can rest on nothing else; None: 1.5.
    image_size: side in pixels; None: what the backbone likes. augment: none, flip, crop,
      cutout_randaugment; auto: flip in finetune.
    batch_size: images per step, over all processes; accumulate: in how many pieces, one after another, to save
      memory (a loss that looks at a batch as a whole then sees a piece).
    optimizer: any name that timm or torch knows. lr: of the backbone; head_lr: times lr for the head.
    schedule: constant, step, cosine, onecycle. clip: largest gradient norm. ema: decay of the weights' average.
    precision: as Lightning Fabric names it. select: the metric that picks the best epoch, on the validation split:
      val_map (known labels), val_map_observed (unobserved counted as absent), val_positives (by observed positives
      alone), last; auto: see `runs/data.py`.
    patience: a stage stops after so many epochs in turn that were no better by it. history: keep the mean score of
      every training cell over the epochs, for `plures suggest` (one more pass over the training images per epoch).
    log: where the numbers of each epoch go beside log.jsonl: tensorboard, wandb, mlflow.
    engine: what computes frozen features; auto: ONNX Runtime on a CPU where it is installed (`plures[export]`), the
      network has batch norms and there are 1,000 images or more; else torch. They agree within 1e-4 of the largest
      feature (scoring/engines.py).
    average_precision: the definition used for it. threshold: of the probability, to call a tag; chosen: for each class
      on the validation images at the end, from known labels or from observed positives; auto: chosen for the head that
      is the default for photographs, else 0.5.

    Example:
        >>> Experiment(data="tags.csv", recipe="quick", seed=1).loss.name
        'least_squares'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: str | None = None
    start: str | None = None
    teacher: str | None = None
    rounds: Annotated[int, Field(ge=1, le=2)] = 1
    teacher_threshold: Share | None = None
    data: ComponentField = Component(name="scenes")
    classes: Annotated[tuple[str, ...] | str | None, BeforeValidator(_read_names)] = None
    supervision: ComponentField = Component(name="as_given")
    split: Literal["stratified", "mlspl"] = "stratified"
    val_share: Share = 0.2
    test_share: Share = 0.2
    group_near_copies: bool = True

    backbone: BackboneField = Component(name="auto")
    head: ComponentField = Component(name="auto")
    loss: ComponentField = Component(name="auto")
    stages: StagesField = (Component(name="auto"),)
    prior: PriorField = Component(name="none")
    expected_tags: Annotated[float, Field(gt=0)] | None = None
    image_size: Annotated[int, Field(ge=8, le=8192)] | None = None
    augment: Literal["auto", "none", "flip", "crop", "cutout_randaugment"] = "auto"

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 16
    drop_last: bool = False
    accumulate: Annotated[int, Field(ge=1)] = 1
    optimizer: ComponentField = Component(name="adam")
    lr: Annotated[float, Field(gt=0)] = 1e-3
    head_lr: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: ComponentField = Component(name="constant")
    clip: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    channels_last: bool = True
    compile: bool = False

    select: Literal["auto", "val_map", "val_map_observed", "val_positives", "last"] = "auto"
    patience: Annotated[int, Field(ge=1)] | None = None
    history: bool = False
    average_precision: Literal["plain", "voc", "voc07", "mlspl", "mlgcn", "asl"] = "plain"
    threshold: Share | Literal["auto", "chosen"] = "auto"

    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    workers: Annotated[int, Field(ge=0)] | None = None
    log: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"

    def __init__(self, /, **values: Any) -> None:
        values = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in values.items()}
        try:
            super().__init__(**_with_recipe(values))
        except ValidationError as error:
            raise PluresError(_explain(error)) from None

    @model_validator(mode="after")
    def _components_exist(self) -> Experiment:
        self._check_components()
        return self

    def _check_components(self) -> None:
        from plures.data.masking import check as check_supervision
        from plures.losses import losses
        from plures.models.backbones import backbones
        from plures.models.heads import heads
        from plures.models.priors import check_prior

        for registry, component in ((backbones, self.backbone), (heads, self.head), (losses, self.loss)):
            _refuse_null(component)
            if component.name != AUTO:
                registry.check(component.name, component.options, named=True)
                if registry is losses:
                    losses.make(component.name, **component.options)  # cheap, and it knows which values make sense
            elif component.options and registry is losses:
                raise PluresError(
                    f"loss=auto has no options, got {', '.join(component.options)}; name the loss to set them"
                )
            elif registry is backbones:
                registry.check(BACKBONE, component.options)
            elif not any(component.options.keys() <= heads[name].options.keys() for name in AUTO_HEADS):
                raise PluresError(
                    f"head=auto has no option {', '.join(component.options)}; name the head, as in head=linear"
                )
        for component in (self.data, self.supervision, self.schedule, self.optimizer, self.prior):
            _refuse_null(component)
        check_prior(self.prior.name, self.prior.options)
        if isinstance(self.classes, tuple) and (not all(self.classes) or len(set(self.classes)) < len(self.classes)):
            raise PluresError(f"classes={','.join(self.classes)}: expected distinct names, as in classes=cat,sofa")
        _check_data(self.data)
        check_supervision(self.supervision.name, self.supervision.options)
        schedules.make(self.schedule.name, **self.schedule.options)
        if DEVICE.match(self.device) is None:
            raise PluresError(f"device '{self.device}' is unknown; use auto, cpu, cuda, cuda:1 or mps")
        _check_optimizer(self.optimizer)
        _check_stages(self)
        if self.teacher_threshold is not None and self.teacher is None and self.rounds == 1:
            raise PluresError("teacher_threshold has no effect without a teacher; set teacher=RUN or rounds=2")
        if self.teacher is not None and self.rounds > 1:
            raise PluresError(f"teacher={self.teacher} and rounds={self.rounds}: a run has one teacher; leave one out")
        if self.frozen and self.augment not in ("auto", "none"):
            raise PluresError(
                f"stages={self.stage_names} uses features computed once: augment={self.augment} has no effect there;"
                " add the stage finetune, or leave augment out"
            )

    @property
    def cut(self) -> float:
        """The probability from which a tag is called where no thresholds were chosen."""
        return CUT if isinstance(self.threshold, str) else self.threshold

    @property
    def stage_names(self) -> str:
        """The stages as the command line spells them, without their options."""
        return ",".join(stage.name for stage in self.stages)

    @property
    def frozen(self) -> bool:
        """Whether the backbone stays as it is: no stage trains it."""
        return not {AUTO, "finetune"} & {stage.name for stage in self.stages}

    @property
    def ridge(self) -> bool:
        """Whether the closed-form ridge is all that is trained."""
        return self.stage_names == "ridge"

    def of(self, stage: Component) -> Experiment:
        """This experiment for one of its stages alone, with the stage's own settings in place of the common ones."""
        own = Experiment(**_step_settings(stage))
        update = {key: getattr(own, key) for key in _step_settings(stage)}
        return self.model_copy(update={**update, "stages": (stage,)})

    @property
    def runs_before(self) -> list[str]:
        """The run folders that this run learns from, so that what they were trained on is not judged."""
        return list(dict.fromkeys(run for run in (self.start, self.teacher) if run is not None))

    @property
    def augmentation(self) -> Literal["none", "flip", "crop", "cutout_randaugment"]:
        """`augment` with `auto` resolved."""
        if self.augment == "auto":
            return "none" if self.frozen else "flip"
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
        return cls(**_values_of(read_yaml(path), path))

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._check_components()  # another process of the same program: import what this one named

    def change(self, settings: Iterable[str]) -> Experiment:
        """A copy with command-line settings applied: `lr=1e-3`, `loss=role`, `loss.expected_positives=1.5`."""
        return Experiment(**apply_settings(self.model_dump(mode="json", exclude_unset=True), settings))

    def to_settings(self) -> list[str]:
        """The command-line spelling of what differs from the defaults; `change` reads it back to the same values."""
        default, settings = (Experiment() if self.recipe is None else Experiment(recipe=self.recipe)).to_dict(), []
        default |= {"recipe": None}
        for key, value in self.to_dict().items():
            if value == default[key]:
                continue
            if key == "stages":
                settings += _spell_stages(self.stages)
                continue
            options = [o for o in value if o != "name"] if isinstance(value, dict) else []
            plain = [f"{key}={_spell(value['name'] if options else value)}"]
            plain += [f"{key}.{o}={_spell(value[o])}" for o in options]
            if apply_settings({}, plain).get(key) != value:  # text that these would read as something else
                whole = {"name": value} if isinstance(value, str) else value
                plain = [f"{key}={_as_yaml(whole)}"]
            settings += plain
        return settings


def recipe_settings(spec: str) -> dict[str, Any]:
    """Experiment values of `name`, `name:row`, or a YAML file (a recipe, or the experiment.yaml of a run)."""
    if spec.endswith((".yaml", ".yml")):
        values = read_yaml(spec)
        if "experiment" in values:
            return _values_of(recipe_of(Path(spec).stem, values).settings(), spec)
        return Experiment.load(spec).to_dict()
    name, _, row = spec.partition(":")
    return {**load_recipe(name).settings(row or None), "recipe": spec}


WRITTEN = frozenset(("data", "supervision", "backbone", "head", "loss", "split", "seed", "device", "workers"))


def _with_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """The values on top of those of the recipe that they name, as `--recipe` puts them. What `to_dict` wrote (it has
    all of WRITTEN) holds its recipe's values already, and maybe of a recipe that is no more."""
    spec = values.get("recipe")
    if not isinstance(spec, str) or values.keys() >= WRITTEN:
        return values
    base, own = recipe_settings(spec), {key: value for key, value in values.items() if key != "recipe"}
    old, new = base.get("data"), own.get("data")
    if isinstance(old, dict) and isinstance(new, str | dict):
        own["data"] = {**old, **({"name": new} if isinstance(new, str) else new)}
    return {**base, **own}


def _values_of(values: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The values of a file by their names of today."""
    return refuse_imports(_of_today(values), path)


def _of_today(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a file of plures 0.1.0 by their names of today."""
    values = dict(values)
    if "embedder" in values:
        values["backbone"] = values.pop("embedder")
    if values.pop("tensorboard", False):
        values["log"] = "tensorboard"
    epochs, lr = values.pop("frozen_epochs", 25), values.pop("frozen_lr", 1e-3)
    mode, optimizer = values.pop("mode", None), values.get("optimizer")
    name, options = (optimizer["name"], optimizer) if isinstance(optimizer, dict) else (optimizer, {})
    if name == "exact":
        del values["optimizer"]
        values["stages"] = [{**options, "name": "ridge"}]
    elif name == AUTO:
        del values["optimizer"]
    if mode is not None and "stages" not in values:
        probe = {"name": "probe", "epochs": epochs, "lr": lr}
        one = {"frozen": "probe", "end_to_end": "finetune"}
        values["stages"] = [probe, "finetune"] if mode == "frozen_then_end_to_end" else one.get(mode, mode)
    return values


def refuse_imports(values: dict[str, Any], where: str | Path) -> dict[str, Any]:
    """The values of a file, which anybody may have written: PluresError if they name code that may not be imported."""
    from plures.data.dataset import formats
    from plures.data.read import OWN_FORMAT
    from plures.losses import losses
    from plures.models.backbones import backbones
    from plures.models.heads import heads
    from plures.models.priors import priors

    components: dict[str, Registry[Any]] = {"backbone": backbones, "head": heads, "loss": losses, "data": formats}
    components["prior"] = priors
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
    values, settings = dict(values), list(settings)
    for setting in settings:
        if setting.startswith("recipe=") and values.keys() >= WRITTEN and setting != "recipe=null":
            values |= {key: value for key, value in recipe_settings(setting[7:]).items() if key != "data"}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise PluresError(f"'{setting}' is not a setting; write key=value, for example lr=1e-3")
        field, dot, option = key.strip().partition(".")
        if field in NOW:
            raise PluresError(f"the setting '{field}' of plures 0.1.0 is written {NOW[field]} today")
        if field not in Experiment.model_fields:
            raise PluresError(f"there is no setting '{field}'{did_you_mean(field, Experiment.model_fields)}")
        kind = Experiment.model_fields[field].annotation
        if dot and field == "stages":
            values[field] = _with_stage_setting(values.get(field, AUTO), option, text)
            continue
        if not dot:
            literal = is_text(kind) or (kind is Component and not text.lstrip().startswith("{"))
            values[field] = _read_text(text, NoneType in get_args(kind)) if literal else _read_value(text)
            continue
        component = values.get(field, Experiment.model_fields[field].default)
        component = _write_component(component) if isinstance(component, Component) else component
        if kind is not Component:
            raise PluresError(f"'{field}' has no options: write {field}=value")
        component = {"name": component} if isinstance(component, str) else dict(component)
        optional = _text_option(field, str(component.get("name", "")), option)
        values[field] = {**component, option: _read_value(text) if optional is None else _read_text(text, optional)}
    return values


def _with_stage_setting(stages: Any, option: str, text: str) -> list[Any]:
    """The stages with `NAME.option=text` set."""
    name, _, key = option.partition(".")
    components = [_read_component(stage) for stage in _read_stages(stages)]
    names = [component.name if isinstance(component, Component) else str(component) for component in components]
    if not key:
        raise PluresError(f"stages.{option}={text} names no setting of a stage; write stages.probe.epochs=25")
    if name not in names:
        raise PluresError(f"stages.{option}={text}: the stages are {','.join(names)}; name it too, as in stages={name}")
    old = components[names.index(name)].options
    new = apply_settings(old, [f"{key}={text}"]) if key.partition(".")[0] in OF_A_STAGE else {key: _read_value(text)}
    components[names.index(name)] = Component(name=name, options={**old, **new})
    return [_write_component(component) for component in components]


def _spell_stages(stages: tuple[Component, ...]) -> list[str]:
    """`stages=probe,finetune` and `stages.probe.epochs=25`."""
    plain = [f"stages={','.join(stage.name for stage in stages)}"]
    return plain + [f"stages.{s.name}.{key}={_spell(value)}" for s in stages for key, value in s.options.items()]


def _text_option(field: str, name: str, option: str) -> bool | None:
    """None unless the option of a component is text; then whether it may be left open, as `null`.

    The format of data is known only when the path is looked at, so there an option is text if it is in any format.
    """
    from plures.data.dataset import formats
    from plures.losses import losses
    from plures.models.backbones import backbones
    from plures.models.heads import heads
    from plures.models.priors import priors

    if field == "data":
        found = [entry.text_options[option] for entry in formats if option in entry.text_options]
        return found[0] if found else None
    registries: dict[str, Registry[Any]] = {"backbone": backbones, "head": heads, "loss": losses, "prior": priors}
    names = {"backbone": (BACKBONE,), "head": AUTO_HEADS}.get(field, ()) if name == AUTO else (name,)
    if field == "backbone" and ":" not in name and name not in backbones.names():
        names = (BACKBONE,)
    known = [registries[field][one] for one in names if field in registries and one in registries[field].names()]
    return next((entry.text_options[option] for entry in known if option in entry.text_options), None)


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


def _refuse_null(component: Component) -> None:
    """Raise PluresError where a mapping in an option has a key without a value, as YAML reads {pad_type:same}."""
    for option, mapping in component.options.items():
        for key in [key for key, value in mapping.items() if value is None] if isinstance(mapping, dict) else ():
            name, colon, value = str(key).partition(":")
            hint = (
                f"YAML requires a blank after the colon: {{{name}: {value}}}" if colon else f"expected {{{key}: VALUE}}"
            )
            raise PluresError(f"{component.name}, {option}: '{key}' has no value; {hint}")


def _check_data(component: Component) -> None:
    """Raise PluresError if the format that the data name, or any format, does not take one of the options.

    Where the data themselves lie is asked when they are read: a run may be looked at elsewhere.
    """
    from plures.data.dataset import formats

    if component.name.partition(":")[0] in formats.names():
        formats.make(component.name.partition(":")[0], **component.options)
        return
    known = sorted({option for entry in formats for option in entry.options})
    for option in component.options:
        if option not in known and ":" not in component.name:  # a format of one's own has its own options
            raise PluresError(f"no data format has an option '{option}'{did_you_mean(option, known)}")
        takers = [entry for entry in formats if option in entry.kinds]
        if takers and not any(fits(entry.kinds[option], component.options[option]) for entry in takers):
            check_values("data", takers[0].kinds, {option: component.options[option]})


def _check_optimizer(component: Component) -> None:
    """Raise PluresError if neither timm nor torch knows the optimizer, or it does not take one of the options."""
    from timm.optim import get_optimizer_class, list_optimizers  # type: ignore[attr-defined]

    names, name = [str(name) for name in list_optimizers()], component.name
    if name == "exact":
        raise PluresError("optimizer=exact of plures 0.1.0 is written stages=ridge today")
    if name not in names:
        raise PluresError(f"unknown optimizer '{name}'{did_you_mean(name, names)}")
    make = get_optimizer_class(name, bind_defaults=False)
    parameters = inspect.signature(make).parameters
    own = {"params", "lr", "weight_decay", "kwargs"}  # settings of their own
    allowed = [p for p in parameters if p not in own]
    for option in component.options:
        if option in ("lr", "weight_decay"):
            raise PluresError(f"optimizer.{option} is a setting of its own: write {option}={component.options[option]}")
        if option not in allowed and "kwargs" not in parameters:
            raise PluresError(f"optimizer '{name}' has no option '{option}'{did_you_mean(option, allowed)}")
    check_values(f"optimizer '{name}'", kinds_of(make), component.options)


def _step_settings(stage: Component) -> dict[str, Any]:
    """The settings that a stage has of its own, all but the strengths of a ridge."""
    return {key: value for key, value in stage.options.items() if key != "l2"}


def _check_stages(e: Experiment) -> None:
    """Raise PluresError unless each stage is known, has settings that it can take, and follows those before it."""
    names, known = [stage.name for stage in e.stages], ("ridge", "probe", "finetune", AUTO)
    for stage in e.stages:
        name, options = stage.name, stage.options
        if name not in known:
            raise PluresError(f"stages={e.stage_names}: unknown stage '{name}'{did_you_mean(name, known)}")
        allowed = {"ridge": ("l2",), AUTO: ()}.get(name, OF_A_STAGE)
        for option in options:
            if option not in allowed:
                hint = did_you_mean(option, allowed) if allowed else "; name the stages to set their options"
                raise PluresError(f"stage '{name}' has no option '{option}'{hint}")
        try:
            if own := _step_settings(stage):
                Experiment(**own)
        except PluresError as error:
            raise PluresError(f"stages.{name}: {error}") from None
    if tuple(names) not in STAGES:
        raise PluresError(
            f"stages={e.stage_names} is no course of training; choose from"
            f" {', '.join(','.join(course) for course in STAGES)}"
        )
    if "ridge" in names:
        _check_ridge(e)


def _check_ridge(e: Experiment) -> None:
    """Raise PluresError unless the closed-form ridge can solve this experiment."""
    wrong = {
        f"head={e.head.name}": e.head.name not in (AUTO, "linear"),
        "head.boost": e.head.options.get("boost", 1) != 1,
        f"loss={e.loss.name}": e.ridge and e.loss.name not in (AUTO, "least_squares"),
        "history=true": e.ridge and e.history,
        "ema": e.ridge and e.ema is not None,
    }
    found = [what for what, holds in wrong.items() if holds]
    if found:
        raise PluresError(
            f"stages=ridge solves least squares of a linear head on frozen features, not {', '.join(found)};"
            " use head=linear loss=least_squares, or stages=probe"
        )
    l2 = next(stage for stage in e.stages if stage.name == "ridge").options.get("l2", list(RIDGE_L2))
    if not isinstance(l2, list) or not l2 or not all(isinstance(x, int | float) and x > 0 for x in l2):
        raise PluresError(f"stages.ridge.l2 is a list of strengths above 0 such as [0.3, 1, 3], got {l2!r}")


def _explain(error: ValidationError) -> str:
    """The first validation error in one line: which key, what came, what was expected."""
    first = error.errors()[0]
    key = ".".join(str(place) for place in first["loc"] if place != "Component")
    if key in NOW:
        return f"the setting '{key}' of plures 0.1.0 is written {NOW[key]} today"
    if key.startswith("stages"):
        got = clipped(repr(first["input"]))
        return f"stages: expected names such as probe,finetune or {{name: probe, epochs: 25}}, got {got}"
    if first["type"] == "extra_forbidden":
        return f"there is no setting '{key}'{did_you_mean(key, Experiment.model_fields)}"
    return f"{key}={clipped(repr(first['input']))}: {first['msg'].lower()}"
