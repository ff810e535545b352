"""What 8 bits cost: mAP of finished runs before and after, on their own validation images.

    python benchmarks/export_int8.py RUN... [--forms onnx:dynamic onnx:static openvino:static]

Exports each run with `plures export --int8` (200 training images measure the ranges) and writes what it tells to
benchmarks/results/export_int8.csv; rows of other runs and forms stay.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from environment import read_rows, write

from plures.export.export import SUFFIX, export
from plures.runs.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--forms", nargs="+", default=["onnx:dynamic", "onnx:static", "openvino:static"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for path in args.runs:
        for form in args.forms:
            to, int8 = form.split(":")
            with tempfile.TemporaryDirectory() as folder:
                plain = export(path, to, Path(folder) / f"plain{SUFFIX[to]}")
                small = export(path, to, Path(folder) / f"small{SUFFIX[to]}", int8=int8)
            assert small.cost is not None
            e = Run(path).experiment
            model = e.backbone.options.get("model", e.backbone.name)
            rows.append(
                {
                    "run": path.name, "backbone": model, "head": e.head.name, "format": to, "int8": int8,
                    "megabytes_before": round(plain.bytes / 1e6, 2), "megabytes_after": round(small.bytes / 1e6, 2),
                    "map_before": round(small.cost.before, 2), "map_after": round(small.cost.after, 2),
                    "map_loss": round(small.cost.before - small.cost.after, 2), "images": small.cost.images,
                    "split": small.cost.split, "largest_difference": f"{small.agreement.exact:.1e}",
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
            made = {(row["run"], row["format"], row["int8"]) for row in rows}
            known = [r for r in read_rows("export_int8") if (r["run"], r["format"], r["int8"]) not in made]
            write("export_int8", known + rows)


if __name__ == "__main__":
    main()
