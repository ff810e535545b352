"""`plures table`: measured beside published, mean and spread over seeds, for any set of runs.

Runs that differ in nothing but seeds (and in where and how fast they ran) make up one row.
"""

from __future__ import annotations

import csv
import html
import io
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from plures.config import Component, Experiment
from plures.data.formats.safe_cells import guarded
from plures.errors import PluresError
from plures.files import PAGE, read_json, writing
from plures.metrics.report import Report
from plures.recipes import Recipe, load_recipe
from plures.runs.run import Run

COLUMNS = {
    "recipe": "recipe",
    "backbone": "backbone",
    "head": "head",
    "loss": "loss",
    "supervision": "supervision",
    "settings": "other settings",
    "published": "published mAP",
    "measured": "measured mAP",
    "sd": "sd",
    "n": "n",
    "seeds": "seeds",
    "definition": "AP",
    "split": "split",
    "images": "images",
    "classes": "classes scored",
    "labels": "training labels",
    "selected": "selected by",
    "command": "command",
}
SHOWN_ON_SCREEN = ("recipe", "backbone", "head", "loss", "supervision", "settings", "published", "measured", "sd", "n")
MISSING, UNPUBLISHED = "missing", "none recorded"
IRRELEVANT = ("seed", "device", "engine", "workers", "log", "compile")  # for what a number means
HAS_COLUMN = ("recipe", "start", "data", "backbone", "head", "loss", "supervision", "image_size", *IRRELEVANT)
Cells = dict[str, str]


@dataclass(frozen=True)
class Measured:
    """One run: what it was, and what its evaluation found. labels: hash of the training labels, or empty."""

    run: Run
    report: Report
    split: str
    selected: str
    labels: str

    @property
    def experiment(self) -> Experiment:
        return self.run.experiment

    @property
    def key(self) -> str:
        """What runs in one row have in common."""
        values = {k: v for k, v in self.experiment.to_dict().items() if k not in IRRELEVANT}
        supervision = values["supervision"]
        if isinstance(supervision, dict):
            values["supervision"] = {k: v for k, v in supervision.items() if k != "seed"}
        r = self.report
        where = (r.definition, r.images, r.classes_scored, self.split, self.selected, self.run.imported)
        return json.dumps([values, where], sort_keys=True)


def table_rows(runs: Iterable[str | Path], recipe: str | None = None) -> list[Cells]:
    """A row of cells by the names in COLUMNS for each group of runs.

    recipe: also a row for each row of this recipe that no run belongs to, its number shown as missing, with the command
        that measures it.
    Raises PluresError if a folder holds no run, or a run no report.
    """
    groups: dict[str, list[Measured]] = defaultdict(list)
    for path in dict.fromkeys(Path(run).resolve() for run in runs):
        measured = read_measured(path)
        groups[measured.key].append(measured)
    varied = _varied([group[0].experiment for group in groups.values()])
    rows = [_row(group, varied) for group in groups.values()]
    if recipe is not None:
        rows += _missing(load_recipe(recipe), {row["recipe"] for row in rows})
        order = [f"{recipe}:{name}" for name in load_recipe(recipe).rows]
        rows.sort(key=lambda row: order.index(row["recipe"]) if row["recipe"] in order else len(order))
    if not rows:
        raise PluresError("no run to show; name run folders, or a recipe with --recipe")
    return rows


def read_measured(path: Path) -> Measured:
    """A run folder with its report. Raises PluresError where there is none."""
    run = Run(path)
    file = path / "report.json"
    if not file.is_file():
        again = f"plures evaluate {path} {'DATA ' if run.imported else ''}--json {file}"
        raise PluresError(f"{path}: this run has no report yet; `{again}` writes one")
    report = Report.load(file)  # says in one line if the file is broken
    stored = read_json(file)
    environment = path / "environment.json"
    known = read_json(environment) if environment.is_file() else {}
    return Measured(
        run,
        report,
        str(stored.get("split", "")),
        str((stored.get("selected") or {}).get("by", "")),
        str(known.get("train_labels_sha256", "")),
    )


def _row(group: Sequence[Measured], varied: list[str]) -> Cells:
    first = group[0]
    e, r = first.experiment, first.report
    values = np.array([100 * m.report.map for m in group])
    labels = sorted({m.labels[:8] for m in group} - {""})
    return {
        "recipe": e.recipe or "",
        **_parts(e),
        "supervision": "weights imported" if first.run.imported else _spell(e.supervision, ("seed",)),
        "settings": "" if first.run.imported else ", ".join(_changes(e, varied)),
        "published": _published(e.recipe),
        "measured": f"{values.mean():.2f}",
        "sd": f"{values.std(ddof=1):.2f}" if len(values) > 1 else "",
        "n": str(len(values)),
        "seeds": "" if first.run.imported else " ".join(str(m.experiment.seed) for m in group),
        "definition": r.definition,
        "split": first.split,
        "images": str(r.images),
        "classes": f"{r.classes_scored} of {len(r.per_class)}",
        "labels": labels[0] if len(labels) == 1 else f"{len(labels)} draws" if labels else "",
        "selected": first.selected,
        "command": "",
    }


def _missing(recipe: Recipe, there: set[str]) -> list[Cells]:
    """The rows of the recipe that no run belongs to."""
    rows = []
    for name in recipe.rows:
        spec = f"{recipe.name}:{name}"
        if spec not in there:
            e = Experiment(**recipe.settings(name))
            cells = dict.fromkeys(COLUMNS, "") | {"recipe": spec, **_parts(e), "measured": MISSING, "n": "0"}
            cells |= {"supervision": _spell(e.supervision, ("seed",)), "published": _published(spec)}
            rows.append(cells | {"command": command_of(e, spec)})
    return rows


def command_of(e: Experiment, spec: str) -> str:
    """What measures a recipe's row; DIR is where its data lie."""
    data = f"{e.data.name.partition(':')[0]}:DIR"
    return shlex.join(["plures", "train", data, "--recipe", spec, "--out", f"runs/{spec.replace(':', '-')}"])


def _parts(e: Experiment) -> Cells:
    options = e.backbone.options
    size = e.image_size or options.get("image_size", "")
    return {
        "backbone": f"{options.get('model', e.backbone.name)} {size}".strip(),
        "head": e.head.name,
        "loss": _spell(e.loss),
    }


def _spell(part: Component, without: tuple[str, ...] = ()) -> str:
    """`name option=value ...`."""
    return " ".join([part.name, *(f"{k}={v}" for k, v in part.options.items() if k not in without)])


def _published(spec: str | None) -> str:
    """The published numbers of a recipe's row, each with its data set; said where the recipe has none."""
    name, _, row = (spec or "").partition(":")
    if not row:
        return ""
    numbers = load_recipe(name).published.get(row, {})
    return ", ".join(f"{value} ({data})" for data, value in numbers.items()) or UNPUBLISHED


def _varied(experiments: Sequence[Experiment]) -> list[str]:
    """The settings, among those without a column, in which these experiments disagree."""
    values = [e.to_dict() for e in experiments]
    return [key for key in Experiment.model_fields if key not in HAS_COLUMN and len({str(v[key]) for v in values}) > 1]


def _changes(e: Experiment, varied: list[str]) -> list[str]:
    """What differs from the recipe that the run names; without one, what differs between the rows of the table."""
    values = e.to_dict()
    if e.recipe is None:
        return [f"{key}={_value(values[key])}" for key in varied]
    name, _, row = e.recipe.partition(":")
    planned = Experiment(**load_recipe(name).settings(row or None)).to_dict()
    left = {"recipe", "data", *IRRELEVANT} if row else {*HAS_COLUMN}
    return [f"{key}={_value(v)}" for key, v in values.items() if key not in left and v != planned[key]]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join([value["name"], *(f"{k}={v}" for k, v in value.items() if k != "name")])
    return str(value)


# ---------------------------------------------------------------------------------------------------- spellings


def render_table(rows: Sequence[Cells]) -> Table:
    """For the terminal: the columns that fit, in percent."""
    table = Table(title="mAP in percent", title_justify="left", box=None)
    for name in SHOWN_ON_SCREEN:
        numeric = name in ("measured", "sd", "n")
        table.add_column(COLUMNS[name], justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in SHOWN_ON_SCREEN))
    return table


def write_table(rows: Sequence[Cells], out: str | Path) -> None:
    """All columns as Markdown, CSV or HTML, by the file's suffix. Raises PluresError for another suffix."""
    spellings = {".md": as_markdown, ".csv": as_csv, ".html": as_html}
    spell = spellings.get(Path(out).suffix.lower())
    if spell is None:
        raise PluresError(f"{out}: cannot tell the format from '{Path(out).suffix}'; use {', '.join(spellings)}")
    with writing(out) as temporary:
        temporary.write_text(spell(rows), encoding="utf-8")


def as_markdown(rows: Sequence[Cells]) -> str:
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    lines += [[row[name].replace("|", "\\|") for name in COLUMNS] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(rows: Sequence[Cells]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: guarded(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue()


def as_html(rows: Sequence[Cells]) -> str:
    """One self-contained page."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in COLUMNS.values())
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(row[name])}</td>' for name in COLUMNS)}</tr>\n" for row in rows)
    style = "body{font:14px sans-serif}td,th{padding:4px 8px;text-align:left;border-bottom:1px solid #ccc}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">{PAGE}<title>mAP, measured beside published</title>'
        f"<style>{style}</style>\n<p>mAP in percent; sd over the runs of a row.</p>\n"
        f"<table><tr>{head}</tr>\n{body}</table>\n</html>\n"
    )
