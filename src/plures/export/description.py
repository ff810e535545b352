"""What an exported file says of itself: classes, thresholds, preprocessing, version, and the model card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import plures
from plures.metrics.report import Report
from plures.metrics.thresholds import Thresholds
from plures.models.model import Model
from plures.runs.run import Run

CARDS = ("model_card.md", "README.md")  # in a run folder


def metadata_of(model: Model, thresholds: Thresholds, boxes: NDArray[np.float32] | None, int8: str | None) -> Any:
    """Plain values. boxes: [P, 4], x1 y1 x2 y2 in [0, 1], where the maps' regions lie."""
    calibration = thresholds.calibration
    metadata: dict[str, Any] = {
        "plures": plures.__version__,
        "classes": list(model.classes),
        "thresholds": [float(v) for v in thresholds.values],
        "cut_logits": [float(v) if np.isfinite(v) else "never" if v > 0 else "always" for v in thresholds.cuts],
        "thresholds_chosen": {"method": thresholds.method, "objective": thresholds.objective},
        "calibration": "none" if calibration is None else calibration.kind,
        "input": "images: uint8 [batch, 3, height, width], any size, all images of a batch the same: RGB, upright as"
        " the EXIF orientation says, alpha laid on white, the first frame; grey of more than 8 bits scaled to 0..255"
        " from the range of its bit depth",
        "outputs": "scores: float32 [batch, classes], probabilities; tags: bool [batch, classes], logits >= cut_logits"
        " (the thresholds are the probabilities there); logits: float32 [batch, classes], before calibration",
        "preprocessing": {**asdict(model.preprocessing), "inside": ["resize", "normalisation"]},
        "parts": asdict(model.parts),
        "int8": int8 or "no",
    }
    if thresholds.taxonomy is not None:
        metadata["taxonomy"] = thresholds.taxonomy.to_dict()
        metadata["outputs"] += "; by the taxonomy, the score of a class is the highest of its own and those below it, a"
        metadata["outputs"] += " class is called only with all above it, and of an exclusive group one at most"
    if boxes is not None:
        metadata["outputs"] += "; maps: float32 [batch, classes, regions], sum to 1 over regions, which lie at `boxes`"
        metadata["boxes"] = [[round(float(edge), 6) for edge in box] for box in boxes]
    return metadata


def card_of(run: Run, model: Model, thresholds: Thresholds) -> str:
    """The run's own model card, or a short one made of its experiment and report."""
    for name in CARDS:
        path = run.path / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    e = run.experiment
    lines = [
        "# Model card",
        "",
        f"Multi-label image classifier of {len(model.classes)} classes: {', '.join(model.classes)}.",
        "",
        f"- backbone: {e.backbone.name}; head: {e.head.name}; loss: {e.loss.name}; stages: {e.stage_names}",
        f"- training data: {Path(e.data.name).name}; labels shown: {e.supervision.name}",
        f"- thresholds: {thresholds.method}",
        f"- made with plures {plures.__version__}",
        "",
        measured(run.path),
    ]
    return "\n".join(lines) + "\n"


def measured(folder: Path) -> str:
    """One sentence on the run's report, or that there is none."""
    path = folder / "report.json"
    if not path.is_file():
        return "It was not evaluated."
    report = Report.load(path)
    return (
        f"On {report.images:,} test images ({report.labels} labels): mAP {100 * report.map:.1f} percent"
        f" ({report.definition}, {report.classes_scored} classes scored)."
    )
