"""Mutated EXIF blocks: how many photographs whose pixels Pillow's plain `convert` opens are lost.

    python benchmarks/fuzz_exif.py [--blocks 20000] [--seed 1]

A block has an orientation and up to five other tags of any type, count and offset; some of its bytes are then changed,
and some blocks are cut. It is written into a small JPEG, PNG and WebP in turn, by hand for JPEG, as a camera would.
`exif_transpose` counts the photographs that `ImageOps.exif_transpose` fails on. Counts go to results/fuzz_exif.csv.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import warnings

import numpy as np
from environment import write
from PIL import Image, ImageOps

from plures.data.photos import Unreadable, open_image

TAGS = (0x0100, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x0213, 0x8769, 0x8825, 0xA002, 0x927C)
FORMS = ("JPEG", "PNG", "WEBP")


def block(rng: random.Random) -> bytes:
    """An EXIF block, begun as TIFF 6.0 says and then mutated."""
    order = rng.choice("<>")
    tags = {0x0112: (3, 1, struct.pack(order + "HH", rng.randint(0, 9), 0))}
    for tag in rng.sample(TAGS, rng.randint(0, 5)):
        tags[tag] = (rng.randint(0, 14), rng.choice((0, 1, 2, 4, 70_000, 2**32 - 1)), rng.randbytes(4))
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, n) + value for tag, (kind, n, value) in sorted(tags.items())
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    content = bytearray(head + entries + rng.randbytes(rng.randint(0, 40)))
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return b"Exif\0\0" + bytes(content[: rng.randint(1, len(content))] if rng.random() < 0.1 else content)


def photo(form: str, exif: bytes) -> bytes:
    pixels = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3))
    file = io.BytesIO()
    if form == "JPEG":
        pixels.save(file, form)
        whole = file.getvalue()
        return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]
    pixels.save(file, form, exif=exif)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    rng = random.Random(args.seed)
    counts = dict.fromkeys(("unreadable by Pillow", "exif_transpose", "lost", "turned"), 0)
    for number in range(args.blocks):
        try:
            content = photo(FORMS[number % len(FORMS)], block(rng))
            with Image.open(io.BytesIO(content)) as image:
                plain = image.convert("RGB").size
        except Exception:
            counts["unreadable by Pillow"] += 1
            continue
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
        except Exception:
            counts["exif_transpose"] += 1
        try:
            counts["turned"] += open_image(io.BytesIO(content)).size != plain
        except Unreadable as error:
            counts["lost"] += 1
            print(number, error)
    row = {"blocks": args.blocks, "seed": args.seed, **counts}
    print(row)
    print(write("fuzz_exif", [row]))


if __name__ == "__main__":
    main()
