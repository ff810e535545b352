"""Verifying images: which are missing, broken, truncated or too large to be a photograph."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from plures.data.dataset import Dataset
from plures.data.images import MAX_PIXELS, is_address, opened
from plures.errors import Problem

THREADS = 8
_TAIL = 4096  # bytes: cameras append thumbnails and padding after a JPEG's end mark


def missing_images(paths: Sequence[str]) -> list[int]:
    """The places in `paths` whose file does not exist.

    Lists each folder once instead of asking for each file, which is what makes a million paths cheap.
    """
    listings: dict[str, frozenset[str]] = {}
    missing = []
    split = os.path.split if os.altsep else _split
    for place, path in enumerate(paths):
        folder, name = split(path)
        listing = listings.get(folder)
        if listing is None:
            listing = listings[folder] = _names(folder)
        # a file system that ignores case, or normalises accents, may still hold the file under this name
        if name not in listing and not (listing and os.path.isfile(path)):
            missing.append(place)
    return missing


def _split(path: str) -> tuple[str, str]:
    """os.path.split where "/" is the only separator, several times faster."""
    folder, slash, name = path.rpartition("/")
    return folder or slash, name


def _names(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries)
    except (OSError, ValueError):  # ValueError: a null character
        return frozenset()


def verify_images(dataset: Dataset, *, decode: bool = False, max_pixels: int = MAX_PIXELS) -> list[tuple[int, Problem]]:
    """Open every image; return the rows that cannot be used, each with its problem (Problem.file is the image).

    The header is always read and checked. A JPEG without its end mark is decoded to see whether it is truncated;
    `decode` decodes every image (slow: about as long as an epoch of reading). max_pixels: width x height allowed.
    """
    if dataset.in_memory:
        return []
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda path: _look(str(path), decode, max_pixels), dataset.images, chunksize=64)
        return [(row, problem) for row, problem in enumerate(found) if problem is not None]


def _look(path: str, decode: bool, max_pixels: int) -> Problem | None:
    expected = "a readable image"
    if is_address(path):  # looking would mean to fetch it: the batch that needs it will tell
        return None
    try:
        source = opened(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                width, height = image.size
                kind = image.format
                if kind == "EPS":  # which Pillow would let Ghostscript run
                    return Problem(path, None, "PostScript, which is a program and no image", expected)
                if width * height > max_pixels:
                    expected = f"at most {max_pixels:,} pixels"
                    return Problem(path, None, f"image of {width:,} x {height:,} pixels is too large", expected)
                image.verify()
            if decode or (kind == "JPEG" and not _has_end_mark(source)):
                with Image.open(opened(path)) as image:
                    image.load()
    except FileNotFoundError:
        return Problem(path, None, "image is missing", "a file")
    except Image.DecompressionBombError:
        return Problem(path, None, "image is too large", f"at most {max_pixels:,} pixels")
    except UnidentifiedImageError:
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return Problem(path, None, "image file is empty" if empty else "not an image that can be read", expected)
    except Exception as error:  # Pillow's decoders raise many kinds, all meaning that the file is broken
        return Problem(path, None, f"image is broken or truncated ({error})", expected)
    return None


def _has_end_mark(source: str | Path | BytesIO) -> bool:
    if isinstance(source, BytesIO):
        return b"\xff\xd9" in source.getvalue()[-_TAIL:]
    with open(source, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(-min(_TAIL, file.tell()), os.SEEK_END)
        return b"\xff\xd9" in file.read()
