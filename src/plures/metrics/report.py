"""The noun Report: what an evaluation found, with everything needed to read the numbers rightly.

All values are fractions in [0, 1]; only `render` shows percent. Undefined is nan (null in JSON), and classes that
could not be scored are named with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from plures.errors import PluresError
from plures.files import parse_json, read_as, writing
from plures.labels import Labels
from plures.metrics.average_precision import Scores, arrays, average_precision, cannot_fail
from plures.metrics.counts import AVERAGES, averages, count_tags
from plures.metrics.intervals import Interval, bootstrap_map
from plures.reprs import as_html, as_text

if TYPE_CHECKING:
    from torch import Tensor

FAR = 1.5  # times as many tags as there are, or as few: worth a warning
MEASURES = {"AP": "average_precision", "precision": "precision", "recall": "recall", "F1": "f1"}  # of a class
LabelsKind = Literal["complete", "partial", "single-positive"]


@dataclass(frozen=True)
class ClassResult:
    """One class: AP, precision, recall and F1 at the threshold, each in [0, 1] or nan; positives, known in images."""

    name: str
    average_precision: float
    positives: int
    known: int
    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class LevelResult:
    """The classes of one level of the hierarchy, 0 being those without parents: how many, how many of them have an AP,
    and the means of AP, precision, recall and F1 over those where it is defined, in [0, 1] or nan."""

    level: int
    classes: int
    classes_scored: int
    average_precision: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Estimates:
    """What the labels known to be present say of those that nobody wrote down, as far as `assumes` holds.

    map, precision, f1: in [0, 1], precision and f1 of all cells together at the thresholds; tags_called,
    tags_present: per image on average; tags_most: more than so many the ranks of the labels do not allow, whatever is
    assumed; images: those with a present label, on which the estimates rest.
    """

    map: float
    precision: float
    f1: float
    tags_called: float
    tags_present: float
    tags_most: float
    images: int
    assumes: str


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    map: mean AP over the classes scored, in [0, 1], nan if there are none, in the named `definition`; interval: its
    bootstrap interval over images, or None. images: how many were scored, each once; labels: what the evaluation
    labels were ("complete"; "partial": some cells unknown; "single-positive": at most one present label per image and
    nothing known to be absent); classes_scored: how many; left_out: the others' names, each with the reason.
    averages: CP CR CF1 OP OR OF1 macro_f1 at the thresholds, textbook convention; tags_predicted: mean number of tags
    per image over all cells; tags_true: mean number of labels known to be present (fewer than the truth if partial).
    estimates: where labels are not complete, else None; warning: for people, or nothing. baselines: mAP, in [0, 1], of
    other scores of the same images, by what they are. levels: the same numbers by level of the hierarchy, where the
    classes have one.

    Example:
        >>> import numpy as np
        >>> labels = Labels(np.array([[1], [0], [1]], np.int8))
        >>> evaluate_scores(np.array([[0.9], [0.2], [0.7]]), labels, ("cat",)).map
        1.0
    """

    definition: str
    map: float
    interval: Interval | None
    images: int
    labels: LabelsKind
    classes_scored: int
    left_out: dict[str, str]
    averages: dict[str, float]
    tags_predicted: float
    tags_true: float
    per_class: tuple[ClassResult, ...]
    estimates: Estimates | None = None
    warning: str = ""
    baselines: dict[str, float] = field(default_factory=dict)
    levels: tuple[LevelResult, ...] = ()

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        header = ("class", "AP", "precision", "recall", "F1", "positives", "known")
        rows = [
            (c.name, *map(percent, (c.average_precision, c.precision, c.recall, c.f1)), str(c.positives), str(c.known))
            for c in self.per_class
        ]
        return as_html(*self._shown(), header, rows)

    def _shown(self) -> tuple[str, dict[str, str]]:
        cells = (list(column.cells) for column in self._summary().columns)
        rows = {str(name): str(value) for name, value in zip(*cells, strict=True)}
        return "Report (percent)", rows | ({"warning": self.warning} if self.warning else {})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: nan becomes None; `unit` says that values are fractions."""
        values = _without_nan(asdict(self))
        return {"unit": "fraction in [0, 1]", **values}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the JSON file atomically. Raises WorkFailed if it cannot be written."""
        with writing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Report:
        """What `to_dict` gave. Raises ValueError, KeyError, TypeError or AttributeError if it is not a report."""
        since_0_2: dict[str, Any] = {"estimates": None, "warning": "", "baselines": {}, "levels": ()}
        values = {f.name: _with_nan((since_0_2 | stored)[f.name]) for f in fields(cls)}
        values |= {name: None for name in ("interval", "estimates") if not stored.get(name)}
        report = read_as(cls, values)
        if not set(AVERAGES) <= set(report.averages):
            raise ValueError(f"averages of {', '.join(report.averages)}")
        return report

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what `save` wrote (further keys in the file are ignored). Raises PluresError if it is not a report."""
        try:
            return cls.from_dict(parse_json(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise PluresError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PluresError(f"{path}: not a report ({error})") from None

    def render(self) -> Group:
        """Two tables for the terminal, in percent: the whole, and the classes; what is undefined has no place there.
        A warning comes last."""
        warning = [Text(f"Warning: {self.warning}", style="yellow")] if self.warning else []
        return Group(self._summary(), *([self._levels()] if self.levels else []), self._classes(), *warning)

    def _summary(self) -> Table:
        table = Table(title="Evaluation (percent)", show_header=False)
        interval = ""
        if self.interval is not None:
            interval = f"  [{percent(self.interval.low)}, {percent(self.interval.high)}] at {self.interval.level:.0%}"
        rows = {"images": f"{self.images:,} ({self.labels} labels)"}
        if self.classes_scored:
            rows[f"mAP ({self.definition})"] = percent(self.map) + interval
            rows |= {f"mAP of the {name}": percent(value) for name, value in self.baselines.items()}
            rows["classes scored"] = f"{self.classes_scored} of {len(self.per_class)}"
        for names in (("CP", "CR", "CF1"), ("OP", "OR", "OF1")):
            defined = [name for name in names if not math.isnan(self.averages[name])]
            if defined:
                rows[" / ".join(defined)] = " / ".join(percent(self.averages[name]) for name in defined)
        tags = f"{self.tags_predicted:.2f} called, {self.tags_true:.2f} labelled present"
        if (e := self.estimates) is not None:
            rows["estimated mAP"] = percent(e.map)
            rows["estimated precision / F1"] = f"{percent(e.precision)} / {percent(e.f1)}"
            tags += f", about {e.tags_present:.2f} estimated there (at most {e.tags_most:.2f})"
        rows["tags per image"] = tags
        if self.left_out:
            rows["not scored"] = spell_left_out(self.left_out)
        if e is not None:
            rows["estimates assume"] = e.assumes
        for name, value in rows.items():
            table.add_row(name, value)
        return table

    def _levels(self) -> Table:
        table = Table("level", title="Levels of the hierarchy (percent), roots first")
        for name in (*MEASURES, "classes", "scored"):
            table.add_column(name, justify="right")
        for one in self.levels:
            values = [percent(getattr(one, attribute)) for attribute in MEASURES.values()]
            table.add_row(str(one.level), *values, f"{one.classes:,}", f"{one.classes_scored:,}")
        return table

    def _classes(self) -> Table:
        table = Table("class", title="Classes (percent)")
        shown = {
            name: attribute for name, attribute in MEASURES.items()
            if not all(math.isnan(getattr(c, attribute)) for c in self.per_class)
        }  # fmt: skip
        for name in (*shown, "positives", "known"):
            table.add_column(name, justify="right")
        for c in self.per_class:
            values = [percent(getattr(c, attribute)) for attribute in shown.values()]
            table.add_row(c.name, *values, f"{c.positives:,}", f"{c.known:,}")
        return table


def evaluate_scores(
    scores: Scores | Tensor,
    labels: Labels | NDArray[Any] | Tensor,
    classes: tuple[str, ...],
    definition: str = "plain",
    threshold: ArrayLike = 0.5,
    bootstrap: int = 200,
    seed: int = 0,
    logits: bool = False,
    called: NDArray[np.bool_] | None = None,
) -> Report:
    """Judge scores [N, K] by labels [N, K] of the named classes: arrays or tensors; labels as Labels or codes.

    threshold: score from which on a tag is given, scalar or one per class [K]; bootstrap: resamples for the interval, 0
    for none; logits: scores are logits (probabilities near 1 would tie), the threshold stays a probability. called:
    bool [N, K], the tags given, where more than thresholds decides on them.
    A class without a known positive is left out of the mean, and so is one without a known negative: any scores
    would rank it perfectly, and its precision and F1 are nan as well. (Definitions of published codes keep in what
    those codes count.)
    Raises PluresError if shapes or names disagree.
    """
    scores, labels = arrays(scores, labels)
    if len(classes) != labels.classes:
        raise PluresError(f"{len(classes)} class names for {labels.classes} columns of labels")
    cut = np.asarray(threshold, np.float64)
    counts = count_tags(scores, labels, np.log(cut / (1 - cut)) if logits else cut, called=called)
    at_threshold = averages(counts)
    certain = cannot_fail(labels, definition)
    per_class = np.where(certain, np.nan, average_precision(scores, labels, definition))
    scored = ~np.isnan(per_class)
    everywhere = np.where(counts.known < len(labels), "nothing known to be absent", "every image has it")
    reasons = np.where(certain, everywhere, "no known positive")
    return Report(
        definition=definition,
        map=float(per_class[scored].mean()) if scored.any() else float("nan"),
        interval=_interval(scores, labels, scored, definition, bootstrap, seed),
        images=len(labels),
        labels=kind_of(labels),
        classes_scored=int(scored.sum()),
        left_out={classes[k]: str(reasons[k]) for k in np.flatnonzero(~scored)},
        averages=at_threshold.overall(),
        tags_predicted=_mean(counts.tagged, len(labels)),
        tags_true=_mean(counts.positives, len(labels)),
        per_class=tuple(
            ClassResult(*values)
            for values in zip(
                classes,
                per_class.tolist(),
                counts.positives.tolist(),
                counts.known.tolist(),
                np.broadcast_to(np.asarray(threshold, np.float64), len(classes)).tolist(),
                at_threshold.precision.tolist(),
                at_threshold.recall.tolist(),
                at_threshold.f1.tolist(),
                strict=True,
            )
        ),
    )


def by_level(per_class: Sequence[ClassResult], levels: NDArray[np.int64]) -> tuple[LevelResult, ...]:
    """The results of classes at these levels [K] of a hierarchy, averaged by level."""
    values = np.array([[getattr(c, attribute) for attribute in MEASURES.values()] for c in per_class])  # [K, 4]
    found = []
    for level in range(int(levels.max(initial=-1)) + 1):
        here = values[levels == level]
        means = [float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else np.nan for column in here.T]
        found.append(LevelResult(level, len(here), int((~np.isnan(here[:, 0])).sum()), *means))
    return tuple(found)


def kind_of(labels: Labels) -> LabelsKind:
    """What labels these are, see Report."""
    if labels.complete:
        return "complete"
    single = not labels.absent.any() and int(labels.present.sum(1).max(initial=0)) <= 1
    return "single-positive" if single else "partial"


def spell_left_out(left_out: dict[str, str], most: int = 5) -> str:
    """Which classes were not scored and why, each reason once: `3 classes (a, b, c): no known positive`."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(
        f"{len(of)} {'class' if len(of) == 1 else 'classes'}"
        f" ({', '.join(of[:most])}{', ...' if len(of) > most else ''}): {reason}"
        for reason, of in names.items()
    )


def too_many_or_few(called: float, labelled: float, estimated: float | None, complete: bool) -> str:
    """A warning where a model calls far more tags per image than there are, as far as can be said, or far fewer than
    are labelled, with what to do; or nothing. estimated: None where nothing was estimated."""
    how = " --from clean" if complete else ""
    most = labelled if complete else estimated
    if most and called > FAR * most:
        there = f"{most:.2f} are there" if complete else f"about {most:.2f} are estimated to be there"
    elif labelled > FAR * called:
        there = f"{labelled:.2f} are labelled"
    else:
        return ""
    return f"it calls {called:.2f} tags per image where {there}; thresholds that fit: plures thresholds RUN{how}"


def percent(fraction: float) -> str:
    """A fraction as percent with one decimal, a dash for nan."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _interval(
    scores: Scores, labels: Labels, scored: NDArray[np.bool_], definition: str, resamples: int, seed: int
) -> Interval | None:
    """The interval of the mean over the classes scored; None if none was asked for or nothing was scored."""
    return bootstrap_map(scores, labels, definition, resamples, seed) if resamples and scored.any() else None


def _mean(counts: NDArray[np.int64], images: int) -> float:
    return float(counts.sum() / images) if images else float("nan")


def _without_nan(value: Any) -> Any:
    """The same nested value with None for nan."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value: Any) -> Any:
    """The same nested value with nan for None."""
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
