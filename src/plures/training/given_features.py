"""Data that come as features: what of an Experiment they decide. A head is all that is left to train."""

from __future__ import annotations

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.errors import PluresError


def fit_to_data(experiment: Experiment, train: Dataset) -> Experiment:
    """The experiment for these training data: unchanged for photographs.

    For features the backbone is `features` of their width, and the rest is chosen as for features of a pretrained
    backbone (training/auto.py). Raises PluresError where features and settings do not go together.
    """
    if train.features is None:
        if experiment.backbone.name == "features":
            raise PluresError(f"backbone=features takes data with features (features:FILE), and {train.name} has none")
        return experiment
    width = train.features.shape[1]
    if experiment.backbone.name == "features" and experiment.backbone.options.get("width", width) != width:
        asked = experiment.backbone.options["width"]
        raise PluresError(f"{train.name}: features of {width:,} numbers per image, and backbone.width={asked}")
    if "finetune" in experiment.stage_names:
        asked = experiment.stage_names
        raise PluresError(f"{train.name}: features leave only a head to train; use stages=probe, not stages={asked}")
    own = {name: value for name, value in experiment.to_dict().items() if name in experiment.model_fields_set}
    return Experiment(**{**own, "backbone": {"name": "features", "width": width}, "image_size": None})
