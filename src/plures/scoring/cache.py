"""The folder that computed features are kept in: where it is, what it holds, and that it does not grow for ever.

features/KEY.npy   a table of features, KEY.json beside it: what it is; KEY.part, KEY.rows: one that is being computed
engines/KEY.onnx   a backbone exported for an engine
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plures.errors import PluresError
from plures.files import parse_json, writing
from plures.system import lock

LIMIT_GB = 20.0  # unless $PLURES_CACHE_GB says another
KINDS = (".npy", ".part", ".onnx")
BESIDE = (".json", ".rows")  # what belongs to such a file


@dataclass(frozen=True)
class Kept:
    """A file of the cache. used: seconds since 1970 when it was last read. what: what it holds, as far as is known."""

    path: Path
    size: int
    used: float
    what: dict[str, str]


def cache_folder() -> Path:
    """Where features are kept: $PLURES_CACHE, or plures in the user's cache folder."""
    root = os.environ.get("PLURES_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plures"


def limit() -> int:
    """The most bytes that the cache may take: $PLURES_CACHE_GB, or 20 GB. Raises PluresError if that is not a size."""
    text = os.environ.get("PLURES_CACHE_GB", "") or str(LIMIT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise PluresError(f"PLURES_CACHE_GB={text}: expected a number of gigabytes, 0 or more, such as 20")
    return int(gigabytes * 1e9)


def held() -> list[Kept]:
    """What the cache holds, the least recently used first."""
    found = []
    for path in (p for name in ("features", "engines") for p in (cache_folder() / name).glob("*")):
        if path.suffix in KINDS:
            with suppress(OSError):  # another process has removed it meanwhile
                state = path.stat()
                found.append(Kept(path, state.st_size, state.st_mtime, _said_of(path)))
    return sorted(found, key=lambda one: one.used)


def describe(path: Path, **what: object) -> None:
    """Say beside a table what it holds."""
    with writing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({key: str(value) for key, value in what.items()}), encoding="utf-8")


def _said_of(path: Path) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in parse_json(path.with_suffix(".json").read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def touch(path: Path) -> None:
    """Note that a file was used now."""
    with suppress(OSError):
        os.utime(path)


def make_room(size: int, keep: Path) -> None:
    """Remove the least recently used files until `size` more bytes fit under the limit. keep: the table (any of its
    files) that the room is for; what other processes are computing stays too."""
    files, most = [one for one in held() if one.path.stem != keep.stem], limit()
    total = sum(one.size for one in files) + size
    for one in files:
        if total <= most:
            return
        if _removed(one):
            total -= one.size


def clear() -> Iterator[Kept]:
    """Remove all that no process is computing; yields what was removed."""
    for one in held():
        if _removed(one):
            yield one


def _removed(one: Kept) -> bool:
    """Whether it could be removed: nobody computes it, and the system lets it go."""
    try:
        with lock(one.path.with_suffix(".lock"), "computed by another process"):
            for suffix in BESIDE:
                one.path.with_suffix(suffix).unlink(missing_ok=True)
            one.path.unlink()
    except (PluresError, OSError):
        return False
    one.path.with_suffix(".lock").unlink(missing_ok=True)
    return True


def days_since(used: float) -> int:
    """Whole days from then until now."""
    return max(0, int((time.time() - used) // 86400))
