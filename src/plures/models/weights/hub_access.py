"""Asking the model hub with a limit of time, since its own client tries again for minutes, or waits for ever.

A hub may be silent, answer and then stall, or send a byte now and then. Where nothing comes for some seconds, what is
on this machine is used; what is not here is then an error at once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from huggingface_hub import constants

T = TypeVar("T")

SECONDS = 30.0  # for the hub to answer, and then to send LEAST
LEAST = 30_000  # bytes: a slower line would need days for a model
LOOK_EVERY = 0.5  # seconds


def ask_hub(call: Callable[[], T]) -> T:
    """The result of a call that may download, with limits; with what is on this machine where the hub does not answer,
    stalls, or HF_HUB_OFFLINE is set (as `plures --offline` does).

    The call runs in a thread of its own, which is left alone where it hangs. Errors are those of the call.
    """
    if constants.HF_HUB_OFFLINE:
        return call()
    if answers(constants.ENDPOINT):
        work = _Work(call)
        if work.ends():
            return work.result()
        said = "answered and then sent nothing more"
    else:
        said = "does not answer"
    logging.getLogger("plures").warning(
        "%s %s; only what is on this machine is used (--offline asks nobody)", constants.ENDPOINT, said
    )
    constants.HF_HUB_OFFLINE = True
    try:
        return call()
    finally:
        constants.HF_HUB_OFFLINE = False


def answers(address: str) -> bool:
    """Whether a server answers at all within SECONDS, whatever it says. Proxies are those of the environment."""
    found = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS / 2).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError):
            done.set()
            return
        found.set()
        done.set()

    done = threading.Event()
    threading.Thread(target=ask, name="plures-hub", daemon=True).start()  # a server may also answer byte by byte
    done.wait(SECONDS)
    return found.is_set()


class _Work(Generic[T]):
    """A call in a thread, watched."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._done = threading.Event()
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="plures-hub", daemon=True)

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except BaseException as error:
            self._error = error
        self._done.set()

    def ends(self) -> bool:
        """Whether it comes to an end; False as soon as it hangs in the hub's client."""
        self._thread.start()
        since, seen = time.monotonic(), _bytes_here()
        while not self._done.wait(LOOK_EVERY):
            now = _bytes_here()
            if now - seen >= LEAST or not self._asks():
                since, seen = time.monotonic(), now
            elif time.monotonic() - since > SECONDS:
                return False
        return True

    def _asks(self) -> bool:
        """Whether the thread is in the hub's client just now, rather than building a network."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        while frame is not None:
            module = str(frame.f_globals.get("__name__"))
            if module.startswith("huggingface_hub.") and module != "huggingface_hub.hub_mixin":
                return True
            frame = frame.f_back
        return False

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._found[0]


def _bytes_here() -> int:
    """What the hub's cache holds, files that are being downloaded included."""
    total = 0
    for folder in Path(constants.HF_HUB_CACHE).glob("*/blobs"):
        with os.scandir(folder) as files:
            for file in files:
                try:
                    total += file.stat(follow_symlinks=False).st_size
                except OSError:
                    continue  # it has just got its name
    return total
