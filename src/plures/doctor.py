"""`plures doctor`: versions, device, what is broken, and the one line that fixes it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

MIN_FREE_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. fix: None if it is well, else what to do."""

    what: str
    fix: str | None = None


def examine(folder: str | Path = ".") -> list[Finding]:
    """Look at python, the required packages, torch and its device, the disk and the cache folder."""
    findings = [_python(), *_packages()]
    if all(f.fix is None for f in findings):
        findings += [*_torch(), _torchvision()]
        findings.append(_presets())
    return [*findings, _disk(Path(folder)), _cache()]


def _python() -> Finding:
    what = f"python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Finding(what, None if sys.version_info >= (3, 11) else "plures requires python 3.11 or newer")


def _packages() -> list[Finding]:
    findings = []
    for line in requires("plures") or []:
        need = Requirement(line)
        if need.marker is not None:
            continue
        try:
            have = version(need.name)
        except PackageNotFoundError:
            findings.append(Finding(f"{need.name} is missing", f'pip install "{need}"'))
            continue
        wrong = not need.specifier.contains(have, prereleases=True)
        findings.append(Finding(f"{need.name} {have}", f'pip install "{need}"' if wrong else None))
    return findings


def _torch() -> list[Finding]:
    try:
        import torch
    except Exception as error:
        return [Finding(f"torch cannot be imported ({error})", "pip install --force-reinstall torch torchvision")]
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return [Finding(f"GPU {torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")]
    if torch.backends.mps.is_available():
        return [Finding("GPU: Apple (mps)")]
    hint = None
    if shutil.which("nvidia-smi"):
        hint = "a GPU driver is here but torch sees no GPU: install the torch build for its CUDA version"
    return [Finding(f"no GPU: torch runs on {torch.get_num_threads()} CPU threads", hint)]


def _torchvision() -> Finding:
    try:
        import torch
        import torchvision

        boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0])
        torchvision.ops.nms(boxes, scores, 0.5)
    except Exception as error:
        return Finding(
            f"torchvision does not work with this torch ({str(error).splitlines()[0]})",
            "pip install --force-reinstall torch torchvision",
        )
    return Finding("torchvision works with this torch")


def _presets() -> Finding:
    from plures.models.backbones.presets import PRESETS, on_disk

    files = on_disk()
    lacking = [name for name, file in files.items() if file is None]
    there = ", ".join(f"{name} ({PRESETS[name]['model']})" for name in files if name not in lacking)
    how = "which are downloaded on first use, or given by backbone.weights=FILE"
    away = f"; not {', '.join(lacking)}, {how}" if lacking else ""
    return Finding(f"weights of backbones on this disk: {there or 'none'}{away}")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    low = free < MIN_FREE_GB
    return Finding(
        f"{free:.1f} GiB free on the disk of {folder.resolve()}", "free some space for run folders" if low else None
    )


def _cache() -> Finding:
    from plures.scoring.cache import cache_folder

    folder = cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if os.access(existing, os.W_OK):
        return Finding(f"features are kept in {folder}")
    return Finding(f"{folder} cannot be written", "set PLURES_CACHE to a folder that can")
