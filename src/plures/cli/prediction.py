"""`plures predict`: scores, tags and heat maps of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Skip, app, say_skipped, screen


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    source: Annotated[str, typer.Argument(help="An image, a folder of images, or DATA.")],
    out: Annotated[Path, typer.Option(help="The file to write: .csv, .tsv, .jsonl or .parquet.")],
    heatmaps: Annotated[Path | None, typer.Option(help="Folder for a picture of each tag of each image.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Probability from which a tag is called.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    skip_bad: Skip = False,
) -> None:
    """Write scores and tags of images to a file, and heat maps on request."""
    from plures.inference.predict import predict as run_prediction

    summary = run_prediction(
        run,
        source,
        out,
        heatmaps=heatmaps,
        threshold=threshold,
        batch_size=batch_size,
        workers=workers,
        skip_bad=skip_bad,
    )
    screen.print(f"{out}: {summary.images:,} images, {summary.tags_per_image:.2f} tags an image", highlight=False)
    say_skipped(summary.problems)
