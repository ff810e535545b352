"""Reading data of any format: find the format, read, verify, and say everything that is wrong at once."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plures.data.checks.verify import verify_images
from plures.data.dataset import Dataset, formats
from plures.data.formats.annotations import load_json, load_xml
from plures.data.formats.folder import doubts, folders_of_annotations
from plures.data.formats.hf import HUB
from plures.data.photos import is_address
from plures.errors import BadData, PluresError, Problem, did_you_mean
from plures.labels import PRESENT

# module:attribute and perhaps a path; a module without a dot only as in mine:Mine:PATH, since foldr:PATH is a slip
OWN_FORMAT = re.compile(r"([a-zA-Z_]\w*(?:\.\w+)+:[a-zA-Z_]\w*|[a-zA-Z_]\w*:[A-Z]\w*(?=:))(?::(.*))?$")
AN_IMAGE, SEVERAL = "an image or more that shows it", "several, or data.classes=A,B to learn others only"
ENOUGH = 20  # images from which a class of one image is worth a word


def read(
    spec: str | os.PathLike[str] | Any,
    *,
    format: str | None = None,
    skip_bad: bool = False,
    verify: bool = False,
    labelled: bool = True,
    **options: Any,
) -> Dataset:
    """Read data.

    spec: a path whose format is recognised, or a format and a path (`voc:DIR`, `coco:DIR`, `folder:DIR`,
    `table:FILE`), `hf:USER/NAME` of the Hugging Face hub, or `scenes`, the built-in data; a format of one's own as in
    my_package.formats:Mine:PATH; or a Dataset of `datasets` or `fiftyone` in hand. format:
    the same as a prefix. options: of the format's reader.
    Readers say which images are missing; `verify` also opens every image. skip_bad: go on without the rows that have
    problems. labelled: data without any class are an error (False: they are welcome, for listing or predicting).
    Dataset.problems holds what was left out and the notices. Raises BadData with all problems, PluresError if the
    path or the format does not exist.
    """
    if not isinstance(spec, str | os.PathLike):
        if format is not None or (name := tool_of(spec)) is None:
            raise PluresError(
                f"cannot read {type(spec).__name__}; expected a path, or a Dataset of datasets or fiftyone"
            )
        dataset, problems = formats.make(name, **options).take(spec)  # type: ignore[attr-defined]
        return _judged(dataset, problems, dataset.name or name, skip_bad=skip_bad, verify=verify, labelled=labelled)
    name, path = find_format(os.fspath(spec), format)
    guessed = format is None and path == os.fspath(spec)
    formats.get(name, named=True)
    reader = formats.make(name, **options)
    if not path and not reader.recognises(""):
        raise PluresError(f"format '{name}' needs a path, as in {name}:PATH")
    if path and not os.path.exists(path) and not (is_address(path) or "*" in path):
        raise PluresError(f"no file or folder '{path}'")
    dataset, problems = reader.read(path)
    if guessed and name == "folder" and (wrong := doubts(path)):
        raise BadData(wrong, skippable=False)
    return _judged(dataset, problems, path or name, skip_bad=skip_bad, verify=verify, labelled=labelled)


def tool_of(data: Any) -> str | None:
    """The format whose reader takes an object of another library in hand; None if there is none."""
    names = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(data).__mro__]
    if any(top == "datasets" for top, _ in names) and (hasattr(data, "features") or hasattr(data, "column_names")):
        return "hf"
    return "fiftyone" if any(top == "fiftyone" for top, _ in names) and hasattr(data, "get_field_schema") else None


def _judged(
    dataset: Dataset, problems: list[Problem], where: str, *, skip_bad: bool, verify: bool, labelled: bool
) -> Dataset:
    """The data that were read, without the rows that cannot be used. Raises BadData."""
    if verify:
        broken = verify_images(dataset)
        problems += [problem for _, problem in broken]
        keep = np.ones(len(dataset), np.bool_)
        keep[[row for row, _ in broken]] = False
        dataset = dataset if keep.all() else dataset.take(keep)
    errors = [problem for problem in problems if problem.severity == "error"]
    notices = [problem for problem in problems if problem.severity == "notice"]
    if not len(dataset):
        if skip_bad or not errors:  # else the errors say it all
            errors.insert(0, Problem(where, None, "no images are left" if errors else "no images", "an image or more"))
        raise BadData(errors + notices, skippable=False)
    if labelled and not dataset.classes:
        errors.append(Problem(where, None, "no image carries a tag", "tags, or a folder per class"))
        raise BadData(errors + notices, skippable=False)
    notices += _class_notices(dataset, where)
    if errors and not skip_bad:
        raise BadData(errors + notices)
    return replace(dataset, problems=(*errors, *notices))


def find_format(spec: str, format: str | None = None) -> tuple[str, str]:
    """The name of the format and the path that a spec means. Raises PluresError if there is none."""
    if format is not None:
        return formats.get(format, named=True).name, spec
    head, colon, tail = spec.partition(":")
    own = OWN_FORMAT.match(spec)
    if own is not None and head not in formats.names() and not os.path.exists(spec):
        return own[1], own[2] or ""
    if head in formats.names() and (colon or not os.path.exists(spec)):
        return head, HUB + tail if head == "hf" and tail and not os.path.exists(tail) else tail
    if not os.path.exists(spec):
        hint = did_you_mean(head, formats.names()) if colon or os.sep not in spec else ""
        raise PluresError(f"no file or folder '{spec}', and no format of this name{hint}")
    found = _recognised(spec)
    if found == "folder" and (inner := _inside(spec)):
        return inner
    if not found:
        raise PluresError(
            f"'{spec}' {_unknown(spec)}; expected a table (.csv, .tsv, .parquet), an export of an annotation tool"
            " (`plures components` lists the formats), a VOC devkit or a folder per class; name it as in table:FILE"
        )
    return found, spec


def _recognised(path: str) -> str:
    """The name of the format that takes this path; "" if none does."""
    recognised = [entry.name for entry in formats if entry.make().recognises(path)]
    last = ("table", "folder")  # other formats are tables, too, and any data lie in folders
    return min(recognised, key=lambda name: last.index(name) if name in last else -1, default="")


def _inside(path: str) -> tuple[str, str] | None:
    """The format and the folder further below that holds the labels of every photograph, as where an archive was
    unpacked into a folder of its own; None where there is no such folder, or it is not the only one."""
    for folder in folders_of_annotations(path):
        if (name := _recognised(folder)) not in ("", "folder"):
            return name, folder
    return None


def _unknown(path: str) -> str:
    """What is there instead of data of a known format."""
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        return "is a folder without photographs or labels of a known format"
    if suffix in (".xlsx", ".xls", ".ods"):
        return "is a spreadsheet; save the sheet as CSV UTF-8"
    try:
        if suffix == ".json":
            content = load_json(Path(path), "JSON")
            kind, one = ("a list", content[:1]) if isinstance(content, list) else ("an object", [content])
            keys = ", ".join(map(repr, list(one[0])[:8])) if one and isinstance(one[0], dict) else "no keys"
            return f"is of no known format: JSON, {kind} with {keys}"
        if suffix == ".xml":
            return f"is of no known format: XML whose root is <{load_xml(Path(path), 'XML').tag}>"
    except BadData as error:
        return f"is of no known format: {error.problems[0].what}"
    return "is of no known format"


def reason(spec: str | os.PathLike[str], format: str | None = None, **options: Any) -> str:
    """Which format `read` takes, and why, in one line.

    Example:
        >>> reason("scenes")
        'format scenes: named'
    """
    name, path = find_format(os.fspath(spec), format)
    why = getattr(formats.make(name, **options), "reason", None)
    below = os.path.isdir(spec) and os.path.relpath(path, spec) if path else False
    named = format is not None or (path != os.fspath(spec) and not below)
    said = "" if named and why is not None else "named" if named else "by what lies there"
    said += f", in {below}" if below and below != os.curdir else ""
    return f"format {name}: " + "; ".join(filter(None, (said, why(path) if why else "")))


def sayings(dataset: Dataset, most: int = 10) -> list[str]:
    """What a person should hear of the data that were read: the rows left out, and the notices (`most` of them)."""
    left_out = [problem for problem in dataset.problems if problem.severity == "error"]
    notices = [problem for problem in dataset.problems if problem.severity == "notice"]
    said = [f"notice: {problem.what}" for problem in notices[:most]]
    if len(notices) > most:
        said.append(f"notice: and {len(notices) - most:,} more; `plures check` lists them")
    if left_out:
        first = left_out[0]
        said.insert(0, f"left out {len(left_out):,} unusable rows or files, the first: {first.file}: {first.what}")
    return said


def seldom_seen(dataset: Dataset, where: str) -> list[Problem]:
    """Notices of classes that never occur, or once."""
    counts = np.zeros(len(dataset.classes), np.int64)
    for start in range(0, len(dataset), 65_536):  # in pieces: a mask of a million rows is as large as the labels
        counts += (dataset.labels.values[start : start + 65_536] == PRESENT).sum(0)
    shown = counts.tolist()
    missing = [name for name, found in zip(dataset.classes, shown, strict=True) if not found]
    once = [name for name, found in zip(dataset.classes, shown, strict=True) if found == 1]
    notices = []
    if missing:
        what = f"class '{missing[0]}' never occurs" if len(missing) == 1 else f"{_some(missing)} never occur"
        notices.append(Problem(where, None, what, AN_IMAGE, "notice"))
    if once and len(dataset) >= ENOUGH:
        one = f"class '{once[0]}' is shown by one image alone"
        what = one if len(once) == 1 else f"{_some(once)} are shown by one image each"
        notices.append(Problem(where, None, what, SEVERAL, "notice"))
    return notices


def _class_notices(dataset: Dataset, where: str) -> list[Problem]:
    """Classes that never occur or once, and classes whose names differ only in case."""
    notices = seldom_seen(dataset, where)
    alike = defaultdict(list)
    for name in dataset.classes:
        alike[name.casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            what = f"classes {', '.join(map(repr, names))} differ only in case"
            way = f"one spelling per class, or data.rename={names[1]}:{names[0]} in a table"
            notices.append(Problem(where, None, what, way, "notice"))
    return notices


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{len(names):,} classes ({', '.join(map(repr, names[:most]))}{more})"
