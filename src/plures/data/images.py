"""Reading one image: decode, turn upright, resize, augment. Everything random follows from (seed, epoch, row)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from plures.data.randaugment import cutout_randaugment
from plures.errors import PluresError

DECODED_OVER_WANTED = 2  # with 2, scaled decoding moves mAP by less than 0.1; with less, by up to 0.5 (docs/scale.md)
MAX_PIXELS = 100_000_000  # a 12,000 x 8,000 scan passes; a decompression bomb is refused before it is decoded
Image.MAX_IMAGE_PIXELS = None  # we refuse by our own limit, with our own words

Augment = Literal["auto", "none", "flip", "crop", "cutout_randaugment"]
View = tuple[float, float, float, float]
"""Where in an image its augmented version lies: left, top, right, bottom in [0, 1]; left > right if mirrored."""
NARROWEST = 3 / 4  # aspect of a random crop
WHOLE: View = (0.0, 0.0, 1.0, 1.0)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


class Unreadable(PluresError):
    """An image file that cannot be used; the message names the file and the reason."""


def is_junk(path: str | os.PathLike[str]) -> bool:
    """Whether this is what macOS leaves beside photographs: `._a.jpg`, or anything in a folder `__MACOSX`."""
    parts = os.fspath(path).replace("\\", "/").split("/")
    return parts[-1].startswith("._") or "__MACOSX" in parts


def is_photo(name: str) -> bool:
    """Whether a file of this name is taken for a photograph: by its suffix, in any case; see `is_junk`."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_junk(name)


def is_address(path: str) -> bool:
    """Whether this is an address for fsspec (s3://, gs://, memory://, ...) rather than a path."""
    return "://" in path


def opened(path: str | Path) -> str | Path | BytesIO:
    """What Pillow can open: the path itself, or the bytes at an address or in a stretch of a file.

    `FILE#OFFSET:LENGTH` is a stretch, as of a tar that is not unpacked (see `data/shards.py`);
    `FILE.parquet#GROUP/ROW` a cell (see `data/parquet_shards.py`).
    """
    text = str(path)
    file, mark, stretch = text.rpartition("#")
    if mark and file.endswith(".parquet"):
        from plures.data.parquet_shards import photo  # which reads tables, and these look at images

        return photo(file, stretch)
    offset, colon, length = stretch.partition(":")
    if mark and colon and offset.isdigit() and length.isdigit():
        with fsspec.open(file, "rb", cache_type="none") if is_address(file) else open(file, "rb") as handle:
            handle.seek(int(offset))
            return BytesIO(handle.read(int(length)))
    if is_address(text):
        with fsspec.open(text, "rb") as handle:
            return BytesIO(handle.read())
    return path


def open_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Open, decode and turn upright. Returns an RGB image. Raises Unreadable, never another error.

    16-bit grey is scaled to 8 bits, alpha is laid on white, the first frame of an animation is taken.
    at_least: a JPEG may come smaller, by 2, 4 or 8, as long as both sides keep this many pixels: decoding then leaves
    out the high frequencies that a resize would throw away, and takes a fraction of the time.
    """
    try:
        with Image.open(opened(path)) as image:
            if image.format == "EPS":  # which Pillow would let Ghostscript run
                raise Unreadable(f"{path}: PostScript, which is a program and no image")
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(f"{path}: {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read")
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except PluresError:
        raise
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise Unreadable(f"{path}: not an image that can be read") from None
    except Exception as error:
        # Pillow's decoders raise what they please (OSError, SyntaxError, struct.error, ...) on broken files
        raise Unreadable(f"{path}: cannot be decoded ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16- or 32-bit grey: PIL would clip at 255
        grey = np.asarray(image, np.float64) / 257.0
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


@dataclass(frozen=True)
class Transform:
    """From an image to uint8 [3, size, size]: resized (aspect squashed, antialiased bilinear), then augmented.

    augment: none; flip (left-right with probability 1/2); crop (random area of `crop_area` and shape, then flip);
    cutout_randaugment (as Query2Label trains, see `randaugment.py`; no flip).
    """

    size: int
    augment: Augment = "none"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_area: tuple[float, float] = (0.5, 1.0)

    def __call__(self, image: Image.Image, random: np.random.Generator | None = None) -> Tensor:
        return self.with_view(image, random)[0]

    @property
    def decoding_size(self) -> int:
        """The fewest pixels a side that a scaled image must have before this transform, see `open_image`: twice as many
        as come out, and for crops so many that the smallest crop still has as many as come out."""
        whole = DECODED_OVER_WANTED * self.size
        if self.augment != "crop":
            return whole
        return max(whole, math.ceil(self.size / math.sqrt(self.crop_area[0] * NARROWEST)))

    def with_view(self, image: Image.Image, random: np.random.Generator | None = None) -> tuple[Tensor, View]:
        """The result, and where in the image it lies. What RandAugment shears or turns the view does not say."""
        how = Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.BICUBIC
        box, view = None, WHOLE
        if self.augment == "crop" and random is not None:
            box = _random_box(image.size, self.crop_area, random)
            width, height = image.size
            view = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        if image.size != (self.size, self.size) or box is not None:
            image = image.resize((self.size, self.size), how, box=box)
        if self.augment == "cutout_randaugment" and random is not None:
            image = cutout_randaugment(image, random)
        pixels = np.asarray(image)  # [H, W, 3]
        left, top, right, bottom = view
        if self.augment in ("flip", "crop") and random is not None and random.random() < 0.5:
            pixels, left, right = pixels[:, ::-1], right, left
        tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()  # [3, H, W]
        return tensor, (left, top, right, bottom)


def _random_box(
    size: tuple[int, int], area: tuple[float, float], random: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box of a random share of the area and of an aspect between 3:4 and 4:3, inside the image."""
    width, height = size
    share = random.uniform(*area)
    aspect = np.exp(random.uniform(np.log(NARROWEST), -np.log(NARROWEST)))
    w = min(width, np.sqrt(share * width * height * aspect))
    h = min(height, np.sqrt(share * width * height / aspect))
    left, top = random.uniform(0, width - w), random.uniform(0, height - h)
    return (left, top, left + w, top + h)


def random_for(seed: int, epoch: int, row: int) -> np.random.Generator:
    """The generator of one image in one epoch, so that a resumed run augments as the uninterrupted one."""
    return np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFF, (epoch << 40) + row]))


def list_images(folder: str | Path) -> list[str]:
    """All image files below a folder, by suffix, sorted. Raises PluresError if there is none."""
    paths = sorted(str(p) for p in Path(folder).rglob("*") if is_photo(str(p.relative_to(folder))) and p.is_file())
    if not paths:
        raise PluresError(f"{folder}: no image files (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def to_image(image: str | NDArray[np.uint8], at_least: int | None = None) -> Image.Image:
    """A PIL image from a path or address (see `open_image` for at_least) or from uint8 [H, W, 3]."""
    return open_image(image, at_least) if isinstance(image, str) else Image.fromarray(image)
