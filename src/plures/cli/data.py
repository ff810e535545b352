"""`plures init` and `plures check`: a table to start from, and what is wrong with the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Skip, app, say_skipped, screen, settings_values


@app.command()
def init(
    source: Annotated[str, typer.Argument(help="A folder of images, or data in any known format.")],
    out: Annotated[Path, typer.Option(help="The table to write: .csv, .tsv or .parquet.")] = Path("tags.csv"),
    complete: Annotated[bool, typer.Option(help="Untagged means absent (otherwise: unknown).")] = False,
    skip_bad: Skip = False,
) -> None:
    """Write a table of images and tags to edit and to train from."""
    from plures.data.write import init_table

    dataset = init_table(source, out, complete=complete, skip_bad=skip_bad)
    screen.print(f"{out}: {len(dataset):,} images, {len(dataset.classes)} classes", highlight=False)
    say_skipped(dataset.problems)


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="DATA as `train` takes it.")],
    settings: Annotated[list[str] | None, typer.Argument(help="supervision=..., data.OPTION=...")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures of examples and co-occurrence.")] = None,
    skip_bad: Skip = False,
) -> None:
    """Read the data, list every problem, and describe the labels."""
    from plures.data.describe import describe, pictures, render
    from plures.data.observing import observe
    from plures.data.read import read
    from plures.training.photos import copies_across

    values = settings_values(data, None, settings or [])
    from plures.experiment import Experiment

    experiment = Experiment(**values)
    dataset = read(experiment.data.name, skip_bad=skip_bad, verify=True, **experiment.data.options)
    dataset = dataset.with_labels(observe(dataset, experiment.supervision.name, **experiment.supervision.options))
    named = {problem.file for problem in dataset.problems}  # by the reader of folders
    across = tuple(problem for problem in copies_across(dataset) if problem.file not in named)
    description = describe(replace(dataset, problems=(*dataset.problems, *across)))
    for part in render(description):
        screen.print(part)
    say_skipped(dataset.problems)
    if out is not None:
        for path in pictures(dataset, description, out):
            screen.print(f"wrote {path}", highlight=False)
