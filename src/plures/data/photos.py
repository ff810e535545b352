"""Reading one photograph: decode, turn upright, resize, augment. Everything random follows from (seed, epoch, row)."""

from __future__ import annotations

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from plures.data.pixels import ORIENTATION, to_rgb, way_up
from plures.data.randaugment import cutout_randaugment
from plures.errors import PluresError, Problem

try:
    import simplejpeg
except ImportError:  # a platform without its wheel: Pillow decodes the same pixels, in more time
    simplejpeg = None

DECODED_OVER_WANTED = 2  # with 2, scaled decoding moves mAP by less than 0.1; with less, by up to 0.5 (docs/scale.md)
PIXELS = "3"  # version of the rules from a file to a model's pixels: another one makes cached features anew
MAX_PIXELS = 100_000_000  # a 12,000 x 8,000 scan passes; a decompression bomb is refused before it is decoded

Augment = Literal["auto", "none", "flip", "crop", "cutout_randaugment"]
View = tuple[float, float, float, float]
"""Where in an image its augmented version lies: left, top, right, bottom in [0, 1]; left > right if mirrored."""
NARROWEST = 3 / 4  # aspect of a random crop
WHOLE: View = (0.0, 0.0, 1.0, 1.0)


class Unreadable(PluresError):
    """An image file that cannot be used; the message names the file and the reason."""


# -------------------------------------------------------------------------------------------------- which files

if find_spec("pillow_heif"):  # the extra `heic`
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
NO_PHOTOGRAPHS = (  # programs, icons, films, games' textures, and measurements that Pillow knows by name only
    *("EPS", "MPEG", "FLI", "ICO", "CUR", "ICNS", "XBM", "XPM", "WMF", "GBR", "BLP", "FTEX"),
    *("BUFR", "GRIB", "HDF5", "FITS", "IPTC"),
)
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, name in Image.registered_extensions().items()
    if name in Image.OPEN and name not in NO_PHOTOGRAPHS
)
"""What the installed Pillow opens, in lower case with the dot: .jpg, .jfif, .png, .webp, .tif, .avif, ..."""
_RAW = "is camera raw; export it as JPEG or TIFF"
_HEIC = 'needs pip install "plures[heic]"'
UNREAD = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIC),
    **dict.fromkeys((".avif", ".avifs"), "needs Pillow 11.3 or later with AVIF"),
    **dict.fromkeys((".webp",), "needs a Pillow with WebP"),
    **dict.fromkeys((".jxl",), "cannot be read; convert it to JPEG or PNG"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef"), _RAW),
}
"""Photographs by their suffix that may not be readable here, and what to do."""


def is_junk(path: str | os.PathLike[str]) -> bool:
    """Whether this is what macOS leaves beside photographs: `._a.jpg`, or anything in a folder `__MACOSX`."""
    parts = os.fspath(path).replace("\\", "/").split("/")
    return parts[-1].startswith("._") or "__MACOSX" in parts


def is_photo(name: str) -> bool:
    """Whether a file of this name is taken for a photograph: by its suffix, in any case; see `is_junk`."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_junk(name)


def unread_notice(names: Iterable[str], where: str) -> list[Problem]:
    """One notice that counts the photographs among these names that cannot be read here, or none.

    names: any file names; where: the folder or shard they lie in.
    """
    kinds = Counter(os.path.splitext(name)[1].lower() for name in names if not is_junk(name))
    found = {kind: kinds[kind] for kind in UNREAD.keys() - IMAGE_SUFFIXES if kinds[kind]}
    if not found:
        return []
    words = "; ".join(f"{count:,} {kind} ({UNREAD[kind]})" for kind, count in sorted(found.items()))
    return [Problem(where, None, f"{sum(found.values()):,} photographs are left out: {words}", "", "notice")]


def unread_below(folder: str | Path) -> list[Problem]:
    """`unread_notice` of all files below a folder, hidden folders left out."""
    return unread_notice(_names_below(folder), str(folder))


def _names_below(folder: str | Path) -> Iterator[str]:
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(at, name) for name in files)


def list_images(folder: str | Path) -> list[str]:
    """All image files below a folder, by suffix, sorted. Raises PluresError if there is none."""
    paths = sorted(str(p) for p in Path(folder).rglob("*") if is_photo(str(p.relative_to(folder))) and p.is_file())
    if not paths:
        raise PluresError(no_images(folder))
    return paths


def no_images(folder: str | Path) -> str:
    """The line for a folder without a readable photograph; says what is there instead."""
    unread = "".join(f"; {notice.what}" for notice in unread_below(folder))
    return f"{folder}: no image files (looked for .jpg, .png, .tif, .webp and what else Pillow opens){unread}"


def is_address(path: str) -> bool:
    """Whether this is an address for fsspec (s3://, gs://, memory://, ...) rather than a path."""
    return "://" in path


# -------------------------------------------------------------------------------------------------- opening


def opened(path: str | Path | BytesIO) -> str | Path | BytesIO:
    """What Pillow can open: the path itself, or the bytes at an address or in a stretch of a file.

    `FILE#OFFSET:LENGTH` is a stretch, as of a tar that is not unpacked (see `data/formats/shards.py`);
    `FILE.parquet#GROUP/ROW` a cell (see `data/formats/parquet_shards.py`). Raises Unreadable for a pipe or a device,
    which might never end, and for a folder.
    """
    if isinstance(path, BytesIO):
        return path
    text = str(path)
    file, mark, stretch = text.rpartition("#")
    if mark and file.endswith(".parquet"):
        from plures.data.formats.parquet_shards import photo  # which reads tables, and these look at images

        return photo(file, stretch)
    offset, colon, length = stretch.partition(":")
    if mark and colon and offset.isdigit() and length.isdigit():
        with fsspec.open(file, "rb", cache_type="none") if is_address(file) else open(file, "rb") as handle:
            handle.seek(int(offset))
            return BytesIO(handle.read(int(length)))
    if is_address(text):
        with fsspec.open(text, "rb") as handle:
            return BytesIO(handle.read())
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        raise Unreadable(f"{path}: a {'folder' if stat.S_ISDIR(kind) else 'pipe or device'}, not an image file")
    return path


@contextmanager
def open_header(path: str | Path | BytesIO, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image whose pixels are not decoded yet; whatever goes wrong with it in the block is Unreadable.

    max_pixels: width x height allowed, MAX_PIXELS if None; it is checked before anything is decoded.
    """
    name = "upload" if isinstance(path, BytesIO) else str(path)
    most = MAX_PIXELS if max_pixels is None else max_pixels
    source: str | Path | BytesIO | None = None
    try:
        source = opened(path)
        with Image.open(source) as image:
            if image.format == "EPS":  # which Pillow would let Ghostscript run
                raise Unreadable(f"{name}: PostScript, which is a program, not an image")
            if image.width * image.height > most:
                raise Unreadable(
                    f"{name}: {image.width} x {image.height} pixels; at most {most:,} are read, so it is too large"
                )
            yield image
    except PluresError:
        raise
    except FileNotFoundError:
        raise Unreadable(f"{name}: {'a link to no file' if os.path.islink(name) else 'no such file'}") from None
    except UnidentifiedImageError:
        raise Unreadable(f"{name}: {_what_it_is(source)}") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, or the one that the program around us has set
        pixels = re.search(r"\d+", str(error))
        raise Unreadable(f"{name}: {int(pixels[0]) if pixels else 0:,} pixels; at most {most:,} are read") from None
    except Exception as error:
        # Pillow's decoders raise what they please (OSError, SyntaxError, struct.error, ...) on broken files
        raise Unreadable(f"{name}: cannot be decoded, broken or truncated ({error})") from None


_HEADS = (  # how a file begins that is often found under a photograph's name
    (rb"version https://git-lfs", "a Git LFS pointer, not the photograph; run `git lfs pull`"),
    (
        rb"\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body|script)\b",
        "an HTML page, not a photograph; download it again",
    ),
    (rb"\s*(<\?xml.*?>|<!--.*?-->|\s)*<svg\b", "an SVG drawing, not a photograph"),
    (rb"\s*<\?xml\b", "an XML file, not a photograph; download it again"),
    (rb"\x00\x05\x16\x07", "what macOS keeps beside a file (._ name), not the photograph"),
    (rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", f"HEIC, which {_HEIC}"),
    (rb"%PDF-", "a PDF, not a photograph"),
    (rb"\x00+$", "only zeros; the photograph was never written"),
    (rb"$", "image file is empty"),
)


def _what_it_is(source: str | Path | BytesIO | None) -> str:
    """What this file, which is no image that Pillow opens, seems to be."""
    try:
        head = source.getvalue()[:512] if isinstance(source, BytesIO) else _beginning(str(source))
    except OSError:  # gone meanwhile
        return "not an image that can be read"
    for pattern, words in _HEADS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return "HEIC that is broken" if words.startswith("HEIC") and "HEIF" in Image.OPEN else words
    return "not an image that can be read"


def _beginning(file: str) -> bytes:
    with open(file, "rb") as handle:
        return handle.read(512)


def image_size(image: Any) -> tuple[int, int]:
    """Width and height in pixels as the photo is seen upright, without decoding it where that can be helped."""
    if isinstance(image, np.ndarray):
        return int(image.shape[1]), int(image.shape[0])
    try:
        with Image.open(str(image)) as found:
            sideways = found.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            return (found.height, found.width) if sideways else found.size
    except Exception:  # whatever Pillow raises, open_image says what is wrong in one line
        return open_image(str(image)).size


def open_image(path: str | Path | BytesIO, at_least: int | None = None) -> Image.Image:
    """Open, decode and turn upright. Returns an RGB image.

    What becomes of every mode says `data/pixels.py`; the first frame of an animation is taken.

    Args:
        path: a file, an address, a stretch of a file (see `opened`), or a file's bytes.
        at_least: a JPEG may come smaller, by 2, 4 or 8, as long as both sides keep this many pixels: decoding then
            leaves out the high frequencies that a resize would throw away, and takes a fraction of the time.

    Raises:
        Unreadable, never another error.

    Example:
        >>> open_image("photo.jpg").size  # doctest: +SKIP
        (640, 480)
    """
    with open_header(path) as image:
        return decoded(image, at_least)


def open_pixels(path: str | Path | BytesIO, at_least: int | None = None) -> Tensor:
    """The pixels of `open_image`, uint8 [3, H, W], in less time; arguments and errors are the same.

    A JPEG that is not to be scaled is decoded by simplejpeg, which gives the very bytes that Pillow gives; what that
    refuses, and all else, Pillow decides.
    """
    with open_header(path) as image:
        jpeg = image.format in ("JPEG", "MPO") and image.mode == "RGB"
        whole = at_least is None or min(image.size) < 2 * at_least
        pixels = _decoded_fast(path) if jpeg and whole and simplejpeg is not None else None
        if pixels is None or pixels.shape[:2] != (image.height, image.width):
            return tensor_of(decoded(image, at_least))
        upright, way = torch.from_numpy(pixels).permute(2, 0, 1), way_up(image)
        return upright if way is None else turn_pixels(upright, way)


def _decoded_fast(path: str | Path | BytesIO) -> NDArray[np.uint8] | None:
    """A JPEG's pixels [H, W, 3], or None where libjpeg has anything to remark."""
    source = opened(path)
    content = source.getvalue() if isinstance(source, BytesIO) else Path(source).read_bytes()
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
    except ValueError:
        return None
    return pixels


def tensor_of(image: Image.Image) -> Tensor:
    """The pixels of an RGB image, uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # no copy: the resize reads any order


def turn_pixels(pixels: Tensor, way: Image.Transpose) -> Tensor:
    """Pixels [3, H, W] transposed as Pillow transposes an image."""
    flips = _FLIPS[way]
    pixels = pixels.transpose(1, 2) if way in ACROSS else pixels
    return pixels.flip(flips) if flips else pixels


_T = Image.Transpose
ACROSS = (_T.ROTATE_90, _T.ROTATE_270, _T.TRANSPOSE, _T.TRANSVERSE)  # rows become columns, and are then flipped:
_FLIPS: dict[Image.Transpose, tuple[int, ...]] = {
    _T.FLIP_LEFT_RIGHT: (2,),
    _T.FLIP_TOP_BOTTOM: (1,),
    _T.ROTATE_180: (1, 2),
    _T.ROTATE_90: (1,),
    _T.ROTATE_270: (2,),
    _T.TRANSPOSE: (),
    _T.TRANSVERSE: (1, 2),
}


def decoded(image: Image.Image, at_least: int | None = None) -> Image.Image:
    """The upright RGB image of an opened one, see `open_image`. Raises what Pillow's decoders please."""
    if at_least is not None:
        image.draft(None, (at_least, at_least))
    image.load()
    picture, way = to_rgb(image), way_up(image)
    return picture if way is None else picture.transpose(way)


# -------------------------------------------------------------------------------------------------- to a model


@dataclass(frozen=True)
class Transform:
    """From an image, or its pixels uint8 [3, H, W], to uint8 [3, size, size]: resized (aspect squashed, antialiased, by
    torch), then augmented.

    augment: none; flip (left-right with probability 1/2); crop (random area of `crop_area` and shape, then flip);
    cutout_randaugment (as Query2Label trains, see `randaugment.py`; no flip).
    """

    size: int
    augment: Augment = "none"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_area: tuple[float, float] = (0.5, 1.0)

    def __call__(self, image: Image.Image | Tensor, random: np.random.Generator | None = None) -> Tensor:
        return self.with_view(image, random)[0]

    @property
    def decoding_size(self) -> int:
        """The fewest pixels per side that a scaled image needs before this transform, see `open_image`: twice as many
        as come out, and for crops so many that the smallest crop still has as many as come out."""
        whole = DECODED_OVER_WANTED * self.size
        if self.augment != "crop":
            return whole
        return max(whole, math.ceil(self.size / math.sqrt(self.crop_area[0] * NARROWEST)))

    def with_view(self, image: Image.Image | Tensor, random: np.random.Generator | None = None) -> tuple[Tensor, View]:
        """The result, and where in the image it lies. What RandAugment shears or turns the view does not say."""
        pixels = image if isinstance(image, Tensor) else tensor_of(image)  # [3, H, W]
        left, top, right, bottom = WHOLE
        if self.augment == "crop" and random is not None:
            height, width = pixels.shape[1:]
            x, y, x_end, y_end = _random_box((width, height), self.crop_area, random)
            pixels = pixels[:, y:y_end, x:x_end]
            left, top, right, bottom = x / width, y / height, x_end / width, y_end / height
        size = (self.size, self.size)
        if pixels.shape[1:] != size:
            pixels = F.interpolate(pixels[None], size, mode=self.interpolation, antialias=True, align_corners=False)[0]
        if self.augment == "cutout_randaugment" and random is not None:
            picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
            pixels = tensor_of(cutout_randaugment(picture, random))
        if self.augment in ("flip", "crop") and random is not None and random.random() < 0.5:
            pixels, left, right = pixels.flip(2), right, left
        return pixels.contiguous(), (left, top, right, bottom)


def _random_box(
    size: tuple[int, int], area: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box of a random share of the area and of an aspect between 3:4 and 4:3, inside the image, in whole pixels."""
    width, height = size
    share = random.uniform(*area)
    aspect = np.exp(random.uniform(np.log(NARROWEST), -np.log(NARROWEST)))
    w = min(width, np.sqrt(share * width * height * aspect))
    h = min(height, np.sqrt(share * width * height / aspect))
    left, top = random.uniform(0, width - w), random.uniform(0, height - h)
    x, y = min(int(left), width - 1), min(int(top), height - 1)
    return (x, y, min(width, x + max(1, round(w))), min(height, y + max(1, round(h))))


def random_for(seed: int, epoch: int, row: int) -> np.random.Generator:
    """The generator of one image in one epoch, so that a resumed run augments as the uninterrupted one."""
    return np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFF, (epoch << 40) + row]))


def to_image(image: str | NDArray[np.uint8], at_least: int | None = None) -> Image.Image:
    """A PIL image from a path or address (see `open_image` for at_least) or from uint8 [H, W, 3]."""
    return open_image(image, at_least) if isinstance(image, str) else Image.fromarray(image)


def to_pixels(image: str | NDArray[np.uint8], at_least: int | None = None) -> Tensor:
    """Pixels uint8 [3, H, W] from a path or address (see `open_pixels`) or from uint8 [H, W, 3]."""
    return open_pixels(image, at_least) if isinstance(image, str) else torch.from_numpy(image).permute(2, 0, 1)
