"""What training chooses where the settings say `auto`: backbone, head and stages for the pictures, the loss
for the labels; each with its reason in words.

The choice rests on the tables of docs/choosing.md: one positive per image, three data sets, chosen on validation rows;
features of a pretrained backbone against a small network from scratch: docs/your-own-photos.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from plures.config import AUTO, BACKBONE, CHOSEN, CUT, Component, Experiment
from plures.data.dataset import Dataset
from plures.data.photos import Unreadable, is_address, open_header
from plures.errors import PluresError
from plures.labels import Labels
from plures.losses import Loss, losses
from plures.losses.context import FROM_TRAINING
from plures.models.backbones.presets import FAST
from plures.models.heads import heads
from plures.runs.run import Run

SMALL = 64  # pixels: up to this side pictures are no photographs, and features of photographs do not suit them
LOOKED_AT = 100  # pictures whose size is looked at
FROM_SCRATCH = Component(name="small_conv")
STEPS: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 3e-4,
    "weight_decay": 10.0,
}  # for standardised features
FINETUNE: dict[str, Any] = {"lr": 1e-5}  # of a whole pretrained model, as in the recipe cole2021
OF_STEPS = ("epochs", "batch_size", "accumulate", "drop_last", "lr", "head_lr", "weight_decay", "schedule", "clip")


def choose_model(experiment: Experiment, pictures: Callable[[], Dataset]) -> tuple[Experiment, str]:
    """The experiment with backbone, head, stages and threshold settled, and the reason in a line ("" where
    nothing was left to choose). pictures: the images at hand, called only where the choice depends on them.

    Raises PluresError if a setting does not go with what was chosen.
    """
    e, why = _from_start(experiment), ""
    backbone = e.backbone
    if backbone.name == AUTO:
        why = "photographs" if backbone.options else _kind(e, pictures())
        backbone = _pretrained(backbone.options) if why == "photographs" else FROM_SCRATCH
    given = backbone.name == "features"
    pretrained = given or bool(backbone.options.get("pretrained") or backbone.options.get("weights"))
    stages = e.stages
    if stages[0].name == AUTO:
        steps_wanted = e.loss.name not in (AUTO, "least_squares") or e.history or e.ema is not None
        ridge = e.head.name == AUTO and not steps_wanted and "optimizer" not in e.model_fields_set
        stages = (Component(name=("ridge" if ridge else "probe") if pretrained else "finetune"),)
    ours = pretrained and e.head.name == AUTO and stages[0].name != "finetune"  # a head of plures's, on its features
    solved = stages[0].name == "ridge"
    values: dict[str, Any] = {"backbone": backbone, "stages": stages}
    if e.head.name == AUTO:
        head = Component(name="linear" if ours or solved else "codebook", options=e.head.options)
        if head.name == "linear":
            standard = {"standardise": True, "normalise": True} if solved else {"standardise": True}
            head = Component(name="linear", options={**standard, **head.options})
        values["head"] = head
    if ours and stages[0].name == "probe" and len(stages) > 1:
        suits = {key: value for key, value in STEPS.items() if key not in e.model_fields_set}
        values["stages"] = (Component(name="probe", options={**suits, **stages[0].options}), *stages[1:])
    if ours:
        suits = {"probe": STEPS, "finetune": FINETUNE}.get(stages[-1].name, {})
        values |= {key: value for key, value in suits.items() if key not in e.model_fields_set}
    if solved and len(stages) == 1 and e.loss.name == AUTO:
        values["loss"] = Component(name="least_squares")
    if e.threshold == AUTO:
        values["threshold"] = CHOSEN if ours else CUT
    settled = Experiment(**{**e.model_dump(mode="json", include=e.model_fields_set), **values})
    return settled, _reason(why, experiment, settled, solved, ours)


def _from_start(e: Experiment) -> Experiment:
    """With the backbone, head and image size of the run that training starts from, unless they are named."""
    if e.start is None or e.backbone.name != AUTO or e.backbone.options:
        return e
    before = Run(e.start).experiment
    values: dict[str, Any] = {"backbone": before.backbone, "image_size": e.image_size or before.image_size}
    if e.head == Component(name=AUTO):
        values["head"] = before.head
    return e.model_copy(update=values)


def _kind(e: Experiment, dataset: Dataset) -> str:
    """What the pictures are: scenes, photographs, or small by the median over some of them of their longer side."""
    if e.data.name.partition(":")[0] == "scenes":
        return "scenes"
    sides: list[int] = []
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), LOOKED_AT)).astype(int)
    if isinstance(dataset.images, np.ndarray):
        rows, sides = rows[:0], [max(dataset.images.shape[1:3])]
    for path in (dataset.images[row] for row in rows):
        if not is_address(str(path)):
            try:
                with open_header(path) as image:
                    sides.append(max(image.size))
            except Unreadable:
                continue
    side = float(np.median(sides)) if sides else 0.0  # nobody can tell without fetching them
    return f"pictures of {side:.0f} pixels" if 0 < side <= SMALL else "photographs"


def _pretrained(options: dict[str, Any]) -> Component:
    """timm's backbone with these options. A file of weights that is called after a model of timm is taken for it."""
    from timm import is_model

    file = Path(str(options.get("weights") or "")).name.partition(".")[0]
    model = file if file and is_model(file) else FAST
    return Component(name=BACKBONE, options={"model": model, **({} if file else {"pretrained": True}), **options})


def _reason(why: str, asked: Experiment, e: Experiment, solved: bool, ours: bool) -> str:
    """The choice in a line, with the way to another one."""
    name = e.backbone.options.get("model", e.backbone.name)
    if not ours:
        pretrained = "; for features of photographs use backbone=timm backbone.pretrained=true"
        if e.backbone == FROM_SCRATCH and why:
            return f"{why}: {name} trained from scratch{pretrained}"
        return f"{why}: {name} and a {e.head.name} head, stages={e.stage_names}" if why else ""
    what = "a closed-form head" if solved else f"a linear head trained by {e.of(e.stages[0]).optimizer.name}"
    if e.backbone.name == "features":
        return f"features that came with the data: {what}"
    other = "train from scratch with backbone=small_conv" if why else "train all of it with stages=finetune"
    line = f"{why or 'a pretrained backbone'}: frozen features of {name} and {what}"
    if not e.frozen:
        line += ", then all of it fine-tuned"
    if e.ridge and (idle := [key for key in OF_STEPS if key in asked.model_fields_set]):
        line += f", which takes no steps: {', '.join(idle)} without effect"
    return f"{line}; {other}"


def choose_loss(labels: Labels, experiment: Experiment) -> tuple[Component, str]:
    """The loss for these observed training labels [N, K] in this experiment, and the reason in words."""
    if experiment.ridge:
        return Component(name="least_squares"), "it is what stages=ridge solves"
    if labels.complete:
        return Component(name="bce"), "every training label is known"
    absent = bool(labels.absent.any())
    what = "some labels are unknown" if absent else "nothing is known to be absent"
    if experiment.head.name == "codebook" and experiment.stage_names == "finetune":
        return Component(
            name="gr"
        ), f"{what}; GR ranked best on the built-in scenes and called nearly as many tags as there are"
    return Component(name="wan"), f"{what}; WAN was best or close to it on all data measured"


def make_loss(experiment: Experiment, labels: Labels, head: nn.Module) -> Loss:
    """The experiment's loss, made ready for these training labels.

    Raises PluresError if the head does not give what the loss needs (naming the heads that do), or if the labels are
    not what the loss assumes.
    """
    part = experiment.loss
    if part.name == AUTO:
        part, _ = choose_loss(labels, experiment)
    loss = losses.make(part.name, **part.options)
    missing = set(loss.needs) - FROM_TRAINING - set(getattr(head, "gives", ()))
    if missing:
        able = [entry.name for entry in heads if missing <= set(getattr(entry.make, "gives", ()))]
        raise PluresError(
            f"loss '{part.name}' needs {' and '.join(sorted(missing))}, which head"
            f" '{experiment.head.name}' does not give; heads that do: {', '.join(able) or 'none'}"
        )
    if "views" in loss.needs and experiment.augmentation == "cutout_randaugment":
        raise PluresError(
            f"loss '{part.name}' follows flips and crops only, but augment=cutout_randaugment also shears"
            " and turns the image; use augment=crop or flip"
        )
    loss.check(labels)
    return loss.prepare(labels)
