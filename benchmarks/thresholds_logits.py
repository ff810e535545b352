"""Logits of every epoch on validation and test, for benchmarks/thresholds.py: each data set, loss and seed, once.

One positive label an image is shown in training and, on the validation images, to the methods under test. The seed
draws the positives, the weights and the order of the images. Nothing is selected here: every epoch's logits are kept.

    PLURES_SHARED=... python benchmarks/thresholds_logits.py FOLDER --data voc12 --losses wan gr --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from voc12 import SHARED
from voc12 import settings as voc_settings

from plures.config import Experiment
from plures.runs.data import prepare, read_data
from plures.runs.run import Run
from plures.scoring.logits import logits_of_dataset
from plures.training.progress import Quiet
from plures.training.train import Training


def settings(data: str, loss: str, seed: int) -> dict[str, Any]:
    """What is trained. Losses with their defaults: nothing was tuned for this benchmark."""
    own: dict[str, Any]
    if data == "scenes":
        own = {
            "data": {"name": "scenes", "train": 3000, "val": 500, "test": 1000},
            "backbone": {"name": "small_conv", "width": 64},
            "batch_size": 16,
            "lr": 2e-3,
            "schedule": "cosine",
            "augment": "none",
            "epochs": 8,
            "device": "cpu",
            "workers": 0,
        }
    else:
        own = voc_settings("linear", "an", 1e-3, seed)
    if data == "miml_scene":
        own["data"] = {"name": str(SHARED / "data" / "miml_scene" / "labels.csv"), "complete": True}
        own["split"] = "stratified"
    own["loss"] = {"name": "epr", "expected_positives": 1.4} if loss == "epr" else loss
    own["supervision"] = {"name": "single_positive", "seed": 1200 + seed}
    return own | {"select": "last", "seed": seed}


class Kept(Training):
    """A training that keeps the logits of validation and test rows after every epoch."""

    def score(self, net: Any) -> dict[str, float]:
        prepared = self.prepared
        training = net.training
        net.eval()
        own = self.model._modules["head"]
        if hasattr(net, "head"):
            self.model._modules["head"] = net.head
        for name, dataset in (("val", prepared.val), ("test", prepared.test)):
            assert dataset is not None
            logits = logits_of_dataset(self.model, dataset, self.experiment, self.fabric)
            self.kept.setdefault(name, []).append(logits)
        self.model._modules["head"] = own
        net.train(training)
        return super().score(net)


def gather(data: str, loss: str, seed: int, folder: Path) -> None:
    path = folder / f"{data}-{loss}-{seed}.npz"
    if path.exists():
        return
    experiment = Experiment(**settings(data, loss, seed))
    prepared = prepare(experiment, read_data(experiment))
    training = Kept(experiment, prepared, Quiet())
    training.kept = {}  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as run:
        training.go(Run.create(Path(run) / "run", experiment), None)
    assert prepared.val is not None
    assert prepared.val_observed is not None
    assert prepared.test is not None
    np.savez_compressed(
        path,
        val=np.stack(training.kept["val"]),  # type: ignore[attr-defined]
        test=np.stack(training.kept["test"]),  # type: ignore[attr-defined]
        val_labels=prepared.val.labels.values,
        val_observed=prepared.val_observed.values,
        test_labels=prepared.test.labels.values,
        train_observed=prepared.train.labels.values,
        classes=np.array(prepared.train.classes),
    )
    print(path, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", default=["voc12", "miml_scene", "scenes"])
    parser.add_argument("--losses", nargs="+", default=["wan", "gr"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    for data in args.data:
        for seed in args.seeds:
            for loss in args.losses:
                gather(data, loss, seed, args.folder)


if __name__ == "__main__":
    main()
