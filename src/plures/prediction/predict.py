"""`plures.predict`: every image's scores and tags, one row per image, written as it goes; heat maps on request.

Images stream through: memory does not grow with their number. Into a folder, predictions go in parts, each written
whole, so that a run that was killed resumes without a lost or doubled row, and several machines share the work.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.data.convert import Written, convert, refuse_form
from plures.data.dataset import Dataset
from plures.data.photos import to_image, unread_below
from plures.errors import BadData, PluresError, Problem
from plures.files import mark_folder, refuse_folder, refuse_replacing, writing
from plures.labels import PRESENT, UNKNOWN, Labels
from plures.prediction.files import SUFFIXES, Bad, PartRecord, Parts, Rows, names_from, writer
from plures.runs.run import Run
from plures.scoring.heatmaps import HEATMAPS, overlay, paint
from plures.scoring.predictor import Precision, Predictor, Scored, load
from plures.scoring.sources import Item, images_of, parse_shard, sharded

ROWS_A_PART = 10_000
KEPT_PROBLEMS = 1000  # of unreadable images, for the message; the rest is only counted


@dataclass(frozen=True)
class Summary:
    """What a prediction run did. images: scored (in all parts, also those of the run that this one continued);
    tags_per_image: mean; problems: the first images that could not be read; skipped: how many of these there were;
    notices: of photographs that a folder holds and that nothing here reads."""

    images: int
    tags_per_image: float
    problems: tuple[Problem, ...]
    skipped: int = 0
    notices: tuple[Problem, ...] = ()


def predict(
    run: str | Path | Run,
    source: str | Path,
    out: str | Path,
    *,
    heatmaps: str | Path | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    skip_bad: bool = False,
    parts: int | None = None,
    resume: bool = False,
    shard: str | None = None,
    precision: Precision = "float32",
    force: bool = False,
    safe_csv: bool = True,
) -> Summary:
    """Score the images of `source`: an image, a folder, a list (.txt), a table, or data as `train` takes them.

    out: one file, .csv or .tsv (image, tags, one column per class), .jsonl or .parquet, in which relative paths of
    images start from the file's own folder, so that it can be read as a table; or a folder, which gets a Parquet
    file for every `parts` images (10,000 unless given). A file needs every image to be readable (else BadData, and
    nothing is written), or skip_bad; a folder gets a list of unreadable images beside the part, and continues.
    resume: compute only the parts that are missing. shard "i/n": only the i-th of n shares of the images, i from 1.
    heatmaps: a folder that gets a picture for each tag of each image. threshold in (0, 1): the run's own unless given.
    precision: bfloat16 or int8 (CPU) are faster on machines that have instructions for them, and not exact.
    safe_csv: in .csv and .tsv, an apostrophe before names that a spreadsheet would take for a formula (=, +, -, @);
    readers of tables know it.
    force: replace a file `out` that is there. A folder of parts or heat maps must be new, empty or of plures' making.
    """
    run = run if isinstance(run, Run) else Run(run)
    into_folder = Path(out).suffix.lower() not in SUFFIXES
    _refuse(str(out), into_folder, parts, resume)
    if into_folder:
        Parts.refuse_other(str(out))
    else:
        refuse_replacing(out, force=force, inputs=run.reads(str(source)))
    if heatmaps is not None:
        refuse_folder(heatmaps, HEATMAPS)
    if parts is not None and parts < 1:
        raise PluresError(f"--parts {parts}: expected a number of images, 1 or more")
    number, of = parse_shard(shard or "1/1")
    open_ = images_of(source, skip_bad)
    calibration = open_() if precision == "int8" else ()
    scorer = load(run, threshold=threshold, precision=precision, calibration=calibration)
    pictures = None if heatmaps is None else _Pictures(Path(heatmaps), open_, scorer.classes)
    items = sharded(open_(), number, of)
    total = None if resume else sum(1 for _ in sharded(open_(), number, of))
    here = os.getcwd() if isinstance(next(open_())[1], str) else None
    if not into_folder:
        return _into_file(scorer, items, Path(out), here, batch_size, workers, skip_bad, pictures, Tally(source),
                          safe_csv, total)  # fmt: skip
    rows = parts or ROWS_A_PART
    folder = Parts(str(out), scorer.classes, (number, of), here)
    folder.begin(settings_of(run, source, rows, of, scorer), resume)
    summary = Tally(source)
    todo = unfinished(items, rows, folder, summary)
    sizes: dict[int, int] = {}
    stretch = ((part, item) for part, items_ in _measured(todo, sizes) for item in items_)
    scores = scorer.stream(stretch, batch_size, workers, pictures is not None, total)
    for part in _by_part(scores, sizes):
        summary.add(write_part(folder, scorer, part, pictures), [b for s in part for b in s.bad])
    return summary.summary()


def predict_to(
    run: str | Path | Run,
    source: str | Path,
    to: str,
    out: str | Path,
    *,
    branch: str | None = None,
    dry_run: bool = False,
    threshold: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    skip_bad: bool = False,
    precision: Precision = "float32",
    force: bool = False,
) -> tuple[Summary, Written]:
    """Score the images of `source`, and give their tags to another tool, with scores where its form holds them.

    Args:
        run: a run folder. source: as `predict` takes it; the images are files.
        to: coco, label_studio, fiftyone, cvat, roboflow or huggingface, see `plures.data.convert.convert`; or xmp,
            keywords in sidecars beside the photographs.
        out: the file to write; of xmp, the journal that `plures.data.sidecars.undo` reads.
        branch, dry_run: of xmp: the keyword that tags stand below (plures), and whether to only count.
        threshold, batch_size, workers, skip_bad, precision, force: as of `predict`.

    Returns:
        What was scored, and what was written. All scores are held in memory, 13 bytes per image and class.

    Raises:
        PluresError, BadData: as `predict` and `convert`, before anything is written.

    Example:
        predict_to("runs/first", "photos/", "xmp", "keywords.jsonl")
    """
    run = run if isinstance(run, Run) else Run(run)
    to = refuse_form(to, out, branch=branch, dry_run=dry_run)
    if to == "table":
        raise PluresError("predictions are written as a table without --to, as in --out found.csv")
    refuse_replacing(out, force=force, inputs=run.reads(str(source)))
    open_ = images_of(source, skip_bad)
    scorer = load(run, threshold=threshold, precision=precision, calibration=open_() if precision == "int8" else ())
    tally, found = Tally(source), list[Rows]()
    total = sum(1 for _ in open_())
    for scored in scorer.stream(((0, item) for item in open_()), batch_size, workers, total=total):
        rows = rows_of(scorer, scored)
        found.append(replace(rows, scores=rows.scores.astype(np.float32)))
        tally.add(PartRecord("", "", len(scored.asked), len(rows.names), len(scored.bad), int(rows.called.sum())),
                  scored.bad)  # fmt: skip
    if tally.bad and not skip_bad:
        raise BadData(tally.problems)
    called = np.concatenate([rows.called for rows in found])
    dataset = Dataset(
        [name for rows in found for name in rows.names],
        Labels(np.where(called, PRESENT, UNKNOWN).astype(np.int8)),
        scorer.classes,
        name=str(source),
    )
    scores = np.concatenate([rows.scores for rows in found]).astype(np.float64)
    written = convert(dataset, to, out, scores=scores, branch=branch, dry_run=dry_run, skip_bad=skip_bad)
    return tally.summary(), written


def _refuse(out: str, into_folder: bool, parts: int | None, resume: bool) -> None:
    if into_folder and Path(out).suffix and "://" not in out:
        suffix = Path(out).suffix
        raise PluresError(
            f"{out}: cannot tell the format from '{suffix}'; use {', '.join(SUFFIXES)}, or a folder for parts"
        )
    if not into_folder and (parts is not None or resume):
        what = "--parts" if parts is not None else "--resume"
        raise PluresError(f"{what} requires a folder of parts; use --out {Path(out).with_suffix('')}")


def _into_file(
    scorer: Predictor,
    items: Iterator[Item],
    out: Path,
    here: str | None,
    batch_size: int,
    workers: int,
    skip_bad: bool,
    pictures: _Pictures | None,
    tally: Tally,
    safe_csv: bool,
    total: int | None,
) -> Summary:
    named = names_from(out.parent, here)
    with writing(out) as temporary, writer(temporary, out.suffix.lower(), scorer.classes, safe_csv) as write:
        stretch = ((0, item) for item in items)
        for scored in scorer.stream(stretch, batch_size, workers, pictures is not None, total):
            rows = rows_of(scorer, scored)
            if len(rows.names):
                write(replace(rows, names=[named(name) for name in rows.names]))
            tally.add(PartRecord("", "", len(scored.asked), len(rows.names), len(scored.bad), int(rows.called.sum())),
                      scored.bad)  # fmt: skip
            if pictures is not None:
                pictures.draw(scored, rows)
        if tally.bad and not skip_bad:
            raise BadData(tally.problems)
    return tally.summary()


# ------------------------------------------------------------------------------------- parts, shared with other engines


def settings_of(run: Run, source: str | Path, rows: int, shards: int, scorer: Predictor) -> dict[str, Any]:
    """All that the parts of a folder have in common, so that no two kinds of prediction are mixed."""
    weights = hashlib.sha256((run.path / "model.safetensors").read_bytes()).hexdigest()
    return {
        "model_sha256": weights,
        "source": str(source),
        "images_a_part": rows,
        "shards": shards,
        "precision": scorer.precision,
        "thresholds": [round(float(value), 6) for value in scorer.thresholds.values],
        "classes": list(scorer.classes),
    }


def unfinished(items: Iterator[Item], rows: int, folder: Parts, tally: Tally) -> Iterator[tuple[int, list[Item]]]:
    """The stretches of `rows` images whose part is not there yet; those that are there are counted.

    Raises PluresError if a part holds other images than the source now gives in its place.
    """
    done = set(folder.numbers())
    number, stretch = 0, list[Item]()
    for item in _ended(items):
        if item is not None:
            stretch.append(item)
        if len(stretch) == rows or (item is None and stretch):
            if number in done:
                tally.add(_unchanged(folder, number, stretch), [])
            else:
                yield number, stretch
            number, stretch = number + 1, []


def _ended(items: Iterator[Item]) -> Iterator[Item | None]:
    yield from items
    yield None


def _unchanged(folder: Parts, number: int, stretch: list[Item]) -> PartRecord:
    record = folder.record(number)
    now = (stretch[0][0], stretch[-1][0], len(stretch))
    if now != (record.first, record.last, record.asked):
        raise PluresError(
            f"{folder.folder}: {folder.name(number)} was made of {record.asked:,} images from {record.first} to"
            f" {record.last}, but the source now has {now[2]:,} from {now[0]} to {now[1]} there; it has changed, so"
            " begin again with another --out"
        )
    return record


def write_part(folder: Parts, scorer: Predictor, scored: list[Scored], pictures: _Pictures | None = None) -> PartRecord:
    """Write the batches of one part."""
    rows = [rows_of(scorer, s) for s in scored]
    if pictures is not None:
        for s, r in zip(scored, rows, strict=True):
            pictures.draw(s, r)
    asked = [name for s in scored for name in s.asked]
    return folder.write(scored[0].part, asked, rows, [b for s in scored for b in s.bad])


def rows_of(scorer: Predictor, scored: Scored) -> Rows:
    """Probabilities and tags of a batch."""
    probabilities = scorer.thresholds.probabilities(scored.logits)
    return Rows(scored.names, probabilities, scorer.thresholds.called(scored.logits))


def _measured(todo: Iterator[tuple[int, list[Item]]], sizes: dict[int, int]) -> Iterator[tuple[int, list[Item]]]:
    """The same, with the size of each part noted as it begins."""
    for part, items in todo:
        sizes[part] = len(items)
        yield part, items


def _by_part(batches: Iterator[Scored], sizes: dict[int, int]) -> Iterator[list[Scored]]:
    """The batches of each part together, as soon as the part has all its images."""
    held: list[Scored] = []
    for scored in batches:
        held.append(scored)
        if sum(len(s.asked) for s in held) == sizes[scored.part]:
            del sizes[scored.part]
            yield held
            held = []


class Tally:
    """Counts as parts come in."""

    def __init__(self, source: str | Path) -> None:
        self.notices = tuple(unread_below(source)) if os.path.isdir(source) else ()
        self.images = self.tags = self.bad = 0
        self.problems: list[Problem] = []

    def add(self, record: PartRecord, bad: list[Bad]) -> None:
        self.images, self.tags, self.bad = (
            self.images + record.images,
            self.tags + record.tags,
            self.bad + record.bad,
        )
        room = KEPT_PROBLEMS - len(self.problems)
        self.problems += [Problem(name, None, reason) for name, reason in bad[:room]]

    def summary(self) -> Summary:
        mean = self.tags / self.images if self.images else float("nan")
        return Summary(self.images, mean, tuple(self.problems), self.bad, self.notices)


# -------------------------------------------------------------------------------------------------------- heat maps


class _Pictures:
    """A folder of heat maps: STEM.TAG.png for each tag of each image, at the image's own size."""

    def __init__(self, folder: Path, open_: Callable[[], Iterator[Item]], classes: tuple[str, ...]) -> None:
        self.folder, self.classes = folder, classes
        times = Counter(Path(name).stem for name, _ in open_())
        self.shared = {stem for stem, count in times.items() if count > 1}
        self.rows = {name: row for row, (name, _) in enumerate(open_()) if Path(name).stem in self.shared}

    def stem(self, name: str) -> str:
        """What an image's pictures are called: its name without folder and suffix, with its row where two share it."""
        stem = Path(name).stem
        return f"{stem}-{self.rows[name]}" if stem in self.shared else stem

    def draw(self, scored: Scored, rows: Rows) -> None:
        if scored.weights is None or scored.boxes is None:
            return
        mark_folder(self.folder, HEATMAPS)
        for i, (name, tags) in enumerate(zip(rows.names, rows.tags(self.classes), strict=True)):
            picture = to_image(scored.images[i])
            for tag in tags:
                k = self.classes.index(tag)
                self._draw(self.stem(name), picture, tag, float(rows.scores[i, k]), scored.weights[i, k], scored.boxes)

    def _draw(
        self,
        stem: str,
        picture: Any,
        tag: str,
        score: float,
        weights: NDArray[np.floating[Any]],
        boxes: NDArray[np.floating[Any]],
    ) -> None:
        heat = paint(weights, boxes, picture.height, picture.width)
        safe = re.sub(r"[^\w.-]+", "_", tag)
        with writing(self.folder / f"{stem}.{safe}.png") as temporary:
            overlay(picture, heat, tag, score).save(temporary, format="PNG")
