"""Self-training, `teacher=RUN`: tags that an earlier run is sure of are added to the observed ones before training.

The teacher scores the training photographs. An unknown cell from its threshold on is taken as present; the others stay
as they are observed, and the loss treats them as it does. The threshold is the lowest at which the tags that would be
added are right often enough, as far as the observed positives of the validation photographs alone can tell
(`metrics/uniform_choice.py`); no hidden label decides anything. What was added lies in the run folder, so that a run
that is resumed does not ask its teacher again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plures.config import Experiment
from plures.errors import PluresError
from plures.files import parse_json, writing
from plures.labels import PRESENT, Labels
from plures.metrics.thresholds import sigmoid
from plures.metrics.uniform_choice import fit_uniform_choice
from plures.models.model import load
from plures.runs.card import SELF_TRAINING, added_tags
from plures.runs.data import Prepared
from plures.runs.run import Run
from plures.scoring.device import make_fabric
from plures.scoring.logits import Scores, logits_of_dataset
from plures.training.progress import Callback

if TYPE_CHECKING:
    import pandas as pd

TAGS = "added_tags.parquet"
PRECISION = 0.95  # that the tags added together must have by the estimate, which is optimistic (docs/choosing.md)
LOWEST = 0.02  # no threshold is sought below


@dataclass(frozen=True, eq=False)
class Added:
    """What a teacher added. tags: DataFrame with row (place among the training rows), class and probability;
    summary: teacher, threshold, added, precision (estimated; None where nothing could be), known and right: the
    added cells whose hidden label is known, and how many of these are present."""

    tags: pd.DataFrame
    summary: dict[str, Any]

    @classmethod
    def load(cls, run: Run) -> Added | None:
        """What lies in the run folder; None where that is nothing yet."""
        import pandas as pd

        if not (run.path / SELF_TRAINING).is_file():
            return None
        path = run.path / TAGS
        try:
            return cls(
                pd.read_parquet(path, columns=["row", "class", "probability"]),
                dict(parse_json((run.path / SELF_TRAINING).read_bytes())),
            )
        except (OSError, ValueError, TypeError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise PluresError(f"{path}: damaged ({line}); start anew with another --out") from None

    def save(self, run: Run) -> None:
        with writing(run.path / TAGS) as temporary:
            self.tags.to_parquet(temporary, index=False)
        run.write_json(SELF_TRAINING, self.summary)

    def to(self, prepared: Prepared) -> Prepared:
        """The data with these tags among the training labels."""
        values = prepared.train.labels.values.copy()
        columns = {name: k for k, name in enumerate(prepared.train.classes)}
        rows, names = self.tags["row"].to_numpy(), self.tags["class"].tolist()
        if len(rows) and (rows.max() >= len(values) or not columns.keys() >= set(names)):
            raise PluresError("the data have changed since the teacher added its tags; put them back, or start anew")
        values[rows, [columns[name] for name in names]] = PRESENT
        return replace(prepared, train=prepared.train.with_labels(Labels(values)))


def with_teacher(
    experiment: Experiment, prepared: Prepared, begun: Run | None, watch: Callback
) -> tuple[Prepared, Added | None]:
    """The data with the tags that the experiment's teacher adds, and these tags; as they are where it has none.

    begun: the run that is resumed, which holds its tags. Raises PluresError if the teacher is no run, knows other
    classes, or finds no unknown cell.
    """
    if experiment.teacher is None:
        return prepared, None
    added = None if begun is None else Added.load(begun)
    if added is None:
        added = ask(experiment, prepared, watch)
        watch.say(f"teacher={experiment.teacher}: {added_tags(added.summary)}")
    return added.to(prepared), added


def ask(experiment: Experiment, prepared: Prepared, watch: Callback) -> Added:
    """The tags that the teacher is sure of."""
    teacher, train = Run(str(experiment.teacher)), prepared.train
    model = load(teacher.path)
    if model.classes != train.classes:
        raise PluresError(
            f"teacher={teacher.path}: it knows {len(model.classes)} classes ({', '.join(model.classes[:3])}, ...), the"
            f" data have {len(train.classes)} ({', '.join(train.classes[:3])}, ...); they must be the same in the same"
            " order"
        )
    if train.labels.complete:
        raise PluresError(f"teacher={teacher.path}: every training label is known, so that it has nothing to add")
    if not teacher.imported and teacher.experiment.supervision != experiment.supervision:
        watch.say(
            f"teacher={teacher.path} was trained with supervision={teacher.experiment.supervision.name} and other"
            " labels than this run observes; what they say reaches this run through it"
        )
    fabric = make_fabric(experiment)
    model = model.to(fabric.device)
    threshold, precision = experiment.teacher_threshold, float("nan")
    if threshold is None and (prepared.val is None or prepared.val_observed is None):
        raise PluresError("the teacher's threshold is chosen on validation images; set teacher_threshold, such as 0.5")
    if prepared.val is not None and prepared.val_observed is not None:
        logits = logits_of_dataset(model, prepared.val, teacher.experiment, fabric)
        if prepared.val_observed.present.any() and prepared.val_observed.unknown.any():
            threshold, precision = choose(logits, prepared.val_observed, threshold)
        elif threshold is None:
            raise PluresError(
                "the teacher's threshold is chosen by validation images with observed and with unknown labels; set"
                " teacher_threshold, such as 0.5"
            )
    assert threshold is not None
    scores = sigmoid(logits_of_dataset(model, train, teacher.experiment, fabric))
    sure = train.labels.unknown & (scores >= threshold)
    rows, columns = np.nonzero(sure)
    names = np.array(train.classes, dtype=object)[columns]
    import pandas as pd  # here: slow to load, and most trainings have no teacher

    tags = pd.DataFrame({"row": rows, "class": names.astype(str), "probability": scores[rows, columns]})
    summary: dict[str, Any] = {
        "teacher": str(experiment.teacher), "threshold": threshold, "added": len(rows),
        "precision": None if np.isnan(precision) else precision, **truth_of(sure, prepared.train_known),
    }  # fmt: skip
    return Added(tags, summary)


def choose(logits: Scores, observed: Labels, threshold: float | None = None) -> tuple[float, float]:
    """The threshold from which unknown cells are taken as present, and the estimated precision there (nan where no
    cell is above it).

    logits, observed: [N, K] of images that the teacher was not trained on; those without an observed positive are left
    out. threshold: given, so that only the precision
    is estimated. Else it is the lowest with an estimate of PRECISION or more; 1 where there is none.
    """
    rows = observed.present.any(1)
    logits, observed = logits[rows], observed.take(rows)
    presence = fit_uniform_choice(logits, observed).presence(logits, observed)[observed.unknown]
    scores = sigmoid(logits)[observed.unknown]
    order = np.argsort(-scores, kind="stable")
    scores, precision = scores[order], np.cumsum(presence[order]) / np.arange(1, len(order) + 1)
    if threshold is None:
        good = np.flatnonzero((precision >= PRECISION) & (scores >= LOWEST))
        if not len(good):
            return 1.0, float("nan")
        return float(scores[good[-1]]), float(precision[good[-1]])
    above = int((scores >= threshold).sum())
    return threshold, float(precision[above - 1]) if above else float("nan")


def truth_of(added: NDArray[np.bool_], known: Labels | None) -> dict[str, int]:
    """Of the added cells [N, K]: of how many the hidden label is known, and how many of these are present."""
    if known is None:
        return {"known": 0, "right": 0}
    return {"known": int((added & ~known.unknown).sum()), "right": int((added & known.present).sum())}
