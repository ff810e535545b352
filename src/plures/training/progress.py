"""What a training run tells the world while it works. Library code calls a Callback; only the command line prints."""

from __future__ import annotations

from typing import Any, Protocol


class Callback(Protocol):
    """Told of every phase, step and epoch."""

    def phase(self, name: str, epochs: int, steps: int, first_epoch: int) -> None: ...

    def step(self, done: int, images: int) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None: ...

    def say(self, line: str) -> None: ...


class Quiet:
    """A Callback that keeps silent."""

    def phase(self, name: str, epochs: int, steps: int, first_epoch: int) -> None:
        pass

    def step(self, done: int, images: int) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        pass
