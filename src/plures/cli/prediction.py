"""`plures predict`: scores, tags and heat maps of images."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from plures.cli.app import Force, SafeCsv, Skip, app, errors, say_next, say_notices, screen
from plures.errors import PluresError, WorkFailed


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Engine(StrEnum):
    local = "local"
    ray = "ray"


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    source: Annotated[str, typer.Argument(help="An image, a folder, a list of paths (.txt), a table, or DATA.")],
    out: Annotated[
        str, typer.Option(help="A file (.csv, .tsv, .jsonl, .parquet) or a folder of parts; with --to, see there.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            help="For another tool: xmp (keywords in sidecars beside the photographs; --out names the journal that"
            " `plures undo` reads), or a file for label-studio, fiftyone, coco, cvat, roboflow or huggingface."
        ),
    ] = None,
    branch: Annotated[
        str | None, typer.Option(help="With --to xmp: the keyword that tags stand below (plures); '': none.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --to xmp: only say what would be written.")] = False,
    heatmaps: Annotated[Path | None, typer.Option(help="Folder for one heat map per tag and image.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Probability from which a tag is called.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images; with ray: model replicas.")] = 0,
    skip_bad: Skip = False,
    parts: Annotated[int | None, typer.Option(help="Images per part, if --out is a folder (10,000).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Compute only the parts that are missing.")] = False,
    shard: Annotated[str | None, typer.Option(help="i/n: score only the i-th of n shares of the images.")] = None,
    precision: Annotated[Precision, typer.Option(help="Numeric precision of the model.")] = Precision.float32,
    engine: Annotated[Engine, typer.Option(help="This process or a Ray cluster.")] = Engine.local,
    force: Force = False,
    safe_csv: SafeCsv = True,
) -> None:
    """Write scores and tags of images to a file, a folder of parts, or in the form of another tool; and heat maps on
    request."""
    from plures.prediction.predict import predict as run_prediction
    from plures.prediction.predict import predict_to

    options: dict[str, Any] = {
        "threshold": threshold,
        "batch_size": batch_size,
        "workers": workers,
        "skip_bad": skip_bad,
        "parts": parts,
        "resume": resume,
        "precision": precision.value,
    }
    said = list[str]()
    if to is None and (branch is not None or dry_run):
        raise PluresError("--branch and --dry-run are of --to xmp")
    try:
        if to is not None:
            if heatmaps is not None or shard is not None or parts is not None or resume or engine is Engine.ray:
                raise PluresError("--to writes one file; leave out --heatmaps, --shard, --parts, --resume and --engine")
            del options["parts"], options["resume"]
            summary, written = predict_to(run, source, to, out, branch=branch, dry_run=dry_run, force=force, **options)
            said = written.notices
        elif engine is Engine.ray:
            from plures.prediction.ray_cluster import predict_on_ray

            if heatmaps is not None or shard is not None:
                raise PluresError("--engine ray draws no heat maps and divides the work itself; leave out --shard")
            summary = predict_on_ray(run, source, out, **options)
        else:
            summary = run_prediction(
                run, source, out, heatmaps=heatmaps, shard=shard, force=force, safe_csv=safe_csv, **options
            )
    except KeyboardInterrupt:
        way = "; resume with the same command and --resume" if not Path(out).suffix else ""
        raise WorkFailed(f"stopped{way}") from None
    for notice in said:
        errors.print(f"{out}: {notice}")
    screen.print(f"{out}: {summary.images:,} images, {summary.tags_per_image:.2f} tags per image", highlight=False)
    say_notices(summary.notices)
    if summary.skipped:
        first = f", the first: {summary.problems[0].file}: {summary.problems[0].what}" if summary.problems else ""
        errors.print(f"left out {summary.skipped:,} unusable images{first}")
    if to == "xmp":
        say_next(
            *(("plures", "predict", run, source, "--to", to, "--out", out) if dry_run else ("plures", "undo", out))
        )
        return
    say_next("plures", "export", run, "--to", "onnx", "--out", "model.onnx")


@app.command()
def undo(
    journal: Annotated[Path, typer.Argument(help="What `--to xmp --out JOURNAL` wrote.")],
) -> None:
    """Take keywords out of sidecars again: each becomes what it was, and new ones are removed."""
    from plures.data.sidecars import undo as run_undo

    done = run_undo(journal)
    for problem in done.kept:
        errors.print(f"{problem.file}: {problem.what}")
    screen.print(f"{done.sidecars:,} sidecars are as they were, {done.new:,} of them removed", highlight=False)
