"""What stands beside every measured number: machine, date and commit."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from plures.files import writing

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, str]:
    """Machine, versions, date and commit ("+" if the tree has changes beyond it)."""
    import torch

    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain", ":/src"], capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "machine": f"{platform.machine()}, {device}",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit + ("+" if dirty else ""),
    }


def write(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Write rows, each with the environment (or the one it has from an earlier run), to FOLDER/NAME.csv."""
    folder.mkdir(exist_ok=True)
    now = environment()
    rows = [{**row, **{key: row.get(key) or value for key, value in now.items()}} for row in rows]
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with writing(folder / f"{name}.csv") as new, new.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fields)
        writer.writeheader()
        writer.writerows(rows)
    return folder / f"{name}.csv"


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of benchmarks/results/NAME.csv, numbers as numbers; none where there is no such file."""
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(handle)]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
