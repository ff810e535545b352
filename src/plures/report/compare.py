"""`plures compare`: runs side by side on the same test labels, with paired bootstrap differences to the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from plures.analysis.evaluate import Judged, judged
from plures.errors import PluresError
from plures.files import writing
from plures.metrics.intervals import Interval
from plures.metrics.report import percent
from plures.report import figures
from plures.report.measures import Measure, difference
from plures.report.page import KINDS, Fig, honest, render, spell_difference, spell_interval, spell_measure
from plures.report.scored import Scored, scored
from plures.runs.own_data import match_classes
from plures.runs.photos import Photos, contents, log
from plures.runs.run import Run
from plures.training.probabilities import read_probabilities


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs by short distinct names; all judged by the same labels."""

    names: tuple[str, ...]
    runs: tuple[Scored, ...]

    def differences(self, number: int) -> list[Interval]:
        """Of run `number` minus the first, for every measure, from paired resamples."""
        return [difference(a, b) for a, b in zip(self.runs[0].measures, self.runs[number].measures, strict=True)]


def compare(
    paths: Sequence[str | Path], split: str | None = None, resamples: int = 200, skip_bad: bool = False
) -> Comparison:
    """Score runs on a split of their own data; None: test where a run has one, else val. Photographs that any of the
    runs was trained on are left out of all. Raises PluresError for fewer than two, and for runs whose classes, images
    or labels of that split differ: their numbers do not measure the same."""
    folders = list(dict.fromkeys(Path(path).resolve() for path in paths))
    if len(folders) < 2:
        raise PluresError(f"comparing needs two runs or more, got {len(folders)}")
    names = _short(folders)
    runs = [Run(folder) for folder in folders]
    rows = _judged_by_all(names, runs, [judged(run, None, split, {}, skip_bad) for run in runs])
    found = tuple(scored(run, here, resamples) for run, here in zip(runs, rows, strict=True))
    for name, run in zip(names[1:], found[1:], strict=True):
        _refuse_other(names[0], found[0], name, run)
    return Comparison(names, found)


def _judged_by_all(names: Sequence[str], runs: Sequence[Run], rows: Sequence[Judged]) -> list[Judged]:
    """The same photographs for every run, in one order: those that any of them is judged on, that all of them have
    and that none was trained on."""
    now = [contents(here.dataset) for here in rows]
    whole = [contents(here.dataset if here.own is None else here.own) for here in rows]
    known = [photos for run in runs if (photos := Photos.load(run.path)) is not None]
    wanted = list(dict.fromkeys(np.concatenate(now).tolist()))
    left = (
        set(wanted).intersection(*(one.tolist() for one in whole)).difference(*(one.trained.tolist() for one in known))
    )
    if len(left) == len(wanted) and all(np.array_equal(now[0], other) for other in now[1:]):
        return list(rows)
    if not left:
        raise PluresError(
            f"{' and '.join(names)} have no photograph in common that none of them was trained on: nothing can be"
            " compared"
        )
    chosen = [one for one in wanted if one in left]
    log.warning(
        f"compared on {len(chosen):,} photographs; left out {len(wanted) - len(chosen):,} that one of the runs was"
        " trained on or does not have"
    )
    found = []
    for here, all_rows in zip(rows, whole, strict=True):
        at = {one: row for row, one in reversed(list(enumerate(all_rows.tolist())))}
        data = here.dataset if here.own is None else here.own
        dataset = match_classes(data.take([at[one] for one in chosen]), here.dataset.classes, here.dataset.taxonomy)
        found.append(replace(here, dataset=dataset))
    return found


def _refuse_other(name: str, first: Scored, other: str, run: Scored) -> None:
    if run.dataset.classes != first.dataset.classes:
        raise PluresError(f"{name} and {other} know other classes: no number of theirs can be compared")
    if run.labels_hash != first.labels_hash:
        raise PluresError(
            f"{name} and {other} are judged by other labels of '{first.split}' ({len(first.dataset):,} images, sha256"
            f" {first.labels_hash[:8]}, and {len(run.dataset):,}, {run.labels_hash[:8]}): no number can be compared"
        )
    if run.report.definition != first.report.definition:
        raise PluresError(
            f"{name} and {other} define average precision differently ({first.report.definition},"
            f" {run.report.definition}); set average_precision in one run's experiment.yaml"
        )


def render_terminal(c: Comparison) -> Table:
    """A row a measure; the first run's value, then each other's with its difference."""
    kind = c.runs[0].report.labels
    images = len(c.runs[0].dataset)
    table = Table("percent", title=f"{images:,} images, {kind} labels; in brackets: 95% of the paired difference")
    for name in c.names:
        table.add_column(name, justify="right", overflow="fold")
    gaps = [c.differences(i) for i in range(1, len(c.runs))]
    for row, measure in _defined(c):
        cells = [spell_measure(measure)]
        for run, differences in zip(c.runs[1:], gaps, strict=True):
            cells.append(f"{spell_measure(run.measures[row])}  {spell_difference(differences[row], measure.unit)}")
        table.add_row(measure.name, *cells)
    if (estimates := c.runs[0].report.estimates) is not None:
        table.caption = f"estimated: if {estimates.assumes}"
    return table


def _defined(c: Comparison) -> list[tuple[int, Measure]]:
    """The first run's measures by their place, without those that no run has a value of."""
    return [
        (row, measure) for row, measure in enumerate(c.runs[0].measures)
        if not all(math.isnan(run.measures[row].value) for run in c.runs)
    ]  # fmt: skip


def write_comparison(c: Comparison, out: str | Path) -> None:
    """Write the page. Raises PluresError unless its name ends in .html."""
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise PluresError(f"{out}: the comparison is a page; expected a name that ends in .html")
    html = render("compare.html", _context(c))
    with writing(out) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _context(c: Comparison) -> dict[str, Any]:
    first = c.runs[0]
    gaps = [c.differences(i) for i in range(1, len(c.runs))]
    rows = []
    for row, measure in _defined(c):
        others = [
            (run.measures[row], spell_difference(d[row], measure.unit), _verdict(d[row]))
            for run, d in zip(c.runs[1:], gaps, strict=True)
        ]
        rows.append({"measure": measure, "interval": spell_interval(measure), "others": others})
    classes = [
        {"name": parts[0].name, "support": parts[0].positives, "aps": [percent(p.average_precision) for p in parts]}
        for parts in zip(*(run.report.per_class for run in c.runs), strict=True)
    ]
    said = [honest(run) for run in c.runs]
    return {
        "title": f"{len(c.runs)} runs compared",
        "names": c.names,
        "kind": first.report.labels,
        "kind_words": KINDS[first.report.labels],
        "split": first.split,
        "images": len(first.dataset),
        "rows": rows,
        "classes": sorted(classes, key=lambda row: -row["support"]),
        "settings": _settings(c),
        "honest": {key: [values[key] for values in said] for key in said[0]},
        "figures": _figures(c),
    }


def _verdict(gap: Interval) -> str:
    """better or worse where the interval leaves out 0."""
    return "better" if gap.low > 0 else "worse" if gap.high < 0 else ""


def _settings(c: Comparison) -> dict[str, list[str]]:
    """The settings in which the runs differ."""
    values = [run.run.experiment.to_dict() for run in c.runs]
    return {key: [str(v[key]) for v in values] for key in values[0] if len({str(v[key]) for v in values}) > 1}


def _figures(c: Comparison) -> list[Fig]:
    """What becomes of the hidden positives, for each run that was trained with hidden labels."""
    found = []
    for number, (name, run) in enumerate(zip(c.names, c.runs, strict=True)):
        svg = figures.hidden_labels(read_probabilities(run.run), f"hidden{number}")
        if svg is not None:
            found.append(Fig(f"{name}: {run.run.experiment.loss.name}", svg, "A sample of training images, by epoch."))
    return found


def _short(folders: Sequence[Path]) -> tuple[str, ...]:
    """Distinct names: as many of the last parts of each path as it takes."""
    for parts in range(1, max(len(f.parts) for f in folders) + 1):
        names = tuple("/".join(f.parts[-parts:]) for f in folders)
        if len(set(names)) == len(names):
            return names
    return tuple(str(f) for f in folders)
