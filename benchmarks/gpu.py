"""Every number that waits for a GPU, in one run of about 12 minutes on one H100-class card, most wanted first.

    python benchmarks/pack.py --out pack                       # first, where the photographs are
    python benchmarks/gpu.py --pack pack --out gpu --budget-s 690
    python benchmarks/gpu.py --tiny --out /tmp/gpu             # the rehearsal: all of it, tiny, on a CPU

Writes OUT/gpu.csv anew after every row: what was measured, machine, date, commit. A job has a process of its own: one
that fails is a row that says why, and the others run all the same. A job that does not fit into what is left of the
budget is skipped, one that is still running at its end is stopped; both are rows that say so. The same command again
does what is not yet `ok` in OUT/gpu.csv. OUT/profile.txt: where the patch model's step spends its time. Timings run
alone; trainings run `--processes` at once, and their images per second are then those of a shared card.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from environment import environment, write

Row = dict[str, Any]
PRELOADED = ["torch", "timm", "lightning.fabric", "plures.training.train", "plures.sweeps.vectorized.training"]


@dataclass(frozen=True)
class Size:
    """How much of everything: FULL for the card, TINY for the rehearsal."""

    side: int  # pixels of the patch model
    batches: tuple[int, ...]
    steps: int  # timed of a step
    compiler: str  # backend of torch.compile
    images: int | None  # photographs, None for all
    epochs: int | None  # of trainings, None: the recipe's
    seeds: int
    fine_side: int  # pixels of the fine-tuned network
    fine: str  # the network itself, in timm
    rounds: int  # of head timings
    attention: tuple[int, int]  # width and feed-forward of Query2Label's head, for its speed
    grid_share: float  # of COCO's images in one epoch of the grid
    ranking: tuple[int, int]  # images and classes of the metrics
    backbones: str  # timm models whose features are timed
    road: int  # images through the whole road of frozen features
    road_side: int | None  # their pixels, None: what the backbone likes
    pace: float  # times a job's expected seconds


FULL = Size(
    640, (16, 64, 256), 10, "inductor", None, None, 3, 260, "tf_efficientnet_lite2", 7, (2048, 8192), 1.0,
    (1_000_000, 500), "tf_efficientnet_lite2,resnet50,vit_small_patch16_224,convnext_tiny,vit_base_patch16_224",
    2048, None, 1.0,
)  # fmt: skip
TINY = Size(
    128, (1,), 1, "eager", 16, 1, 1, 32, "tf_efficientnet_lite0", 1, (64, 128), 0.002,
    (2000, 20), "resnet18,vit_tiny_patch16_224", 4, 32, 0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """name: its key in the results. seconds: expected on an H100-class card, itself not measured yet. work: yields
    rows as they are measured. alone: a timing, beside which nothing else runs."""

    name: str
    seconds: float
    work: Callable[[], Iterator[Row]]
    alone: bool = True


# ------------------------------------------------------------------------------------------------- the patch model


def patch_speed(form: str, size: Size) -> Iterator[Row]:
    """Images per second of inference and of a training step, for every batch size."""
    import torch
    from patch_model import best, made

    for batch in size.batches:
        _, infer, train = made(form, batch, size.side, size.compiler)
        for what, step in (("inference", infer), ("training", train)):
            for _ in range(3):  # compilation and the choice of algorithms
                step()
            seconds = best(step, size.steps)
            row: Row = {"what": what, "form": form, "batch": batch, "images_per_second": round(batch / seconds, 1)}
            if torch.cuda.is_available():
                row["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            yield row


def patch_profile(form: str, size: Size, out: Path) -> Iterator[Row]:
    """What bounds a training step: bytes, FLOPs or launches, against what the card can do in the same run."""
    import torch
    from patch_model import best, ceilings, made, measure
    from torch.profiler import ProfilerActivity, profile

    cuda, batch, steps = torch.cuda.is_available(), size.batches[0], 3
    top = ceilings(torch.device("cuda" if cuda else "cpu"), 2048 if size.pace else 256)
    yield {"what": "limits", **{f"limit_{name}": round(value, 1) for name, value in top.items()}}
    _, _, train = made(form, batch, size.side, size.compiler)
    for _ in range(3):
        train()
    seconds = best(train, size.steps)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as found:
        for _ in range(steps):
            train()
        if cuda:
            torch.cuda.synchronize()
    events, by = found.key_averages(), "self_device_time_total" if cuda else "self_cpu_time_total"
    with (out / "profile.txt").open("a", encoding="utf-8") as handle:
        handle.write(f"{form}, batch {batch}, {steps} steps\n{events.table(sort_by=by, row_limit=25)}\n")
    busy = sum(getattr(e, by) for e in events) / 1e6 / steps
    launches = sum(e.count for e in events if "LaunchKernel" in e.key or "GraphLaunch" in e.key) / steps
    flops, moved = measure(form, batch, 1, counted=True, side=size.side)["train"]
    half = "bf16" in form
    of_flops = 3 * measure(form, batch, 1, counted=True, side=size.side)["infer"][0] * batch / seconds
    shares = {
        "busy": busy / seconds,
        "flops": of_flops / top["bfloat16" if half else "float32"],
        "bytes": moved * batch / seconds / top["copy"],
    }
    bound = "launches" if cuda and shares["busy"] < 0.7 else max(("flops", "bytes"), key=lambda name: shares[name])
    row: Row = {"what": "training", "form": form, "batch": batch, "images_per_second": round(batch / seconds, 1)}
    row |= {f"share_{name}": round(value, 3) for name, value in shares.items()}
    yield row | {"launches_per_step": round(launches), "gflop_per_image": round(flops, 2), "bound_by": bound}


# ---------------------------------------------------------------------------------------------- trainings, on the card


class CardBatches:
    """Batches of a dataset whose decoded pixels lie on the device: what ImageBatches gives, without the way there."""

    def __init__(self, pixels: Any, labels: Any, order: Any, flip: bool, seed: int) -> None:
        """pixels: uint8 [N, S, S, 3] on the device. labels: int8 [N, K]. flip: as augment=flip, by the same draws."""
        self.pixels, self.labels, self.order, self.flip, self.seed = pixels, labels, order, flip, seed

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> Iterator[Any]:
        import torch

        from plures.data.loading import Batch
        from plures.data.photos import random_for

        for piece in self.order.pieces(epoch):
            index = torch.from_numpy(piece.rows)
            images = self.pixels[index.to(self.pixels.device)]  # [B, S, S, 3]
            if self.flip:
                draws = [random_for(self.seed, epoch, int(row)).random() < 0.5 for row in piece.rows]
                turned = torch.tensor(draws, device=images.device)[:, None, None, None]
                images = torch.where(turned, images.flip(2), images)
            images = images.permute(0, 3, 1, 2)
            yield Batch(images, self.labels[index], index, None, piece.total, piece.share, piece.last)


def on_card() -> type[Any]:
    """plures' Training with CardBatches in the place of ImageBatches."""
    import torch

    from plures.training.train import Training

    class OnCard(Training):
        def _image_batches(self, dataset: Any, order: Any) -> Any:
            held = self.__dict__.setdefault("pixels", {})
            if id(dataset) not in held:
                pixels = torch.from_numpy(dataset.images).to(self.fabric.device)
                held[id(dataset)] = dataset, pixels  # the dataset too, so that its id stays its own
            flip = self.experiment.augmentation == "flip" and order.shuffle_seed is not None
            labels = torch.from_numpy(dataset.labels.values)
            return CardBatches(held[id(dataset)][1], labels, self._mine(order), flip, self.experiment.seed)

    return OnCard


def photographs(args: argparse.Namespace, size: Size, side: int) -> Any:
    """The pack's photographs at this side; without a pack (rehearsal) noise with VOC's shape of labels."""
    import numpy as np

    from plures.data.dataset import Dataset
    from plures.labels import Labels

    if args.pack is not None:
        from pack import unpacked

        return unpacked(args.pack, side, size.images)
    random, N, K = np.random.default_rng(0), size.images or 48, 20
    images = random.integers(0, 256, (N, side, side, 3), np.uint8)
    present = random.random((N, K)) < 0.2
    present[np.arange(N), np.arange(N) % K] = True
    splits = np.where(np.arange(N) % 2 == 0, "train", "test")
    classes = tuple(f"class {k}" for k in range(K))
    return Dataset(images, Labels.from_masks(present), classes, splits, name="noise")


def training(name: str, values: Row, side: int, args: argparse.Namespace, size: Size) -> Iterator[Row]:
    """One run from the first step to the test mAP."""
    import shutil
    import tempfile

    import numpy as np
    import torch
    from voc12 import FREQUENT

    from plures import Experiment
    from plures.metrics.report import Report
    from plures.training import train as module

    dataset = photographs(args, size, side)
    cuda = torch.cuda.is_available()
    values = {**values, "device": "cuda" if cuda else "cpu", "workers": 0}
    if size.epochs is not None:
        values["epochs"] = size.epochs
    if cuda:
        values["precision"] = "bf16-mixed"
    module.Training = on_card()  # type: ignore[misc]
    folder, began = Path(tempfile.mkdtemp()), time.perf_counter()
    run = module.train(Experiment(**values), folder / "run", dataset=dataset)
    report, log = Report.load(run.path / "report.json"), run.log
    shutil.rmtree(folder)
    ap = {c.name: c.average_precision for c in report.per_class}
    frequent = [ap[c] for c in FREQUENT if c in ap] or [math.nan]
    yield {
        "what": name, "seed": values["seed"], "epochs": len(log), "batch": run.experiment.batch_size,
        "precision": run.experiment.precision, "test_map_20": round(100 * report.map, 2),
        "test_map_13": round(100 * float(np.mean(frequent)), 2),
        "val_map": round(log[-1].get("val_map", math.nan), 2), "tags_per_image": round(report.tags_predicted, 2),
        "images_per_second": statistics.median(r["images_per_second"] for r in log), "data": dataset.name,
        "run_seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def table1(row: str, seed: int, args: argparse.Namespace, size: Size) -> Iterator[Row]:
    """A row of Jouanneau et al.'s Table 1, the patch model from scratch."""
    values: Row = {"recipe": f"jouanneau2022:{row}", "seed": seed}
    if size is TINY:
        levels = round(math.log2(size.side / 64))
        values |= {"backbone": {"name": "patches", "image_size": size.side, "levels": levels}, "val_share": 0.2}
    return training(f"jouanneau2022:{row}", values, size.side, args, size)


def fine_tuned(head: str, loss: str, seed: int, args: argparse.Namespace, size: Size) -> Iterator[Row]:
    """cole2021 with another network; Adam 1e-4, ten times that for the head, as in voc12_end_to_end.py; not tuned."""
    from pack import WEIGHTS
    from voc12_heads import HEADS

    from plures.recipes import load_recipe

    rows = load_recipe("cole2021").rows
    values: Row = {"recipe": f"cole2021:{loss if loss in rows else 'an'}", "seed": seed, "image_size": size.fine_side}
    if loss not in rows:
        values["loss"] = loss
    backbone: Row = {"name": "timm", "model": size.fine, "mean": [0.5] * 3, "std": [0.5] * 3}
    if args.pack is not None:
        backbone["weights"] = str(args.pack / WEIGHTS)
    values |= {"backbone": backbone, "head": HEADS[head]["head"], "batch_size": 16, "lr": 1e-4}
    values["head_lr"] = 10.0 if head == "linear" else 5.0
    return training(f"{head}, {loss}", values, size.fine_side, args, size)


# -------------------------------------------------------------------------------------- heads, grids, metrics, features


def head_speed(size: Size) -> Iterator[Row]:
    """Query2Label against the plain transformer, and all four heads."""
    import heads
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    heads.D, heads.INNER = size.attention
    for row in heads.all_heads(size.rounds, device):
        yield {"what": "head", "form": row.pop("head"), **row}
    for row in heads.against_plain(size.rounds, device):
        yield {"form": row.pop("form"), **row}


def grid(size: Size) -> Iterator[Row]:
    """Eight runs of a linear head on features of COCO's size, one epoch of 25."""
    import torch
    from coco_grid import measure

    torch.set_num_threads(1)
    yield {"what": "grid", **measure("an", size.grid_share, 1, 1, "cuda" if torch.cuda.is_available() else "cpu")}


def metrics(size: Size) -> Iterator[Row]:
    """Average precision of scores that lie on the device."""
    import numpy as np
    import torch

    from plures.labels import Labels
    from plures.metrics.average_precision import average_precision

    N, K = size.ranking
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores = torch.rand(N, K, device=device, dtype=torch.float32)
    labels = Labels((np.random.default_rng(0).random((N, K), np.float32) < 0.02).astype(np.int8))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        average_precision(scores, labels)
        seconds.append(time.perf_counter() - began)
    yield {"what": "average precision", "images_x_classes": f"{N}x{K}", "seconds": round(min(seconds), 3)}


def features(name: str, size: Size) -> Iterator[Row]:
    """Images per second of a backbone with random weights: its forward alone, and through frozen_features."""
    import tempfile

    import numpy as np
    import torch

    from plures.data.dataset import Dataset
    from plures.labels import Labels
    from plures.models.model import build_model
    from plures.scoring.features import frozen_features

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model("timm", "linear", ("a",), {"model": name}, image_size=size.road_side).eval().to(device)
    side, batch = model.preprocessing.image_size, 256 if device.type == "cuda" else 2
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    for half in (False, True):
        seconds = math.inf
        for _ in range(5 if device.type == "cuda" else 2):
            began = time.perf_counter()
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                model.tokens(pixels).features.mean(1).float().cpu()
            seconds = min(seconds, time.perf_counter() - began)
        row: Row = {"what": "forward", "form": name, "batch": batch, "precision": "bfloat16" if half else "float32"}
        yield row | {"images_per_second": round(batch / seconds, 1)}
    images = np.random.default_rng(0).integers(0, 256, (size.road, side, side, 3), np.uint8)
    data = Dataset(images, Labels(np.full((size.road, 1), 1, np.int8)), ("a",))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PLURES_CACHE"] = cache
        began = time.perf_counter()
        frozen_features(model, data, pooled=True, device=device, batch_size=64)
        rate = size.road / (time.perf_counter() - began)
    yield {"what": "frozen_features", "form": name, "batch": 64, "images_per_second": round(rate, 1)}


def bfloat16(args: argparse.Namespace, size: Size) -> Iterator[Row]:
    """`predict --precision bfloat16`: images per second of scoring and test mAP, beside float32."""
    import tempfile

    import numpy as np
    import torch
    from pack import WEIGHTS

    from plures import Experiment, load
    from plures.metrics.average_precision import mean_average_precision
    from plures.training.train import train

    dataset = photographs(args, size, size.fine_side)
    backbone: Row = {"name": "timm", "model": size.fine, "mean": [0.5] * 3, "std": [0.5] * 3}
    backbone |= {"pretrained": False, "image_size": size.fine_side}
    if args.pack is not None:
        backbone["weights"] = str(args.pack / WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PLURES_CACHE"] = f"{folder}/cache"
        train(Experiment(recipe="quick", backbone=backbone), f"{folder}/run", dataset=dataset)
        test = dataset.split("test")
        pixels = torch.from_numpy(np.ascontiguousarray(test.images.transpose(0, 3, 1, 2)))
        for precision in ("float32", "bfloat16"):
            model = load(f"{folder}/run", precision=precision)  # type: ignore[arg-type]
            for _ in range(2):  # the first time prepares
                began, logits = time.perf_counter(), []
                for part in pixels.split(64):
                    logits.append(model.score(part).logits.float().cpu())
                seconds = time.perf_counter() - began
            found = mean_average_precision(torch.cat(logits), test.labels)
            row: Row = {"what": "predict", "precision": precision, "batch": 64}
            row |= {"images_per_second": round(len(pixels) / seconds, 1)}
            yield row | {"test_map_20": round(100 * found.value, 2), "data": dataset.name}


# ----------------------------------------------------------------------------------------------------------- the run


def all_jobs(args: argparse.Namespace) -> list[Job]:
    """Every job, most wanted first."""
    size = TINY if args.tiny else FULL
    jobs = [
        Job(f"patch model, {form}", 60 if "compiled" in form or "graphs" in form else 15,
            lambda f=form: patch_speed(f, size))
        for form in ("plain", "plures bf16", "plures bf16 graphs", "plures", "plain bf16", "plures bf16 compiled")
    ]  # fmt: skip
    jobs.append(Job("patch model, profile", 30, lambda: patch_profile("plures bf16", size, args.out)))
    for seed, row in itertools.product(range(size.seeds), ("bce", "wn", "an", "epr", "role")):
        work = lambda r=row, s=seed: table1(r, s, args, size)  # noqa: E731
        jobs.append(Job(f"table 1, {row}, seed {seed}", 90, work, alone=False))
    losses = ("bce", "an", "an_ls", "wan", "epr", "role", "em", "gr")
    tuned = [("linear", loss, seed) for seed in range(size.seeds) for loss in losses]
    tuned += [
        (h, loss, seed) for seed in range(size.seeds) for h in ("query2label", "ml_decoder") for loss in ("bce", "an")
    ]
    for head, loss, seed in tuned:
        work = lambda h=head, n=loss, s=seed: fine_tuned(h, n, s, args, size)  # noqa: E731
        jobs.append(Job(f"end to end, {head}, {loss}, seed {seed}", 40, work, alone=False))
    jobs.append(Job("heads", 25, lambda: head_speed(size)))
    jobs.append(Job("grid", 40, lambda: grid(size)))
    jobs.append(Job("metrics", 30, lambda: metrics(size)))
    jobs += [
        Job(f"features, {name}", 12, lambda n=name: features(n, size))
        for name in (args.backbones or size.backbones).split(",")
    ]
    jobs.append(Job("predict", 40, lambda: bfloat16(args, size)))
    return [job for job in jobs if not args.only or any(part in job.name for part in args.only.split(";"))]


def child(name: str, args: argparse.Namespace, pipe: Connection) -> None:
    """A job in its own process; rows go through the pipe, an error as its last row."""
    job = next(job for job in all_jobs(args) if job.name == name)
    if args.tiny:
        import torch

        torch.set_num_threads(1)
    try:
        for row in job.work():
            pipe.send({"job": name, "status": "ok", **row})
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        with (args.out / "errors.txt").open("a", encoding="utf-8") as handle:
            handle.write(f"{name}\n{traceback.format_exc()}\n")
        pipe.send({"job": name, "status": f"failed: {said}"})


class Results:
    """Rows so far, in the file after each."""

    def __init__(self, folder: Path, commit: str | None) -> None:
        self.folder, self.now = folder, environment() | ({"commit": commit} if commit else {})
        self.rows: list[Row] = []
        path = folder / "gpu.csv"
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as handle:
                self.rows = list(csv.DictReader(handle))
        bad = {row["job"] for row in self.rows if row["status"] != "ok"}
        self.rows = [row for row in self.rows if row["job"] not in bad]  # these are tried again
        self.done = {row["job"] for row in self.rows}

    def add(self, row: Row) -> None:
        plain = [r for r in self.rows if r.get("form") == "plain" and r["job"].startswith("patch model")]
        for other in plain:
            if row["job"].startswith("patch") and all(str(other[k]) == str(row.get(k)) for k in ("what", "batch")):
                row["times_plain"] = round(float(row["images_per_second"]) / float(other["images_per_second"]), 2)
        self.rows.append(self.now | row)
        write("gpu", self.rows, self.folder)
        print(json.dumps(row), flush=True)


def run(jobs: list[Job], args: argparse.Namespace, results: Results) -> None:
    """Timings alone and trainings side by side, in the order of the list, until the budget ends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    pace, end = (TINY if args.tiny else FULL).pace, time.monotonic() + args.budget_s
    waiting = [job for job in jobs if job.name not in results.done]
    running: dict[Connection, tuple[Job, Any, float]] = {}
    while waiting or running:
        busy, left = [job.alone for job, _, _ in running.values()], end - time.monotonic()
        if waiting and (left <= 0 or waiting[0].seconds * pace > left):
            job = waiting.pop(0)
            said = f"skipped: about {job.seconds * pace:.0f} s, and {max(left, 0):.0f} s of the budget are left"
            results.add({"job": job.name, "status": said})
            continue
        if waiting and not any(busy) and len(busy) < (1 if waiting[0].alone else args.processes):
            job = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(job.name, args, theirs))
            process.start()
            theirs.close()
            running[ours] = job, process, time.monotonic()
            continue
        for pipe in wait(list(running), timeout=max(0.0, min(left, 3600.0))):
            assert isinstance(pipe, Connection)
            job, process, began = running[pipe]
            try:
                row = pipe.recv()
                results.add({**row, "seconds_since_start": round(time.monotonic() - began, 1)})
            except EOFError:
                process.join()
                del running[pipe]
                if process.exitcode:
                    results.add({"job": job.name, "status": f"failed: its process ended with {process.exitcode}"})
        if time.monotonic() >= end:
            for job, process, _ in running.values():
                process.kill()
                results.add({"job": job.name, "status": "stopped: the budget ended"})
            running.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder of the results ($OUT)")
    parser.add_argument("--pack", type=Path, help="the folder that benchmarks/pack.py made")
    parser.add_argument("--budget-s", type=float, default=690.0, help="seconds that all of it may take")
    parser.add_argument("--processes", type=int, default=3, help="trainings at once")
    parser.add_argument("--only", default="", help="jobs whose name has one of these words; separated by ;")
    parser.add_argument("--backbones", help="timm models whose features are timed")
    parser.add_argument("--commit", help="where the tree is a copy without git")
    parser.add_argument("--tiny", action="store_true", help="rehearse everything on a CPU")
    args = parser.parse_args()
    if args.out is None:
        parser.error("no folder for the results: set --out or $OUT")
    if args.pack is None and not args.tiny:
        parser.error("--pack: make the folder with benchmarks/pack.py; only --tiny does without")
    args.out = Path(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        (args.out / "profile.txt").unlink()
    jobs = all_jobs(args)
    if not jobs:
        parser.error(f"--only {args.only}: no job has one of these words in its name")
    results = Results(args.out, args.commit)
    run(jobs, args, results)
    states = [row["status"].partition(":")[0] for row in results.rows]
    print(", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)), args.out / "gpu.csv")


if __name__ == "__main__":
    main()
