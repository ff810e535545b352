"""The report of logits against labels, as an experiment defines its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.labels import Labels
from plures.metrics.positives_only import evaluate_positives
from plures.metrics.report import Report, by_level, evaluate_scores, too_many_or_few
from plures.metrics.thresholds import Thresholds
from plures.metrics.uniform_choice import fit_uniform_choice
from plures.scoring.logits import Scores


def report_of(
    logits: Scores,
    dataset: Dataset,
    experiment: Experiment,
    thresholds: Thresholds | None = None,
    estimate: bool = True,
    baselines: Mapping[str, Scores] | None = None,
) -> Report:
    """The report of these logits against the dataset's known labels; thresholds None: the experiment's. estimate:
    whether to estimate, where labels are not complete, what nobody wrote down (seconds for thousands of images).
    baselines: other logits of the same images, by what they are of."""
    thresholds = thresholds or Thresholds.constant(dataset.classes, experiment.cut, dataset.taxonomy)
    logits, called = thresholds.ranked(logits), thresholds.called(logits)
    report = evaluate_scores(
        logits,
        dataset.labels,
        dataset.classes,
        definition=experiment.average_precision,
        threshold=thresholds.cuts,
        called=called,
    )
    shown = zip(report.per_class, thresholds.values.tolist(), strict=True)
    per_class = tuple(replace(one, threshold=value) for one, value in shown)
    complete, estimates, warning = dataset.labels.complete, None, ""
    if estimate and not complete and dataset.labels.present.any():
        estimates = evaluate_positives(logits, dataset.labels, dataset.classes, called=called).estimates
    if thresholds.objective in ("none", "f1"):  # nobody asked for more or fewer than there are
        there = None if estimates is None else estimates.tags_present
        warning = too_many_or_few(report.tags_predicted, report.tags_true, there, complete)
    others = {
        name: _mean_ap(thresholds.ranked(those), dataset.labels, experiment) / 100
        for name, those in (baselines or {}).items()
    }
    taxonomy = thresholds.taxonomy
    levels = by_level(per_class, taxonomy.levels) if taxonomy is not None and taxonomy.below else ()
    found = {"per_class": per_class, "estimates": estimates, "warning": warning, "baselines": others, "levels": levels}
    return replace(report, **found)  # type: ignore[arg-type]


def validation_map(logits: Scores, labels: Labels, observed: Labels | None, experiment: Experiment) -> dict[str, float]:
    """mAP in percent by the known labels ("val_map"), and by the observed ones with the rest counted as absent
    ("val_map_observed"); nan where no class has both a positive and a negative. With select=val_positives also the
    mean log chance of the observed labels ("val_positives"), see `metrics/uniform_choice.py`."""
    result = {"val_map": _mean_ap(logits, labels, experiment)}
    if observed is not None:
        result["val_map_observed"] = _mean_ap(logits, Labels.from_masks(observed.present), experiment)
        if experiment.select == "val_positives":
            result["val_positives"] = fit_uniform_choice(logits, observed).likelihood
    return result


def _mean_ap(logits: Scores, labels: Labels, experiment: Experiment) -> float:
    names = tuple(str(k) for k in range(labels.classes))
    return 100 * evaluate_scores(logits, labels, names, experiment.average_precision, bootstrap=0).map
