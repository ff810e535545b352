"""Speed of exported files on a CPU against torch eager. (What 8 bits cost in mAP: benchmarks/export_int8.py.)

    OMP_NUM_THREADS=1 PLURES_SHARED=... python benchmarks/export.py [--rounds 15] [--threads 1]
        [--only mobilenetv2] [--folder FILES] [--forms onnx openvino]

--only: the models whose names begin so; rows of others stay. --folder: keeps the exported files, and takes those that
lie there (with --rounds 0 they are made and nothing is timed).

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import read_rows, write

from plures.config import Experiment
from plures.export import checks, formats
from plures.export import export as room
from plures.export.export import export
from plures.export.quantise import Int8
from plures.metrics.thresholds import sigmoid
from plures.models.model import Model, build_model, save
from plures.runs.run import Run

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


FORMS: dict[str, tuple[formats.Format, Int8 | None]] = {
    "onnx": ("onnx", None),
    "onnx int8 dynamic": ("onnx", "dynamic"),
    "onnx int8 static": ("onnx", "static"),
    "openvino": ("openvino", None),
    "openvino int8 static": ("openvino", "static"),
    "torch .pt2": ("torch", None),
}


def runners(
    run: Run, folder: Path, calibration: str, threads: int, wanted: Sequence[str]
) -> dict[str, tuple[formats.Runner, float]]:
    """Each wanted form of the model and its size in MB."""
    found: dict[str, tuple[formats.Runner, float]] = {}
    for name in wanted:
        to, int8 = FORMS[name]
        path = folder / f"{name.replace(' ', '_')}{room.SUFFIX[to]}"
        if not path.is_file():
            made = export(run, to, path, int8=int8, calibration=calibration if int8 == "static" else None)
            print(f"  {name}: {made.agreement}", flush=True)
        content = [file.read_bytes() for file in (path, path.with_suffix(".bin")) if file.is_file()]
        if to == "onnx":
            runner = formats.run_onnx(content[0], threads)
        elif to == "openvino":
            runner = formats.run_openvino(content[0], content[1], threads)
        else:
            runner = formats.run_torch(content[0], False)
        found[name] = runner, sum(map(len, content)) / 1e6
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
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        if name.startswith(args.only):
            with tempfile.TemporaryDirectory() as folder:
                files = (args.folder or Path(folder)) / name.split()[0]
                files.mkdir(parents=True, exist_ok=True)
                rows += rows_of(name, Path(folder) / "run", files, args.rounds, args.threads, args.forms)
    if args.rounds:
        others = [row for row in read_rows("export_speed") if not row["model"].startswith(args.only)]
        print(write("export_speed", others + rows))


def rows_of(
    name: str, folder: Path, files: Path, rounds: int, threads: int, wanted: Sequence[str]
) -> list[dict[str, Any]]:
    """Make a model, its run folder and its files, and time them."""
    backbone, head, options, classes = MODELS[name]
    torch.manual_seed(0)
    model = build_model(backbone, head, tuple(f"class {k}" for k in range(classes)), options).eval()
    run = Run.create(folder, Experiment(data="photos"))
    save(model, run.path)
    run.write_json("imported.json", {"from": "benchmark"})  # no data of its own: no mAP to measure
    print(name, flush=True)
    photos = str(SHARED / "data" / "voc12" / "VOCdevkit" / "VOC2012" / "JPEGImages")
    forms: dict[str, tuple[formats.Runner, float]] = {"torch eager": (eager(model), _megabytes(model))}
    forms |= runners(run, files, photos, threads, wanted)
    return [row for batch in (1, 8) for row in measure(name, batch, forms, rounds)] if rounds else []


def _megabytes(model: Model) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6


if __name__ == "__main__":
    main()
