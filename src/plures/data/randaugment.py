"""Cutout and RandAugment, as Query2Label trains (Liu et al. 2021, arXiv 2107.10834), from one generator per image.

Cutout: DeVries and Taylor 2017, arXiv 1708.04552. The released Query2Label code passes it a length of -1, which draws
nothing or fails; here it is what its option `--cut_fact 0.5` means in the code of Ridnik et al. (arXiv 2009.14119): a
rectangle of half the image's sides, its centre anywhere, in one random colour.
RandAugment: Cubuk et al. 2019, arXiv 1909.13719. The official code uses the package `randaugment` 1.0.2: twice, with
probability 1/2, a random operation at a random magnitude of 1 to 9 out of 10. So it is here, with torchvision's
operations and ranges: these have an identity where that package has an inversion of all colours.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.transforms.v2 import RandAugment

TIMES, CHANCE, LEVELS = 2, 0.5, 10
OPERATIONS = [RandAugment(num_ops=1, magnitude=level, num_magnitude_bins=LEVELS) for level in range(LEVELS)]


def cutout_randaugment(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """The image with a rectangle cut out and up to two operations applied; the given one is not changed."""
    return randaugment(cutout(image, random), random)


def cutout(image: Image.Image, random: np.random.Generator, share: float = 0.5) -> Image.Image:
    """A copy with one rectangle of `share` of each side painted over, clipped at the image's edge."""
    image = image.copy()
    x, y = int(random.integers(image.width)), int(random.integers(image.height))
    w, h = round(share * image.width / 2), round(share * image.height / 2)
    box = (max(0, x - w), max(0, y - h), min(image.width, x + w) - 1, min(image.height, y + h) - 1)
    colour = tuple(random.integers(0, 256, 3).tolist())
    if box[0] <= box[2] and box[1] <= box[3]:
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


def randaugment(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Twice, with probability 1/2, one of torchvision's operations at a random magnitude."""
    for _ in range(TIMES):
        if random.random() >= CHANCE:
            continue
        level, seed = int(random.integers(1, LEVELS)), int(random.integers(2**63))
        with torch.random.fork_rng(devices=[]):  # the operation draws from torch's global generator
            torch.manual_seed(seed)
            image = OPERATIONS[level](image)
    return image
