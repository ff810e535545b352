"""Whether the model hub answers: asked once, for a short time, since its own client tries again for minutes."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

SECONDS = 30.0  # in all, for the hub to answer


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Within, the hub's client takes what is on this machine where the hub does not answer, or HF_HUB_OFFLINE is set
    (as `plures --offline` does): what is not here is then an error at once."""
    before = constants.HF_HUB_OFFLINE
    if not before and not answers(constants.ENDPOINT):
        logging.getLogger("plures").warning(
            "%s does not answer; only what is on this machine is used", constants.ENDPOINT
        )
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


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
