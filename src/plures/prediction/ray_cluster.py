"""Prediction on a Ray cluster: parts of the images go to workers, each of which holds the model once.

The parts are those of `plures predict` into a folder, so that a killed job resumes with `--resume`, and a job that was
begun on one machine continues on a cluster.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plures.data.photos import is_address
from plures.errors import PluresError, require
from plures.prediction.files import SUFFIXES, PartRecord, Parts
from plures.prediction.predict import ROWS_A_PART, Summary, Tally, settings_of, unfinished, write_part
from plures.runs.run import Run
from plures.scoring.predictor import Precision, load, run_bytes, run_from_bytes
from plures.scoring.sources import images_of


def predict_on_ray(
    run: str | Path | Run,
    source: str | Path,
    out: str | Path,
    *,
    threshold: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    skip_bad: bool = False,
    parts: int | None = None,
    resume: bool = False,
    precision: Precision = "float32",
) -> Summary:
    """Score the images of `source` into the folder `out`, on the cluster that ray finds (RAY_ADDRESS) or on this
    machine. Arguments as `plures.predict`; workers: how many models work at once (0: one a GPU, else one a core).

    The run folder need not be seen by the workers; images and `out` must be (a shared disk, or addresses as s3://).
    Raises PluresError if ray is not installed.
    """
    require("--engine ray", "ray", ["ray"])
    import ray

    if Path(out).suffix.lower() in SUFFIXES:
        raise PluresError(f"--engine ray writes parts: give a folder, such as --out {Path(out).with_suffix('')}")
    if precision == "int8":
        raise PluresError("--engine ray scores in float32 or bfloat16; int8 is for one machine")
    run = run if isinstance(run, Run) else Run(run)
    Parts.refuse_other(str(out))
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = int(there.get("GPU", 0))
    workers = workers or gpus or max(1, int(there.get("CPU", 1)))
    rows, scorer = parts or ROWS_A_PART, load(run, threshold=threshold, precision=precision)
    address = str(out) if "://" in str(out) else str(Path(out).absolute())
    here = os.getcwd()
    folder = Parts(address, scorer.classes, here=here)
    folder.begin(settings_of(run, source, rows, 1, scorer), resume)
    tally = Tally(source)
    todo = [
        {"part": number, "names": [name for name, _ in items], "images": [_everywhere(image) for _, image in items]}
        for number, items in unfinished(images_of(source, skip_bad)(), rows, folder, tally)
    ]
    if todo:
        settings = {"threshold": threshold, "precision": precision}
        done = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            PartWorker,
            fn_constructor_kwargs={
                "files": ray.put(run_bytes(run)),
                "folder": address,
                "here": here,
                "batch_size": batch_size,
                "settings": settings,
            },
            batch_size=1,
            num_gpus=1 if gpus else 0,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo))),
        )
        for row in done.iter_rows():
            record = PartRecord(**{name: row[name] for name in PartRecord.__dataclass_fields__})
            tally.add(record, list(zip(row["bad_images"], row["reasons"], strict=True)))
    return tally.summary()


def _everywhere(image: Any) -> str:
    """A path that means the same in another process's folder. Raises PluresError for images in memory."""
    if not isinstance(image, str):
        raise PluresError("--engine ray reads images from files or addresses; these are in memory")
    return image if is_address(image) else os.path.abspath(image)


class PartWorker:
    """A worker of the cluster: opens the model once, then scores and writes part after part."""

    def __init__(self, files: Any, folder: str, here: str, batch_size: int, settings: dict[str, Any]) -> None:
        import ray

        with tempfile.TemporaryDirectory() as place:
            self.scorer = load(run_from_bytes(ray.get(files), place), **settings)
        self.folder, self.batch_size = Parts(folder, self.scorer.classes, here=here), batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One part: its number, the names and places of its images -> what the part says of itself."""
        number = int(batch["part"][0])
        names, images = (list(map(str, batch[key][0])) for key in ("names", "images"))
        items = ((number, item) for item in zip(names, images, strict=True))
        scored = list(self.scorer.stream(items, self.batch_size))
        record = write_part(self.folder, self.scorer, scored)
        bad = [b for s in scored for b in s.bad][:1000]
        row = {**asdict(record), "bad_images": [name for name, _ in bad], "reasons": [reason for _, reason in bad]}
        return {key: [value] for key, value in row.items()}
