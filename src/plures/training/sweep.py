"""`plures sweep`: a grid or a search of settings times seeds, each run a run folder, and what validation picks.

Runs of a linear head on frozen features are trained together (`together.py`); all others one by one or in processes.
A run that is finished is never trained again, so the same command goes on after a kill, and a grid can grow.
"""

from __future__ import annotations

import csv
import fcntl
import io
import itertools
import math
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plures.data.dataset import Dataset
from plures.errors import PluresError, WorkFailed, require
from plures.experiment import Experiment, apply_settings
from plures.files import writing
from plures.training.data import IN_MEMORY
from plures.training.frozen_sweep import complete, train_frozen, trains_together
from plures.training.sweep_run import Outcome, SweepRun, outcome
from plures.training.train import train

Say = Callable[[str], None]
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
    plan = Plan(dict(values), out, seeds, jobs, dataset, skip_bad, say)
    with _alone(out):
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

    def runs_of(self, cell: tuple[str, ...]) -> list[SweepRun]:
        """A run for every seed of the cell. Raises PluresError if its settings make no experiment."""
        found = []
        for seed in range(self.first_seed, self.first_seed + self.seeds):
            settings = [*cell, f"seed={seed}"]
            name = re.sub(r"[^\w.=+-]+", "_", ",".join(settings))
            if len(name) > 150:
                raise PluresError(f"the settings {', '.join(settings)[:80]}... are too long for a folder's name")
            found.append(SweepRun(self.out / "runs" / name, Experiment(**apply_settings(self.values, settings))))
        return found

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
        tasks = [(run, self.dataset, self.skip_bad) for run in runs]
        if self.jobs == 1 or len(runs) < 2:
            done: Iterator[None] = map(_train_one, tasks)
            self._count(done, runs)
            return
        with ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn")) as pool:
            self._count(pool.map(_train_one, tasks), runs)

    def _count(self, done: Iterator[None], runs: Sequence[SweepRun]) -> None:
        for i, _ in enumerate(done):
            self.say(f"{i + 1} of {len(runs)} runs: {runs[i].folder.name}")


def _train_one(task: tuple[SweepRun, Dataset | None, bool]) -> None:
    """One ordinary run, from where it stopped; what made it fail is written into its folder."""
    run, dataset, skip_bad = task
    try:
        train(run.experiment, run.folder, dataset=dataset, resume=run.begun(), skip_bad=skip_bad)
    except WorkFailed as error:
        run.failed(str(error))


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
    so a search that was killed goes on to the same end."""
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
        writer.writerow(row)
    with writing(found.folder / "sweep.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def mean(values: Sequence[float]) -> str:
    """Two decimals; empty where undefined."""
    return "" if not values or math.isnan(float(np.mean(values))) else f"{np.mean(values):.2f}"


def spread(values: Sequence[float]) -> str:
    """The standard deviation over seeds; empty for fewer than two."""
    return "" if len(values) < 2 or math.isnan(float(np.mean(values))) else f"{np.std(values, ddof=1):.2f}"


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Only one process at a time sweeps into a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("w")
    except OSError as error:
        raise PluresError(f"{out}: cannot be made ({error.strerror})") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PluresError(f"{out}: another process is sweeping into this folder") from None
        yield
