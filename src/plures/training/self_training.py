"""Self-training: tags that a teacher is sure of are added to the observed ones before training.

`teacher=RUN`: an earlier run scores the training photographs. `rounds=2`: the run is trained once as it is, into its
folder `first_round`; then models of its kind, each trained on all folds but one, score the fold that they did not see
(`training/cross_fitting.py`), and the run is trained with what they add. An unknown cell from the threshold on is taken
as present; the others stay as they are observed, and the loss treats them as it does.

The threshold is the lowest at which the tags that would be added are right often enough, as far as observed positives
alone can tell (`metrics/uniform_choice.py`): those of the validation photographs, or with `rounds=2` those of the
training photographs, which no model that scored them has seen. No hidden label decides anything. What was added lies in
the run folder, so that a run that is resumed does not ask its teacher again.
"""

from __future__ import annotations

from collections.abc import Callable
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
from plures.scoring.distributed import world_size
from plures.scoring.logits import Scores, logits_of_dataset
from plures.training.cross_fitting import out_of_fold
from plures.training.progress import Callback

if TYPE_CHECKING:
    import pandas as pd

TAGS = "added_tags.parquet"
FIRST_ROUND, FOLDS = "first_round", 5
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
    experiment: Experiment, prepared: Prepared, begun: Run | None, callback: Callback, train: Callable[..., Run]
) -> tuple[Prepared, Added | None]:
    """The data with the tags that the experiment's teacher adds, and these tags; as they are where it has none.

    begun: the run folder, where there is one already; it may hold its tags. train: `plures.training.train.train` with
    the data given. Raises PluresError if the teacher is no run, knows other classes, or finds no unknown cell.
    """
    if experiment.teacher is None and experiment.rounds == 1:
        return prepared, None
    added = None if begun is None else Added.load(begun)
    if added is None:
        if experiment.teacher is not None:
            added = ask(experiment, prepared, callback)
            callback.say(f"teacher={experiment.teacher}: {added_tags(added.summary)}")
        else:
            assert begun is not None
            added = ask_folds(experiment, prepared, begun, callback, train)
            callback.say(f"rounds={experiment.rounds}: {added_tags(added.summary)}")
    return added.to(prepared), added


def ask(experiment: Experiment, prepared: Prepared, callback: Callback) -> Added:
    """The tags that another run is sure of."""
    teacher, train = Run(str(experiment.teacher)), prepared.train
    model = load(teacher.path)
    if model.classes != train.classes:
        raise PluresError(
            f"teacher={teacher.path}: it knows {len(model.classes)} classes ({', '.join(model.classes[:3])}, ...), the"
            f" data have {len(train.classes)} ({', '.join(train.classes[:3])}, ...); they must be the same in the same"
            " order"
        )
    refuse_complete(f"teacher={teacher.path}", train.labels)
    if not teacher.imported and teacher.experiment.supervision != experiment.supervision:
        callback.say(
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
    return above(scores, threshold, precision, str(experiment.teacher), prepared)


def ask_folds(
    experiment: Experiment, prepared: Prepared, begun: Run, callback: Callback, train: Callable[..., Run]
) -> Added:
    """The tags that models of the run's own kind are sure of, each asked about the fold it was not trained on."""
    asked = f"rounds={experiment.rounds}"
    alone = Experiment(**{**experiment.to_dict(), "rounds": 1, "teacher_threshold": None})
    folder = begun.path / FIRST_ROUND
    if not (folder / "report.json").is_file():
        callback.say(f"{asked}: the first round, in {folder}")
        train(alone, folder, resume=(folder / "experiment.yaml").is_file())
    callback.say(f"{asked}: cross-fitting on {FOLDS} folds")
    kept = folder / "folds.npy"
    logits = out_of_fold(Run(folder), prepared.train, FOLDS, seed=experiment.seed, kept=kept)
    threshold, precision = choose(logits, prepared.train.labels, experiment.teacher_threshold)
    return above(sigmoid(logits), threshold, precision, f"cross-fitted on {FOLDS} folds", prepared)


def check_rounds(experiment: Experiment, prepared: Prepared) -> None:
    """Raise PluresError unless the data have something that a second round could add."""
    asked, labels = f"rounds={experiment.rounds}", prepared.train.labels
    refuse_complete(asked, labels)
    if not labels.present.any():
        raise PluresError(f"{asked}: no training image has a known tag that a first round could learn from")
    if len(labels) < FOLDS:
        raise PluresError(f"{asked}: cross-fitting requires {FOLDS} training images or more, got {len(labels)}")
    if world_size() > 1:
        raise PluresError(f"{asked} trains in one process; train the first round by itself and name it, teacher=RUN")


def refuse_complete(asked: str, labels: Labels) -> None:
    if labels.complete:
        raise PluresError(f"{asked}: every training label is known, so that there is nothing to add")


def above(
    scores: NDArray[np.floating[Any]], threshold: float, precision: float, teacher: str, prepared: Prepared
) -> Added:
    """The unknown cells of the training rows whose score [N, K] is the threshold or more."""
    train = prepared.train
    sure = train.labels.unknown & (scores >= threshold)
    rows, columns = np.nonzero(sure)
    names = np.array(train.classes, dtype=object)[columns]
    import pandas as pd  # here: slow to load, and most trainings have no teacher

    tags = pd.DataFrame({"row": rows, "class": names.astype(str), "probability": scores[rows, columns]})
    summary: dict[str, Any] = {
        "teacher": teacher, "threshold": threshold, "added": len(rows),
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
