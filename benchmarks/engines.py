"""Frozen features on a CPU: images per second of every engine, and what mAP a head on its features reaches.

    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/engines.py            # some minutes; without torch.compile
    PLURES_SHARED=... OMP_NUM_THREADS=1 python benchmarks/engines.py --compile  # the patience of a compiler more

EfficientNet-Lite2 (260 pixels, real weights) and ViT-S/16 (224, random weights). Forms in turn, round by round, on the
same batch of 16 photographs: `plain` as one writes it, torch with the model as it is; the engines of plures (torch is
folded); `compiled`, torch.compile of the folded model. Milliseconds are CPU time per image, the least of the rounds,
and what making the form took beside them. mAP: closed-form ridge of a part of the VOC-12 sample's photographs under
each engine's features of EfficientNet-Lite2, all labels known, 13 frequent classes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write
from voc12 import FREQUENT, SHARED, photographs

from plures import Experiment
from plures.data.photos import Transform, to_pixels
from plures.metrics.report import Report
from plures.models.model import build_model
from plures.scoring.engines import Pooled, feature_function, folded
from plures.training.train import train

ENGINES = ("torch", "onnxruntime", "openvino")
WEIGHTS = str(SHARED / "weights" / "tf_efficientnet_lite2.safetensors")
NETWORKS: dict[str, dict[str, Any]] = {
    "tf_efficientnet_lite2": {"model": "tf_efficientnet_lite2", "weights": WEIGHTS},
    "vit_small_patch16_224": {"model": "vit_small_patch16_224"},
}


def voc() -> Any:
    return photographs(f"voc:{SHARED / 'data' / 'voc12' / 'VOCdevkit' / 'VOC2012'}")


@torch.inference_mode()
def speeds(name: str, rounds: int, compiled: bool, folder: Path) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = build_model("timm", "linear", ("a",), NETWORKS[name]).eval()
    transform = Transform(model.preprocessing.image_size)
    images = torch.stack([transform(to_pixels(str(path), transform.decoding_size)) for path in voc().images[:16]])
    forms: dict[str, Callable[[Any], Any]] = {"plain": Pooled(model, True)}
    made, times = {"plain": 0.0}, {}
    for engine in ENGINES:
        began = time.perf_counter()
        forms[engine] = feature_function(model, True, engine, folder / f"{name}.onnx")  # type: ignore[arg-type]
        made[engine] = time.perf_counter() - began
    if compiled:
        forms["compiled"] = torch.compile(Pooled(folded(model, images[:1]) or model, True))
        began = time.perf_counter()
        forms["compiled"](images)
        made["compiled"] = time.perf_counter() - began
    plain = forms["plain"](images)
    difference = {form: float((work(images) - plain).abs().max() / plain.abs().max()) for form, work in forms.items()}
    times = {form: list[float]() for form in forms}
    for _ in range(rounds):
        for form, work in forms.items():
            began = time.process_time()
            work(images)
            times[form].append(time.process_time() - began)
    rows = []
    for form, seconds in times.items():
        row: dict[str, Any] = {"network": name, "form": form, "threads": torch.get_num_threads(), "rounds": rounds}
        row |= {"cpu_ms_per_image": round(1e3 * min(seconds) / len(images), 1)}
        row |= {"median_ms": round(1e3 * float(np.median(seconds)) / len(images), 1)}
        row |= {"times_plain": round(min(times["plain"]) / min(seconds), 2), "seconds_to_make": round(made[form], 1)}
        rows.append(row | {"largest_difference": f"{difference[form]:.1e}"})
        print(rows[-1], flush=True)
    return rows


def quality(engine: str, most: int) -> dict[str, Any]:
    """Test mAP of the closed-form head on this engine's features."""
    dataset = voc()
    dataset = dataset.take(np.arange(0, len(dataset), -(-len(dataset) // most)))
    backbone = {"name": "timm", **NETWORKS["tf_efficientnet_lite2"], "pretrained": False}
    e = Experiment(recipe="quick", supervision="full", backbone=backbone, engine=engine, device="cpu", workers=0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run = train(e, f"{folder}/run", dataset=dataset)
        seconds = time.process_time() - began
        ap = {c.name: c.average_precision for c in Report.load(run.path / "report.json").per_class}
    row = {"network": "tf_efficientnet_lite2", "form": engine, "photographs": len(dataset)}
    row |= {"test_map_13": round(100 * float(np.mean([ap[c] for c in FREQUENT])), 3), "train_cpu_s": round(seconds)}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photographs", type=int, default=1000, help="of which mAP is measured")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PLURES_CACHE"] = folder
        for name in NETWORKS:
            rows += speeds(name, args.rounds, args.compile, Path(folder))
        for engine in ENGINES:
            rows.append(quality(engine, args.photographs))
    print(write("engines", rows))


if __name__ == "__main__":
    main()
