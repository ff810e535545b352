"""From whatever Pillow decodes to upright RGB bytes: one rule for each kind of pixel.

Alpha is laid on white; palettes, bilevel, CMYK, YCbCr and LAB become RGB as Pillow does it. Grey pixels of more than
8 bits (modes I;16, I and F) are scaled linearly to 0..255 (whole numbers rounded down, float to the nearest):

1. by the range that the file declares: TIFF's MinSampleValue and MaxSampleValue (tags 280, 281; 340, 341 for signed and
   float), where all pixels lie within it; a PGM declares its largest value, which Pillow has scaled to 16 bits;
2. else whole numbers by their bit depth, which is the smallest of 8, 10, 12, 14, 16, 24 and 32 that holds the file's
   largest value: a 16-bit file that holds 12 bits is scaled from 0..4095, not to near black;
3. float by the smallest of 0..1, 0..255 and 0..65535 that holds the file's largest value (resampling may overshoot 0..1
   by a tenth); nan is black;
4. with pixels below that range, or above all of them, from the file's smallest to its largest value.

The rule looks at one file alone, so a photograph has the same pixels in training, prediction and review. Colour of 16
bits a channel is what Pillow makes of it: the upper 8 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = (8, 10, 12, 14, 16, 24, 32)
FLOAT_RANGES = (1.0, 255.0, 65535.0)
OVERSHOOT = 0.1  # of a float range 0..1, as bicubic resampling leaves it
ORIENTATION = 0x0112
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation -> Pillow's `Image.Transpose` that turns the image upright; source: EXIF 2.32, tag 0x0112."""


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, by the rules above; the image itself where it is RGB already."""
    if image.mode[0] in "IF":
        return Image.fromarray(to_bytes(np.asarray(image), declared_range(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


def to_bytes(grey: NDArray[np.generic], declared: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Grey values [H, W] of any kind, scaled to bytes [H, W]. declared: the range that the file names."""
    values = grey.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(values.shape, np.uint8)
    low, high = float(finite.min()), float(finite.max())
    first, last = declared or (0.0, 0.0)
    is_float = np.issubdtype(grey.dtype, np.floating)
    if not first <= low <= high <= last:
        first, last = _range_of(low, high, is_float)
    scaled = (np.nan_to_num(values, nan=first, posinf=last, neginf=first) - first) * 255 / (last - first)
    return np.clip(np.rint(scaled) if is_float else scaled, 0, 255).astype(np.uint8)


def _range_of(low: float, high: float, is_float: bool) -> tuple[float, float]:
    """The range that values from low to high are of."""
    slack = OVERSHOOT if is_float and high <= 1 + OVERSHOOT else 0.0
    ends = FLOAT_RANGES if is_float else tuple(2.0**bits - 1 for bits in BITS)
    if low >= -slack:
        for end in ends:
            if high <= end + slack:
                return 0.0, end
    return low, max(high, low + 1)


def declared_range(image: Image.Image) -> tuple[float, float] | None:
    """The range of values that the file names, or None."""
    if image.format == "PPM" and image.mode == "I":
        return 0.0, 65535.0
    tags = getattr(image, "tag_v2", {})
    for lowest, largest in ((280, 281), (340, 341)):
        try:
            first, last = (float(np.ravel(tags[tag])[0]) for tag in (lowest, largest))
        except Exception:  # not there, or any nonsense
            continue
        if first < last:
            return first, last
    return None


def way_up(image: Image.Image) -> Image.Transpose | None:
    """How to transpose an opened image so that it stands upright, as its orientation tag says; None: as it is. No other
    tag is looked at, however broken it may be."""
    try:
        way = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF is what a camera wrote: anything
        way = None
    return None if way is None else Image.Transpose(way)
