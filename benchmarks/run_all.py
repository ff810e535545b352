"""`make bench`: every benchmark with small defaults, one after another, then the page docs/benchmarks.md with plots.

    python benchmarks/run_all.py              # all (PLURES_SHARED names the folder with data/)
    python benchmarks/run_all.py images       # some
    python benchmarks/run_all.py --page       # only the page, from the results that are there

A script that fails is named at the end and leaves its last results as they were.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SCRIPTS = {  # name of the script: arguments that keep it short
    "images": ["--photos", "60", "--large", "4"],
    "patch_model": ["--batch", "2"],
    "metrics": ["--runs", "3"],
    "predict": [],
    "distributed": [],
    "scaling": [],
    "label_state": [],
    "read_table": [],
}
Rows = list[dict[str, str]]


def results(name: str) -> Rows:
    path = HERE / "results" / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def table(rows: Rows, columns: dict[str, str]) -> str:
    """A Markdown table of these columns {column: heading}."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(column, "") for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def bars(name: str, title: str, labels: list[str], values: list[float], limit: tuple[str, float] | None = None) -> str:
    """A picture docs/pictures/bench_NAME.png of horizontal bars, and a line where the limit is; the Markdown for it."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.38 * len(labels)), layout="constrained")
    colours = ["#2a6f97" if "plures" in label else "#b0b7bd" for label in labels]
    drawn = axes.barh(labels, values, color=colours)
    axes.bar_label(drawn, fmt="{:.3g}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    if limit is not None:
        axes.axvline(limit[1], color="#c1121f", linestyle="--", linewidth=1)
        axes.text(limit[1], -0.55, limit[0], color="#c1121f", ha="center", va="bottom", fontsize=8)
    axes.set_xlabel(title)
    (DOCS / "pictures").mkdir(exist_ok=True)
    figure.savefig(DOCS / "pictures" / f"bench_{name}.png", dpi=110)
    plt.close(figure)
    return f"![{title}](pictures/bench_{name}.png)"


def images_part(rows: Rows) -> str:
    labels = [f"{row['photos']}: {row['pipeline']}" for row in rows]
    picture = bars("images", "photos a second of one core", labels, [float(r["images_per_cpu_second"]) for r in rows])
    columns = {"photos": "photos", "pipeline": "pipeline", "images_per_cpu_second": "a second", "least": "least"}
    columns |= {"most": "most", "times_official": "times official", "n": "n", "peak_rss_mb": "peak MB"}
    return f"{picture}\n\n{table(rows, columns)}"


def patch_part(rows: Rows) -> str:
    labels = [f"{row['what']}: {row['form']}" for row in rows]
    picture = bars("patch_model", "images a second", labels, [float(row["images_per_second"]) for row in rows])
    columns = {"what": "what", "form": "form", "batch": "batch", "seconds": "seconds", "times_plain": "times plain"}
    columns |= {"gflop_an_image": "GFLOP an image", "gb_an_image": "GB an image"}
    columns |= {"share_of_flops": "of the machine's products", "share_of_bandwidth": "of its copying"}
    columns |= {"peak_rss_mb": "peak MB (so far)"}
    return f"{picture}\n\n{table(rows, columns)}"


def grid_part(rows: Rows) -> str:
    picture = bars(
        "grid", "official MLSPL grid: official seconds over plures", [f"plures {row['loss']}" for row in rows],
        [float(row["official_over_ours"]) for row in rows], limit=("aim", 100),
    )  # fmt: skip
    columns = {"loss": "loss", "runs": "runs", "epochs": "epochs", "threads": "threads", "seconds": "seconds"}
    columns |= {"cpu": "CPU seconds", "official_seconds": "official, recorded", "official_over_ours": "times official"}
    columns |= {"plain_seconds": "plain form", "plain_over_ours": "times plain", "differences": "mAP less plain's"}
    parts = [picture, table(rows, columns)]
    coco = results("coco_grid")
    if coco:
        columns = {"rows": "rows", "runs": "runs", "epochs": "epochs", "threads": "threads", "seconds": "seconds"}
        columns |= {"whole_grid_seconds": "whole grid (25 epochs), s", "whole_grid_cpu": "whole grid, CPU s"}
        parts += ["At the size of COCO (2,048 wide, 80 classes):", table(coco, {**columns, "peak_MB": "peak MB"})]
    return "\n\n".join(parts)


def metrics_part(rows: Rows) -> str:
    timed = [row for row in rows if row["images_x_classes"] == rows[0]["images_x_classes"]]
    labels = [row["what"] if row["what"].split()[0] in PEERS else f"plures {row['what']}" for row in timed]
    picture = bars("metrics", f"seconds, {rows[0]['images_x_classes']}", labels, [float(r["min_s"]) for r in timed])
    columns = {"what": "what", "images_x_classes": "size", "min_s": "least s", "median_s": "median s"}
    columns |= {"sklearn_over_this": "scikit-learn over this", "extra_mb": "extra MB", "runs": "n"}
    return f"{picture}\n\n{table(rows, columns)}"


def predict_part(rows: Rows) -> str:
    labels = [f"plures, {int(row['images']):,} images" for row in rows]
    picture = bars("predict", "peak memory of the process, MB", labels, [float(r["peak_rss_mb"]) for r in rows])
    columns = {"images": "images", "seconds": "seconds", "images_per_second": "a second", "peak_rss_mb": "peak MB"}
    return f"{picture}\n\n{table(rows, {**columns, 'resume_s': 'resume of a finished folder, s'})}"


def distributed_part(rows: Rows) -> str:
    columns = {"processes": "processes", "seconds_an_epoch": "s an epoch", "images_per_second": "images a second"}
    return table(rows, {**columns, "loss": "loss", "largest_difference_of_weights": "largest difference of weights"})


def scaling_part(rows: Rows) -> str:
    return f"{curves(rows)}\n\n" + table(rows, {
        "what": "what", "over": "over", "value": "how many", "seconds": "seconds", "peak_mb": "peak MB", "runs": "n"
    })  # fmt: skip


def curves(rows: Rows) -> str:
    """A picture docs/pictures/bench_scaling.png: seconds above, memory below, a column for each thing that grows."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    things = list(dict.fromkeys(row["over"] for row in rows))
    figure, axes = plt.subplots(2, len(things), figsize=(3.1 * len(things), 5.2), layout="constrained", sharex="col")
    for place, over in enumerate(things):
        mine = [row for row in rows if row["over"] == over]
        for what in dict.fromkeys(row["what"] for row in mine):
            points = [row for row in mine if row["what"] == what]
            for axis, measure in zip(axes[:, place], ("seconds", "peak_mb"), strict=True):
                axis.loglog([float(r["value"]) for r in points], [float(r[measure]) for r in points], "o-", label=what)
        axes[0, place].legend(fontsize=7)
        axes[1, place].set_xlabel(over)
        places = sorted({float(row["value"]) for row in mine})
        axes[1, place].set_xticks(places, [f"{value:,.0f}" for value in places])
        axes[1, place].tick_params(axis="x", labelrotation=45)
        axes[1, place].set_xticks([], minor=True)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MB")
    (DOCS / "pictures").mkdir(exist_ok=True)
    figure.savefig(DOCS / "pictures" / "bench_scaling.png", dpi=110)
    plt.close(figure)
    return "![how seconds and memory grow](pictures/bench_scaling.png)"


PEERS = ("scikit-learn", "torchmetrics")
PARTS: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "images": ("Reading photos", images_part),
    "grid": ("Linear heads on frozen features, trained together", grid_part),
    "patch_model": ("The patch model", patch_part),
    "metrics": ("Average precision", metrics_part),
    "predict": ("Prediction of long lists", predict_part),
    "distributed": ("Two processes as one", distributed_part),
    "scaling": ("How cost grows", scaling_part),
}


DRAWN = {
    "images": {"pipeline"},
    "grid": {"differences"},
    "patch_model": {"form"},
    "metrics": {"extra_mb"},
    "predict": {"resume_s"},
    "distributed": {"loss"},
    "scaling": {"peak_mb"},
}


def page() -> Path:
    """Write docs/benchmarks.md from the results that are there."""
    parts = [
        "# Benchmarks",
        "Made by `make bench` (`benchmarks/run_all.py`). Ratios are within one run on one machine.",
    ]
    for name, (title, draw) in PARTS.items():
        rows = results(name)
        if not rows or not DRAWN[name] <= rows[0].keys():  # none yet, or of an older script
            continue
        about: dict[str, Any] = {key: rows[0].get(key, "") for key in ("machine", "date", "commit")}
        parts += [f"## {title}", draw(rows), f"`benchmarks/{name}.py`; {', '.join(v for v in about.values() if v)}"]
    path = DOCS / "benchmarks.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which; all if none is named")
    parser.add_argument("--page", action="store_true", help="only the page")
    args = parser.parse_args()
    failed = []
    for name in [] if args.page else args.names or SCRIPTS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py"), *SCRIPTS[name]], check=False).returncode:
            failed.append(name)
    print(page())
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
