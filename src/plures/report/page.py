"""`plures report`: a run folder as one self-contained HTML page that needs no network: what was trained on what, every
number with its definition and interval, figures, the best and the worst photos."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import plures
from plures.config import AUTO, Component
from plures.errors import PluresError, printable
from plures.files import refuse_replacing, writing
from plures.metrics.intervals import Interval
from plures.metrics.reliability import reliability
from plures.metrics.report import kind_of, percent, spell_left_out
from plures.models.model import Model, load
from plures.report import figures
from plures.report.measures import Measure
from plures.report.missing import missing_tags
from plures.report.photos import best_and_worst, show
from plures.report.scored import Scored, recorded, score_run
from plures.runs.card import SELF_TRAINING, added_tags, steps_of
from plures.runs.run import Run
from plures.training.probabilities import read_probabilities

PHOTOS = 6  # of the best, and of the worst
KINDS = {
    "complete": "complete: every class of every image is known",
    "partial": "partial: some classes of some images are unknown, and do not count",
    "single-positive": "single-positive: one present tag per image and nothing known to be absent",
}


@dataclass(frozen=True)
class Fig:
    """A figure with what to see in it."""

    title: str
    svg: str
    words: str


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    split: str | None = None,
    resamples: int = 200,
    skip_bad: bool = False,
    force: bool = False,
) -> Path:
    """Write the page of a run. out: RUN/report.html unless given; force: replace a file that is no page of plures.
    Returns its path."""
    opened = Run(run)
    run = opened.path
    out = run / "report.html" if out is None else Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise PluresError(f"{out}: the report is a page; expected a name that ends in .html")
    refuse_replacing(out, force=force, inputs=opened.reads())
    scored = score_run(run, split, resamples, skip_bad)
    html = render("report.html", page_context(scored, load(scored.run.path)))
    with writing(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out


def render(template: str, context: dict[str, Any]) -> str:
    """A template of this folder filled in; everything is escaped except our own SVG."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("plures.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": spell_interval, "measure": spell_measure}
    # a name may hold characters that turn the direction of all that follows
    return printable(environment.get_template(template).render(version=plures.__version__, **context))


def page_context(s: Scored, model: Model) -> dict[str, Any]:
    """Everything the template shows."""
    probabilities = s.thresholds.probabilities(s.logits)
    best, worst = best_and_worst(s.logits, s.labels, PHOTOS)
    photos = show(model, s.dataset, np.concatenate([best, worst]), s.run.experiment, s.thresholds)
    return {
        "title": s.run.path.resolve().name,
        "sentence": sentence(s),
        "trained": trained_on(s),
        "honest": honest(s),
        "kind": s.report.labels,
        "kind_words": KINDS[s.report.labels],
        "measures": [m for m in s.measures if not math.isnan(m.value)],
        "warning": s.report.warning,
        "left_out": spell_left_out(s.report.left_out, most=40),
        "classes": by_class(s),
        "levels": s.report.levels,
        "thresholds": s.thresholds,
        "figures": all_figures(s, probabilities),
        "best": photos[: len(best)],
        "worst": photos[len(best) :],
        "missing": missing_tags(s.run, s.prepared, model, s.thresholds),
        "images": len(s.dataset),
        "split": s.split,
        "environment": _flat(s.environment),
        "settings": " ".join(s.run.experiment.to_settings()),
    }


# ----------------------------------------------------------------------------------------------------------- the words


def sentence(s: Scored) -> str:
    """One sentence that a stranger understands."""
    e = s.run.experiment
    backbone = e.backbone.options.get("model", e.backbone.name)
    if s.prepared is None:
        return f"A {e.head.name} head on {backbone}."
    train = s.prepared.train
    stages, loss = e.stage_names.replace(",", ", then "), loss_of(s)
    return (
        f"A {e.head.name} head on {backbone} ({stages}), trained with the loss {loss} on"
        f" {len(train):,} images of {train.name or e.data.name} whose labels are {kind_of(train.labels)}; scored on the"
        f" {len(s.dataset):,} images of its {s.split} split, whose labels are {s.report.labels}."
    )


def trained_on(s: Scored) -> dict[str, str]:
    """What was trained on what."""
    e, p = s.run.experiment, s.prepared
    rows = {"data": spell_component(e.data), "supervision": spell_component(e.supervision)}
    if p is not None:
        labels = p.train.labels
        rows["training labels"] = (
            f"{KINDS[kind_of(labels)]}; {_share(~labels.unknown):.1%} of the cells known,"
            f" {labels.present.sum() / max(len(labels), 1):.2f} present tags per image"
        )
        sizes = {"train": p.train, "validation": p.val, "test": p.test}
        rows["images"] = ", ".join(f"{len(d):,} {name}" for name, d in sizes.items() if d is not None)
    if added := recorded(s.run, SELF_TRAINING):
        rows["added by the teacher"] = f"{added['teacher']}: {added_tags(added)}"
    rows["classes"] = f"{len(s.dataset.classes)}"
    if (taxonomy := s.thresholds.taxonomy) is not None:
        rows["hierarchy"] = taxonomy.in_words()
    rows["model"] = f"{spell_component(e.backbone)}; head {spell_component(e.head)}"
    rows["loss"] = loss_of(s)
    rows["stages"] = "; ".join(steps_of(e.of(stage)) for stage in e.stages)
    return rows


def honest(s: Scored) -> dict[str, str]:
    """What must be known to compare a number of this page with another."""
    e, r = s.run.experiment, s.report
    supervised = e.supervision.options.get("seed", "none" if e.supervision.name in ("full", "as_given") else "1200")
    selected = s.selected
    epoch = f" (epoch {selected['epoch'] + 1})" if selected.get("epoch", -1) >= 0 else ""
    rule = {
        "val_map": "mAP on the validation split, by all its known labels",
        "val_map_observed": "mAP on the validation split, by its observed labels alone",
        "last": "none: the last epoch",
    }.get(str(selected.get("by")), str(selected.get("by", "unknown")))
    return {
        "labels judged by": f"{KINDS[r.labels]}; sha256 {s.labels_hash[:16]}",
        "labels trained on": f"sha256 {str(s.environment.get('train_labels_sha256', 'not recorded'))[:16]}",
        "epoch chosen by": rule + epoch,
        "AP definition": r.definition,
        "seeds": f"run {e.seed}, observed labels {supervised}",
        "classes scored": f"{r.classes_scored} of {len(r.per_class)}",
        "images scored": f"{r.images:,}, each once",
        "intervals": f"95%, {len(s.measures[0].samples)} bootstrap resamples of the images; they do not hold the"
        " spread between seeds",
        "thresholds": f"{s.thresholds.method}, for {s.thresholds.objective}",
    }


def by_class(s: Scored) -> list[dict[str, Any]]:
    """Rows of the table of classes, best AP first, undefined last."""
    trained = s.prepared.train.labels.present.sum(0) if s.prepared is not None else None
    rows = [
        {
            "class": c,
            "trained": None if trained is None else int(trained[k]),
            "reason": s.report.left_out.get(c.name, ""),
        }
        for k, c in enumerate(s.report.per_class)
    ]
    return sorted(rows, key=lambda row: -math.inf if math.isnan(_ap(row)) else _ap(row), reverse=True)


def _ap(row: dict[str, Any]) -> float:
    return float(row["class"].average_precision)


def all_figures(s: Scored, probabilities: NDArray[np.floating]) -> list[Fig]:
    """Every figure that these data allow."""
    found: list[Fig] = []

    def add(title: str, svg: str | None, words: str) -> None:
        if svg is not None:
            found.append(Fig(title, svg, words))

    judged = f"Cells of the {s.split} split with known labels ({s.report.labels})."
    if s.labels.absent.any() and s.labels.present.any():
        curve = reliability(probabilities, s.labels)
        words = f"{judged} Expected calibration error, 15 bins of equal width: {100 * curve.error:.1f} percent."
        add("Are the probabilities what they say?", figures.reliability_curve(curve), words)
    add("Probabilities of present and absent tags", figures.distributions(probabilities, s.labels), judged)
    words = "A sample of training images, after each epoch: median, middle half and middle 80 percent of the cells."
    add("What becomes of the hidden positives", figures.hidden_labels(read_probabilities(s.run)), words)
    if s.prepared is not None:
        trained = s.prepared.train.labels.present.sum(0)
        ap = np.array([c.average_precision for c in s.report.per_class])
        if (pair := figures.against_frequency(ap, trained, s.dataset.classes)) is not None:
            words = f"A dot is a class. Rank correlation (Spearman) {_signed(pair[1])}."
            add("Do frequent classes do better?", pair[0], words)
    tags = s.thresholds.called(s.logits)
    if (pair := figures.co_occurrences(s.labels, tags, s.dataset.classes)) is not None:
        words = (
            "Of images with the row's tag, the percent that also carry the column's; empty rows are never called."
            f" Correlation of labelled and predicted shares {_signed(pair[1])}."
        )
        add("Which tags come together", pair[0], words)
    add("Training", figures.training_curves(s.run.log), "The mAP is of the validation split.")
    return found


# ----------------------------------------------------------------------------------------------------------- spelling


def loss_of(s: Scored) -> str:
    """The loss as it was asked for; where that was `auto`, also what it came to."""
    asked, used = spell_component(s.run.experiment.loss), str(s.environment.get("loss", AUTO))
    return f"{used} (auto)" if asked == AUTO and used != AUTO else asked


def spell_component(part: Component) -> str:
    """`name (option=value, ...)`, paths shortened to their names."""
    shown = [f"{k}={str(v).rsplit('/', 1)[-1]}" for k, v in part.options.items() if not isinstance(v, dict)]
    head, colon, tail = part.name.partition(":")
    name = f"{head}{colon}{tail.rstrip('/').rsplit('/', 1)[-1]}" if colon else part.name.rsplit("/", 1)[-1]
    return f"{name} ({', '.join(shown)})" if shown else name


def spell_measure(m: Measure) -> str:
    return f"{m.value:.2f}" if m.unit == "tags" else percent(m.value)


def spell_interval(m: Measure) -> str:
    i = m.interval
    if math.isnan(i.low):
        return ""
    return f"{i.low:.2f} to {i.high:.2f}" if m.unit == "tags" else f"{percent(i.low)} to {percent(i.high)}"


def spell_difference(i: Interval, unit: str) -> str:
    """`+1.2 [0.3, 2.1]`, in percent points unless the unit is tags."""
    if math.isnan(i.value):
        return "-"
    scale, digits = (1, 2) if unit == "tags" else (100, 1)
    value, low, high = (f"{scale * v:+.{digits}f}" for v in (i.value, i.low, i.high))
    return f"{value} [{low}, {high}]"


def _signed(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:+.2f}"


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean()) if mask.size else float("nan")


def _flat(environment: dict[str, Any]) -> dict[str, str]:
    """Names and values of the environment as text, versions in one line."""
    return {
        key.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
        for key, value in environment.items()
        if key != "taxonomy"
    }
