"""The recorded values of the published metric codes, with the inputs they were computed on."""

import hashlib
import json
from pathlib import Path

import numpy as np

from plures.labels import Labels

FOLDER = Path(__file__).parents[1] / "reference"
ENTRIES = json.loads((FOLDER / "metrics.json").read_text())["entries"]
UNTIED = [e for e in ENTRIES if not e["ties"]]
TIED = [e for e in ENTRIES if e["ties"]]


def inputs(entry):
    """(scores float64 [N, K], Labels) of one entry, made by the recipe and checked by hash."""
    recipe = entry["recipe"]
    images, classes = recipe["N"], recipe["K"]
    random = np.random.RandomState(recipe["seed"])
    labels = random.uniform(size=(images, classes)) < np.linspace(0.02, 0.35, classes)
    labels[:, recipe["zero_classes"]] = False
    raw = random.uniform(size=(images, classes)) + 0.45 * labels
    if recipe["digits"] is None:
        rank = np.argsort(np.argsort(raw, axis=0, kind="stable"), axis=0, kind="stable")
        part = (rank + 0.5) / images
        scores = part * part * part
    else:
        scores = np.minimum(np.round(raw / 1.45, recipe["digits"]), 1)
    if recipe["never_predicted_class"] is not None:
        scores[:, recipe["never_predicted_class"]] *= 0.4
    labels = labels.astype(np.int8)
    assert hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest() == entry["sha256_scores_float64"]
    assert hashlib.sha256(labels.tobytes()).hexdigest() == entry["sha256_labels_int8"]
    return scores, Labels(labels)


def recorded(entry, key):
    """The recorded list as float64, null as nan."""
    return np.array([np.nan if value is None else value for value in entry[key]], np.float64)
