"""The model card of a run: what it was trained on, how well it does by which labels, and what it is not for.

After "Model Cards for Model Reporting", Mitchell et al., 2019, arXiv 1810.03993, with the front matter that model hubs
read. It stands beside the runs rather than with the reports, because training itself writes it.
"""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from plures.config import AUTO, RIDGE_L2, Component, Experiment
from plures.errors import printable
from plures.files import read_json, writing
from plures.metrics.report import ClassResult, Report, percent
from plures.metrics.thresholds import Thresholds
from plures.models.model import CARD, SPEC, WEIGHTS
from plures.models.priors import NONE
from plures.runs.run import Run

MARK = "<!-- Written by plures and renewed with every choice of thresholds; take this line out to keep your edits. -->"
SELF_TRAINING = "self_training.json"  # what a teacher added to the training labels
PRIVATE = ("weights", "path", "names")  # where files lay on one machine
FEW = 10  # positives in the evaluation below which the AP of a class says little
KINDS = {
    "complete": "every label of every image is known",
    "partial": "some labels are unknown; unknown is not absent",
    "single-positive": "at most one tag per image, and nothing is known to be absent",
}


def write_card(run: Run, evaluation: dict[str, Any] | None = None) -> None:
    """Write `model_card.md` into the run folder; one that a person has made their own is left alone.

    evaluation: what report.json is going to hold, where it is not written yet.
    """
    path = run.path / CARD
    if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
        return
    text = model_card(run, evaluation)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def model_card(run: Run, evaluation: dict[str, Any] | None = None) -> str:
    """The card of a trained run, as Markdown: made of the files in its folder (and of `evaluation`, if given)."""
    spec, environment = _read(run.path / SPEC), _read(run.path / "environment.json")
    report = None
    if evaluation is not None:
        report = Report.from_dict(evaluation)
    elif evaluation := _read(run.path / "report.json"):
        report = Report.load(run.path / "report.json")
    sections = {
        f"{len(spec['classes'])} tags for a photo": _model(run, spec),
        "What it was trained on": _trained_on(run, environment),
        "How well it does": _measured(report, evaluation or {}),
        "From which probability a tag is called": _thresholds(run, tuple(spec["classes"])),
        "What it is for, and what it is not for": _limits(report, environment),
        "How it was made": _made(run, environment),
    }
    front = [
        "---",
        "library_name: plures",
        "pipeline_tag: image-classification",
        "tags: [plures, multi-label-classification, image-classification]",
        "---",
        MARK,
        "",
    ]
    body = [
        line for number, (title, lines) in enumerate(sections.items())
        for line in [f"{'#' if number == 0 else '##'} {title}", "", *lines, ""]
    ]  # fmt: skip
    return "\n".join([*front, *body])


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of the run, empty where there is none."""
    return read_json(path) if path.is_file() else {}


def _model(run: Run, spec: dict[str, Any]) -> list[str]:
    e, shown = run.experiment, spec["preprocessing"]
    weights = run.path / WEIGHTS
    size = "of both, the head alone lies here"  # a run of a sweep that was not chosen
    if weights.is_file():
        size = f"{weights.stat().st_size / 1e6:.1f} MB of weights"
    side = shown["image_size"]
    known = f" Joined with what is known without tags: prior {_part(e.prior)}." if e.prior.name != NONE else ""
    return [
        f"It gives each of these classes a probability of its own: {', '.join(map(_plain, spec['classes']))}.",
        "",
        f"Backbone {_part(e.backbone)}; head {_part(e.head)}; {size}. A photo is turned upright,"
        f" squashed to {side} x {side} pixels ({shown['interpolation']}) and normalised inside.{known}",
        *_hierarchy(spec),
    ]


def _hierarchy(spec: dict[str, Any]) -> list[str]:
    """How classes belong together, if they do."""
    if "taxonomy" not in spec:
        return []
    pairs = "; ".join(
        f"{_plain(child)}: {', '.join(map(_plain, up))}" for child, up in spec["taxonomy"]["parents"].items() if up
    )
    groups = "; ".join(", ".join(map(_plain, group)) for group in spec["taxonomy"]["exclusive"])
    lines = [f"Classes and those above them: {pairs}. A class is called only with all above it."] * bool(pairs)
    lines += [f"Of each of these groups one at most is called, the likeliest: {groups}."] * bool(groups)
    return ["", " ".join(lines)]


def _trained_on(run: Run, environment: dict[str, Any]) -> list[str]:
    e = run.experiment
    images = environment.get("train_images")
    lines = [f"{images:,} images of `{_plain(Path(e.data.name).name)}`." if images else "Its images are not recorded."]
    labels = environment.get("train_labels")
    if labels:
        cells = ", ".join(f"{labels[name]:,} {name}" for name in ("present", "absent", "unknown"))
        lines[0] += f" The labels are *{labels['kind']}*: {KINDS[labels['kind']]} ({cells})."
    if e.supervision.name != "as_given":
        lines[0] += f" What of them training saw was simulated: {_part(e.supervision)}."
    if added := _read(run.path / SELF_TRAINING):
        lines[0] += f" Among them are those of a teacher (`{_plain(added['teacher'])}`): {added_tags(added)}."
    return [*lines, "", "Who made the photos and the tags, and under which licence: not recorded; please add it."]


def added_tags(summary: dict[str, Any]) -> str:
    """What a teacher added, in words; summary: what self_training.json holds."""
    precision = summary.get("precision")
    estimate = "" if precision is None else f" ({100 * precision:.0f} percent right by the observed tags alone)"
    truth = ""
    if summary.get("known"):
        truth = f"; of {summary['known']:,} whose hidden label is known, {summary['right']:,} are right"
    return f"{summary['added']:,} tags added, from a probability of {summary['threshold']:.3g} on{estimate}{truth}"


def _measured(report: Report | None, evaluation: dict[str, Any]) -> list[str]:
    if report is None:
        return ["It was not evaluated: there were neither test nor validation images."]
    interval = ""
    if report.interval is not None:
        low, high = percent(report.interval.low), percent(report.interval.high)
        interval = f", {report.interval.level:.0%} interval over images [{low}, {high}]"
    chosen = evaluation.get("selected", {})
    split = evaluation.get("split", "test")
    lines = [
        f"On {report.images:,} images of split `{split}`, whose labels are *{report.labels}* ({KINDS[report.labels]}):",
        "",
        f"- mAP {percent(report.map)} percent (average precision `{report.definition}`, mean over"
        f" {report.classes_scored} of {len(report.per_class)} classes{interval})"
        if report.classes_scored
        else "- mAP is undefined: no class has both known positives and known negatives here",
        *(
            f"- mAP of level {one.level} of the hierarchy, {one.classes_scored} classes: "
            f"{percent(one.average_precision)} percent"
            for one in report.levels
        ),
        *_at_thresholds(report),
        f"- weights as they were after epoch {chosen['epoch'] + 1}, chosen by `{chosen['by']}`"
        if chosen.get("epoch") is not None
        else "- which epoch's weights these are is not recorded",
    ]
    if split == "val":
        lines.append("- the epoch was chosen on these same images, which flatters the numbers")
    return [*lines, "", "| class | AP | positives | known |", "|---|---|---|---|", *map(_row, report.per_class)]


def _at_thresholds(report: Report) -> list[str]:
    then = "when it was trained; thresholds may have been chosen since"
    tags = f"{report.tags_predicted:.2f} tags per image called, {report.tags_true:.2f} labelled present"
    cf1, of1 = (report.averages[name] for name in ("CF1", "OF1"))
    lines = [f"- {tags} ({then})"]
    if not math.isnan(of1):
        lines = [f"- CF1 {percent(cf1)}, OF1 {percent(of1)} percent; {tags} ({then})"]
    if (e := report.estimates) is not None:
        lines.append(
            f"- estimated from the tags known to be present: precision {percent(e.precision)}, F1 {percent(e.f1)}, mAP"
            f" {percent(e.map)} percent; about {e.tags_present:.2f} tags per image are there. This assumes that"
            f" {e.assumes}"
        )
    return lines


def _row(c: ClassResult) -> str:
    return f"| {_plain(c.name)} | {percent(c.average_precision)} | {c.positives:,} | {c.known:,} |"


def _thresholds(run: Run, classes: tuple[str, ...]) -> list[str]:
    chosen = Thresholds.load(run.path, classes)
    if chosen is None:
        return [f"{run.experiment.cut:g} for every class, which nobody has chosen; `plures thresholds` does."]
    calibration = "none" if chosen.calibration is None else chosen.calibration.kind
    same = len(set(chosen.values.tolist())) == 1
    cuts = (
        f"{chosen.values[0]:.3g} for every class"
        if same
        else ", ".join(
            f"{_plain(name)} never" if value > 1 else f"{_plain(name)} {value:.3g}"
            for name, value in zip(chosen.classes, chosen.values, strict=True)
        )
    )
    return [
        f"Chosen by `{chosen.method}` for `{chosen.objective}`; calibration: {calibration}. {cuts}.",
        "",
        f"Assumes: {chosen.assumes}",
        "",
        f"Guarantees: {chosen.guarantees}",
    ]


def _limits(report: Report | None, environment: dict[str, Any]) -> list[str]:
    lines = [
        "- For photos like those it was trained on. What it does on others was not measured.",
        "- It knows its classes only. Anything else in a photo is passed over, or taken for one of them.",
        "- Heat maps show what the score rests on, which need not be the object.",
        "- It was not examined for fairness. Decisions about people should not rest on it.",
    ]
    if environment.get("train_labels", {}).get("kind") in ("partial", "single-positive"):
        lines.append("- Absence was not fully observed, so a probability is not a frequency of presence by itself.")
    if report is not None:
        few = [_plain(c.name) for c in report.per_class if c.positives < FEW]
        if few:
            lines.append(f"- Fewer than {FEW} positives were there to judge {', '.join(few)} by.")
        if report.labels != "complete":
            lines.append("- It was judged by incomplete labels: the numbers above hold for known cells only.")
    return lines


def _made(run: Run, environment: dict[str, Any]) -> list[str]:
    e = run.experiment
    loss = e.loss if e.loss.name != AUTO else Component(name=environment.get("loss", AUTO))
    versions = ", ".join(f"{name} {number}" for name, number in environment.get("versions", {}).items())
    stages = [e.of(stage) for stage in e.stages]
    steps = "; ".join(steps_of(stage) for stage in stages)
    return [
        f"    {environment.get('command', 'not recorded')}",
        "",
        f"Loss {_part(loss)}; {steps}; seed {e.seed}. Everything else: `experiment.yaml`.",
        "",
        f"{versions}; {environment.get('machine', '')}; {environment.get('device', '')}. Hash of the training labels:"
        f" `{environment.get('train_labels_sha256', 'not recorded')}`.",
    ]


def steps_of(stage: Experiment) -> str:
    """What one stage of training did."""
    if stage.ridge:
        l2 = stage.stages[0].options.get("l2", RIDGE_L2)
        return f"ridge: in closed form for {len(l2)} strengths of l2, of which the best on validation was kept"
    steps = f"{stage.epochs} epochs, batches of {stage.batch_size}, {_part(stage.optimizer)} at {stage.lr:g}"
    return f"{stage.stage_names}: {steps}"


def _plain(name: str) -> str:
    """A name of the user's as text in Markdown: no HTML, no cell of a table ends with it."""
    return html.escape(printable(" ".join(name.split())), quote=False).replace("|", "\\|").replace("`", "'")


def _part(part: Component) -> str:
    """`name`, or `name (option value, ...)`; where weights lay on one machine is no news to others."""
    options = [f"{name} {value}" for name, value in part.options.items() if name not in PRIVATE]
    return f"`{part.name}`" + (f" ({', '.join(options)})" if options else "")
