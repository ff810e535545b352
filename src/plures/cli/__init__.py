"""The command line: one subcommand a public function, found in the files of this folder.

Heavy imports happen inside the commands, so that `plures --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from plures.cli.app import app, errors, screen
from plures.errors import BadData, PluresError, clipped, grouped, machine_failure
from plures.pace import Bar, Pace

for _module in iter_modules(__path__):
    if _module.name != "__main__":
        import_module(f"{__name__}.{_module.name}")  # each adds its commands to `app`

__all__ = ["app", "main"]


def _show_problems(bad: BadData) -> None:
    from rich.table import Table

    table = Table("file", "row", box=None)
    table.columns[0].overflow = "fold"
    for name in ("problem", "expected"):
        table.add_column(name, overflow="fold")
    here = Path.cwd()
    shown = grouped(bad.problems)
    for problem in shown[:200]:
        path = Path(problem.file)
        name = str(path.relative_to(here)) if path.is_relative_to(here) else problem.file
        table.add_row(name, "" if problem.row is None else str(problem.row), problem.what, problem.expected)
    errors.print(table)
    if len(shown) > 200:
        errors.print(f"... and {len(shown) - 200:,} more")


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


class _Lines(logging.Handler):
    """What the library says in passing, as lines: warnings and how far it is on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        passing = record.levelno >= logging.WARNING or record.name == "plures.pace"
        where = errors if passing else screen
        where.print(record.getMessage(), highlight=False)


def main() -> None:
    """Entry point: runs a command; any failure is one line on stderr and an exit code (1 failed, 2 bad usage)."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows knows no SIGHUP, and nohup has it ignored
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _terminated)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata and large scans, which are read all the same
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its tries are told in one line of ours
    said, lines = logging.getLogger("plures"), _Lines()
    said.setLevel(logging.INFO)
    said.addHandler(lines)
    bar = Bar(errors)
    Pace.shown = bar if errors.is_terminal else None
    try:
        app(prog_name="plures")  # ends with SystemExit: 0, or 2 for bad usage
    except SystemExit as end:
        if end.code != 130:
            raise
        errors.print("plures: stopped; no file is left half written")  # by a signal; typer says nothing
        sys.exit(1)
    except BadData as bad:
        _show_problems(bad)
        times = sum(problem.times for problem in bad.problems)
        count = f"{times:,} problem{'s' * (times > 1)}"
        skip = ", or pass --skip-bad to drop these rows" if bad.skippable else ""
        errors.print(f"plures: {count}; fix the data{skip}")
        sys.exit(bad.exit_code)
    except PluresError as error:
        errors.print(f"plures: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("PLURES_TRACEBACK"):
            raise
        if reason := machine_failure(error):
            errors.print(f"plures: {reason}")
            sys.exit(1)
        if isinstance(error, UnicodeEncodeError) and isinstance(error.object, str):  # a name of a file, of other bytes
            errors.print(
                f"plures: the name {clipped(error.object)} is not UTF-8; rename the file, for example with"
                " `convmv -f latin1 -t utf8`"
            )
            sys.exit(2)
        line = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, OSError) and error.strerror:  # a disk that is full, read-only or gone
            where = f"{error.filename}: " if error.filename else ""
            errors.print(f"plures: {where}{error.strerror}")
            sys.exit(1)
        errors.print(f"plures: unexpected failure: {line}; PLURES_TRACEBACK=1 shows where")
        sys.exit(1)
    finally:
        bar.close()
        Pace.shown = None
        said.removeHandler(lines)
        said.setLevel(logging.NOTSET)
