"""Thresholds, calibration, evaluation and selection without full labels, measured on the logits that
thresholds_logits.py kept. Nothing is chosen on test but the oracle, which is the ceiling, not a method.

    python benchmarks/thresholds.py FOLDER    # writes results/thresholds.csv, _selection.csv, _evaluation.csv
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from environment import write

from plures.analysis.thresholds import from_logits
from plures.labels import Labels
from plures.metrics.average_precision import average_precision, mean_average_precision
from plures.metrics.calibrating import calibrate, calibration_error
from plures.metrics.choosing import Objective
from plures.metrics.counts import averages, count_tags
from plures.metrics.positives_only import evaluate_positives
from plures.metrics.report import evaluate_scores
from plures.metrics.thresholds import Thresholds
from plures.metrics.uniform_choice import fit_uniform_choice

REVIEWED = 200
RARE = 10  # test positives below which a class is left out of macro F1 of "frequent" classes
Rows = list[dict[str, Any]]


def kept(path: Path) -> dict[str, Any]:
    """What one training kept, with the epoch that its held-out positives select."""
    stored = np.load(path)
    data, loss, seed = path.stem.rsplit("-", 2)
    labels = {name: Labels(stored[name]) for name in ("val_labels", "val_observed", "test_labels")}
    classes = tuple(stored["classes"].tolist())
    guesses = [evaluate_positives(logits, labels["val_observed"], classes) for logits in stored["val"]]
    best = int(np.argmax([guess.likelihood for guess in guesses]))
    return {
        "name": {"data": data, "loss": loss, "seed": int(seed)},
        "classes": classes,
        "epochs": (stored["val"], stored["test"], guesses),
        "val": stored["val"][best],
        "test": stored["test"][best],
        **labels,
    }


def thresholds_rows(run: dict[str, Any]) -> Rows:
    """F1 in percent and tags an image on test, for each way of choosing."""
    classes, val, observed, clean = run["classes"], run["val"], run["val_observed"], run["val_labels"]
    reviewed = np.random.default_rng(run["name"]["seed"]).permutation(len(val))[:REVIEWED]
    rows = []

    def judge(method: str, thresholds: Thresholds) -> None:
        counts = count_tags(run["test"], run["test_labels"], thresholds.cuts)
        found = averages(counts)
        f1 = found.f1[counts.positives > 0]
        often = found.f1[counts.positives >= RARE]
        recall = found.recall[counts.positives >= RARE]
        rows.append(
            {
                **run["name"],
                "method": method,
                "macro_f1": 100 * float(f1.mean()),
                "macro_f1_frequent": 100 * float(often.mean()),
                "micro_f1": 100 * found.micro_f1,
                "recall_frequent": 100 * float(recall.mean()),
                "tags": float(counts.tagged.sum() / counts.images),
                "true_tags": float(counts.positives.sum() / counts.images),
            }
        )

    judge("0.5", Thresholds.constant(classes))
    pools = {
        "oracle": (run["test"], run["test_labels"], "clean"),
        "clean": (val, clean, "clean"),
        f"reviewed {REVIEWED}": (val[reviewed], clean.take(reviewed), "reviewed"),
        "positives": (val, observed, "positives"),
    }
    for name, (logits, labels, source) in pools.items():
        for per_class in (True, False):
            where = "per class" if per_class else "global"
            kinds: dict[str, Any] = {"source": source, "per_class": per_class}
            choice = from_logits(logits, labels, classes, objective=Objective("f1"), **kinds)
            judge(f"{name}, {where}", choice.thresholds)
    for recall in (0.8, 0.9):
        for source, labels in (("clean", clean), ("positives", observed)):
            kinds = {"source": source, "objective": Objective("recall", recall)}
            chosen = from_logits(val, labels, classes, **kinds)
            judge(f"{source}, recall={recall}", chosen.thresholds)
    return rows


def evaluation_row(run: dict[str, Any]) -> dict[str, Any]:
    """What positives say of the validation images beside what their full labels say, at 0.5."""
    clean = evaluate_scores(run["val"], run["val_labels"], run["classes"], threshold=0.0, bootstrap=0)
    guess = evaluate_positives(run["val"], run["val_observed"], run["classes"])
    seen = [(g, c) for g, c in zip(guess.per_class, clean.per_class, strict=True) if g.observed > 0]
    ap = [c.average_precision for _, c in seen]
    inside = [g.recall_low <= c.recall <= g.recall_high for g, c in seen]
    shown = run["val_labels"].present.astype(float)
    known = np.ones(shown.shape, bool)
    presence = fit_uniform_choice(run["val"], run["val_observed"]).presence(run["val"], run["val_observed"])
    truth = run["test_labels"].present
    errors = {"ece_none": calibration_error(Thresholds.constant(run["classes"]).probabilities(run["test"]), truth)}
    for kind in ("temperature", "isotonic"):
        for name, target in (("clean", shown), ("positives", presence)):
            calibration = calibrate(run["val"], target, known, kind)  # type: ignore[arg-type]
            assert calibration is not None
            errors[f"ece_{name}_{kind}"] = calibration_error(calibration(run["test"]), truth)
    return {
        **run["name"],
        "map": 100 * float(np.mean(ap)),
        "map_estimated": 100 * guess.map,
        "map_low": 100 * guess.map_low,
        "map_high": 100 * guess.map_high,
        "tags": clean.tags_true,
        "tags_estimated": guess.tags_estimated,
        "tags_most": guess.tags_most,
        "micro_f1": 100 * clean.averages["OF1"],
        "micro_f1_estimated": 100 * guess.micro_f1,
        "macro_f1": 100 * float(np.nanmean([c.f1 for _, c in seen])),
        "macro_f1_estimated": 100 * guess.macro_f1,
        "precision_error": 100 * float(np.nanmean([abs(g.precision - c.precision) for g, c in seen])),
        "recall_inside": 100 * float(np.mean(inside)),
        **{name: 100 * value for name, value in errors.items()},
    }


def selection_rows(run: dict[str, Any]) -> Rows:
    """Test mAP in percent (classes with RARE positives or more) of the epoch that each rule selects."""
    val, test, guesses = run["epochs"]
    often = run["test_labels"].present.sum(0) >= RARE
    on_test = [100 * float(average_precision(t, run["test_labels"])[often].mean()) for t in test]
    negative = Labels.from_masks(run["val_observed"].present)
    rules = {
        "clean (val_map)": [mean_average_precision(v, run["val_labels"]).value for v in val],
        "positives (val_positives)": [guess.likelihood for guess in guesses],
        "positives, rest absent (val_map_observed)": [mean_average_precision(v, negative).value for v in val],
        "positives, estimated mAP": [guess.map for guess in guesses],
        "last": list(range(len(val))),
        "oracle (best on test)": on_test,
    }
    clean = on_test[int(np.argmax(rules["clean (val_map)"]))]
    chosen = {rule: int(np.argmax(values)) for rule, values in rules.items()}
    return [
        {**run["name"], "rule": rule, "epoch": epoch, "test_map": on_test[epoch], "regret": clean - on_test[epoch]}
        for rule, epoch in chosen.items()
    ]


def summary(rows: Rows, by: list[str]) -> Rows:
    """Mean and standard deviation over seeds of every number."""
    groups: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in by)].append(row)
    result = []
    for key, members in groups.items():
        line: dict[str, Any] = {**dict(zip(by, key, strict=True)), "n": len(members)}
        for name in (n for n in members[0] if n not in (*by, "seed")):
            values = np.array([m[name] for m in members], float)
            line[name] = round(float(values.mean()), 2)
            line[f"{name}_sd"] = round(float(values.std(ddof=1)), 2) if len(values) > 1 else ""
        result.append(line)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    chosen, selected, evaluated = [], [], []
    for path in sorted(args.folder.glob("*.npz")):
        run = kept(path)
        chosen += thresholds_rows(run)
        selected += selection_rows(run)
        evaluated.append(evaluation_row(run))
        print(path.stem, flush=True)
    write("thresholds", summary(chosen, ["data", "loss", "method"]))
    write("thresholds_selection", summary(selected, ["data", "loss", "rule"]))
    print(write("thresholds_evaluation", summary(evaluated, ["data", "loss"])))


if __name__ == "__main__":
    main()
