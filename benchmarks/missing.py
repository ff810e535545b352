"""Which hidden tags are found, and which wrong ones: VOC-12 sample, frozen MobileNetV2 features, linear head.

missing: one positive a training photo is kept (uniformly, another draw a seed), everything else is hidden. Hidden
positives are looked for among all hidden cells by scores of the run's own model ("in-sample"), by cross-fitting with 5
folds, by either averaged with the mean score over the epochs, and by the crossed ones averaged with the label state
that ROLE keeps; ranked as they are, against the class's prior, and by
cleanlab's multi-label issues on the same scores (which takes what is not tagged as absent; skipped if not installed).
wrong: beyond that, 5 % of the kept tags are moved to a class that the photo does not show, drawn by frequency.

    PLURES_SHARED=... python benchmarks/missing.py [--keep FOLDER]    # FOLDER: keeps the trained models' scores
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environment import write
from voc12 import photographs, settings

from plures.analysis.missing import against_prior, rank_missing
from plures.labels import Labels
from plures.metrics.thresholds import sigmoid

LOSSES, SEEDS, FOLDS, LR = ("an", "wan", "epr", "role"), (0, 1, 2), 5, 1e-3
AT = (50, 100, 200, 500)


def experiment(loss: str, seed: int, supervision: Any) -> Any:
    from plures import Experiment

    values = settings("linear", loss, LR, seed) | {"supervision": supervision, "select": "val_map_observed"}
    values["history"] = True
    return Experiment(**values)


def scores(loss: str, seed: int, wrong: bool) -> dict[str, np.ndarray]:
    """Of the training rows: logits in-sample, cross-fit, and their mean over the epochs, the label state if any, the
    observed and the full labels."""
    import torch

    from plures import train
    from plures.models.model import load
    from plures.runs.data import prepare, with_splits
    from plures.scoring.device import make_fabric
    from plures.scoring.logits import logits_of_dataset
    from plures.training.cross_fitting import out_of_fold
    from plures.training.history import mean_logits

    torch.set_num_threads(1)
    e = experiment(loss, seed, {"name": "single_positive", "seed": 1200 + seed})
    data = with_splits(photographs(e.data.name), e)
    full = data.split("train").labels.values
    if wrong:
        data = data.with_labels(Labels(spoilt(data, prepare(e, data), seed)))
        e = experiment(loss, seed, "as_given")
    prepared = prepare(e, data)
    with tempfile.TemporaryDirectory() as folder:
        run = train(e, Path(folder) / "run", dataset=data)
        own = logits_of_dataset(load(run.path), prepared.train, e, make_fabric(e))
        checkpoint = run.load_checkpoint()
        cross = out_of_fold(run, prepared.train, FOLDS, seed=seed)
    assert checkpoint is not None
    memory = checkpoint["memory"]
    state = {} if memory is None else {"mem": memory["table"].numpy()}
    state["history"] = mean_logits(checkpoint["history"])
    return {"ins": own, "oof": cross, "obs": prepared.train.labels.values, "full": full, **state}


def spoilt(data: Any, prepared: Any, seed: int) -> np.ndarray:
    """The observed labels of train and val in place of the full ones, with 5 % of the training tags moved."""
    random = np.random.default_rng(seed)
    values, full = data.labels.values.copy(), data.split("train").labels.values
    observed = prepared.train.labels.values.copy()
    often = (observed == 1).sum(0)
    for row in random.permutation(len(observed))[: len(observed) // 20]:
        absent = np.flatnonzero(full[row] == 0)
        observed[row] = -1
        observed[row, random.choice(absent, p=often[absent] / often[absent].sum())] = 1
    values[data.splits == "train"] = observed
    values[data.splits == "val"] = prepared.val_observed.values
    return values


def cleanlab_order(p: np.ndarray, observed: np.ndarray, kind: str) -> list[tuple[int, int]] | None:
    """Cells by cleanlab's label quality in each class, worst first, of the labels "tagged or not"; None without it.

    Its class-wise issues come first, the rest after; quality is its self-confidence, which classes share.
    """
    try:
        from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return None
    tags = [np.flatnonzero(row == 1).tolist() for row in observed]
    issues = find_multilabel_issues_per_class(tags, p, n_jobs=1)
    cells = []
    for k in range(p.shape[1]):
        tagged = (observed[:, k] == 1).astype(int)
        quality = get_label_quality_scores(tagged, np.stack([1 - p[:, k], p[:, k]], 1))
        wanted = tagged == (0 if kind == "missing" else 1)
        cells += [(not issues[row, k], quality[row], row, k) for row in np.flatnonzero(wanted)]
    return [(row, k) for _, _, row, k in sorted(cells)]


def measured(order: list[tuple[int, int]], wanted: np.ndarray) -> dict[str, float]:
    """precision@N and recall@(number wanted), in percent."""
    hits = np.array([wanted[cell] for cell in order[: max(*AT, int(wanted.sum()))]])
    row = {f"precision@{n}": 100 * hits[:n].mean() for n in AT}
    return row | {"recall": 100 * hits[: int(wanted.sum())].sum() / wanted.sum(), "wanted": int(wanted.sum())}


def ranked(p: np.ndarray, labels: Labels, kind: str, normalise: str) -> list[tuple[int, int]]:
    if kind == "missing":
        return [(s.row, s.column) for s in rank_missing(p, labels, normalise=normalise)]  # type: ignore[arg-type]
    p = np.clip(p, 1e-6, 1 - 1e-6)
    doubt = np.where(labels.present, 1 - (p if normalise == "none" else against_prior(p)), -1)
    places = np.argsort(-doubt, axis=None, kind="stable")[: int(labels.present.sum())]
    return [divmod(int(place), p.shape[1]) for place in places]


def one(kind: str, loss: str, seed: int, kept: Path) -> list[dict[str, Any]]:
    file = kept / f"{kind}_{loss}_{seed}.npz"
    if not file.is_file():
        np.savez(file, **scores(loss, seed, kind == "wrong"))
    stored = np.load(file)
    labels = Labels(stored["obs"])
    full = stored["full"] == 1
    wanted = labels.unknown & full if kind == "missing" else labels.present & ~full
    ways = {"in-sample": stored["ins"], f"cross-fit {FOLDS}": stored["oof"]}
    if "history" in stored:  # a folder of an earlier version has none
        ways |= {f"{name} + history": (logits + stored["history"]) / 2 for name, logits in list(ways.items())}
    if "mem" in stored and kind == "missing":
        ways |= {f"cross-fit {FOLDS} + label state": (stored["oof"] + stored["mem"]) / 2}
    rows = []
    for way, logits in ways.items():
        p = sigmoid(logits)
        orders = {f"plures, {n}": ranked(p, labels, kind, n) for n in ("none", "prior")}
        theirs = cleanlab_order(p, labels.values, kind)
        orders |= {} if theirs is None else {"cleanlab": theirs}
        for name, order in orders.items():
            rows.append({"kind": kind, "loss": loss, "seed": seed, "scores": way, "ranking": name})
            rows[-1] |= measured(order, wanted)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    kept = args.keep or Path(tempfile.mkdtemp())
    jobs = [("missing", loss, seed) for loss in LOSSES for seed in SEEDS] + [("wrong", "wan", seed) for seed in SEEDS]
    runs = [row for job in jobs for row in one(*job, kept)]
    rows = []
    for key in dict.fromkeys((r["kind"], r["loss"], r["scores"], r["ranking"]) for r in runs):
        mine = [r for r in runs if (r["kind"], r["loss"], r["scores"], r["ranking"]) == key]
        row: dict[str, Any] = dict(zip(("kind", "loss", "scores", "ranking"), key, strict=True)) | {"n": len(mine)}
        for name in (*(f"precision@{n}" for n in AT), "recall", "wanted"):
            values = np.array([r[name] for r in mine])
            row |= {name: round(float(values.mean()), 1)}
            row |= {f"{name} sd": round(float(values.std(ddof=1)), 1)} if name != "wanted" else {}
        rows.append(row)
        print(row, flush=True)
    print(write("missing", rows))


if __name__ == "__main__":
    main()
