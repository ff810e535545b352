"""Memory that one training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> None:
    """On Linux with glibc: do not hand memory back to the system, where torch would ask for it again at each step.

    By default every large tensor on a CPU is mapped anew and the system clears it page by page, which was half the
    time of a step of the patch model. Numbers do not change; the process stays as large as it was at its largest.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
