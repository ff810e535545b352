"""The end of a training with a prior: how much head and prior each count is chosen and said (`metrics/fusion.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric

from plures.config import TAGS, Experiment
from plures.data.dataset import Dataset
from plures.metrics.fusion import Fusion, Seen, choose_fusion, prior_alone
from plures.metrics.threshold_choice import from_expected
from plures.models.model import Model, make_prior, weighed, with_prior, without_prior
from plures.models.priors import NONE, Prior
from plures.models.priors.file import FromFile
from plures.runs.data import Prepared
from plures.scoring.logits import logits_of_dataset, prior_of_dataset

SHOWN = 5  # names in a line


def prior_of(experiment: Experiment, model: Model, prepared: Prepared) -> Prior | None:
    """The experiment's prior, filled, before training begins; None if it has none.

    Raises PluresError in one line if it cannot be loaded, or lacks some of the images.
    """
    part = experiment.prior
    if part.name == NONE:
        return None
    prior = make_prior(model, part.name, part.options, frozen=experiment.frozen)
    if isinstance(prior, FromFile):
        for rows in (prepared.train, prepared.val, prepared.test):
            if rows is not None:
                prior.of(rows.images)
    return prior


def fused(
    model: Model, prior: Prior, prepared: Prepared, experiment: Experiment, fabric: Fabric, say: Callable[[str], None]
) -> Model:
    """The trained model with the prior beside it, each counting as much as observed positives say."""
    train, val, observed = prepared.train, prepared.val, prepared.val_observed
    model = with_prior(without_prior(model), experiment.prior.name, prior).to(fabric.device)

    def evidence(rows: Dataset) -> np.ndarray:
        return prior_of_dataset(model, rows, experiment, fabric)

    if not train.labels.present.any():
        found = evidence(train)
        fusion = prior_alone(found)
        cuts = from_expected(found * fusion.prior + fusion.offset, train.classes, experiment.expected_tags or TAGS).cuts
        fusion = replace(fusion, offset=fusion.offset - float(cuts[0]))  # the cut is at a probability of one half
    else:
        seen = None
        if val is not None and observed is not None:
            seen = Seen(evidence(val), observed, logits_of_dataset(without_prior(model), val, experiment, fabric))
        said = cast(Any, model.head).prior.said.cpu().numpy()
        fusion = choose_fusion(Seen(evidence(train), train.labels), seen, said)
    for line in _sayings(fusion, train.classes, val is not None, bool(train.labels.present.any())):
        say(line)
    values = (torch.as_tensor(one, dtype=torch.float32) for one in (fusion.head, fusion.prior, fusion.offset))
    return weighed(model, *values)


def _sayings(fusion: Fusion, classes: tuple[str, ...], chosen: bool, observed: bool) -> list[str]:
    heard = len(classes) - len(fusion.silent)
    if not observed:
        lines = ["no tag is known: the prior alone"]
    elif np.isinf(fusion.weight):
        lines = ["prior: the validation images prefer it alone to what the tags teach"]
    elif fusion.weight == 0:
        lines = ["prior: it counts nothing, as observed positives say"]
    else:
        how = "chosen on the validation images" if chosen else "there are no validation images to choose it by"
        lines = [f"prior: counts {fusion.weight:.2f} of the head in {heard:,} of {len(classes):,} classes ({how})"]
    reasons: dict[str, list[str]] = {}
    for k, why in fusion.silent.items():
        reasons.setdefault(why, []).append(classes[k])
    for why, names in reasons.items():
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        lines.append(f"prior: not for {', '.join(names[:SHOWN])}{more}: {why}")
    return lines
