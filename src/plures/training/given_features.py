"""Data that come as features: what of an Experiment they decide. A head is all that is left to train."""

from __future__ import annotations

from plures.config import AUTO, Experiment
from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.recipes import load_recipe

STEPS = frozenset(  # settings of a training in steps, which the closed-form ridge has not
    ("epochs", "lr", "batch_size", "accumulate", "drop_last", "schedule", "weight_decay", "clip", "ema", "history")
)


def fit_to_data(experiment: Experiment, train: Dataset) -> Experiment:
    """The experiment for these training data: unchanged for photographs.

    For features the backbone is `features` of their width, and what else was left at its default is as in the recipe
    `quick` (the closed-form ridge), or `photos` (steps) where a setting of steps or another loss was chosen. Raises
    PluresError where features and settings do not go together.
    """
    if train.features is None:
        if experiment.backbone.name == "features":
            raise PluresError(f"backbone=features takes data with features (features:FILE), and {train.name} has none")
        return experiment
    width = train.features.shape[1]
    default = Experiment()
    chosen = {name for name in experiment.model_fields_set if getattr(experiment, name) != getattr(default, name)}
    if experiment.backbone.name == "features" and experiment.backbone.options.get("width", width) != width:
        asked = experiment.backbone.options["width"]
        raise PluresError(f"{train.name}: features of {width:,} numbers per image, and backbone.width={asked}")
    if "mode" in chosen and experiment.mode != "frozen":
        raise PluresError(
            f"{train.name}: features leave only a head to train, so mode={experiment.mode} cannot be used"
        )
    steps = bool(chosen & STEPS) or experiment.loss.name not in (AUTO, "least_squares")
    recipe = load_recipe("photos" if steps else "quick").settings()
    values = {name: value for name, value in recipe.items() if name not in chosen | {"supervision"}}
    own = {name: value for name, value in experiment.to_dict().items() if name in experiment.model_fields_set}
    return Experiment(**{**own, **values, "backbone": {"name": "features", "width": width}, "image_size": None})
