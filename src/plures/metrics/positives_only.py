"""Evaluation with positives only: recall, precision and mAP where nothing is known to be absent.

Recall is counted on held-out observed positives, each weighted by how many labels its image is estimated to have,
because one of many is observed more rarely than one alone. Precision and average precision need what was not
observed too; they are estimates by `uniform_choice`, and of the mean AP also the worst and the best that the
observations allow. Undefined is nan. docs/thresholds.md says how far the estimates were off where it is known.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Group
from rich.table import Table
from scipy.stats import norm

from plures.files import writing
from plures.labels import Labels
from plures.metrics.report import Estimates, LabelsKind, kind_of, percent
from plures.metrics.thresholds import Floats
from plures.metrics.uniform_choice import ASSUMES, fit_uniform_choice, most_tags


@dataclass(frozen=True)
class ClassEstimate:
    """One class, each value in [0, 1] or nan. observed: positives observed, in images; prior: estimated share of the
    images that have it; recall with its interval: weighted, from observed positives alone; precision, f1 and
    average_precision: estimates."""

    name: str
    observed: int
    prior: float
    recall: float
    recall_low: float
    recall_high: float
    precision: float
    f1: float
    average_precision: float


@dataclass(frozen=True)
class PositivesReport:
    """What held-out positives say of a model.

    labels: what the evaluation saw of them; images: those with an observed positive; map: estimated mean AP over the
    classes with an observed positive; map_low: the same if nothing were present but what was observed; map_high: if
    images had `tags_most` labels on average, more than which these ranks do not allow, and those not observed were
    the highest scores of their classes; tags_estimated: labels per image;
    tags_predicted: tags per image at the thresholds; precision (of all cells together), macro_f1, micro_f1: estimates
    at the thresholds; likelihood: mean
    log chance of the observed labels, for comparing models on the same images.
    """

    labels: LabelsKind
    images: int
    map: float
    map_low: float
    map_high: float
    tags_estimated: float
    tags_most: float
    tags_predicted: float
    precision: float
    macro_f1: float
    micro_f1: float
    likelihood: float
    level: float
    left_out: dict[str, str]
    per_class: tuple[ClassEstimate, ...]

    @property
    def estimates(self) -> Estimates:
        """The same in short, as a Report shows it."""
        numbers = (self.map, self.precision, self.micro_f1, self.tags_predicted, self.tags_estimated)
        return Estimates(*numbers, self.tags_most, self.images, ASSUMES)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: nan becomes None."""
        values = {name: _plain(value) for name, value in asdict(self).items()}
        values["per_class"] = [{name: _plain(value) for name, value in asdict(c).items()} for c in self.per_class]
        return {"unit": "fraction in [0, 1]", "estimated_from": "positives only", **values}

    def save(self, path: str | Path) -> None:
        """Write the JSON file atomically."""
        with writing(path) as temporary:
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            temporary.write_text(text, encoding="utf-8")

    def render(self) -> Group:
        """Two tables for the terminal, in percent; each line says which labels it rests on."""
        table = Table("", "", "labels", title="Evaluation with positives only (percent)")
        estimate = f"estimated from {self.labels}"
        table.add_row("images", f"{self.images:,}", self.labels)
        span = f"{percent(self.map)}  between {percent(self.map_low)} and {percent(self.map_high)}"
        table.add_row("mAP (plain)", span, estimate)
        table.add_row("precision", percent(self.precision), estimate)
        table.add_row("macro / micro F1", f"{percent(self.macro_f1)} / {percent(self.micro_f1)}", estimate)
        tags = f"{self.tags_predicted:.2f} predicted, {self.tags_estimated:.2f} present"
        table.add_row("tags per image", tags, estimate)
        table.add_row("tags per image, at most", f"{self.tags_most:.2f}", self.labels)
        if self.left_out:
            names = ", ".join(self.left_out)
            table.add_row("left out", f"{names}: no held-out positive", self.labels)
        return Group(table, self._classes())

    def _classes(self) -> Table:
        title = f"Classes (percent): recall at {self.level:.0%} from {self.labels} labels, the rest estimated"
        table = Table("class", title=title)
        for name in ("recall", "interval", "precision", "F1", "AP", "prior", "observed"):
            table.add_column(name, justify="right")
        for c in self.per_class:
            interval = "-" if np.isnan(c.recall_low) else f"{percent(c.recall_low)} to {percent(c.recall_high)}"
            values = [percent(v) for v in (c.precision, c.f1, c.average_precision, c.prior)]
            table.add_row(c.name, percent(c.recall), interval, *values, f"{c.observed:,}")
        return table


def evaluate_positives(
    logits: NDArray[np.floating],
    observed: Labels,
    classes: tuple[str, ...],
    cut_logits: ArrayLike = 0.0,
    level: float = 0.95,
    called: NDArray[np.bool_] | None = None,
) -> PositivesReport:
    """Judge logits [N, K] by what is observed of the labels [N, K] of images that the model was not trained on.

    cut_logits: the logit from which a class is called, one or one per class [K]. called: bool [N, K], the tags called,
    where more than that decides on them. Images without an observed positive are left out.
    Raises PluresError if no image has one.
    """
    curve = fit_uniform_choice(logits, observed)
    rows = observed.present.any(1)
    logits, observed = np.asarray(logits, np.float64)[rows], observed.take(rows)
    presence = curve.presence(logits, observed)
    tagged = logits >= np.asarray(cut_logits) if called is None else called[rows]
    most = most_tags(logits, observed)
    least_map = _mean(_average_precisions(logits, observed.present.astype(np.float64), observed))
    most_map = _mean(_average_precisions(logits, most_favourable(logits, presence, observed, most), observed))
    aps = _average_precisions(logits, presence, observed)
    value = _mean(aps)
    recall, low, high = weighted_recall(tagged, observed.present, presence.sum(1), level)
    hits, given, present = (presence * tagged).sum(0), tagged.sum(0), presence.sum(0)
    seen: NDArray[np.bool_] = np.asarray(observed.present.any(0))
    precision = np.where(given > 0, hits / np.maximum(given, 1), np.nan)
    f1 = np.where(seen, 2 * hits / np.maximum(given + present, 1e-12), np.nan)
    columns = (precision, f1, aps)
    return PositivesReport(
        labels=kind_of(observed),
        images=len(observed),
        map=value,
        map_low=min(least_map, value, most_map),
        map_high=max(least_map, value, most_map),
        tags_estimated=float(presence.sum(1).mean()),
        tags_most=most,
        tags_predicted=float(tagged.sum(1).mean()),
        precision=float(hits.sum() / given.sum()) if given.any() else float("nan"),
        macro_f1=_mean(f1),
        micro_f1=float(2 * hits.sum() / (given.sum() + present.sum())),
        likelihood=curve.likelihood,
        level=level,
        left_out={name: "no held-out positive" for name, there in zip(classes, seen, strict=True) if not there},
        per_class=tuple(
            ClassEstimate(
                name,
                int(observed.present[:, k].sum()),
                float(present[k] / len(observed)),
                *(float(column[k]) for column in (recall, low, high, *columns)),
            )
            for k, name in enumerate(classes)
        ),
    )


def weighted_recall(
    tagged: NDArray[np.bool_], positives: NDArray[np.bool_], tags: Floats, level: float = 0.95
) -> tuple[Floats, Floats, Floats]:
    """Recall of each class with its interval, each [K], nan for a class without positives.

    tagged, positives: [N, K]; tags [N]: how many labels each image has (estimated). A present label of an image with
    k labels is observed with chance 1 / k, so each observed one counts k times (Horvitz and Thompson 1952). The
    interval is Wilson's (1927) for as many equal observations as the weights are worth, (sum w)^2 / sum w^2.
    """
    w = positives * tags[:, None]
    total = w.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = (w * tagged).sum(0) / total
        n = total**2 / (w**2).sum(0)
        z = norm.ppf((1 + level) / 2)
        middle = (recall + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(recall * (1 - recall) / n + z**2 / (4 * n**2))
    return recall, np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def expected_average_precision(scores: Floats, presence: Floats) -> float:
    """The average precision that is to be expected, scores [n], presence [n] in [0, 1]; nan if nothing is present.

    Row i in the order of scores is present with chance q_i, and precision there counts itself and those above:
    sum_i q_i (1 + sum_{j < i} q_j) / i, over sum_i q_i; the plain definition where every q is 0 or 1.
    """
    q = presence[np.argsort(-scores, kind="stable")]
    total = q.sum()
    if total == 0:
        return float("nan")
    above = np.cumsum(q) - q
    return float((q * (1 + above) / np.arange(1, len(q) + 1)).sum() / total)


def most_favourable(logits: Floats, presence: Floats, observed: Labels, tags: float) -> Floats:
    """The presence (0 or 1) [N, K] that flatters the scores most if images have this many labels on average: labels
    not observed are shared out to the classes as the estimate does, and lie on the highest scores there."""
    flattering = observed.present.astype(np.float64)
    extra = np.where(observed.unknown, presence, 0).sum(0)  # [K]
    space = max(tags * len(logits) - flattering.sum(), 0.0)
    counts = np.round(space * extra / max(float(extra.sum()), 1e-12)).astype(np.int64)
    for k, count in enumerate(counts):
        free = np.flatnonzero(observed.unknown[:, k])
        flattering[free[np.argsort(-logits[free, k], kind="stable")][:count], k] = 1
    return flattering


def _average_precisions(logits: Floats, presence: Floats, observed: Labels) -> Floats:
    """[K], nan for a class without an observed positive."""
    seen: NDArray[np.bool_] = np.asarray(observed.present.any(0))
    values = [expected_average_precision(logits[:, k], presence[:, k]) if seen[k] else np.nan for k in range(len(seen))]
    return np.array(values)


def _mean(values: Floats) -> float:
    """Over the classes where it is defined; there is one, as an observed positive is."""
    return float(np.nanmean(values))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
