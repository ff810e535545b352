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
    out: Annotated[str, typer.Option(help="A file (.csv, .tsv, .jsonl, .parquet) or a folder of parts.")],
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
    """Write scores and tags of images to a file or to a folder of parts, and heat maps on request."""
    from plures.prediction.predict import predict as run_prediction

    options: dict[str, Any] = {
        "threshold": threshold,
        "batch_size": batch_size,
        "workers": workers,
        "skip_bad": skip_bad,
        "parts": parts,
        "resume": resume,
        "precision": precision.value,
    }
    try:
        if engine is Engine.ray:
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
    screen.print(f"{out}: {summary.images:,} images, {summary.tags_per_image:.2f} tags per image", highlight=False)
    say_notices(summary.notices)
    if summary.skipped:
        first = f", the first: {summary.problems[0].file}: {summary.problems[0].what}" if summary.problems else ""
        errors.print(f"left out {summary.skipped:,} unusable images{first}")
    say_next("plures", "export", run, "--to", "onnx", "--out", "model.onnx")
