"""Data in the form that another tool reads: `plures convert SOURCE --to FORMAT --out FILE`.

Every form is read back by plures as it was: present, absent and unknown. What a form cannot hold is left out, never
turned into something else (an unknown label does not become an absent one), and named in a notice.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.formats.safe_cells import bare
from plures.data.formats.table import SUFFIXES, image_paths
from plures.data.formats.table_layout import RESERVED
from plures.data.formats.xmp import OWN
from plures.data.paths import paths_from
from plures.data.photos import Unreadable, is_address, open_header
from plures.data.sidecars import way_of, write_sidecars
from plures.data.write import write_table
from plures.errors import PluresError
from plures.files import writing


@dataclass
class Written:
    """What `convert` did. notices: what the form could not hold, and what its readers should know."""

    path: Path
    notices: list[str] = field(default_factory=list)


@dataclass
class _Source:
    """Data to be written. base: the folder that all photographs lie in; names: their paths from there; scores: of a
    prediction, a probability per tag [N, K], else None; branch, dry_run, skip_bad: of keywords."""

    dataset: Dataset
    path: Path
    scores: NDArray[np.float64] | None = None
    branch: str | None = None
    dry_run: bool = False
    skip_bad: bool = False
    base: str = ""
    names: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def tags(self) -> Iterator[list[int]]:
        """For each photograph, the columns of the classes that are present."""
        for start in range(0, len(self.dataset), 4096):  # in pieces: a mask of all is as large as the labels
            for row in self.dataset.labels.values[start : start + 4096] == 1:
                yield np.flatnonzero(row).tolist()

    def beside(self) -> list[str]:
        """The paths of the photographs from the folder of the file that is written."""
        return list(map(paths_from(self.path.parent), map(str, self.dataset.images)))

    def no_absent(self, tool: str) -> None:
        """Say what becomes of absent labels in a form that holds tags alone."""
        labels = self.dataset.labels
        absent = int(labels.absent.sum())
        if absent and labels.complete:
            self.notices.append(
                f"{tool} holds no absent labels; all labels are known here, so data.complete=true reads them back"
            )
        elif absent:
            self.notices.append(f"{tool} holds no absent labels: {absent:,} are left out, and unknown when read back")

    def no_scores(self, tool: str) -> None:
        """Say that the probabilities of a prediction are lost."""
        if self.scores is not None:
            self.notices.append(f"{tool} holds no scores: tags alone are written")

    def no_splits(self, tool: str) -> None:
        """Say that splits are lost."""
        if self.dataset.split_names():
            names = ", ".join(self.dataset.split_names())
            self.notices.append(f"{tool} holds no splits ({names}); --split writes one of them at a time")

    def elsewhere(self, way: str) -> None:
        """Say where the photographs lie, from which the paths in the file start."""
        self.notices.append(f"paths start from {self.base}: {way.format(self.base)}")


def convert(
    dataset: Dataset,
    to: str,
    out: str | Path,
    *,
    scores: NDArray[np.float64] | None = None,
    branch: str | None = None,
    dry_run: bool = False,
    skip_bad: bool = False,
) -> Written:
    """Write a dataset in the form of another tool.

    Args:
        dataset: the data; their photographs are files.
        to: table, roboflow, huggingface, coco, label_studio, cvat, fiftyone; or xmp, keywords in sidecars beside the
            photographs.
        out: the file to write; one that is there is replaced, see `plures.files.refuse_replacing`. Of xmp: the journal
            that `plures.data.sidecars.undo` reads.
        scores: of a prediction, float [N, K]: the probability of each class, which COCO, Label Studio and FiftyOne
            hold.
        branch: of xmp: the keyword that tags stand below, such as plures; "": none. None: plures for predictions, none
            for labels.
        dry_run: of xmp: write nothing, and say what would be written.
        skip_bad: of xmp: leave sidecars alone that cannot be edited.

    Returns:
        What was written, with notices.

    Raises:
        PluresError: for a form that does not exist, images in memory and names that the form cannot hold.
        BadData: naming each sidecar that cannot be edited.
        WorkFailed: where the file cannot be written.

    Example:
        >>> convert(read("tags.csv"), "cvat", "annotations.xml").notices  # doctest: +SKIP
        []
    """
    to = refuse_form(to, out, branch=branch, dry_run=dry_run)
    if dataset.in_memory:
        raise PluresError(f"{dataset.name or 'the data'}: the images are in memory, and other tools read files")
    source = _Source(dataset, Path(out), scores, branch, dry_run, skip_bad)
    if to != "table":
        strange = next((image for image in map(str, dataset.images) if is_address(image) or "#" in image), None)
        if strange is not None and not os.path.isfile(strange):
            raise PluresError(f"{strange} is no file on this machine, which --to {to} requires; --to table lists it")
        source.base = _common([str(image) for image in dataset.images])
        source.names = list(map(paths_from(source.base), map(str, dataset.images)))
        if dataset.groups is not None:
            source.notices.append("groups of images are left out; --to table keeps them")
    text = FORMS[to][1](source)
    if text:
        with writing(source.path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return Written(source.path, source.notices)


def refuse_form(to: str, out: str | Path, *, branch: str | None = None, dry_run: bool = False) -> str:
    """The name of the form (label-studio is label_studio). Raises PluresError if there is no such form, the file's
    suffix is not one of its, options of xmp are given to another, or a journal is there already."""
    to = to.replace("-", "_")
    if to not in FORMS:
        raise PluresError(f"no form '{to}' to convert to; choose from: {', '.join(FORMS)}")
    suffixes = FORMS[to][0]
    if Path(out).suffix.lower() not in suffixes:
        what = "a journal" if to == "xmp" else "a file"
        raise PluresError(f"--out {out}: --to {to} writes {what} that ends in {' or '.join(suffixes)}")
    if to != "xmp" and (branch is not None or dry_run):
        raise PluresError(f"--branch and --dry-run are of --to xmp, which edits sidecars; --to {to} writes one file")
    if branch:
        way_of(branch)
    if to == "xmp" and os.path.lexists(out):
        raise PluresError(f"{out} is there already; a journal is never replaced, as it alone can undo; choose another")
    return to


def scores_of(source: str, dataset: Dataset) -> NDArray[np.float64] | None:
    """The probabilities in a table that `plures predict` wrote: float [N, K], or None if the source is no such table.

    Args:
        source: DATA as it was read, such as found.csv or table:found.csv.
        dataset: what was read from it.
    """
    path = Path(source if os.path.exists(source) else source.partition(":")[2])
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        return None
    columns = {name: f"score of {name}" if name in RESERVED else name for name in dataset.classes}
    try:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        table = pq.read_table(path) if path.suffix.lower() == ".parquet" else pacsv.read_csv(
            path, parse_options=pacsv.ParseOptions(delimiter=delimiter)
        )  # fmt: skip
        if path.suffix.lower() != ".parquet":
            table = table.rename_columns([bare(name.strip()) for name in table.column_names])
        kinds = [table.schema.field(column).type for column in columns.values()]
        if "tags" not in table.column_names or not kinds or not all(map(pa.types.is_floating, kinds)):
            return None
        cells = np.stack([table[column].to_numpy() for column in columns.values()], 1).astype(np.float64)
        names = table["image"].to_pylist()
        if path.suffix.lower() != ".parquet":
            names = list(map(bare, names))
    except (pa.ArrowException, OSError, KeyError):
        return None
    rows = {os.path.realpath(place): row for row, place in enumerate(image_paths(path, names))}
    found = [rows.get(os.path.realpath(str(image)), -1) for image in dataset.images]
    if min(found, default=-1) < 0 or not (np.isfinite(cells) & (cells >= 0) & (cells <= 1)).all():
        return None
    return np.asarray(cells[found], np.float64)


def _common(images: list[str]) -> str:
    """The deepest folder that holds all of these files."""
    folders = {os.path.dirname(os.path.abspath(image)) for image in images}
    try:
        return os.path.commonpath(folders) if folders else os.curdir
    except ValueError:  # on several drives
        raise PluresError("the photographs lie on several drives, and the form requires one folder for all") from None


# ---------------------------------------------------------------------------------------------------------------- forms


def _table(source: _Source) -> str:
    write_table(source.dataset, source.path)
    return ""


def _roboflow(source: _Source) -> str:
    """`filename, A, B` with 1 and 0; an unknown label is a blank cell."""
    data = source.dataset
    clash = [name for name in data.classes if name.casefold() in ("filename", *RESERVED)]
    if clash:
        raise PluresError(f"class '{clash[0]}' is called as a column with another meaning; rename it with data.rename")
    source.no_splits("Roboflow's CSV")
    source.no_scores("Roboflow's CSV")
    unknown = int(data.labels.unknown.sum())
    if unknown:
        source.notices.append(f"{unknown:,} unknown labels are blank cells; Roboflow itself writes only 1 and 0")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["filename", *data.classes])
    spelt = np.array(["0", "1", ""])  # -1 takes the last
    for name, row in zip(source.beside(), data.labels.values, strict=True):
        writer.writerow([name, *spelt[row].tolist()])
    return text.getvalue()


def _huggingface(source: _Source) -> str:
    """A line per photograph: file_name, tags, and absent where something is."""
    data = source.dataset
    source.no_splits("metadata.jsonl")
    source.no_scores("metadata.jsonl")
    names = source.beside()
    if any(name.startswith("..") or os.path.isabs(name) for name in names):
        source.notices.append("datasets' imagefolder requires the photographs in the folder of metadata.jsonl or below")
    any_absent = bool(data.labels.absent.any())
    lines = []
    for name, present, row in zip(names, source.tags(), data.labels.values, strict=True):
        line = {"file_name": name, "tags": [data.classes[k] for k in present]}
        if any_absent:
            line["absent"] = [data.classes[k] for k in np.flatnonzero(row == 0).tolist()]
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _coco(source: _Source) -> str:
    """Annotations without boxes. Where labels are unknown, LVIS's `neg_category_ids` say which are absent."""
    data = source.dataset
    source.no_splits("COCO JSON")
    partly = not data.labels.complete
    if partly:
        source.notices.append(
            "labels are unknown, so absent ones stand in neg_category_ids as in LVIS; a tool that knows COCO alone"
            " takes every category that is not annotated as absent"
        )
    images, annotations = list[dict[str, object]](), list[dict[str, object]]()
    for number, (image, name, present, row) in enumerate(
        zip(data.images, source.beside(), source.tags(), data.labels.values, strict=True), 1
    ):
        entry: dict[str, object] = {"id": number, "file_name": name} | _size(str(image))
        if partly:
            entry["neg_category_ids"] = (1 + np.flatnonzero(row == 0)).tolist()
            entry["not_exhaustive_category_ids"] = []
        images.append(entry)
        for k in present:
            of: dict[str, object] = {"id": len(annotations) + 1, "image_id": number, "category_id": k + 1}
            score: dict[str, object] = (
                {} if source.scores is None else {"score": round(float(source.scores[number - 1, k]), 6)}
            )
            annotations.append(of | score)
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(data.classes, 1)]
    return _json({"info": {}, "images": images, "annotations": annotations, "categories": categories})


def _label_studio(source: _Source) -> str:
    """Tasks with local-files paths; tags are annotations, those of a prediction are predictions with scores."""
    data, scores = source.dataset, source.scores
    source.no_absent("Label Studio")
    source.no_splits("Label Studio's JSON")
    source.elsewhere("set LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={0}, and data.images={0} to read the file with plures")
    if not data.labels.present.any(0).all():
        source.notices.append("a class that no photograph carries leaves no trace")
    tasks = []
    for row, (name, present) in enumerate(zip(source.names, source.tags(), strict=True)):
        choices = [data.classes[k] for k in present]
        region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": choices}}
        task: dict[str, object] = {"data": {"image": f"/data/local-files/?d={quote(name)}"}}
        if scores is not None:
            score = {"score": round(float(scores[row, present].min()), 6)} if present else {}
            of_each = {data.classes[k]: round(float(scores[row, k]), 6) for k in present}
            result = [{"id": "tags", **region, **score, "meta": {"scores": of_each}}] if present else []
            task["predictions"] = [{"model_version": "plures", **score, "result": result}]
        else:
            known = bool((data.labels.values[row] >= 0).any())
            task["annotations"] = [{"result": [{"id": "tags", **region}] if choices else []}] if known else []
        tasks.append(task)
    return _json(tasks)


def _cvat(source: _Source) -> str:
    """CVAT for images 1.1 with a <tag> per tag, the labels declared in <meta>."""
    data = source.dataset
    source.no_absent("CVAT's XML")
    source.no_scores("a tag in CVAT's XML")
    source.elsewhere("CVAT knows the photographs of a task by these names; data.images={0} reads the file with plures")
    if strange := next((t for t in (*data.classes, *source.names) if any(ord(c) < 32 for c in t)), None):
        raise PluresError(f"{strange!r} holds a control character, which XML cannot; rename it")
    labels = "".join(f"<label><name>{_escaped(name)}</name><type>tag</type></label>\n" for name in data.classes)
    lines = ["<?xml version='1.0' encoding='utf-8'?>\n<annotations>\n<version>1.1</version>\n"]
    lines.append(f"<meta><task><labels>\n{labels}</labels></task></meta>\n")
    by = "auto" if source.scores is not None else "manual"
    splits = data.splits.tolist() if data.splits is not None else [""] * len(data)
    for number, (image, name, present, split) in enumerate(
        zip(data.images, source.names, source.tags(), splits, strict=True)
    ):
        size = "".join(f' {key}="{value}"' for key, value in _size(str(image)).items())
        subset = f" subset={quoteattr(split)}" if split else ""
        lines.append(f'<image id="{number}" name={quoteattr(name)}{subset}{size}>\n')
        lines += [f'<tag label={quoteattr(data.classes[k])} source="{by}"></tag>\n' for k in present]
        lines.append("</image>\n")
    return "".join([*lines, "</annotations>\n"])


def _fiftyone(source: _Source) -> str:
    """Lists of class numbers, or of labels with confidence for a prediction; nothing known is null."""
    data, scores = source.dataset, source.scores
    source.no_absent("FiftyOne's labels.json")
    source.no_splits("FiftyOne's labels.json")
    source.elsewhere("data_path={0} in FiftyOne, data.images={0} in plures (or put them into data/ beside the file)")
    labels: dict[str, object] = {}
    for row, (name, present) in enumerate(zip(source.names, source.tags(), strict=True)):
        key = os.path.splitext(name)[0]
        if key in labels:
            raise PluresError(
                f"'{name}' and another photograph differ in their suffix alone, which FiftyOne leaves out"
            )
        if scores is not None:
            labels[key] = [{"label": data.classes[k], "confidence": round(float(scores[row, k]), 6)} for k in present]
        else:
            labels[key] = present if (data.labels.values[row] >= 0).any() else None
    return _json({"classes": list(data.classes), "labels": labels})


def _xmp(source: _Source) -> str:
    """Keywords in sidecars; the journal is the file that is written."""
    data, branch = source.dataset, source.branch
    branch = branch if branch is not None else "" if source.scores is None else OWN
    source.no_absent("a keyword")
    source.no_scores("a keyword")
    source.no_splits("a keyword")
    ways = list(map(way_of, data.classes))
    done = write_sidecars(
        list(map(str, data.images)),
        lambda: ([ways[k] for k in present] for present in source.tags()),
        source.path,
        branch=branch,
        skip_bad=source.skip_bad,
        dry_run=source.dry_run,
    )
    source.notices += [f"{problem.file}: {problem.what}" for problem in done.kept]
    where = f" below {branch}/" if branch else ""
    verb = "would be" if source.dry_run else "were"
    counts = f"{done.new:,} of them new, with {done.keywords:,} more keywords{where}"
    source.notices.append(f"{done.sidecars:,} sidecars {verb} written, {counts}")
    return ""


FORMS: dict[str, tuple[tuple[str, ...], Callable[[_Source], str]]] = {
    "table": (SUFFIXES, _table),
    "roboflow": ((".csv",), _roboflow),
    "huggingface": ((".jsonl",), _huggingface),
    "coco": ((".json",), _coco),
    "label_studio": ((".json",), _label_studio),
    "cvat": ((".xml",), _cvat),
    "fiftyone": ((".json",), _fiftyone),
    "xmp": ((".jsonl",), _xmp),
}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _escaped(text: str) -> str:
    return quoteattr(text)[1:-1]


def _size(image: str) -> dict[str, int]:
    """Width and height of a photograph, if it can be read."""
    try:
        with open_header(image) as opened:
            return {"width": opened.width, "height": opened.height}
    except Unreadable:
        return {}
