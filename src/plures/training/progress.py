"""What a training run tells the world while it works. Library code calls a Callback; only the command line prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from plures.errors import PluresError


class Callback(Protocol):
    """Told of every stage, step and epoch. Those given to `plures.train(callbacks=[...])` may have any of the methods.

    Example:
        class Losses:
            def epoch(self, record):  # after each epoch: stage, epoch, loss, val_map, lr, seconds, ...
                print(record["epoch"], record["loss"])
    """

    def stage(self, name: str, epochs: int, steps: int, first_epoch: int) -> None: ...

    def step(self, done: int, images: int) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None: ...

    def say(self, line: str) -> None: ...


class Quiet:
    """A Callback that keeps silent."""

    def stage(self, name: str, epochs: int, steps: int, first_epoch: int) -> None:
        pass

    def step(self, done: int, images: int) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        pass


class Several:
    """A Callback that passes everything on to each of these, as far as they have a method for it.

    Raises PluresError for an object that has none.
    """

    METHODS = ("stage", "step", "epoch", "say")

    def __init__(self, callbacks: Iterable[object]) -> None:
        self.callbacks = list(callbacks)
        for one in self.callbacks:
            if isinstance(one, type) or not any(callable(getattr(one, name, None)) for name in self.METHODS):
                what = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
                raise PluresError(f"a callback is an object with some of stage, step, epoch and say, got {what}")

    def stage(self, name: str, epochs: int, steps: int, first_epoch: int) -> None:
        self._tell("stage", name, epochs, steps, first_epoch)

    def step(self, done: int, images: int) -> None:
        self._tell("step", done, images)

    def epoch(self, record: dict[str, Any]) -> None:
        self._tell("epoch", record)

    def say(self, line: str) -> None:
        self._tell("say", line)

    def _tell(self, what: str, *arguments: Any) -> None:
        for one in self.callbacks:
            if (method := getattr(one, what, None)) is not None:
                method(*arguments)
