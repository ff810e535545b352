"""One run of a sweep: where it lies, whether it is finished, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from plures.config import Experiment
from plures.errors import PluresError
from plures.files import parse_json, read_json
from plures.runs.run import Run

FAILED = "failed.json"


@dataclass(frozen=True)
class Outcome:
    """Of a finished run: its best validation score and its test mAP, in percent; failed: it stopped before the end."""

    folder: Path
    validation: float
    test: float
    failed: bool


@dataclass(frozen=True)
class SweepRun:
    """A run that the sweep requires: its experiment and its folder."""

    folder: Path
    experiment: Experiment

    def begun(self) -> bool:
        """Whether the folder holds this very run, finished or not. Raises PluresError if it holds another one."""
        if not (self.folder / "experiment.yaml").is_file():
            return False
        if Run(self.folder).experiment != self.experiment:
            raise PluresError(f"{self.folder} holds a run of other settings; choose another --out")
        return True

    def has_checkpoint(self) -> bool:
        """Whether an ordinary training of this run can go on."""
        return self.begun() and (self.folder / "checkpoint.pt").is_file()

    def finished(self) -> bool:
        """Whether this run has its report, or failed in a way that would come again."""
        return self.begun() and ((self.folder / "report.json").is_file() or _failed(self.folder))

    def failed(self, reason: str) -> None:
        """Write down that this run cannot be finished with its settings."""
        Run(self.folder).write_json(FAILED, {"reason": reason, "fault": "setting"})


def _failed(folder: Path) -> bool:
    """Whether its settings made a run fail. Without the word "setting" (as earlier versions wrote it), a full disk may
    have been the reason."""
    try:
        return bool(parse_json((folder / FAILED).read_bytes())["fault"] == "setting")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def outcome(run: SweepRun) -> Outcome:
    """What came of a finished run."""
    if _failed(run.folder):
        return Outcome(run.folder, math.nan, math.nan, True)
    report = run.folder / "report.json"
    if not report.is_file():  # training without a validation or test split writes none
        raise PluresError(f"{run.folder}: the data have no rows to evaluate on; give val_share and test_share")
    found = read_json(report)
    score = found["selected"]["score"]
    value = found["map"]
    return Outcome(
        run.folder,
        math.nan if score is None else float(score),
        math.nan if value is None else 100 * float(value),
        False,
    )
