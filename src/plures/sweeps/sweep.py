"""`plures sweep`: a grid or a search of settings times seeds, each run a run folder, and what validation picks.

Runs of a linear head on frozen features are trained together (`vectorized/`); all others one by one or in processes.
A run that is finished is never trained again, so the same command resumes after an interruption, and a grid can grow.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plures.config import CUT, Experiment, apply_settings
from plures.data.dataset import Dataset
from plures.data.formats.safe_cells import guarded
from plures.errors import Diverged, PluresError, WorkFailed, machine_failure, require
from plures.files import mark_folder, refuse_folder, writing
from plures.runs.data import IN_MEMORY, read_data
from plures.sweeps.frozen import complete, train_frozen, trains_together
from plures.sweeps.sweep_run import Outcome, SweepRun, outcome
from plures.system import EndsWithParent, lock
from plures.training.auto import LOOKED_AT, choose_model
from plures.training.train import train

Say = Callable[[str], None]
Task = tuple[SweepRun, Dataset | None, bool]  # a run, its data if they are in hand, skip_bad
RANGE = re.compile(r"^\s*([^.\s][^\s]*?)\.\.([^\s]+)\s*$")  # 1e-5..1e-2
TRIALS_AT_ONCE = 8  # of a search: suggested together, so that they can be trained together


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but their seed. settings: what this cell sets, as key=value; validation, test:
    of its finished runs, mAP in percent; failed: how many stopped; folder: of the run with the best validation."""

    settings: tuple[str, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    failed: int
    folder: Path | None

    @property
    def score(self) -> float:
        """What cells are compared by: the mean over seeds of the best validation mAP; nan if a run failed."""
        return math.nan if self.failed or not self.validation else float(np.mean(self.validation))


@dataclass(frozen=True)
class Sweep:
    """cells in the order they were asked for; chosen: the one with the best mean validation score, if there is any."""

    folder: Path
    cells: tuple[Cell, ...]
    chosen: Cell | None


def sweep(
    values: Mapping[str, Any],
    out: str | Path,
    grid: Mapping[str, Sequence[str]],
    *,
    seeds: int = 1,
    search: int | None = None,
    jobs: int = 1,
    dataset: Dataset | None = None,
    skip_bad: bool = False,
    say: Say = lambda line: None,
) -> Sweep:
    """Run an Experiment's values with every combination of the grid's settings, each with `seeds` seeds.

    grid: texts by setting, as on the command line ({"lr": ["1e-3", "1e-4"], "loss": ["an", "role"]}). search: instead
    of all combinations, this many picked by optuna, from lists or from a range ("1e-5..1e-2"), by validation score.
    Raises PluresError on a setting that makes no sense; an unknown name is known before anything is trained.
    """
    out = Path(out)
    if seeds < 1 or jobs < 1 or (search is not None and search < 1):
        raise PluresError("--seeds, --jobs and --search are 1 or more")
    spaces = {key: _space(key, texts) for key, texts in sorted(grid.items(), key=lambda item: "." in item[0])}
    ranges = [key for key, space in spaces.items() if isinstance(space, tuple)]
    if ranges and search is None:
        raise PluresError(f"{ranges[0]} is a range: say how many settings to try with --search N, or list its values")
    if "seed" in spaces:
        raise PluresError("seeds are set with --seeds N (and seed=FIRST), not as part of the grid")
    refuse_folder(out, "sweep")
    plan = Plan(dict(values), out, seeds, jobs, dataset, skip_bad, say)
    with _alone(out):
        mark_folder(out, "sweep")
        if search is None:
            lists = [[f"{key}={value}" for value in space] for key, space in spaces.items()]
            wanted = [tuple(choice) for choice in itertools.product(*lists)]
            cells = plan.run(wanted)
        else:
            cells = _search(plan, spaces, search)
        found = _choose(out, cells)
        _write_csv(found, list(spaces))
        if found.chosen is not None and found.chosen.folder is not None:
            complete(found.chosen.folder)
    return found


class Plan:
    """How the cells of a sweep become runs."""

    def __init__(
        self,
        values: dict[str, Any],
        out: Path,
        seeds: int,
        jobs: int,
        dataset: Dataset | None,
        skip_bad: bool,
        say: Say,
    ) -> None:
        if dataset is not None:
            values = {"data": IN_MEMORY, **values}
        self.values, self.out, self.seeds, self.jobs = values, out, seeds, jobs
        self.dataset, self.skip_bad, self.say = dataset, skip_bad, say
        self.first_seed = Experiment(**values).seed
        self.said, self.read = set[str](), dict[str, Dataset]()  # what was said; some pictures of the data

    def runs_of(self, cell: tuple[str, ...]) -> list[SweepRun]:
        """A run for every seed of the cell. Raises PluresError if its settings make no experiment."""
        found = []
        for seed in range(self.first_seed, self.first_seed + self.seeds):
            settings = [*cell, f"seed={seed}"]
            name = re.sub(r"[^\w.=+-]+", "_", ",".join(settings))
            if len(name) > 150:
                raise PluresError(f"the settings {', '.join(settings)[:80]}... are too long for a folder's name")
            found.append(SweepRun(self.out / "runs" / name, self._settled(apply_settings(self.values, settings))))
        return found

    def _settled(self, values: dict[str, Any]) -> Experiment:
        """The experiment with nothing left to choose. Its runs are compared by average precision: no thresholds."""
        asked = Experiment(**{"threshold": CUT, **values})
        settled, reason = choose_model(asked, lambda: self._pictures(asked))
        if reason and reason not in self.said:
            self.said.add(reason)
            self.say(reason)
        return settled

    def _pictures(self, experiment: Experiment) -> Dataset:
        key = str(experiment.data)
        if key not in self.read:
            data = self.dataset or read_data(experiment, skip_bad=self.skip_bad)
            self.read[key] = data.take(np.linspace(0, len(data) - 1, LOOKED_AT).astype(int))
        return self.read[key]

    def run(self, wanted: Sequence[tuple[str, ...]]) -> list[Cell]:
        """Train what is not finished yet, and read what came of every cell."""
        cells = [self.runs_of(cell) for cell in wanted]
        runs = [run for cell in cells for run in cell]
        open_runs = [run for run in runs if not run.finished()]
        if len(open_runs) < len(runs):
            self.say(f"{len(runs) - len(open_runs)} of {len(runs)} runs are finished already")
        together = [run for run in open_runs if trains_together(run.experiment) and not run.has_checkpoint()]
        others = [run for run in open_runs if run not in together]
        if together:
            self.say(f"{len(together)} linear heads on frozen features, trained together")
            train_frozen(together, self.dataset, self.skip_bad, self.jobs)
        self._one_by_one(others)
        return [_cell(settings, [outcome(run) for run in cell]) for settings, cell in zip(wanted, cells, strict=True)]

    def _one_by_one(self, runs: Sequence[SweepRun]) -> None:
        """Raises WorkFailed, after all runs had their turn, if the machine stopped some of them."""
        tasks = [(run, self.dataset, self.skip_bad) for run in runs]
        if self.jobs == 1 or len(runs) < 2:
            stopped = self._count(map(_train_one, tasks), runs)
        else:
            stopped = self._in_processes(tasks, runs)
        if stopped:
            raise WorkFailed(f"{len(stopped)} of {len(runs)} runs could not be finished, the first: {stopped[0]}; fix"
                             " that, and the same command tries them again")  # fmt: skip

    def _in_processes(self, tasks: Sequence[Task], runs: Sequence[SweepRun]) -> list[str]:
        """As `_count`. However this ends, no process is left running."""
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn"), EndsWithParent())
        try:
            return self._count(pool.map(_train_one, tasks), runs)
        except BrokenProcessPool:
            raise WorkFailed(
                f"a process of the sweep was killed, perhaps because memory ran out; use fewer --jobs than {self.jobs};"
                " the same command resumes"
            ) from None
        finally:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            pool.shutdown(cancel_futures=True)

    def _count(self, done: Iterator[str], runs: Sequence[SweepRun]) -> list[str]:
        """Say which runs are finished; gives the reasons of those that the machine stopped."""
        reasons = []
        for run, reason in zip(runs, done, strict=True):
            self.say(f"{runs.index(run) + 1} of {len(runs)} runs: {run.folder.name}{reason and ': '}{reason}")
            reasons.append(reason)
        return [reason for reason in reasons if reason]


def _train_one(task: Task) -> str:
    """One ordinary run, from where it stopped. A failure of its settings is written into its folder; gives the reason
    of any other, "" if there was none."""
    run, dataset, skip_bad = task
    try:
        train(run.experiment, run.folder, dataset=dataset, resume=run.begun(), skip_bad=skip_bad)
    except Diverged as error:
        run.failed(str(error))
    except WorkFailed as error:
        return str(error)
    except Exception as error:
        reason = machine_failure(error)
        if reason is None:
            raise
        return reason
    return ""


def _cell(settings: tuple[str, ...], outcomes: list[Outcome]) -> Cell:
    good = [o for o in outcomes if not o.failed]
    best = max(good, key=lambda o: -math.inf if math.isnan(o.validation) else o.validation, default=None)
    return Cell(
        settings,
        tuple(o.validation for o in good),
        tuple(o.test for o in good),
        sum(o.failed for o in outcomes),
        None if best is None else best.folder,
    )


def _choose(out: Path, cells: Sequence[Cell]) -> Sweep:
    able = [cell for cell in cells if not math.isnan(cell.score)]
    return Sweep(out, tuple(cells), max(able, key=lambda cell: cell.score, default=None))


def _search(plan: Plan, spaces: Mapping[str, Sequence[str] | tuple[float, float]], trials: int) -> list[Cell]:
    """optuna's picks, TRIALS_AT_ONCE at a time. Its sampler is seeded and told the same numbers on every way through,
    so a search that was killed resumes to the same end."""
    require("--search", "search", ["optuna"])
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=plan.first_seed))
    cells: list[Cell] = []
    while len(cells) < trials:
        asked = [study.ask() for _ in range(min(TRIALS_AT_ONCE, trials - len(cells)))]
        wanted = [tuple(f"{key}={_suggest(trial, key, space)}" for key, space in spaces.items()) for trial in asked]
        for trial, cell in zip(asked, plan.run(wanted), strict=True):
            bad = math.isnan(cell.score)
            study.tell(trial, None if bad else cell.score, state=optuna.trial.TrialState.FAIL if bad else None)
            cells.append(cell)
    return list({cell.settings: cell for cell in cells}.values())


def _suggest(trial: Any, key: str, space: Sequence[str] | tuple[float, float]) -> str:
    """A list is a choice; a range of whole numbers gives whole ones; a range over a factor of ten is logarithmic."""
    if isinstance(space, list):
        return str(trial.suggest_categorical(key, space))
    low, high = space
    if isinstance(low, int) and isinstance(high, int):
        return str(trial.suggest_int(key, low, high))
    return f"{trial.suggest_float(key, float(low), float(high), log=0 < 10 * float(low) <= float(high)):.6g}"


def _space(key: str, texts: Sequence[str]) -> list[str] | tuple[float, float]:
    """The values of a setting: a list, or the ends of a range."""
    texts = [text.strip() for text in texts]
    if not texts or not all(texts):
        raise PluresError(f"--grid {key}= has no value; write --grid {key}=A,B,C")
    matched = RANGE.match(texts[0]) if len(texts) == 1 else None
    if matched is None:
        if len(set(texts)) < len(texts):
            raise PluresError(f"--grid {key}={','.join(texts)} names a value twice")
        return texts
    try:
        ends = [int(end) if re.fullmatch(r"[+-]?\d+", end) else float(end) for end in matched.groups()]
    except ValueError:
        raise PluresError(f"--grid {key}={texts[0]}: a range is two numbers, as in 1e-5..1e-2") from None
    if not ends[0] < ends[1]:
        raise PluresError(f"--grid {key}={texts[0]}: a range goes from low to high")
    return (ends[0], ends[1])


def _write_csv(found: Sweep, keys: Sequence[str]) -> None:
    text = io.StringIO()
    numbers = ["n", "failed", "val_map", "val_sd", "test_map", "test_sd", "chosen", "run"]
    writer = csv.DictWriter(text, [*keys, *numbers], lineterminator="\n")
    writer.writeheader()
    for cell in found.cells:
        row = dict(setting.split("=", 1) for setting in cell.settings)
        row |= {"n": str(len(cell.validation)), "failed": str(cell.failed), "chosen": "yes" * (cell is found.chosen)}
        for name, values in (("val", cell.validation), ("test", cell.test)):
            row |= {f"{name}_map": mean(values), f"{name}_sd": spread(values)}
        row["run"] = "" if cell.folder is None else str(cell.folder.relative_to(found.folder))
        writer.writerow({key: guarded(value) for key, value in row.items()})
    with writing(found.folder / "sweep.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def mean(values: Sequence[float]) -> str:
    """Two decimals; empty where undefined."""
    return "" if not values or math.isnan(float(np.mean(values))) else f"{np.mean(values):.2f}"


def spread(values: Sequence[float]) -> str:
    """The standard deviation over seeds; empty for fewer than two."""
    return "" if len(values) < 2 or math.isnan(float(np.mean(values))) else f"{np.std(values, ddof=1):.2f}"


def _alone(out: Path) -> AbstractContextManager[object]:
    """Only one process at a time sweeps into a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return lock(out / ".lock", f"{out}: another process is sweeping into this folder")
    except OSError as error:
        raise PluresError(f"{out}: cannot be made ({error.strerror})") from None
