"""What `plures` gives to Python: `train`, and a Run whose methods are the verbs of the command line.

It stands above everything else and adds nothing but convenience: modules below know the plain `runs.run.Run`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

import plures
from plures.analysis.evaluate import evaluate
from plures.analysis.missing import Normalise, Suggestion, suggest, write_suggestions
from plures.analysis.thresholds import choose_thresholds
from plures.config import Experiment
from plures.console import Show
from plures.data.dataset import Dataset
from plures.data.pairs import from_pairs
from plures.data.read import read, tool_of
from plures.errors import PluresError
from plures.export.export import Exported, export
from plures.export.formats import Format
from plures.metrics.calibrating import Kind
from plures.metrics.report import Report
from plures.metrics.threshold_choice import Choice, Source
from plures.models.model import Model
from plures.report.page import write_report
from plures.reprs import as_html, as_text
from plures.runs.data import IN_MEMORY, with_classes
from plures.runs.run import Run as RunFolder
from plures.training import train as training
from plures.training.progress import Several

AnyPath = str | os.PathLike[str]
SHOWN = ("images", "tags per image", "warning")  # of the report, in a run's repr


def train(
    data: Any = None,
    out: AnyPath | None = None,
    *,
    recipe: AnyPath | None = None,
    options: dict[str, Any] | None = None,
    classes: Sequence[str] | AnyPath | None = None,
    dataset: Dataset | None = None,
    callbacks: Iterable[object] = (),
    progress: bool = True,
    resume: bool = False,
    skip_bad: bool = False,
    **settings: Any,
) -> Run:
    """Train a model into the folder `out`, and evaluate its best epoch.

    Args:
        data: what to train on: a path or `format:path` as on the command line; a Dataset, also one of `datasets` or
            `fiftyone`; a torch Dataset of (image, target) pairs, targets [K] in {1, 0, -1}; or an Experiment, which
            says everything itself.
        out: the run folder to make.
        recipe: settings to begin with, as `--recipe`: a name, name:row or a YAML file.
        options: of the data's reader, such as {"separator": ","}.
        classes: the K names of the columns of a torch Dataset's targets; "0", "1", ... unless given. Of other data:
            names of classes beside those that have tags, for a prior to find (photographs without any tag, too), or
            a file that says how classes belong together, as `classes.yaml` of docs/hierarchies.md (of a Dataset, too).
        dataset: images in hand for an Experiment.
        callbacks: objects with any of the methods of `plures.training.progress.Callback`: stage, step, epoch, say.
        progress: show a progress bar in a terminal or notebook, lines elsewhere (on stderr); False: nothing.
        resume: go on after the last whole epoch of the run in `out`, whose own settings count.
        skip_bad: leave unusable rows out.
        **settings: of an Experiment, such as loss="role", lr=1e-3, head={"name": "linear", "standardise": True}.

    Returns:
        The run: `run.report`, `run.evaluate(...)`, `run.suggest(...)`, `run.load()`.

    Raises:
        PluresError: on bad input. WorkFailed: if training cannot go on; what was kept before stays intact.

    Example:
        run = plures.train("tags.csv", out="runs/a", recipe="quick")
        run = plures.train(dataset, out="runs/b", loss="role", lr=1e-3, callbacks=[MyCallback()])
        run = plures.train(plures.Experiment(data="tags.csv", loss="role"), "runs/c")
    """
    if out is None:
        raise PluresError('train requires out=, the run folder to make, as in plures.train("tags.csv", out="runs/a")')
    experiment, held = _experiment(data, recipe, options, classes, settings, dataset is not None or resume)
    held = dataset if dataset is not None else held
    show = Show(_console()) if progress else None
    told = Several([*([show] if show else []), *callbacks])
    try:
        run = training.train(experiment, Path(out), dataset=held, resume=resume, skip_bad=skip_bad, callback=told)
    finally:
        if show is not None:
            show.close()
    return Run(run.path, dataset=held)


def _experiment(
    data: Any,
    recipe: AnyPath | None,
    options: dict[str, Any] | None,
    classes: Sequence[str] | AnyPath | None,
    settings: dict[str, Any],
    may_lack_data: bool,
) -> tuple[Experiment, Dataset | None]:
    """The experiment, and the data in hand if there are any."""
    given = {**settings, **({} if recipe is None else {"recipe": recipe})}
    if isinstance(data, Experiment):
        if given or options or classes is not None:
            raise PluresError("an Experiment says everything itself: set it there, as in Experiment(lr=1e-3)")
        return data, None
    if data is not None and "data" in settings:
        raise PluresError("data is given twice: as the first argument, and as data=")
    if data is None or isinstance(data, str | os.PathLike):
        if data is None and not may_lack_data and recipe is None and "data" not in settings:
            raise PluresError("say what to train on: a path, voc:DIR, coco:DIR, a Dataset, or scenes")
        named: dict[str, Any] = {} if data is None else {"data": {"name": os.fspath(data), **(options or {})}}
        named |= (
            {} if classes is None else {"classes": os.fspath(classes) if isinstance(classes, os.PathLike) else classes}
        )
        return Experiment(**{**given, **named}), None
    if tool_of(data) is not None:
        data, options = read(data, **(options or {})), None
    if options:
        raise PluresError("options= are of a reader, and a Dataset is read already")
    if not isinstance(data, Dataset):
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            kinds = "a path, an Experiment, a Dataset, or a torch Dataset with a length"
            raise PluresError(f"cannot train on {type(data).__name__}; expected {kinds}")
        data = from_pairs(data, None if isinstance(classes, str | os.PathLike) else classes)
    elif classes is not None and not isinstance(classes, str | os.PathLike):
        raise PluresError("classes= names the columns of a torch Dataset; this Dataset has its own")
    if isinstance(classes, str | os.PathLike):
        data = with_classes(data, os.fspath(classes))
    return Experiment(**given), data


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, markup=False, emoji=False)


class Suggestions(list[Suggestion]):
    """Tags that are probably missing, best first. dataset: whose rows they count."""

    def __init__(self, found: Iterable[Suggestion], dataset: Dataset) -> None:
        super().__init__(found)
        self.dataset = dataset

    def save(self, path: AnyPath) -> None:
        """Write a .csv or .tsv for `plures review` and `plures merge`."""
        write_suggestions(self, Path(path), self.dataset)

    def _repr_html_(self) -> str:
        rows = [(s.image, s.tag, s.kind, f"{s.score:.3f}") for s in self[:20]]
        return as_html(f"{len(self):,} suggestions", {}, ("image", "tag", "kind", "score"), rows)


class Run(RunFolder):
    """A run folder, with what can be done with it.

    Args:
        path: the folder that `plures.train` or `plures train` made.
        dataset: the data in hand that it was trained on, which is not kept in the folder.

    Example:
        run = plures.Run("runs/a")
        run.report.map                                  # of the best epoch, judged when training ended
        run.evaluate("other.csv").map
        run.suggest(top=500).save("missing.csv")
        run.thresholds(objective="precision=0.9")
        run.load().predict(["a.jpg"])[0].tags
        run.export("onnx", "model.onnx")
    """

    def __init__(self, path: AnyPath, dataset: Dataset | None = None) -> None:
        super().__init__(Path(path))
        self.dataset = dataset

    @property
    def report(self) -> Report:
        """The Report of the best epoch at the end of training. Raises PluresError where there is none."""
        path = self.path / "report.json"
        if not path.is_file():
            raise PluresError(f"{self.path} has no report: training has not ended, or had no rows to judge")
        return Report.load(path)

    def evaluate(self, data: AnyPath | Dataset | None = None, **arguments: Any) -> Report:
        """Judge the model on the run's own test rows, or on other data; arguments as `plures.evaluate`."""
        return evaluate(self, self._data(data), **arguments)

    def suggest(
        self,
        data: AnyPath | Dataset | None = None,
        *,
        top: int | None = 1000,
        with_wrong: bool = False,
        cross_fit: int | None = None,
        normalise: Normalise = "none",
        **arguments: Any,
    ) -> Suggestions:
        """Tags that are probably missing, best first; arguments as `plures.analysis.missing.suggest`."""
        found = suggest(
            self,
            self._data(data),
            top=top,
            with_wrong=with_wrong,
            cross_fit=cross_fit,
            normalise=normalise,
            **arguments,
        )
        return Suggestions(*found)

    def thresholds(
        self,
        data: AnyPath | Dataset | None = None,
        *,
        source: Source = "positives",
        objective: str = "f1",
        per_class: bool = True,
        calibrating: Kind = "none",
        **arguments: Any,
    ) -> Choice:
        """Choose thresholds and keep them in the folder; as `plures.analysis.thresholds.choose_thresholds`."""
        return choose_thresholds(
            self,
            self._data(data),
            source=source,
            objective=objective,
            per_class=per_class,
            calibrating=calibrating,
            **arguments,
        )

    def export(self, to: Format, out: AnyPath, **arguments: Any) -> Exported:
        """Write the model as one file for another program; arguments as `plures.export.export.export`."""
        return export(self, to, Path(out), **arguments)

    def load(self) -> Model:
        """The model with its best weights, as `plures.load(run)`."""
        return plures.load(self.path)

    @cached_property
    def model(self) -> Model:
        """`load()`, once."""
        return self.load()

    def write_report(self, out: AnyPath | None = None, **arguments: Any) -> Path:
        """Write the page of the run (report.html in its folder unless `out`); as `plures report`."""
        return write_report(self.path, None if out is None else Path(out), **arguments)

    def _data(self, data: AnyPath | Dataset | None) -> str | Dataset | None:
        if data is None:
            return self.dataset if self.source.name == IN_MEMORY else None
        return data if isinstance(data, Dataset) else os.fspath(data)

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> tuple[str, dict[str, str]]:
        e = self.experiment
        backbone = e.backbone.options.get("model", e.backbone.name)
        rows = {"data": e.data.name, "model": f"{e.head.name} on {backbone}", "loss": e.loss.name}
        rows["epochs"] = f"{len(self.log):,}"
        if (self.path / "report.json").is_file():
            rows |= {name: text for name, text in self.report._shown()[1].items() if name in SHOWN or "mAP" in name}
        return f"Run {self.path}", rows
