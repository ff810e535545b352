"""Shards: files of many photos and their tags, read where they lie and never unpacked: tars (the WebDataset form) here,
Parquet in `data/formats/parquet_shards.py`.

A sample is the files of a tar that share a name up to the first dot: a photo (`000017.jpg`) and its tags, as JSON
(`000017.json`: {"tags": ["cat"], "absent": ["dog"], "split": "train"}) or as text (`000017.txt` or `.cls`: cat;sofa).
Only headers and tags are read at the beginning; a photo is fetched by its place in the tar when its batch comes, from a
disk or from an address (s3://, gs://, https://, ...), so that data need not fit a disk and rows keep their order, label
memory and exact resumption. Source of the form: WebDataset, https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from plures.data.dataset import Dataset, formats
from plures.data.formats.parquet_shards import holds_images, read_parquet
from plures.data.formats.split_names import UNDERSTOOD, split_name
from plures.data.photos import is_junk, is_photo, unread_notice
from plures.errors import BadData, PluresError, Problem
from plures.files import parse_json
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels

KINDS = (".tar", ".parquet")
BLOCK = 1 << 16  # bytes fetched at once while headers are read: photos in between are jumped over


@dataclass
class _Sample:
    """One photo: where its bytes are, and what is said of it."""

    image: str = ""
    tags: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    split: str = ""


@formats.register("shards", title="Shards of photos and tags, on a disk or at an address: tar (WebDataset) or Parquet")
class Shards:
    """complete: a tag that is not given is absent, not unknown. separator: between tags in a text file or cell."""

    def __init__(self, *, complete: bool = False, separator: str = ";") -> None:
        if not separator:
            raise PluresError("a separator has a character or more")
        self.complete, self.separator = complete, separator

    def recognises(self, path: str) -> bool:
        """A tar, a Parquet file with photos in it, or a folder with one of these directly in it."""
        if os.path.isdir(path):
            return any(Path(path).glob("*.tar")) or holds_images(next(Path(path).glob("*.parquet"), ""))
        return path.endswith(".tar") or (path.endswith(".parquet") and holds_images(path))

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        """path: a tar or Parquet file, a folder of such, or an address of either; `*` stands for anything."""
        files, name = find_shards(path), path.rstrip("/").rsplit("/", 1)[-1]
        if files[0].endswith(".parquet"):
            return read_parquet(files, self.separator, self.complete, name)
        samples, problems = list[_Sample](), list[Problem]()
        for file in files:
            samples += [s for s in self._samples(file, problems).values() if s.image]
        classes = tuple(sorted({tag for s in samples for tag in (*s.tags, *s.absent)}))
        column = {name: k for k, name in enumerate(classes)}
        values = np.full((len(samples), len(classes)), ABSENT if self.complete else UNKNOWN, np.int8)
        for row, sample in enumerate(samples):
            values[row, [column[t] for t in sample.absent]] = ABSENT
            values[row, [column[t] for t in sample.tags]] = PRESENT
        splits = np.array([s.split for s in samples], np.str_) if any(s.split for s in samples) else None
        images = [s.image for s in samples]
        return Dataset(images, Labels(values), classes, splits, name=name), problems

    def _samples(self, file: str, problems: list[Problem]) -> dict[str, _Sample]:
        """The samples of a tar by name."""
        samples: dict[str, _Sample] = {}
        names: list[str] = []
        try:
            with fsspec.open(file, "rb", **_cache(file)) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
                for member in tar:
                    names.append(member.name)
                    if not member.isfile() or is_junk(member.name):
                        continue
                    folder, slash, name = member.name.rpartition("/")
                    key, _, suffix = name.partition(".")
                    sample = samples.setdefault(folder + slash + key, _Sample())
                    if is_photo(name):
                        sample.image = f"{file}#{member.offset_data}:{member.size}"
                    elif suffix.lower() in ("json", "txt", "cls"):
                        content = tar.extractfile(member)
                        assert content is not None
                        self._describe(sample, suffix.lower(), content.read(), f"{file}/{member.name}", problems)
        except (tarfile.TarError, OSError) as error:
            raise BadData([Problem(file, None, f"not a tar that can be read ({error})", "a .tar")], False) from None
        problems += unread_notice(names, file)
        return samples

    def _describe(self, sample: _Sample, kind: str, content: bytes, where: str, problems: list[Problem]) -> None:
        try:
            text = content.decode()
            said: Any = parse_json(text) if kind == "json" else {"tags": text.replace("\n", self.separator)}
            sample.tags, sample.absent = (self._words(said.get(name, [])) for name in ("tags", "absent"))
            word = str(said.get("split") or "")
            split = split_name(word) if word else ""
            if split is None:
                raise ValueError(f"'{word}' is not a split; expected {UNDERSTOOD}")
            sample.split = split
            both = set(sample.tags) & set(sample.absent)
            if both:
                raise ValueError(f"'{min(both)}' is among the tags and among the absent")
        except (ValueError, AttributeError, TypeError) as error:
            expected = '{"tags": [...]}' if kind == "json" else f"tags separated by {self.separator}"
            problems.append(Problem(where, None, f"cannot be read ({error})", expected))
            sample.tags, sample.absent, sample.image = [], [], ""

    def _words(self, said: Any) -> list[str]:
        words = said.split(self.separator) if isinstance(said, str) else [str(word) for word in said]
        return [word.strip() for word in words if word.strip()]


def find_shards(path: str) -> list[str]:
    """The tars, or else the Parquet files, that a path or address means, in order. Raises PluresError if there is none
    or if they are of both kinds."""
    fs, root = fsspec.core.url_to_fs(path)
    if "*" in root:
        found = fs.glob(root)
    elif fs.isdir(root):
        found = [name for name in fs.ls(root, detail=False) if name.endswith(KINDS)]
    else:
        found = [root] if fs.exists(root) else []
    if not found:
        raise PluresError(f"{path}: no shards there; expected .tar or .parquet, a folder of these, or an address")
    if len({name.rpartition(".")[2] for name in found}) > 1:
        raise PluresError(f"{path}: shards of two kinds; name one, as in {path.rstrip('/')}/*.tar")
    _, mark, _ = path.partition("://")
    return [fs.unstrip_protocol(name) if mark else name for name in sorted(map(str, found))]


def _cache(file: str) -> dict[str, Any]:
    """How to read headers at an address: in small blocks, so that photos are not fetched."""
    return {"block_size": BLOCK, "cache_type": "readahead"} if "://" in file and not file.startswith("memory") else {}
