"""Photographs and weights in one small folder, to carry to a machine with a GPU that sees no network and no disk here.

    PLURES_SHARED=... python benchmarks/pack.py --out pack          # 3,874 photographs: a minute, see what it prints

photographs.npz: the VOC-12 sample as WebP, long side 320, with labels and splits. weights.safetensors:
EfficientNet-Lite2 without its classifier, float16. Both are what benchmarks/gpu.py --pack reads. A photograph of 320
pixels is enlarged to a model's 640, so mAP measured on them is not that of the originals.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from voc12 import SHARED

from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.labels import Labels

PHOTOGRAPHS, WEIGHTS = "photographs.npz", "weights.safetensors"
LONG_SIDE, QUALITY = 320, 60
MOST = 64 * 2**20  # what may travel, the working tree included


def packed(path: str, long_side: int, quality: int) -> bytes:
    """The photograph as WebP whose longer side is at most so many pixels."""
    image = Image.open(path).convert("RGB")
    scale = long_side / max(image.size)
    if scale < 1:
        width, height = image.size
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality)
    return out.getvalue()


def pack(dataset: Dataset, folder: Path, long_side: int = LONG_SIDE, quality: int = QUALITY) -> int:
    """Write photographs.npz; returns its bytes."""
    files = [packed(str(path), long_side, quality) for path in dataset.images]
    assert dataset.splits is not None
    np.savez(
        folder / PHOTOGRAPHS,
        bytes=np.frombuffer(b"".join(files), np.uint8),
        ends=np.cumsum([len(file) for file in files]),
        labels=dataset.labels.values,
        classes=np.array(dataset.classes),
        splits=dataset.splits,
    )
    return (folder / PHOTOGRAPHS).stat().st_size


def unpacked(folder: Path, side: int, most: int | None = None) -> Dataset:
    """The photographs as uint8 [N, side, side, 3] in memory, resized as plures trains on them."""
    import torch
    from torch.utils.data import DataLoader

    path = folder / PHOTOGRAPHS
    if not path.is_file():
        raise PluresError(f"{path}: not there; make it with python benchmarks/pack.py --out {folder}")
    with np.load(path) as found:
        kept: dict[str, Any] = {name: found[name] for name in found.files}
    blob, starts = kept["bytes"], np.concatenate([[0], kept["ends"][:-1]])
    rows = np.arange(len(starts))
    if most is not None and most < len(rows):  # a part, the same of each split
        rows = rows[:: -(-len(rows) // most)]
    reader = _Reader(blob, starts, kept["ends"], rows, side)
    images = np.empty((len(rows), side, side, 3), np.uint8)
    workers = 0 if len(rows) < 500 else min(16, torch.multiprocessing.cpu_count())
    done = 0
    for batch in DataLoader(reader, batch_size=64, num_workers=workers):  # type: ignore[arg-type]
        images[done : done + len(batch)] = batch.numpy()
        done += len(batch)
    hashes = np.array([np.bytes_(f"{row:064d}") for row in rows])  # nothing is looked up by content here
    classes, labels = tuple(map(str, kept["classes"])), Labels(kept["labels"][rows])
    return Dataset(images, labels, classes, kept["splits"][rows], name="voc12, long side 320", contents=hashes)


class _Reader:
    """One photograph of the blob at a time, uint8 [side, side, 3]."""

    def __init__(self, blob: Any, starts: Any, ends: Any, rows: Any, side: int) -> None:
        self.blob, self.starts, self.ends, self.rows, self.side = blob, starts, ends, rows, side

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        from plures.data.photos import Transform

        row = self.rows[place]
        image = Image.open(io.BytesIO(self.blob[self.starts[row] : self.ends[row]].tobytes())).convert("RGB")
        return Transform(self.side)(image).permute(1, 2, 0).contiguous()


def pack_weights(source: Path, folder: Path) -> int:
    """Write weights.safetensors, float16 and without the classifier; returns its bytes."""
    from safetensors.torch import load_file, save_file

    state = {name: tensor for name, tensor in load_file(source).items() if not name.startswith("classifier.")}
    floats = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(floats, folder / WEIGHTS)
    return (folder / WEIGHTS).stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--long-side", type=int, default=LONG_SIDE)
    parser.add_argument("--quality", type=int, default=QUALITY)
    args = parser.parse_args()
    from plures import read

    args.out.mkdir(parents=True, exist_ok=True)
    dataset = read(f"voc:{SHARED / 'data' / 'voc12' / 'VOCdevkit' / 'VOC2012'}")
    photographs = pack(dataset, args.out, args.long_side, args.quality)
    weights = pack_weights(SHARED / "weights" / "tf_efficientnet_lite2.safetensors", args.out)
    sizes = [f"{size / 2**20:.1f}" for size in (photographs, weights, photographs + weights, MOST)]
    print("{:,} photographs {} MiB, weights {} MiB: {} MiB of {}".format(len(dataset), *sizes))


if __name__ == "__main__":
    main()
