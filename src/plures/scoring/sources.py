"""The images that a prediction is asked for, one after another: memory does not grow with their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from plures.data.formats import delimited
from plures.data.formats.parquet_shards import holds_images
from plures.data.formats.safe_cells import bare
from plures.data.formats.table import parquet_batches
from plures.data.formats.table_layout import image_column
from plures.data.paths import Search
from plures.data.photos import IMAGE_SUFFIXES, UNREAD, decoded, is_address, is_junk, is_photo, no_images
from plures.data.read import read
from plures.errors import BadData, PluresError, Problem

LISTS = (".txt", ".lst")
TABLES = (".csv", ".tsv", ".parquet")

Item = tuple[str, "str | NDArray[Any]"]  # the image's name, and its path, address, pixels [H, W, 3] or features [D]


def images_of(source: str | Path, skip_bad: bool = False) -> Callable[[], Iterator[Item]]:
    """What gives the images of a source, as often as it is called, always in the same order.

    source: an image (path or address such as s3://bucket/a.jpg); a folder, walked in the order of its paths; a list
    (.txt, a path a line); a table with a column `image`; or data as `train` takes them, which are read whole.
    Paths in a list or table start from its own folder (or from images/ beside a table). An image that is listed twice
    is given twice. Raises PluresError or BadData if there is no such source or nothing in it.
    """
    text, path = os.fspath(source), Path(source)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and (is_address(text) or (path.exists() and not path.is_dir())):
        return lambda: iter([(text, text)])
    if suffix in UNREAD and path.exists():
        raise PluresError(f"{source}: not read here; {suffix} {UNREAD[suffix]}")
    if path.is_dir():
        return _not_empty(lambda: _named(_walk(text)), no_images(text))
    if path.is_file() and suffix in LISTS:
        return _not_empty(lambda: _named(_lines(path)), f"{source}: no image in this list; expected one path per line")
    if path.is_file() and suffix in TABLES and not holds_images(path):
        return _not_empty(lambda: _named(_cells(path)), f"{source}: no image in this table")
    dataset = read(text, skip_bad=skip_bad, labelled=False)
    if (features := dataset.features) is not None:
        return lambda: zip(map(str, dataset.images), features, strict=True)
    if isinstance(dataset.images, np.ndarray):
        arrays = dataset.images
        return lambda: ((f"{row:06d}", image) for row, image in enumerate(arrays))
    return lambda: _named(iter(dataset.images))


def items_of(images: Any) -> Iterator[Item]:
    """The items of whatever Python holds: see `Predictor.predict`. Those in memory are called `image 0`, ...

    Raises PluresError for something that is no image, naming its type or shape.
    """
    if isinstance(images, str | os.PathLike):
        yield from images_of(os.fspath(images))()
        return
    if isinstance(images, Image.Image):
        images = [images]
    elif isinstance(images, np.ndarray | torch.Tensor):
        images = images if images.ndim == 4 else images[None]
    for place, one in enumerate(images):
        if isinstance(one, str | os.PathLike):
            yield os.fspath(one), os.fspath(one)
        elif isinstance(one, Image.Image):
            yield f"image {place}", np.asarray(decoded(one))
        else:
            yield f"image {place}", _pixels(one, place)


def _pixels(image: Any, place: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an array [H, W, 3] or [H, W], or a tensor [3, H, W] or [1, H, W]."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 and image.shape[0] in (1, 3) else np.empty(0)
        image = image[..., 0] if image.shape[-1:] == (1,) else image
        expected = "a tensor [3, H, W]"
    else:
        image, expected = np.asarray(image), "an array [H, W, 3] or [H, W], a path or a PIL image"
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape or image.dtype.kind not in "uf":
        raise PluresError(f"image {place} is {describe(image)}; expected {expected}, uint8 or float in [0, 1]")
    if image.dtype.kind == "f":
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise PluresError(f"image {place} holds floats outside [0, 1]; expected pixels uint8, or float in [0, 1]")
        return np.asarray(255 * image + 0.5, np.uint8)
    if image.dtype != np.uint8:
        raise PluresError(f"image {place} is {describe(image)}; expected pixels uint8, or float in [0, 1]")
    return np.ascontiguousarray(image)


def describe(image: NDArray[Any]) -> str:
    return f"{image.dtype} {list(image.shape)}"


def sharded(items: Iterator[Item], number: int, of: int) -> Iterator[Item]:
    """Every `of`-th item, from the `number`-th on (number counts from 1): all shards together are the whole."""
    return (item for row, item in enumerate(items) if row % of == number - 1)


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8). Raises PluresError unless it is i/n with i from 1 to n."""
    number, slash, of = text.partition("/")
    if slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of):
        return int(number), int(of)
    raise PluresError(f"--shard {text}: expected i/n with i from 1 to n, as in --shard 2/8")


def _named(paths: Iterator[str]) -> Iterator[Item]:
    return ((path, path) for path in paths)


def _not_empty(open_: Callable[[], Iterator[Item]], message: str) -> Callable[[], Iterator[Item]]:
    if next(open_(), None) is None:
        raise PluresError(message)
    return open_


def _walk(folder: str) -> Iterator[str]:
    """Every image below, in the order of the whole paths, holding one folder's names at a time."""
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name + "/" if entry.is_dir() else entry.name for entry in entries if not is_junk(entry.name)
        )
    for name in names:
        path = os.path.join(folder, name)
        if name.endswith("/"):
            yield from _walk(path[:-1])
        elif is_photo(name):
            yield path


def _lines(file: Path) -> Iterator[str]:
    place = _Place(file)
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:  # a file's name may be of any bytes
        for number, line in enumerate(lines, 1):
            if "\0" in line:
                raise BadData([Problem(str(file), number, "not text", "one path per line")], skippable=False)
            if line.strip():
                yield place(line.strip())


def _cells(file: Path) -> Iterator[str]:
    place = _Place(file)
    for words in _parquet_words(file) if file.suffix.lower() == ".parquet" else _text_words(file):
        for word in words:
            if word and word.strip():
                yield place(word.strip())


def _parquet_words(file: Path) -> Iterator[list[str | None]]:
    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadData([Problem(str(file), None, f"not a Parquet file ({error})")], skippable=False) from error
    for batch in parquet_batches(parquet, [_image_column(names, file)], file):
        yield batch.column(0).cast(pa.string()).to_pylist()


def _text_words(file: Path) -> Iterator[list[str | None]]:
    header = delimited.read_header(file)
    column = _image_column(header.names, file)
    for line, block in delimited.blocks(file, header.length):
        _, table, problems = delimited.parse(block, line, header, [column], file)
        if problems:
            raise BadData(problems, skippable=False)
        yield [word and bare(word.strip()) for word in table.column(column).to_pylist()]


def _image_column(names: list[str], file: Path) -> str:
    """The column that names the images, as training finds it. Raises BadData if there is none or it is ambiguous."""
    column = image_column(names)
    if not column:
        what = f"no column 'image' among {', '.join(names[:8])}"
        raise BadData([Problem(str(file), None, what, "a column 'image' with the path of each image")], skippable=False)
    return column


class _Place:
    """Where the paths in a file start from: its own folder, or images/ in it if the first path is found there."""

    search: Search | None  # from the first path on

    def __init__(self, file: Path) -> None:
        self.folder, self.search = str(file.parent), None

    def __call__(self, path: str) -> str:
        if is_address(path) or os.path.isabs(path):
            return path
        if self.search is None:
            beside = os.path.join(self.folder, "images")
            if Search(self.folder).file(path) is None and Search(beside).file(path) is not None:
                self.folder = beside
            self.search = Search(self.folder)
        return self.search.file(path) or os.path.join(self.folder, path)
