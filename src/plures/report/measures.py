"""The measures of a report, each with its definition and bootstrap samples, so that runs can be compared in pairs.

Every measure is taken on the same resamples of images (they depend on the seed and the number of images alone): the
difference of two runs' samples is the paired bootstrap of their difference (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plures.labels import Labels
from plures.metrics.average_precision import Scores
from plures.metrics.counts import TagCounts, averages, best_classes, count_tags
from plures.metrics.intervals import Interval, bootstrap_means, interval_of, multiplicities
from plures.metrics.ranking import ranking
from plures.metrics.report import Estimates, Report
from plures.metrics.uniform_choice import fit_uniform_choice

Floats = NDArray[np.float64]
AVERAGES = {
    "CF1": "harmonic mean of CP and CR",
    "CP": "precision of each class at its threshold, averaged over classes that were called",
    "CR": "recall of each class at its threshold, averaged over classes with positives",
    "OF1": "F1 of all cells pooled",
    "OP": "precision of all cells pooled",
    "OR": "recall of all cells pooled",
    "macro_f1": "F1 of each class, averaged",
}
KS = (1, 3, 5)


@dataclass(frozen=True, eq=False)
class Measure:
    """value, samples [resamples]: in [0, 1], or tags per image; nan where undefined. unit: "percent" or "tags"."""

    name: str
    value: float
    samples: Floats
    definition: str
    unit: str = "percent"

    @property
    def interval(self) -> Interval:
        return interval_of(self.value, self.samples, within=(0.0, 1.0 if self.unit == "percent" else np.inf))


def difference(first: Measure, second: Measure) -> Interval:
    """Of second - first on the same images; the two must come from the same resamples."""
    return interval_of(second.value - first.value, second.samples - first.samples)


def take_measures(
    logits: Scores,
    labels: Labels,
    called: NDArray[np.bool_],
    report: Report,
    resamples: int = 200,
    seed: int = 0,
) -> list[Measure]:
    """All measures of logits [N, K], called: bool [N, K], the tags called. report: of the same, for the mAP."""
    measures = [_mean_ap(logits, labels, report, resamples, seed)]
    draws = multiplicities(len(labels), resamples, seed)
    measures += _decisions(logits, labels, called, draws)
    measures += _ranking(logits, labels, draws)
    return (
        measures if report.estimates is None else measures + _estimated(logits, labels, called, report.estimates, draws)
    )


def _mean_ap(logits: Scores, labels: Labels, report: Report, resamples: int, seed: int) -> Measure:
    _, samples = bootstrap_means(logits, labels, report.definition, resamples, seed)
    words = (
        f"mean over the {report.classes_scored} classes scored of average precision, definition '{report.definition}'"
    )
    return Measure("mAP", report.map, samples, words)


def _decisions(
    logits: Scores, labels: Labels, called: NDArray[np.bool_], draws: list[NDArray[np.uint8]]
) -> list[Measure]:
    counts = count_tags(logits, labels, called=called)
    whole = averages(counts)
    tags, present, known = called, labels.present, ~labels.unknown
    cells = [(tags & present), (tags & known), present, known, tags]
    columns = [cell.T.astype(np.float32) for cell in cells]  # [K, N]
    found: dict[str, list[float]] = {name: [] for name in (*AVERAGES, "tags")}
    for block in draws:
        times = block.astype(np.float32)  # [N, r]
        sums = [np.rint(column @ times).astype(np.int64) for column in columns]  # [K, r]
        for r in range(block.shape[1]):
            drawn = TagCounts(*(total[:, r] for total in sums), len(labels))  # type: ignore[call-arg]
            for name, value in averages(drawn, lost=whole).overall().items():
                found[name].append(value)
            found["tags"].append(float(drawn.tagged.sum() / max(len(labels), 1)))
    values = whole.overall()
    measures = [Measure(name, values[name], np.array(found[name]), words) for name, words in AVERAGES.items()]
    mean = float(counts.tagged.sum() / len(labels)) if len(labels) else float("nan")
    words = f"tags called; {counts.positives.sum() / max(len(labels), 1):.2f} are labelled present"
    return [*measures, Measure("tags per image", mean, np.array(found["tags"]), words, "tags")]


def _ranking(logits: Scores, labels: Labels, draws: list[NDArray[np.uint8]]) -> list[Measure]:
    known, present = ~labels.unknown, labels.present
    best = best_classes(np.asarray(logits), max(KS), known)  # [N, k]
    hits = np.cumsum(np.take_along_axis(present, best, axis=1), axis=1)
    positives, asked = present.sum(1), known.sum(1)
    fallible = asked > positives
    measures = []
    for whole in ranking(logits, labels, KS):
        found = hits[:, min(whole.k, hits.shape[1]) - 1]
        of = np.minimum(whole.k, asked)
        precision, judged = found / np.maximum(of, 1), fallible
        recall, some = found / np.maximum(positives, 1), fallible & (positives > 0)
        for name, value, each, counted, words in (
            (
                "P",
                whole.precision,
                precision,
                judged,
                f"share of the {whole.k} best-ranked known tags present",
            ),
            ("R", whole.recall, recall, some, f"share of the present tags among the {whole.k} best-ranked"),
        ):
            samples = np.concatenate([_weighted(each, counted, block) for block in draws])
            measures.append(Measure(f"{name}@{whole.k}", value, samples, f"{words}, averaged over images"))
    return measures


def _estimated(
    logits: Scores,
    labels: Labels,
    called: NDArray[np.bool_],
    estimates: Estimates,
    draws: list[NDArray[np.uint8]],
) -> list[Measure]:
    """What is estimated of labels that are not complete; intervals over images, the estimate of each label held."""
    rows = labels.present.any(1)
    presence = fit_uniform_choice(logits, labels).presence(logits, labels)
    per_image = np.stack([(presence * called).sum(1), called.sum(1), presence.sum(1)]) * rows  # [3, N]
    hits, given, there = np.concatenate([per_image @ block for block in draws], axis=1)  # [resamples] each
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "precision": (estimates.precision, hits / given, "percent"),
            "F1": (estimates.f1, 2 * hits / (given + there), "percent"),
            "tags there": (estimates.tags_present, there / (rows @ np.concatenate(draws, axis=1)), "tags"),
        }
    words = {
        "precision": "precision of all cells pooled",
        "F1": "F1 of all cells pooled",
        "tags there": "tags per image that are there",
    }
    assumed = f"estimated, if {estimates.assumes}"
    return [
        Measure(f"{name}, estimated", value, samples, f"{words[name]}, {assumed}", unit)
        for name, (value, samples, unit) in found.items()
    ]


def _weighted(values: Floats, counted: NDArray[np.bool_], block: NDArray[np.uint8]) -> Floats:
    """Mean of values [N] over the counted images, drawn block [N, r] times. Returns [r]."""
    weights = np.where(counted[:, None], block, 0).astype(np.float64)
    total = weights.sum(0)
    return np.asarray(np.divide(values @ weights, total, out=np.full(block.shape[1], np.nan), where=total > 0))
