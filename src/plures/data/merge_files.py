"""What merging reads and writes: the spec of sources, synonyms and parents as YAML; the table with its provenance.

OUT.csv             the three-valued table, with a column `source` (which sources hold the image)
OUT.sources.json    what each source was and declared, and how many cells it decided
OUT.cells.parquet   who said it, for each known cell; empty where it follows from the parents alone
OUT.conflicts.csv   every cell on which sources disagree
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plures.data.formats.safe_cells import guarded
from plures.data.merge import KINDS, Merged, Scope, Source
from plures.data.paths import paths_from
from plures.data.read import read
from plures.data.taxonomy import Relations, is_classes_file, read_relations
from plures.data.write import write_table
from plures.errors import PluresError, did_you_mean
from plures.files import read_yaml, writing


def read_names(path: str | Path) -> dict[str, list[str]]:
    """A YAML file of synonyms, `name kept: other` or `name kept: [other, ...]`. Raises PluresError if it is anything
    else."""
    return _names(read_yaml(path), str(path))


def read_spec(path: str | Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]], Relations, str]:
    """A spec file: sources (name -> data, scope, rename), synonyms, parents (or a file of them), match. Paths are
    relative to the file."""
    content, known = read_yaml(path), ("sources", "synonyms", "parents", "match")
    for key in content:
        if key not in known:
            raise PluresError(f"{path}: there is no '{key}'{did_you_mean(key, known)}")
    sources = content.get("sources")
    if not isinstance(sources, dict) or not sources:
        raise PluresError(f"{path}: expected `sources:` with a line `name: {{data: FILE, scope: ...}}` for each")
    read_sources: dict[str, dict[str, Any]] = {}
    for name, value in sources.items():
        values = {"data": value} if isinstance(value, str) else value
        if not isinstance(values, dict) or not isinstance(values.get("data"), str):
            raise PluresError(f"{path}: source '{name}' requires `data: FILE`")
        for key in values:
            if key not in ("data", "scope", "rename"):
                raise PluresError(f"{path}: source '{name}' has no '{key}'; choose from: data, scope, rename")
        data = values["data"]
        beside = Path(path).parent / data
        scope = _scope(values.get("scope", "as_given"), f"{path}: source '{name}'")
        rename = values.get("rename") or {}
        if not isinstance(rename, dict):
            raise PluresError(f"{path}: source '{name}' requires `rename: {{its name: name meant}}`")
        read_sources[str(name)] = {
            "data": str(beside) if os.path.exists(beside) else data,
            "scope": scope,
            "rename": rename,
        }
    same, above = _names(content.get("synonyms") or {}, f"{path}: synonyms"), content.get("parents") or {}
    if isinstance(above, str) and is_classes_file(above):
        relations = read_relations(Path(path).parent / above)
    else:
        relations = Relations((), {c: tuple(up) for c, up in _names(above, f"{path}: parents").items()}, [])
    return read_sources, same, relations, str(content.get("match", "path"))


def scopes_of_flags(flags: Sequence[str], names: Sequence[str]) -> dict[str, Scope]:
    """`SOURCE:KIND` (of all classes it names but those given otherwise) and `SOURCE:KIND:CLASS,CLASS` by source."""
    rest: dict[str, Any] = {}
    by_class: dict[str, dict[str, Any]] = {}
    for flag in flags:
        source, _, tail = flag.partition(":")
        kind, _, classes = tail.partition(":")
        if source not in names:
            raise PluresError(f"--scope {flag}: no source '{source}'{did_you_mean(source, names)}")
        if kind not in KINDS:
            raise PluresError(
                f"--scope {flag}: expected SOURCE:KIND or SOURCE:KIND:CLASS,CLASS with {', '.join(KINDS)}"
            )
        for name in filter(None, (word.strip() for word in classes.split(","))):
            if by_class.setdefault(source, {}).setdefault(name, kind) != kind:
                raise PluresError(f"--scope {flag}: '{name}' of source '{source}' has another scope already")
        if not classes and rest.setdefault(source, kind) != kind:
            raise PluresError(f"--scope {flag}: source '{source}' has another scope already, {rest[source]}")
    return {name: Scope(rest.get(name, "as_given"), by_class.get(name, {})) for name in names}


def open_source(name: str, data: str, scope: Scope, rename: Mapping[str, str], skip_bad: bool = False) -> Source:
    """Read a source's data, of any known format."""
    return Source(name, read(data, skip_bad=skip_bad), scope, {str(k): str(v) for k, v in rename.items()})


def outputs(out: str | Path) -> list[Path]:
    """The files that merging writes: the table, and what stands beside it (the conflicts only if there are any)."""
    out = Path(out)
    return [out, *(out.with_suffix(end) for end in (".sources.json", ".cells.parquet", ".conflicts.csv"))]


def write_merged(merged: Merged, sources: Sequence[Source], out: str | Path, safe_csv: bool = True) -> list[Path]:
    """Write the table and what stands beside it, see above; safe_csv: see `write_table`. Returns the paths."""
    *paths, conflicts = outputs(out)
    out = paths[0]
    named = [_joined(int(marks), merged.sources) for marks in merged.holds]
    write_table(merged.dataset, out, extra={"source": named}, safe_csv=safe_csv)
    with writing(paths[1]) as temporary:
        content = [_described(merged, source, s) for s, source in enumerate(sources)]
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with writing(paths[2]) as temporary:
        pq.write_table(_cells(merged, out), temporary)
    if not merged.conflicts:
        conflicts.unlink(missing_ok=True)  # of a merge before this one
        return paths
    with writing(conflicts) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer, spelt = csv.writer(handle), paths_from(out.parent)
        writer.writerow(["image", "class", "present in", "absent in"])
        for c in merged.conflicts:
            name = "(split)" if c.name is None else c.name
            words = (spelt(c.image), name, "; ".join(c.present), "; ".join(c.absent))
            writer.writerow(guarded(word, safe_csv) for word in words)
    return [*paths, conflicts]


def _described(merged: Merged, source: Source, number: int) -> dict[str, Any]:
    bit = merged.said_present.dtype.type(1 << number)
    return {
        "name": source.name,
        "data": source.dataset.name,
        "images": len(source.dataset),
        "classes": list(source.dataset.classes),
        "scope": asdict(source.scope),
        "rename": dict(source.rename),
        "cells_said_present": int(((merged.said_present & bit) > 0).sum()),
        "cells_said_absent": int(((merged.said_absent & bit) > 0).sum()),
    }


def _cells(merged: Merged, out: Path) -> Any:
    """A row for each known cell: image, class, value, and the sources that say so themselves."""
    labels = merged.dataset.labels
    rows, columns = np.nonzero(~labels.unknown)
    present = labels.present[rows, columns]
    marks = np.where(present, merged.said_present[rows, columns], merged.said_absent[rows, columns])
    distinct, which = np.unique(marks, return_inverse=True)

    def words(values: Sequence[str], places: Any) -> Any:
        return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(list(values), pa.string()))

    names = [_joined(int(mark), merged.sources) for mark in distinct]
    return pa.table(
        {
            "image": words(list(map(paths_from(out.parent), map(str, merged.dataset.images))), rows),
            "class": words(merged.dataset.classes, columns),
            "value": pa.array(present.astype(np.int8)),
            "said_by": words(names, which),
        }
    )


def _joined(marks: int, names: Sequence[str]) -> str:
    return ";".join(name for s, name in enumerate(names) if marks >> s & 1)


def _scope(value: Any, where: str) -> Scope:
    """`complete`, or `{complete: [dog, cat], positive: rest}`."""
    entries = {value: "rest"} if isinstance(value, str) else value
    if not isinstance(entries, dict):
        raise PluresError(f"{where} requires `scope: complete`, or `scope: {{complete: [dog, cat], positive: rest}}`")
    rest, by_class = "as_given", dict[str, Any]()
    for kind, classes in entries.items():
        if kind not in KINDS:
            raise PluresError(f"{where}: no scope '{kind}'{did_you_mean(str(kind), KINDS)}")
        if classes == "rest":
            rest = kind
            continue
        if not isinstance(classes, str | list):
            raise PluresError(f"{where}: {kind} requires a class, a list of classes or `rest`, got {classes!r}")
        for name in [classes] if isinstance(classes, str) else classes:
            if by_class.setdefault(str(name), kind) != kind:
                raise PluresError(f"{where}: '{name}' is both {by_class[str(name)]} and {kind}")
    return Scope(rest, by_class)  # type: ignore[arg-type]


def _names(content: Any, where: str) -> dict[str, list[str]]:
    if not isinstance(content, Mapping):
        raise PluresError(f"{where} requires `name: other` lines, got {content!r}")
    result: dict[str, list[str]] = {}
    for name, others in content.items():
        others = [others] if isinstance(others, str) else others
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise PluresError(f"{where}: '{name}' requires a name or a list of names, got {others!r}")
        result[str(name)] = others
    return result
