"""How far long work over images is: a bar in a terminal or a notebook, a plain line every half minute elsewhere.

The command line says what is shown (`Pace.shown`); in a notebook it is a bar without being asked, and elsewhere in
Python the lines go to the logger `plures.pace`.
"""

from __future__ import annotations

import html
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar, Self

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds between plain lines
NOTEBOOK_EVERY = 0.5  # seconds between updates of a notebook's bar, each of which is a message to the browser


class Pace:
    """Work over images, as `with Pace("features", 900) as pace: ... pace.step(16)`.

    Args:
        what: the work, as a person calls it.
        total: images in all, None where nobody knows.
    """

    shown: ClassVar[Callable[[Pace], None] | None] = None

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total, self.done, self.over = what, total, 0, False
        self._began = self._said = time.monotonic()
        self._show = Pace.shown or (NotebookBar() if in_notebook() else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.over = True
        if self._show is not None:
            self._show(self)

    def step(self, images: int) -> None:
        """Count images that are done."""
        self.done += images
        now = time.monotonic()
        if self._show is not None:
            self._show(self)
        elif now - self._said >= LINE_EVERY:
            self._said = now
            logging.getLogger("plures.pace").info(str(self))

    @property
    def speed(self) -> float:
        """Images per second so far."""
        return self.done / max(1e-9, time.monotonic() - self._began)

    def __str__(self) -> str:
        if self.total is None:
            return f"{self.what}: {self.done:,} images, {self.speed:,.0f} images/s"
        left = max(0, self.total - self.done) / max(1e-9, self.speed)
        return f"{self.what}: {self.done:,} of {self.total:,} images, {self.speed:,.0f} images/s, {left:,.0f} s left"


class Bar:
    """On a terminal: a bar with images/s and the time left, gone when the work is over."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._pace: Pace | None = None
        self._bar: Progress | None = None

    def __call__(self, pace: Pace) -> None:
        if pace is not self._pace or pace.over:
            self.close()
        if pace.over:
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
            bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            bar.add_task(pace.what, total=pace.total, speed="")
            try:
                bar.start()
            except LiveError:  # within training, whose own bar says how far it is
                return
            self._bar, self._pace = bar, pace
        speed = f"{pace.done:,} images, {pace.speed:,.0f} images/s"
        self._bar.update(self._bar.task_ids[0], completed=pace.done, speed=speed)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class NotebookBar:
    """In a notebook: the same, without a widget library; gone when the work is over."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._updated = -NOTEBOOK_EVERY

    def __call__(self, pace: Pace) -> None:
        from IPython.display import HTML, display  # type: ignore[import-not-found]  # in a notebook it is there

        now = time.monotonic()
        if pace.over:
            if self._handle is not None:
                self._handle.update(HTML(""))
        elif now - self._updated >= NOTEBOOK_EVERY:
            self._updated = now
            whole = "" if pace.total is None else f' max="{pace.total}" value="{pace.done}"'
            shown = HTML(f"<progress{whole}></progress> {html.escape(str(pace))}")
            if self._handle is None:
                self._handle = display(shown, display_id=True)
            else:
                self._handle.update(shown)


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which can show HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ not in ("TerminalInteractiveShell", "InteractiveShell")
