"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plures.errors import PluresError, WorkFailed


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place at the end: a reader never sees half a file.

    Makes the folder if need be. Raises WorkFailed in one line if the disk is full or the place cannot be written;
    what was there before stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except PluresError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise WorkFailed(f"{path}: cannot be written ({reason}); what was there before is intact") from None
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: Exception) -> str | None:
    """Why a file could not be written, or None if the error is about something else.

    torch and safetensors report a full disk as errors of their own kind, known by their text.
    """
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or any(
        w in text for w in ("No space", "file write", "os error 28")
    ):
        return "the disk is full"
    return error.strerror or text if isinstance(error, OSError) else None
