"""Where else the numbers of each epoch go: `log=tensorboard`, `log=wandb` or `log=mlflow`.

The run folder's own log.jsonl is always written. A tracker that fails in the middle is said once, and training
continues without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from plures.config import Experiment
from plures.errors import PluresError
from plures.runs.run import Record

Write = Callable[[dict[str, float], int], None]  # numbers by name, and the epoch
PACKAGES = {
    "tensorboard": ("torch.utils.tensorboard", "track"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
log = logging.getLogger("plures")


class Tracker:
    """One run in a tracker; it opens with the first numbers, so that a training that cannot begin leaves no trace.

    Raises PluresError, when it is made, if the package is missing.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.failed = experiment, False
        self.write: Write | None = None
        self.finish: Callable[[], object] = lambda: None
        name, extra = PACKAGES[experiment.log]
        try:
            self.module: Any = import_module(name)
        except ImportError:
            raise PluresError(
                f'log={experiment.log} requires the {experiment.log} package: pip install "plures[{extra}]"'
            ) from None

    def record(self, folder: Path, record: Record) -> None:
        """Send the numbers of an epoch, called STAGE/NAME."""
        numbers = {f"{record['stage']}/{name}": v for name, v in record.items() if isinstance(v, float)}
        self._try(lambda: self._write(folder, numbers, int(record["epoch"])))

    def close(self) -> None:
        """Tell the tracker that the run has ended."""
        self._try(self.finish)

    def _write(self, folder: Path, numbers: dict[str, float], epoch: int) -> None:
        if self.write is None:
            self.write = getattr(self, f"_{self.experiment.log}")(folder)
        assert self.write is not None
        self.write(numbers, epoch)

    def _try(self, work: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            work()
        except Exception as error:  # of a server, a login or a disk that is not ours
            self.failed = True
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            log.warning(f"log={self.experiment.log} failed ({reason}); training continues without it")

    def _tensorboard(self, folder: Path) -> Write:
        def write(numbers: dict[str, float], epoch: int) -> None:
            with self.module.SummaryWriter(str(folder / "tensorboard")) as writer:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, epoch)

        return write

    def _wandb(self, folder: Path) -> Write:
        """A run of the project that WANDB_PROJECT names, else plures; resumed with the run folder."""
        kept = folder / ".wandb_id"
        number = kept.read_text().strip() if kept.is_file() else self.module.util.generate_id()
        kept.write_text(number)
        run = self.module.init(
            project=os.environ.get("WANDB_PROJECT", "plures"),
            name=folder.resolve().name,
            id=number,
            resume="allow",
            dir=str(folder),
            config=self.experiment.to_dict(),
        )
        self.finish = run.finish
        return lambda numbers, epoch: run.log({**numbers, "epoch": epoch})

    def _mlflow(self, folder: Path) -> Write:
        """A run where MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say."""
        self.module.start_run(run_name=folder.resolve().name)
        self.finish = self.module.end_run
        self.module.log_params({key: str(value)[:500] for key, value in self.experiment.to_dict().items()})
        return lambda numbers, epoch: self.module.log_metrics(
            {name.replace("(", "").replace(")", ""): value for name, value in numbers.items()}, step=epoch
        )
