"""`plures demo`: three models on the built-in scenes, what they cost, what they find, and a page that shows it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from plures.config import Experiment
from plures.console import Show
from plures.data.dataset import Dataset
from plures.data.read import read
from plures.errors import PluresError
from plures.files import mark_folder, refuse_folder, writing
from plures.metrics.report import Report
from plures.metrics.thresholds import sigmoid
from plures.prediction.predict import predict
from plures.runs.run import Run
from plures.scoring.heatmaps import overlay, paint
from plures.scoring.predictor import load
from plures.training.train import train

SHOWN, PICTURE = 12, 160  # scenes on the page, and the side of a picture in pixels
SETTINGS: dict[str, Any] = {
    "backbone": {"name": "small_conv", "width": 96},
    "head": {"name": "codebook", "normalise_tokens": True},
    "batch_size": 16,
    "lr": 2e-3,
    "schedule": "cosine",
    "ema": 0.995,
    "augment": "none",  # a digit seen in a mirror is another sign
}


SHOWS = (
    "One tag per scene is enough to find most tags if the loss expects that tags are missing; where the rest is taken"
    " as absent, few are called, and they are ranked worse."
)


@dataclass(frozen=True)
class Row:
    """One of the demo's runs: its name in the table, its folder, and what it trains with."""

    title: str
    folder: str
    settings: dict[str, Any]

    def experiment(self, images: int = 3000, epochs: int = 10, **changes: Any) -> Experiment:
        """What the row trains: the settings of all rows, then its own, then these changes."""
        data = {"name": "scenes", "train": images, "val": 500, "test": 1000}
        return Experiment(**{"data": data, "epochs": epochs, **SETTINGS, **self.settings, **changes})


ROWS = (
    Row("all tags", "all_tags", {"supervision": "full", "loss": "bce"}),
    Row("one tag, rest assumed absent", "one_tag_an", {"supervision": "single_positive", "loss": "an", "lr": 5e-4}),
    Row("one tag, best loss", "one_tag_best", {"supervision": "single_positive", "loss": "gr"}),
)


def run_demo(out: Path, console: Console, images: int = 3000, epochs: int = 10) -> Path:
    """Train, evaluate, predict and draw into `out`; prints one table. Returns the page's path.

    Raises PluresError if `out` holds a demo already, or anything else.
    """
    if any((out / row.folder).exists() for row in ROWS):
        raise PluresError(f"{out} already holds a demo; remove it or choose another --out")
    refuse_folder(out, "demo")
    mark_folder(out, "demo")
    dataset = read("scenes", train=images, val=500, test=1000)
    test = dataset.split("test")
    table = Table("training labels", "loss", "mAP", "tags/image", "true", "seconds", box=None)
    runs: list[Run] = []
    for row in ROWS:
        console.print(row.title, style="bold")
        experiment = row.experiment(images, epochs)
        run = train(experiment, out / row.folder, dataset=dataset, callback=Show(console))
        runs.append(run)
        report = Report.load(run.path / "report.json")
        table.add_row(
            row.title,
            experiment.loss.name,
            f"{100 * report.map:.1f}",
            f"{report.tags_predicted:.2f}",
            f"{report.tags_true:.2f}",
            f"{sum(r['seconds'] for r in run.log):.0f}",
        )
    shown = test.take(np.arange(SHOWN))
    folder = out / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(shown.images):
        Image.fromarray(np.asarray(image)).save(folder / f"{i:02d}.png")
    predict(runs[-1], folder, out / "predictions.csv", heatmaps=out / "heatmaps")
    page = write_page(out, runs, shown)
    console.print(table)
    console.print(SHOWS, highlight=False)
    console.print(
        f"predictions: {out / 'predictions.csv'}   heat maps: {out / 'heatmaps'}   page: {page}", highlight=False
    )
    return page


def write_page(out: Path, runs: list[Run], shown: Dataset) -> Path:
    """A page with a row for each scene and a column for each run: tags found, right, wrong and missed, with maps."""
    cells = [_cells(run, row, shown, out) for run, row in zip(runs, ROWS, strict=True)]
    head = "".join(f"<th>{html.escape(row.title)}</th>" for row in ROWS)
    lines = []
    for i in range(len(shown)):
        truth = ", ".join(c for c, present in zip(shown.classes, shown.labels.present[i], strict=True) if present)
        picture = f'<img src="scenes/{i:02d}.png" alt="scene {i}" width="{PICTURE}" height="{PICTURE}">'
        lines.append(f"<tr><td>{picture}<p>{html.escape(truth)}</p></td>{''.join(c[i] for c in cells)}</tr>")
    page = out / "index.html"
    with writing(page) as temporary:
        temporary.write_text(PAGE.format(shows=html.escape(SHOWS), head=head, rows="\n".join(lines)), encoding="utf-8")
    return page


def _cells(run: Run, row: Row, shown: Dataset, out: Path) -> list[str]:
    """A table cell for each scene: the tags found with their heat maps, and the tags missed."""
    images = torch.from_numpy(np.asarray(shown.images)).permute(0, 3, 1, 2)  # [B, 3, H, W]
    model = load(run)
    logits, weights, boxes = model.look(images)
    scores = sigmoid(logits)
    cells = []
    for i in range(len(shown)):
        parts = []
        picture = Image.fromarray(np.asarray(shown.images[i])).resize((PICTURE, PICTURE), Image.Resampling.NEAREST)
        for k in np.argsort(-scores[i]):
            name, present = model.classes[k], bool(shown.labels.present[i, k])
            if scores[i, k] < run.experiment.cut:
                if present:
                    parts.append(f'<figure class="missed">missed {html.escape(name)} ({scores[i, k]:.2f})</figure>')
                continue
            path = out / row.folder / "maps" / f"{i:02d}.{name}.png"
            path.parent.mkdir(exist_ok=True)
            overlay(picture, paint(weights[i, k], boxes, PICTURE, PICTURE), name, float(scores[i, k])).save(path)
            kind = "right" if present else "wrong"
            source = path.relative_to(out).as_posix()
            parts.append(
                f'<figure class="{kind}"><img src="{source}" alt="where {html.escape(name)} was seen" width="96">'
                f"<figcaption>{html.escape(name)} {scores[i, k]:.2f}</figcaption></figure>"
            )
        cells.append(f"<td>{''.join(parts)}</td>")
    return cells


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>plures demo</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
html {{ background: Canvas; color: CanvasText; }}
body {{ margin: 1.5rem auto; max-width: 80rem; padding: 0 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }} th, td {{ text-align: left; vertical-align: top; padding: .5rem; }}
tr {{ border-top: 1px solid #8884; }} figure {{ display: inline-block; margin: 0 .4rem .4rem 0; }}
img {{ border-radius: 4px; image-rendering: pixelated; max-width: 100%; height: auto; }}
.right figcaption {{ color: #18794e; }} .wrong figcaption {{ color: #c62a2f; }} .missed {{ color: #8a5a00; }}
@media (prefers-color-scheme: dark) {{ .right figcaption {{ color: #4cc38a; }} .wrong figcaption {{ color: #ff8589; }}
.missed {{ color: #f1a10d; }} }}
</style></head><body><main>
<h1>What each model finds in scenes it has never seen</h1>
<p>Green: found and there. Red: found but not there. Amber: there but missed. The colour over a scene shows where
the model saw the tag; the number is its probability.</p>
<p>{shows}</p>
<div class="scroll" tabindex="0" role="group" aria-label="scenes">
<table><thead><tr><th>scene and true tags</th>{head}</tr></thead><tbody>
{rows}
</tbody></table></div></main></body></html>
"""
