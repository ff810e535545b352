"""`plures init`, `check` and `convert`: a table to start from, what is wrong with data, and data for other tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import (
    Force,
    SafeCsv,
    Skip,
    app,
    errors,
    say_next,
    say_notices,
    say_skipped,
    screen,
    settings_values,
)
from plures.files import mark_folder, refuse_folder, refuse_replacing
from plures.system import free_memory

FEATURES = 2048  # numbers per image that the widest common backbones give; 12 bytes per cell are learned labels


@app.command()
def init(
    source: Annotated[str, typer.Argument(help="A folder of images, or data in any known format.")],
    out: Annotated[Path, typer.Option(help="The table to write: .csv, .tsv or .parquet.")] = Path("tags.csv"),
    complete: Annotated[bool, typer.Option(help="Untagged means absent (otherwise: unknown).")] = False,
    skip_bad: Skip = False,
    force: Force = False,
    safe_csv: SafeCsv = True,
) -> None:
    """Write a table of images and tags to edit and to train on; an existing table gets the images it lacks."""
    from plures.data.write import init_table

    listed = init_table(source, out, complete=complete, skip_bad=skip_bad, force=force, safe_csv=safe_csv)
    dataset = listed.dataset
    if listed.kept:
        counts = f"{listed.added:,} images added; {listed.kept:,} existing rows unchanged"
    else:
        counts = f"{len(dataset):,} images, {len(dataset.classes)} classes"
    screen.print(f"{out}: {counts}", highlight=False)
    say_skipped(dataset.problems)
    say_notices(dataset.problems)
    tagged = bool(dataset.labels.present.any())
    say_next("plures", "check" if tagged else "review", out)


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="DATA as `train` takes it.")],
    settings: Annotated[list[str] | None, typer.Argument(help="supervision=..., classes=..., data.OPTION=...")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures of examples and of co-occurrence.")] = None,
    skip_bad: Skip = False,
) -> None:
    """Read the data, list every problem, and describe the labels."""
    from plures.analysis.neighbours import across_splits, find_copies
    from plures.data.checks.describe import describe, pictures, render
    from plures.data.masking import mask_labels
    from plures.data.read import read, reason
    from plures.runs.data import with_classes
    from plures.runs.photos import copies_across

    values = settings_values(data, None, settings or [])
    if out is not None:
        refuse_folder(out, "check")
    from plures.config import Experiment

    experiment = Experiment(**values)
    screen.print(reason(experiment.data.name, **experiment.data.options), highlight=False)
    labelled = experiment.classes is None
    dataset = read(experiment.data.name, skip_bad=skip_bad, verify=True, labelled=labelled, **experiment.data.options)
    dataset = with_classes(dataset, experiment.classes)
    dataset = dataset.with_labels(mask_labels(dataset, experiment.supervision.name, **experiment.supervision.options))
    named = {problem.file for problem in dataset.problems}  # by the reader of folders
    across = [problem for problem in copies_across(dataset) if problem.file not in named]
    if dataset.splits is not None and not dataset.in_memory:
        across += across_splits(dataset, [g for g in find_copies(dataset) if any(m.kind != "exact" for m in g[1:])])
    description = describe(replace(dataset, problems=(*dataset.problems, *across)))
    for part in render(description):
        screen.print(part)
    say_skipped(dataset.problems)
    likely, free = len(dataset) * (12 * len(dataset.classes) + 4 * FEATURES), free_memory()
    if free is not None and likely > free:
        screen.print(
            f"training on frozen features is likely to take {likely / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB"
            " are free; use fewer images, a machine with more of it, or stages=finetune",
            highlight=False,
        )
    if out is not None:
        mark_folder(out, "check")
        for path in pictures(dataset, description, out):
            screen.print(f"wrote {path}", highlight=False)
    say_next("plures", "train", data, *(settings or []), "--out", "runs/first")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="DATA as `train` takes it, or a table of predictions.")],
    settings: Annotated[list[str] | None, typer.Argument(help="data.OPTION=...")] = None,
    to: Annotated[
        str,
        typer.Option(
            help="table, roboflow, huggingface, coco, label-studio, cvat or fiftyone; or xmp: keywords in sidecars"
            " beside the photographs, where --out names the journal that `plures undo` reads."
        ),
    ] = "table",
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("converted.csv"),
    split: Annotated[str | None, typer.Option(help="Write the rows of this split only.")] = None,
    branch: Annotated[
        str | None,
        typer.Option(help="With --to xmp: the keyword that tags stand below; none for labels, plures for predictions."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --to xmp: only say what would be written.")] = False,
    skip_bad: Skip = False,
    force: Force = False,
) -> None:
    """Write data, or predictions, in the form that another tool reads."""
    from plures.config import Experiment
    from plures.data.convert import convert as run_convert
    from plures.data.convert import refuse_form, scores_of
    from plures.data.read import read

    to = refuse_form(to, out, branch=branch, dry_run=dry_run)
    folder = Path(source if Path(source).exists() else source.partition(":")[2])
    inside = folder.is_dir() and out.resolve().is_relative_to(folder.resolve())
    refuse_replacing(out, force=force, inputs=[source, *([out] if inside else [])])  # an export in it may be the source
    data = Experiment(**settings_values(source, None, settings or [])).data
    dataset = read(data.name, skip_bad=skip_bad, **data.options)
    dataset = dataset if split is None else dataset.split(split)
    scores = scores_of(data.name, dataset)
    written = run_convert(dataset, to, out, scores=scores, branch=branch, dry_run=dry_run, skip_bad=skip_bad)
    screen.print(f"{out}: {len(dataset):,} images, {len(dataset.classes)} classes", highlight=False)
    say_skipped(dataset.problems)
    say_notices(dataset.problems)
    for notice in written.notices:
        errors.print(f"{out}: {notice}")
    if not dry_run:
        say_next("plures", "undo" if to == "xmp" else "check", out)
