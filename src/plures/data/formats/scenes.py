"""Scenes: the built-in data. Colour pictures composed from real handwritten digits, with every label and box known.

The digits are those of scikit-learn (Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI: 1,797
scans of 8 x 8 pixels). No digit serves in two splits. Everything is integer arithmetic on numpy's frozen legacy
generator, so the same options give the same bytes on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Boxes, Dataset, formats
from plures.errors import PluresError, Problem
from plures.labels import Labels

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHARES = {"train": 0.65, "val": 0.1, "test": 0.25}  # of the 1,797 digits
MOST = 4  # digits in a scene
SMALLEST, LARGEST = 0.28, 0.46  # side of a digit, as a share of the scene's
TRIES = 40  # places tried before a digit is drawn at its smallest
TOGETHER = 256  # scenes composed at once

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Canvas = NDArray[np.int16]  # room for values beyond 0..255 until the end


@dataclass(frozen=True)
class Sprite:
    """A digit at one size. ink: int32 [s, s] in 0..255; box: left, top, right, bottom of the ink, in pixels."""

    ink: Ints
    box: tuple[int, int, int, int]


@formats.register("scenes", title="Built-in scenes of real handwritten digits", source="Alpaydin & Kaynak 1998, UCI")
class Scenes:
    """train, val, test: scenes in each split; size: their side in pixels (64 to 96 look natural); seed: of all."""

    def __init__(self, *, train: int = 3000, val: int = 500, test: int = 1000, size: int = 64, seed: int = 0) -> None:
        if min(train, val, test) < 0 or not train + val + test:
            raise PluresError(f"scenes: numbers of images are 0 or more, got train={train}, val={val}, test={test}")
        if not 32 <= size <= 512:
            raise PluresError(f"scenes: size is from 32 to 512 pixels, got {size}")
        self.counts = {"train": train, "val": val, "test": test}
        self.size, self.seed = size, seed

    def recognises(self, path: str) -> bool:
        return not path

    def read(self, path: str = "") -> tuple[Dataset, list[Problem]]:
        if path:
            raise PluresError(f"scenes are built in and have no path, got '{path}'")
        images, present, rows, columns, corners, splits = [], [], [], [], [], list[str]()
        for number, (split, pool) in enumerate(_pools(self.seed).items()):
            composer = _Composer(pool, self.size, np.random.RandomState([self.seed, number]))
            for start in range(0, self.counts[split], TOGETHER):
                count = min(TOGETHER, self.counts[split] - start)
                pictures, shown, row, column, corner = composer.compose(count)
                rows.append(row + len(splits))
                columns.append(column)
                corners.append(corner)
                images.append(pictures)
                present.append(shown)
                splits += [split] * count
        boxes = Boxes(np.concatenate(rows), np.concatenate(columns), np.concatenate(corners))
        labels = Labels.from_masks(np.concatenate(present))
        return Dataset(np.concatenate(images), labels, CLASSES, np.array(splits, np.str_), boxes, "scenes"), []


def _pools(seed: int) -> dict[str, tuple[Ints, NDArray[np.int64]]]:
    """The digits of each split: int32 [n, 8, 8] in 0..16 and their classes [n]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans, classes = digits.images.astype(np.int32), digits.target.astype(np.int64)
    order = np.random.RandomState(seed).permutation(len(scans))
    ends = np.cumsum([round(share * len(scans)) for share in SHARES.values()])[:-1]
    parts = np.split(order, ends)
    return {split: (scans[part], classes[part]) for split, part in zip(SHARES, parts, strict=True)}


class _Composer:
    """Composes the scenes of one split, `count` at a time."""

    def __init__(self, pool: tuple[Ints, NDArray[np.int64]], size: int, generator: np.random.RandomState) -> None:
        scans, classes = pool
        self.size, self.generator = size, generator
        self.sides = sorted({round(size * share) for share in np.linspace(SMALLEST, LARGEST, 7)})
        self.sprites = {side: _sprites(_enlarge(scans, side)) for side in self.sides}
        self.of_class = [np.flatnonzero(classes == column) for column in range(len(CLASSES))]

    def compose(
        self, count: int
    ) -> tuple[Bytes, NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Pictures uint8 [n, H, W, 3], present bool [n, 10], and the boxes' rows, columns and corners."""
        canvas, shade = self._backgrounds(count)
        self._clutter(canvas)
        present = np.zeros((count, len(CLASSES)), np.bool_)
        rows, columns, corners = list[int](), list[int](), list[tuple[float, ...]]()
        for row in range(count):
            taken = list[tuple[int, int, int, int]]()
            for column in self.generator.permutation(len(CLASSES))[: self.generator.randint(1, MOST + 1)].tolist():
                sprite, left, top = self._place(column, taken)
                box = tuple(a + b for a, b in zip(sprite.box, (left, top, left, top), strict=True))
                self._draw(canvas[row], sprite, left, top, bool(shade[row]))
                present[row, column] = True
                rows.append(row)
                columns.append(column)
                corners.append(tuple(side / self.size for side in box))
        noise = self.generator.randint(-6, 7, canvas.shape, dtype=np.int8)
        pictures = np.clip(canvas + noise, 0, 255, dtype=np.int16, casting="unsafe").astype(np.uint8)
        found = np.array(corners, np.float32).reshape(-1, 4)  # [M, 4]
        return pictures, present, np.array(rows, np.int64), np.array(columns, np.int64), found

    def _backgrounds(self, count: int) -> tuple[Canvas, NDArray[np.bool_]]:
        """Dim or bright gradients with soft texture, int16 [n, H, W, 3], and which are bright [n]."""
        draw, size = self.generator.randint, self.size
        bright = draw(0, 2, count) == 1
        base = (np.where(bright[:, None, None], 165, 40) + draw(0, 50, (count, 2, 3))).astype(np.int16)  # two colours
        ramp = np.arange(size, dtype=np.int32)
        across, down = draw(-8, 9, (2, count, 1, 1)).astype(np.int32)
        slope = across * ramp[None, None, :] + down * ramp[None, :, None]  # [n, H, W]
        low = slope.min((1, 2), keepdims=True)
        slope = ((slope - low) * 255 // np.maximum((slope - low).max((1, 2), keepdims=True), 1)).astype(np.int16)
        first, second = base[:, 0, None, None, :], base[:, 1, None, None, :]
        canvas = first + ((second - first) * slope[..., None] >> 8)  # [n, H, W, 3]
        texture = _stretch(draw(-22, 23, (count * 3, 7, 7)), size).astype(np.int16)
        canvas += texture.reshape(count, 3, size, size).transpose(0, 2, 3, 1)  # [n, H, W, 3]
        return canvas, bright

    def _clutter(self, canvas: Canvas) -> None:
        """A few soft strokes across each picture, longer and fainter than any digit's, in place."""
        draw, size = self.generator.randint, self.size
        grid = np.arange(size, dtype=np.int64)
        for picture in canvas:
            for _ in range(draw(1, 4)):
                (x1, x2), (y1, y2) = draw(0, size, (2, 2)).tolist()
                dx, dy = x2 - x1, y2 - y1
                span = max(dx * dx + dy * dy, 1)
                cross = (grid[None, :] - x1) * dy - (grid[:, None] - y1) * dx  # distance to the line x its length
                along = (grid[None, :] - x1) * dx + (grid[:, None] - y1) * dy
                width = int(draw(1, 4)) * size
                stroke = (cross * cross * 64 <= width * span) & (along >= 0) & (along <= span)
                picture[stroke] += draw(-34, 35, 3).astype(np.int16)

    def _place(self, column: int, taken: list[tuple[int, int, int, int]]) -> tuple[Sprite, int, int]:
        """A random digit of this class, size and place, apart from the digits already drawn where there is room."""
        draw = self.generator.randint
        digit = self.of_class[column][draw(len(self.of_class[column]))]
        for attempt in range(TRIES + 1):
            side = self.sides[draw(len(self.sides))] if attempt < TRIES // 2 else self.sides[0]
            left, top = draw(0, self.size - side + 1, 2).tolist()
            square = (left, top, left + side, top + side)
            if attempt == TRIES or all(_apart(square, other) for other in taken):
                break
        taken.append(square)
        return self.sprites[side][digit], left, top

    def _draw(self, picture: Canvas, sprite: Sprite, left: int, top: int, bright: bool) -> None:
        """Blend the digit in a colour that stands out: dark on bright, light on dim."""
        colour = self.generator.randint(0, 110, 3) if bright else 255 - self.generator.randint(0, 110, 3)
        patch = picture[top : top + len(sprite.ink), left : left + len(sprite.ink)]
        ink = sprite.ink[..., None]
        patch += ((colour - patch) * ink // 255).astype(np.int16)


def _sprites(ink: Ints) -> list[Sprite]:
    """Ink [n, s, s] with the box around each."""
    inked, side = np.asarray(ink > 40), ink.shape[1]
    across, down = np.asarray(inked.any(1)), np.asarray(inked.any(2))  # [n, s]
    edges = [across.argmax(1), down.argmax(1), side - across[:, ::-1].argmax(1), side - down[:, ::-1].argmax(1)]
    boxes = np.stack(edges, 1).tolist()
    return [Sprite(one, (box[0], box[1], box[2], box[3])) for one, box in zip(ink, boxes, strict=True)]


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two squares share at most an eighth of the smaller one."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    smaller = min((a[2] - a[0]) ** 2, (b[2] - b[0]) ** 2)
    return 8 * wide * high <= smaller


def _stretch(small: NDArray[np.integer], side: int) -> Ints:
    """Bilinear enlargement: [n, s, s] -> [n, side, side], corners on corners. Whole numbers as floats, hence exact."""
    last = small.shape[1] - 1
    place = np.arange(side) * last * 64 // (side - 1)
    low, part = np.minimum(place // 64, last - 1), place - np.minimum(place // 64, last - 1) * 64
    weight = np.zeros((side, last + 1))
    weight[np.arange(side), low] = 64 - part
    weight[np.arange(side), low + 1] = part
    return (weight @ small.astype(np.float64) @ weight.T).astype(np.int32) >> 12


def _enlarge(scans: Ints, side: int) -> Ints:
    """Scans [n, 8, 8] in 0..16 -> ink [n, side, side] in 0..255 with soft but definite edges."""
    padded = np.pad(scans * 16, ((0, 0), (1, 1), (1, 1)))  # [n, 10, 10]: strokes at the scan's edge keep their shape
    return np.clip((_stretch(padded, side) - 60) * 2, 0, 255).astype(np.int32)
