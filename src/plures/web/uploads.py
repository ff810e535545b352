"""Photos that strangers send: refused by size before they are decoded, decoded as everywhere else in plures."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from plures.data.photos import ACROSS, Transform, Unreadable, open_pixels
from plures.data.pixels import way_up
from plures.errors import PluresError

# not all that Pillow opens: EPS would start another program, and old formats have had the worst holes
TAKEN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000")
FORMATS = tuple(name for name in TAKEN if name in Image.OPEN)


class Refused(PluresError):
    """A request that cannot be answered: the HTTP status and a line for a person."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded upload. pixels: uint8 [3, S, S] as the model expects it; width, height: of the photo, upright."""

    name: str
    width: int
    height: int
    pixels: Tensor


def decode(content: bytes, name: str, transform: Transform, max_pixels: int) -> Photo:
    """The photo in these bytes. Raises Refused: 413 too many pixels, 415 not an image, 422 a broken one."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            jpeg = image.format in ("JPEG", "MPO")
            across = jpeg and way_up(image) in ACROSS
    except UnidentifiedImageError:
        raise Refused(415, f"{name}: not an image of a kind that is read here ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise Refused(413, f"{name}: too many pixels; at most {max_pixels:,} are taken") from None
    except Exception as error:  # Pillow's readers raise what they please on broken headers
        raise Refused(422, f"{name}: cannot be decoded ({error})") from None
    if width * height > max_pixels:
        raise Refused(413, f"{name}: {width} x {height} pixels; at most {max_pixels:,} are taken")
    if not width * height:
        raise Refused(422, f"{name}: an image without pixels")
    try:
        pixels = open_pixels(io.BytesIO(content), transform.decoding_size)
        if not jpeg:  # which alone may come scaled
            height, width = pixels.shape[1:]
        elif across:
            height, width = width, height
        return Photo(name, width, height, transform(pixels))
    except Unreadable as error:
        raise Refused(422, f"{name}: {str(error).removeprefix('upload: ')}") from None
