"""What a prior adds to one tag per photograph: fused, head and prior alone; and which missing tags are found first.

Frozen EfficientNet-Lite2 features, the plain command (closed form), one tag per photo, another one for each draw.

voc12    standin:  ImageNet probabilities of the same network, added up by hand to the VOC classes (a file of scores)
         imagenet: the same network's classifier, classes matched by plures (prior=imagenet)
         half:     the stand-in, of which every second class is noise; random: noise alone
miml     imagenet: five natural scenes, of which ImageNet names few
scenes   random:   noise for the built-in scenes (no photographs)

mAP in percent on test images with all labels; voc12 over the 13 classes with 10 or more positives there.
precision@100: of the first 100 tags that are suggested as missing in the training images, how many are there.
Weights are chosen on validation images by observed tags alone. no tag: the
prior without any tag, at 1.5 called tags per image.

    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/priors.py

Writes benchmarks/results/priors_runs.csv (a row a run) and priors.csv (mean and sd over the draws).
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write
from voc12 import FREQUENT, SHARED

from plures import Experiment, read
from plures.analysis.missing import rank_missing
from plures.data.dataset import Dataset
from plures.labels import Labels
from plures.metrics.average_precision import average_precision
from plures.metrics.thresholds import sigmoid
from plures.models.model import build_model, load, make_prior, without_prior
from plures.runs.data import prepare
from plures.scoring.device import make_fabric
from plures.scoring.features import frozen_features
from plures.scoring.logits import logits_of_dataset, prior_of_dataset
from plures.training.train import train

STANDIN = SHARED / "fixtures" / "prior" / "voc12_imagenet.csv"
DATA = {
    "voc12": f"voc:{SHARED / 'data' / 'voc12' / 'VOCdevkit' / 'VOC2012'}",
    "miml": str(SHARED / "data" / "miml_scene" / "labels.csv"),
    "scenes": "scenes",
}
PRIORS = {"voc12": ("standin", "imagenet", "half", "random"), "miml": ("imagenet",), "scenes": ("random",)}
BACKBONE = {"model": "tf_efficientnet_lite2", "weights": str(SHARED / "weights" / "tf_efficientnet_lite2.safetensors")}
AT = 100


def featured(name: str) -> tuple[Dataset, np.ndarray]:
    """The data as features with names, and the evidence of prior=imagenet of every image."""
    data = read(DATA[name])
    model = build_model("timm", "linear", data.classes, BACKBONE)
    features = np.asarray(frozen_features(model, data, pooled=True, device=torch.device("cpu")), np.float32)
    with torch.inference_mode():
        evidence = make_prior(model, "imagenet", {}, frozen=True)(torch.from_numpy(features)).numpy()
    names = [f"{row}.png" if data.in_memory else Path(str(one)).name for row, one in enumerate(data.images)]
    return replace(data, images=names, features=features[:, 0], boxes=None, contents=None), evidence


def table(data: Dataset, evidence: np.ndarray, prior: str, seed: int, folder: Path) -> str:
    """The scores of a prior as a file."""
    random = np.random.default_rng(1000 + seed)
    scores = evidence
    if prior in ("standin", "half"):
        rows = {row["image"]: row for row in csv.DictReader(STANDIN.open())}
        scores = np.array([[float(rows[str(image)][name]) for name in data.classes] for image in data.images])
    if prior == "half":
        scores[:, ::2] = random.random(scores[:, ::2].shape)
    if prior == "random":
        scores = random.random(scores.shape)
    path = folder / "scores.npz"
    np.savez(path, scores=scores.astype(np.float32), names=np.array(data.images), classes=np.array(data.classes))
    return str(path)


def mean_ap(scores: np.ndarray, labels: Labels, columns: list[int]) -> float:
    return 100 * float(np.nanmean(average_precision(scores, labels)[columns]))


def one(name: str, prior: str, seed: int, data: Dataset, evidence: np.ndarray) -> dict[str, Any]:
    columns = [k for k, c in enumerate(data.classes) if name != "voc12" or c in FREQUENT]
    row: dict[str, Any] = {"data": name, "prior": prior, "draw": seed, "classes": len(columns)}
    with tempfile.TemporaryDirectory() as folder:
        path = table(data, evidence, prior, seed, Path(folder))
        for way in ("one tag", "no tag"):
            e = Experiment(
                data="in_memory", prior=path, seed=seed, device="cpu", workers=0, expected_tags=1.5,
                supervision={"name": "single_positive", "seed": 1200 + seed} if way == "one tag" else "none",
            )  # fmt: skip
            run = train(e, Path(folder) / way, dataset=data)
            e, model = run.experiment, load(run.path)
            prepared, fabric = prepare(e, data), make_fabric(e)
            test = prepared.test
            assert test is not None
            fused = logits_of_dataset(model, test, e, fabric)
            if way == "no tag":
                called, present = fused >= 0, test.labels.present
                row["no tag, OF1"] = float(200 * (called & present).sum() / (called.sum() + present.sum()))
                row["no tag, precision"] = float(100 * (called & present).sum() / called.sum())
                continue
            plain = without_prior(model)
            row["fused"] = mean_ap(fused, test.labels, columns)
            row["head alone"] = mean_ap(logits_of_dataset(plain, test, e, fabric), test.labels, columns)
            row["prior alone"] = mean_ap(prior_of_dataset(model, test, e, fabric), test.labels, columns)
            row["silent"] = int((model.head.prior_weight == 0).sum())
            hidden = prepared.train_known
            assert hidden is not None
            for what, net in (("fused", model), ("head alone", plain)):
                p = sigmoid(logits_of_dataset(net, prepared.train, e, fabric).astype(np.float64))
                first = rank_missing(p, prepared.train.labels, top=AT)
                row[f"precision@{AT} {what}"] = 100 * float(np.mean([hidden.present[s.row, s.column] for s in first]))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--data", default=",".join(DATA))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    runs = []
    for name in args.data.split(","):
        data, evidence = featured(name)
        for prior in PRIORS[name]:
            for seed in range(args.draws):
                runs.append(one(name, prior, seed, data, evidence))
                print(runs[-1], flush=True)
    write("priors_runs", runs)
    rows = []
    for name, prior in dict.fromkeys((run["data"], run["prior"]) for run in runs):
        mine = [run for run in runs if (run["data"], run["prior"]) == (name, prior)]
        rows.append({"data": name, "prior": prior, "n": len(mine), "classes": mine[0]["classes"]})
        for what in [key for key in mine[0] if key not in ("data", "prior", "draw", "classes")]:
            values = np.array([run[what] for run in mine], np.float64)
            rows[-1] |= {what: round(float(values.mean()), 2), f"{what} sd": round(float(values.std(ddof=1)), 2)}
    print(write("priors", rows))


if __name__ == "__main__":
    main()
