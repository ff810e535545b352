"""What training shows meanwhile: a progress bar in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds between plain lines within a long epoch


class Show:
    """A Callback that shows stages, epochs, images/s and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._name, self._epochs, self._steps, self._epoch = "", 0, 0, 0
        self._epoch_started = self._last_line = time.monotonic()

    def stage(self, name: str, epochs: int, steps: int, first_epoch: int) -> None:
        self.close()
        self._name, self._epochs, self._steps, self._epoch = name, epochs, steps, first_epoch
        self._epoch_started = self._last_line = time.monotonic()
        if self.console.is_terminal or (self.console.is_jupyter and find_spec("ipywidgets")):
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            self._task = self._bar.add_task(
                self._describe(), total=epochs * steps, completed=first_epoch * steps, speed=""
            )
            self._bar.start()

    def step(self, done: int, images: int) -> None:
        now = time.monotonic()
        speed = images / max(1e-9, now - self._epoch_started)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._epoch * self._steps + done, speed=f"{speed:,.0f} images/s")
        elif now - self._last_line > LINE_EVERY:
            self._last_line = now
            left = (self._steps - done) * (now - self._epoch_started) / done
            self.console.print(f"  step {done}/{self._steps}, {speed:,.0f} images/s, {left:,.0f} s left in this epoch")

    def epoch(self, record: dict[str, Any]) -> None:
        self._epoch = int(record["epoch"]) + 1
        self._epoch_started = self._last_line = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=self._describe())
        maps = {"val mAP": "val_map", "val mAP (observed)": "val_map_observed"}
        defined = {label: record[key] for label, key in maps.items() if not math.isnan(record.get(key, math.nan))}
        shown = "".join(f"  {label} {value:5.1f}" for label, value in defined.items())
        if "val_positives" in record:
            shown += f"  val log chance {record['val_positives']:6.3f}"
        pace = f"l2 {record['l2']:g}" if "l2" in record else f"{record['images_per_second']:,.0f} images/s"
        best = "  *" if record["best_epoch"] == record["epoch"] else ""
        self.console.print(
            f"{self._name} {self._epoch:>3}/{self._epochs}  loss {record['loss']:8.4f}{shown}  {pace}{best}",
            highlight=False,
        )
        if self._epoch == self._epochs:
            self.close()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self) -> str:
        return f"{self._name} {min(self._epoch + 1, self._epochs)}/{self._epochs}"
