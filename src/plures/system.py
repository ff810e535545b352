"""What the operating system gives, the same on Linux, macOS and Windows: locks, processes, threads, memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from plures.errors import PluresError

T = TypeVar("T")
U = TypeVar("U")


def lock(path: Path, busy: str | None) -> AbstractContextManager[object]:
    """Take the lock file at `path` until the end of the `with`; the system takes it back however this process ends.

    busy: the message if another process holds it; None: wait for that process.
    Raises PluresError with that message, OSError if the file cannot be made.
    """
    try:
        return FileLock(path, timeout=-1 if busy is None else 0, mode=0o666).acquire()
    except Timeout:
        raise PluresError(str(busy)) from None


def alive(process: int) -> bool:
    """Whether a process of this machine is still there."""
    if sys.platform == "win32":  # where os.kill(process, 0) would end it
        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, process)
        ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class EndsWithParent:
    """Called first in a process that `multiprocessing` started: it ends as soon as the process that started it does,
    even by kill -9, and leaves Ctrl-C to it. Arguments, as of a DataLoader's `worker_init_fn`, are ignored.

    Made in the parent, where Linux can be asked to do it only for what the main thread starts (the signal comes when
    the starting thread ends); elsewhere a thread waits for the parent's end.
    """

    def __init__(self) -> None:
        self.by_main_thread = threading.current_thread() is threading.main_thread()

    def __call__(self, *_: object) -> None:
        parent = multiprocessing.parent_process()
        if parent is None:
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.by_main_thread and sys.platform == "linux":
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, name="plures-parent", daemon=True).start()


class _SignalStack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give this thread back the stack on which it handles signals, should anything in the `with` change it.

    OpenVINO sets one for every plugin that it loads on a processor with AMX. When a plugin goes, it returns to the one
    before, which may be gone by then: the next signal would overwrite whatever lies there.
    """
    if sys.platform != "linux":
        yield
        return
    system, before = ctypes.CDLL(None), _SignalStack()
    system.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        system.sigaltstack(ctypes.byref(before), None)


def in_threads(work: Callable[[T], U], items: Iterable[T], threads: int) -> list[U]:
    """The result of each item, in order, from so many threads; from this one where the system starts no more of them,
    as under a limit of address space or of processes."""
    items = list(items)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, items))
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
    return list(map(work, items))


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, of its container and of its own limits; None if nobody
    says."""
    found = [_number(Path("/proc/meminfo"), "MemAvailable:", 1024)]
    for folder, most, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, taken = _number(Path(folder, most)), _number(Path(folder, used))
        cached = _number(Path(folder, "memory.stat"), "inactive_file") or 0
        found.append(None if limit is None or taken is None else max(0, limit - taken + cached))
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        taken = _number(Path("/proc/self/status"), "VmSize:", 1024)
        if limit != resource.RLIM_INFINITY and taken is not None:
            found.append(max(0, limit - taken))
    known = [number for number in found if number is not None]
    return min(known, default=None)


def _number(file: Path, name: str = "", times: int = 1) -> int | None:
    """The number behind `name` in a file of /proc or /sys, or the file's only one; None if it says none."""
    try:
        for line in file.read_text().splitlines():
            words = line.split()
            if not name or words[0] == name:
                return int(words[1 if name else 0]) * times
    except (OSError, ValueError, IndexError):
        pass
    return None
