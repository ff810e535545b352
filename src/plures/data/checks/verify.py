"""Verifying images: which are missing, broken, truncated or too large to be a photograph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from threading import Lock
from typing import IO

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.photos import MAX_PIXELS, Unreadable, decoded, is_address, open_header
from plures.errors import Problem
from plures.system import in_threads

THREADS = 8
LARGE = 16_000_000  # pixels: larger images are decoded one at a time, so that threads together stay below 500 MB
_one_large = Lock()
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
    """Find the rows whose image cannot be used, by the decoder that training uses.

    A JPEG with a sound head and an end mark passes without being decoded (a byte changed in between can still stop the
    decoder: training with `skip_bad` takes that in its stride); every other image is decoded, since a header proves
    nothing. Images at addresses are not looked at: that would be to fetch them.

    Args:
        decode: decode sound JPEGs, too (about as long as an epoch of reading).
        max_pixels: width x height allowed.

    Returns:
        (row, problem), in the order of the rows; Problem.file is the image.
    """
    if dataset.in_memory:
        return []
    found = in_threads(lambda path: _look(str(path), decode, max_pixels), dataset.images, THREADS)
    return [(row, problem) for row, problem in enumerate(found) if problem is not None]


def readable_rows(dataset: Dataset) -> NDArray[np.bool_]:
    """Which rows' images can be decoded now: bool [N]."""
    keep = np.ones(len(dataset), np.bool_)
    keep[[row for row, _ in verify_images(dataset, decode=True)]] = False
    return keep


def _look(path: str, decode: bool, max_pixels: int) -> Problem | None:
    if is_address(path):
        return None
    try:
        with open_header(path, max_pixels) as image:
            file = getattr(image, "fp", None)
            sound = image.format in ("JPEG", "MPO") and file is not None and is_sound_jpeg(file)
            if decode or not sound:
                with _one_large if image.width * image.height > LARGE else nullcontext():
                    decoded(image)
    except Unreadable as error:
        what = str(error).removeprefix(f"{path}: ")
        if what == "no such file":
            return Problem(path, None, "image is missing", "a file")
        return Problem(path, None, what, "a readable image")
    return None


def is_sound_jpeg(file: IO[bytes]) -> bool:
    """Whether a JPEG's segments follow one another to its scan, say what every decoder takes, and an end mark follows
    the scan; a thumbnail's end mark lies before it and does not count.

    Strict: False means that only decoding can tell. Source: ITU-T T.81, annex B; limits of libjpeg.
    """
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return False
    head = _Head()
    while not head.scan:
        mark = file.read(4)
        if len(mark) < 4 or mark[0] != 0xFF:
            return False
        length = int.from_bytes(mark[2:], "big") - 2
        content = file.read(max(0, length))
        if len(content) != length or not head.takes(mark[1], content):
            return False
    scan, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(max(scan, end - _TAIL))
    return b"\xff\xd9" in file.read()


class _Head:
    """The tables of a JPEG as its segments come in."""

    def __init__(self) -> None:
        self.quantisation, self.huffman = set[int](), set[int]()
        self.frame: dict[int, int] = {}  # quantisation table by component
        self.progressive = self.scan = False

    def takes(self, kind: int, content: bytes) -> bool:
        """Whether this segment is what every decoder takes after those before."""
        if kind in (0xC0, 0xC1, 0xC2):
            return self._frame(kind, content)
        if kind == 0xC4:
            return self._huffman(content)
        if kind == 0xDB:  # tables of 64 bytes
            self.quantisation |= set(content[::65])
            return len(content) % 65 == 0 and max(self.quantisation, default=9) <= 3
        if kind == 0xDA:
            return self._scan(content)
        return kind == 0xFE or 0xE0 <= kind <= 0xEF or (kind == 0xDD and len(content) == 2)

    def _frame(self, kind: int, c: bytes) -> bool:
        """8 bits a sample; 1, 3 or 4 components, each with an identifier, sampling factors and a table."""
        if self.frame or len(c) < 6 or c[0] != 8 or c[5] not in (1, 3, 4) or len(c) != 6 + 3 * c[5]:
            return False
        factors = [(byte >> 4, byte & 15) for byte in c[7::3]]
        self.frame, self.progressive = dict(zip(c[6::3], c[8::3], strict=True)), kind == 0xC2
        small = sum(h * v for h, v in factors) <= 10 or c[5] == 1
        return len(self.frame) == c[5] and small and all(1 <= h <= 4 and 1 <= v <= 4 for h, v in factors)

    def _huffman(self, c: bytes) -> bool:
        """Each table: class and place, how many codes of each of 16 lengths, then as many values."""
        at = 0
        while at + 17 <= len(c):
            room, count = 1, sum(c[at + 1 : at + 17])
            for number in c[at + 1 : at + 17]:
                room = 2 * room - number  # codes of this length that are left
                if room < 0:
                    return False
            values = c[at + 17 : at + 17 + count]
            if c[at] & 0xEF > 3 or len(values) != count or (c[at] < 16 and max(values, default=0) > 15):
                return False
            self.huffman.add(c[at])
            at += 17 + count
        return at == len(c)

    def _scan(self, c: bytes) -> bool:
        """Components of the frame with their tables, and which coefficients the scan holds."""
        self.scan = True
        if not self.frame or not c or not 1 <= c[0] <= 4 or len(c) != 4 + 2 * c[0]:
            return False
        used, tables = c[1:-3:2], c[2:-3:2]
        needed = {byte >> 4 for byte in tables}
        if not self.progressive:
            needed |= {16 + (byte & 15) for byte in tables}
        first_scan = c[-3:] == (b"\0\0" + c[-1:] if self.progressive else b"\0\x3f\0") and c[-1] <= 13
        tabled = set(self.frame.values()) <= self.quantisation and needed <= self.huffman
        return len(set(used)) == len(used) and set(used) <= self.frame.keys() and tabled and first_scan
