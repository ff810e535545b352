"""The run folder: what a training run writes, where, and that only one process writes there at a time.

experiment.yaml     the Experiment, enough to run it again
photos.parquet      every photograph by name and content, and its split (see photos.py)
model.safetensors   the best weights so far; model.json: parts, classes, preprocessing
checkpoint.pt       everything needed to resume after the last whole epoch
log.jsonl, log.csv  one record an epoch
report.json         the final evaluation
environment.json    versions, machine, command, where the data lie, what the training labels are, hashes of both
added_tags.parquet  with a teacher: the tags that it added; self_training.json: how many, and how sure (see card.py)
model_card.md       what a stranger should know of the model; for hubs, exports and people
imported.json       instead of the last four, where the weights come from another program: which file they were in
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from plures.config import Component, Experiment
from plures.data.dataset import Dataset
from plures.data.taxonomy import Taxonomy
from plures.errors import PluresError, WorkFailed
from plures.files import clear_left, parse_json, read_json_lines, refuse_folder, writing
from plures.metrics.report import kind_of
from plures.system import lock

Record = dict[str, Any]
ENVIRONMENT, IMPORTED = "environment.json", "imported.json"
FILES = (
    "experiment.yaml", "model.safetensors", "model.json", "checkpoint.pt", "log.jsonl", "log.csv", "report.json",
    ENVIRONMENT, "photos.parquet", "model_card.md", "thresholds.json", "probabilities.jsonl", "head.safetensors",
    "label_state.safetensors", "failed.json", "self_training.json", "added_tags.parquet", IMPORTED,
)  # fmt: skip


class Run:
    """A run folder. `Run.create` makes a new one, `Run(path)` opens one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "experiment.yaml").is_file():
            raise PluresError(f"{self.path}: no run here (no experiment.yaml); make one with `plures train`")
        self.experiment = Experiment.load(self.path / "experiment.yaml")

    @classmethod
    def create(cls, path: str | Path, experiment: Experiment) -> Run:
        """A new run folder. Raises PluresError if a run is there already."""
        cls.refuse_existing(path)
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PluresError(f"{path}: cannot be made ({error.strerror})") from None
        with writing(path / "experiment.yaml") as temporary:
            experiment.save(temporary)
        return cls(path)

    @staticmethod
    def refuse_existing(path: str | Path) -> None:
        """Raise PluresError if a run is in this folder already, or anything that plures did not make."""
        if (Path(path) / "experiment.yaml").exists():
            raise PluresError(
                f"{path} already holds a run; resume with `plures train --resume {path}`, or choose another --out"
            )
        refuse_folder(path)

    def reads(self, data: str | None = None) -> list[str | Path]:
        """What a command with this run reads, for `plures.files.refuse_replacing`: the run's own files, and `data` or
        else the data that it was trained on."""
        return [*(self.path / name for name in FILES), data or self.experiment.data.name]

    @property
    def source(self) -> Component:
        """Where the run's data lay when it was trained, with absolute paths; as the experiment says, where that is not
        recorded (runs of plures 0.1.0)."""
        kept = self._environment().get("source")
        try:
            return self.experiment.data if kept is None else Component(**kept)
        except (TypeError, ValueError):
            raise PluresError(f"{self.path / ENVIRONMENT}: source={kept!r} names no data") from None

    @property
    def taxonomy(self) -> Taxonomy | None:
        """The hierarchy of classes that the run began with, whatever its file says today; None if it had none."""
        kept = self._environment().get("taxonomy")
        try:
            return None if kept is None else Taxonomy.from_dict(kept)
        except (TypeError, ValueError, KeyError) as error:
            raise PluresError(f"{self.path / ENVIRONMENT}: not a hierarchy of classes ({error})") from None

    def _environment(self) -> Record:
        path = self.path / ENVIRONMENT
        try:
            return dict(parse_json(path.read_bytes())) if path.is_file() else {}
        except (OSError, ValueError, TypeError) as error:
            raise PluresError(f"{path}: cannot be read ({error}); start anew with another --out") from None

    def other_labels(self, train: Dataset) -> bool:
        """Whether these are not the training labels that the run began with, as far as that is recorded."""
        return bool(self._environment().get("train_labels_sha256", labels_hash(train)) != labels_hash(train))

    def refuse_other_labels(self, train: Dataset) -> None:
        """Raise PluresError if these are not the training labels that the run began with."""
        if self.other_labels(train):
            raise PluresError(
                f"{self.path}: the data have changed since this run began ({self._environment().get('train_images')}"
                f" training images then, {len(train)} now, or other labels); put them back, or start anew with another"
                " --out"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time writes into a run folder; the lock goes with the process, however it ends."""
        try:
            held = lock(self.path / ".lock", f"{self.path}: another process is training into this folder")
        except OSError as error:
            raise WorkFailed(f"{self.path}: cannot be written ({error.strerror}); what is there is intact") from None
        with held:
            clear_left(self.path)  # of a process that was killed here
            yield

    # ------------------------------------------------------------------------------------------------ what it holds

    @property
    def imported(self) -> bool:
        """Whether the weights come from another program: then the run has neither data nor training of its own."""
        return (self.path / IMPORTED).is_file()

    @property
    def log(self) -> list[Record]:
        path = self.path / "log.jsonl"
        if not path.is_file():
            return []
        return [self.of_today(record) for record in read_json_lines(path)]

    def of_today(self, record: Record) -> Record:
        """A record of a log or a checkpoint of plures 0.1.0, which calls stages phases, as of today."""
        if "phase" not in record:
            return record
        names = {"frozen": self.experiment.stages[0].name, "end_to_end": self.experiment.stages[-1].name}
        phase = record["phase"]
        return {"stage": names.get(phase, phase), **{key: value for key, value in record.items() if key != "phase"}}

    def write_log(self, records: list[Record]) -> None:
        """Both forms of the log, whole (a resumed run drops what came after its checkpoint); nan becomes null."""
        records = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in records]
        with writing(self.path / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        fields = list(dict.fromkeys(key for record in records for key in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields)
        writer.writeheader()
        writer.writerows(records)
        with writing(self.path / "log.csv") as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        with writing(self.path / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, or None before the first epoch's end. Never unpickles code."""
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            state = self.of_today(state) if isinstance(state, dict) else {}
            if not {"stage", "epoch", "best", "net"} <= state.keys():
                raise ValueError("not what training keeps")
        except Exception as error:  # torch raises many kinds on a damaged file
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise PluresError(f"{path}: damaged ({line}); start anew with another --out") from None
        return state

    def write_json(self, name: str, value: Any) -> None:
        with writing(self.path / name) as temporary:
            temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def labels_hash(dataset: Dataset) -> str:
    """sha256 of the labels a run trains on, so that two numbers can be known to come from the same labels."""
    return hashlib.sha256(dataset.labels.values.tobytes()).hexdigest()


def environment(train: Dataset) -> Record:
    """Versions, machine, command and training labels of a run."""
    cells = {name: int(getattr(train.labels, name).sum()) for name in ("present", "absent", "unknown")}
    program = "plures" if sys.argv[0].endswith("__main__.py") else Path(sys.argv[0]).name
    packages = ("plures", "torch", "timm", "torchvision", "lightning", "numpy", "scikit-learn", "pillow")
    return {
        "command": shlex.join([program, *sys.argv[1:]]),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
        "data": train.name,
        "train_images": len(train),
        "train_labels": {"kind": kind_of(train.labels), **cells},
        "train_labels_sha256": labels_hash(train),
    }
