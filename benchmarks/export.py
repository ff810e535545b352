"""Speed of exported files on a CPU against torch eager, and what 8 bits cost.

    OMP_NUM_THREADS=1 PLURES_SHARED=... python benchmarks/export.py [--rounds 15] [--threads 1]

Writes benchmarks/results/export_speed.csv: MobileNetV2 at 224 (the weights beside the checkout, linear head, 20
classes), small_conv at 64 (codebook, 10 classes) and patches at 640 (codebook, 80 classes); uint8 images of the model's
own size, scores wanted, no maps. All forms run in turn, round by round, on the same images; `speedup` is the median
over rounds of eager seconds / its seconds, so that a busy machine slows both alike. Eager is `model(images,
maps=False)` in inference mode and channels last, as `plures predict` runs it. `difference`: largest of a score.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write

from plures.experiment import Experiment
from plures.inference import export as room
from plures.inference.export import export
from plures.inference.exporting import checks, formats
from plures.metrics.thresholds import sigmoid
from plures.models.model import Model, build_model, save
from plures.training.run import Run

SHARED = Path(os.environ.get("PLURES_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
MOBILENET = {
    "model": "mobilenetv2_100",
    "image_size": 224,
    "weights": str(SHARED / "weights" / "mobilenetv2_100.safetensors"),
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "model_options": {"pad_type": "same", "bn_eps": 1e-3},
}
MODELS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "mobilenetv2 224, linear": ("timm", "linear", MOBILENET, 20),
    "small_conv 64, codebook": ("small_conv", "codebook", {"image_size": 64}, 10),
    "patches 640, codebook": ("patches", "codebook", {}, 80),
}


def eager(model: Model) -> formats.Runner:
    def run(images: np.ndarray) -> formats.Outputs:
        with torch.inference_mode():
            return {"scores": sigmoid(model(torch.from_numpy(images), maps=False).logits.double().numpy())}

    return run


def runners(run: Run, folder: Path, calibration: str, threads: int) -> dict[str, tuple[formats.Runner, float]]:
    """Each form of the model and its size in MB."""
    found: dict[str, tuple[formats.Runner, float]] = {}
    for name, to, int8 in (
        ("onnx", "onnx", None), ("onnx int8 dynamic", "onnx", "dynamic"), ("onnx int8 static", "onnx", "static"),
        ("openvino", "openvino", None), ("openvino int8 static", "openvino", "static"), ("torch .pt2", "torch", None),
    ):  # fmt: skip
        path = folder / f"{name.replace(' ', '_')}{room.SUFFIX[to]}"
        try:
            made = export(run, to, path, int8=int8, calibration=calibration if int8 == "static" else None)
        except Exception as error:
            print(f"  {name}: {error}", flush=True)
            continue
        content = [file.read_bytes() for file in made.files]
        if to == "onnx":
            runner = formats.run_onnx(content[0], threads)
        elif to == "openvino":
            runner = formats.run_openvino(content[0], content[1], threads)
        else:
            runner = formats.run_torch(content[0], False)
        found[name] = runner, made.bytes / 1e6
        print(f"  {name}: {made.agreement}", flush=True)
    return found


def measure(name: str, batch: int, forms: dict[str, tuple[formats.Runner, float]], rounds: int) -> list[dict[str, Any]]:
    side = MODELS[name][2].get("image_size", 640)
    images = checks.patterns(batch, side, side, seed=0)
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    scores = {form: run(images)["scores"] for form, (run, _) in forms.items()}
    for _ in range(rounds + 1):  # the first warms up
        for form, (run, _) in forms.items():
            started = time.perf_counter()
            run(images)
            seconds[form].append(time.perf_counter() - started)
    rows = []
    for form, (_, megabytes) in forms.items():
        ratios = [a / b for a, b in zip(seconds["torch eager"][1:], seconds[form][1:], strict=True)]
        rows.append(
            {
                "model": name, "batch": batch, "form": form, "megabytes": round(megabytes, 2),
                "images_per_second": round(batch / statistics.median(seconds[form][1:]), 1),
                "speedup": round(statistics.median(ratios), 2),
                "speedup_quartiles": "{:.2f} to {:.2f}".format(*np.quantile(ratios, [0.25, 0.75])),
                "difference": f"{np.abs(scores[form] - scores['torch eager']).max():.1e}",
                "rounds": rounds, "threads": torch.get_num_threads(),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    photos = str(SHARED / "data" / "voc12" / "VOCdevkit" / "VOC2012" / "JPEGImages")
    for name, (embedder, head, options, classes) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            model = build_model(embedder, head, tuple(f"class {k}" for k in range(classes)), options).eval()
            run = Run.create(Path(folder) / "run", Experiment(data="photos"))
            save(model, run.path)
            run.write_json("imported.json", {"from": "benchmark"})  # no data of its own: no mAP to measure
            print(name, flush=True)
            forms: dict[str, tuple[formats.Runner, float]] = {"torch eager": (eager(model), _megabytes(model))}
            forms |= runners(run, Path(folder), photos, args.threads)
            for batch in (1, 8):
                rows += measure(name, batch, forms, args.rounds)
    print(write("export_speed", rows))


def _megabytes(model: Model) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6


if __name__ == "__main__":
    main()
