"""The rows of `plures demo` over seeds: mean and spread of what the demo prints for one.

A seed changes the first weights, the order of the images and which tag of a scene is observed (supervision.seed).

    OMP_NUM_THREADS=1 python benchmarks/demo.py --seeds 5 --runs DIR

Beyond the demo's rows: a second round, whose teacher is the third row's run of the same seed (its tags above 0.5 count
as present) and whose loss is the second row's. Runs are added to what demo_runs.csv has; those that are there are not
trained again. Writes demo.csv: n, mean and sd.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment, read_rows, write


@dataclass(frozen=True)
class Job:
    title: str
    experiment: Any
    folder: Path
    seed: int


def one_run(job: Job, dataset: Any) -> dict[str, Any]:
    from plures.metrics.report import Report
    from plures.runs.run import Run
    from plures.training.train import train

    finished = (job.folder / "report.json").is_file()
    begun = (job.folder / "experiment.yaml").is_file()
    run = Run(job.folder) if finished else train(job.experiment, job.folder, dataset=dataset, resume=begun)
    report = Report.load(run.path / "report.json")
    return {
        "row": job.title, "loss": run.experiment.loss.name, "lr": run.experiment.lr, "epochs": run.experiment.epochs,
        "seed": job.seed, "mAP": round(100 * report.map, 2), "tags": round(report.tags_predicted, 3),
        "true_tags": round(report.tags_true, 3), "seconds": round(sum(r["seconds"] for r in run.log)),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """n, mean and sd over the seeds of each row of the table."""
    lines = []
    for title, epochs in dict.fromkeys((r["row"], r["epochs"]) for r in rows):
        of = [r for r in rows if (r["row"], r["epochs"]) == (title, epochs)]
        maps, tags = (np.array([float(r[name]) for r in of]) for name in ("mAP", "tags"))
        sd = round(float(maps.std(ddof=1)), 2) if len(of) > 1 else ""
        mean = {"mAP": round(float(maps.mean()), 2), "sd": sd, "lowest": maps.min(), "highest": maps.max()}
        lines.append(
            {"row": title, "loss": of[0]["loss"], "lr": of[0]["lr"], "epochs": epochs, "n": len(of), **mean}
            | {"tags": round(float(tags.mean()), 2), "true_tags": of[0]["true_tags"]}
        )
    return lines


def main() -> None:
    from plures.data.read import read
    from plures.report.demo import ROWS as DEMO
    from plures.report.demo import Row

    second = Row("one tag, second round", "one_tag_second", DEMO[1].settings | {"teacher_threshold": 0.5})
    ROWS = (*DEMO, second)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(row.folder for row in ROWS))
    parser.add_argument("--runs", type=Path, required=True, help="where the run folders go")
    args = parser.parse_args()
    dataset = read("scenes", train=3000, val=500, test=1000)
    rows = read_rows("demo_runs")
    for seed in range(args.seeds):
        for row in [row for name in args.rows.split(",") for row in ROWS if row.folder == name]:
            changes: dict[str, Any] = {"seed": seed}
            if row.settings["supervision"] == "single_positive":
                changes["supervision"] = {"name": "single_positive", "seed": 1200 + seed}
            if row is second:
                changes["teacher"] = str(args.runs / f"{DEMO[2].folder}_{seed}")
            experiment = row.experiment(**changes)
            known = any(
                (r["row"], int(r["epochs"]), int(r["seed"])) == (row.title, experiment.epochs, seed) for r in rows
            )
            if known and not (row is DEMO[2] and second.folder in args.rows):  # the teacher itself is needed
                continue
            rows = [r for r in rows if (r["row"], int(r["seed"])) != (row.title, seed) or int(r["epochs"]) != 10]
            job = Job(row.title, experiment, args.runs / f"{row.folder}_{seed}", seed)
            rows.append({**one_run(job, dataset), **environment()})
            print(rows[-1], flush=True)
            write("demo_runs", rows)
            write("demo", summary(rows))


if __name__ == "__main__":
    main()
