"""How far long work over images is: the library says it, and whoever runs it shows it or does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import ClassVar, Self

LINE_EVERY = 30.0  # seconds between plain lines


class Pace:
    """Work over images, as `with Pace("features", 900) as pace: ... pace.step(16)`.

    Without `shown`, which the command line sets on a terminal, it logs a line every half minute (logger `plures`).

    Args:
        what: the work, as a person calls it.
        total: images in all, None where nobody knows.
    """

    shown: ClassVar[Callable[[Pace], None] | None] = None

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total, self.done, self.over = what, total, 0, False
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.over = True
        if Pace.shown is not None:
            Pace.shown(self)

    def step(self, images: int) -> None:
        """Count images that are done."""
        self.done += images
        now = time.monotonic()
        if Pace.shown is not None:
            Pace.shown(self)
        elif now - self._said >= LINE_EVERY:
            self._said = now
            logging.getLogger("plures").info(str(self))

    @property
    def speed(self) -> float:
        """Images per second so far."""
        return self.done / max(1e-9, time.monotonic() - self._began)

    def __str__(self) -> str:
        if self.total is None:
            return f"{self.what}: {self.done:,} images, {self.speed:,.0f} images/s"
        left = (self.total - self.done) / max(1e-9, self.speed)
        return f"{self.what}: {self.done:,} of {self.total:,} images, {self.speed:,.0f} images/s, {left:,.0f} s left"
