"""Weights from elsewhere as a run folder, which `evaluate`, `predict` and `train start=` take like any other."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from plures.config import Component, Experiment, recipe_settings
from plures.errors import PluresError
from plures.models.model import Model, save
from plures.models.weights.released import import_mlspl, import_q2l
from plures.models.weights.timm_classifier import import_timm
from plures.runs.run import IMPORTED, Run

Kind = Literal["q2l", "mlspl", "timm"]
LOSS = {"q2l": "q2l_asl", "mlspl": "an", "timm": "bce"}  # where training would go on
DEFINITION = {"q2l": "voc", "mlspl": "mlspl", "timm": "plain"}  # of AP, as each program's own evaluation has it


def import_weights(
    kind: str,
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    classes: str | Path | None = None,
    reinitialise: bool = False,
    recipe: str | None = None,
) -> Run:
    """A new run folder with the model that a checkpoint of another program holds, and where it came from.

    kind: the program (q2l, mlspl: `models/weights/released.py`; timm: `timm_classifier.py` beside it). config: its JSON
    of options. classes: a text file with one class per line. reinitialise: the classes may be others than those of the
    checkpoint. recipe: the recipe:row that these weights are, so that `plures table` can show its published number.
    Raises PluresError before anything is written.
    """
    Run.refuse_existing(out)
    if recipe is not None:
        recipe_settings(recipe)  # raises for an unknown one
    names = None if classes is None else read_classes(classes)
    if kind == "q2l":
        model = import_q2l(checkpoint, config, names, reinitialise)
    elif kind == "mlspl":
        if config is not None:
            raise PluresError("mlspl checkpoints have no configuration: leave --config out")
        model = import_mlspl(checkpoint, names, reinitialise)
    elif kind == "timm":
        model = import_timm(checkpoint, config, names, reinitialise)
    else:
        raise PluresError(f"unknown kind of checkpoint '{kind}'; choose from: q2l, mlspl, timm")
    run = Run.create(out, _experiment(model, kind, recipe))
    save(model, run.path)
    origin = {"kind": kind, "checkpoint": Path(checkpoint).name, "sha256": _sha256(Path(checkpoint))}
    run.write_json(IMPORTED, {**origin, "classes_started_anew": reinitialise})
    return run


def read_classes(file: str | Path) -> tuple[str, ...]:
    """The names in a text file, one per line; blank lines do not count. Raises PluresError if it cannot be read."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PluresError(f"cannot read the class names in {file}: {error}") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise PluresError(f"{file} names no class; expected one name per line")
    return names


def _experiment(model: Model, kind: str, recipe: str | None) -> Experiment:
    """What the model is made of; the data are still to be named."""
    parts = model.parts
    return Experiment(
        recipe=recipe,
        backbone=Component(name=parts.backbone, options=parts.backbone_options),
        head=Component(name=parts.head, options=parts.head_options),
        loss=LOSS[kind],
        average_precision=DEFINITION[kind],
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
