"""The command line: one subcommand a public function. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from plures.errors import BadData, PluresError, WorkFailed

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learn all the labels of an image from training images that carry only one.",
)
screen = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

SETTING = re.compile(r"[a-z_]+(\.\w+)?=")
Skip = Annotated[bool, typer.Option("--skip-bad", help="Leave unusable rows out and say how many.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the three runs, pictures and the page.")] = Path("runs/demo"),
    images: Annotated[int, typer.Option(help="Training scenes.")] = 3000,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.")] = 10,
) -> None:
    """Train on built-in scenes with all tags, one tag, and one tag and the best loss; show what they find."""
    from plures.report.demo import run_demo

    run_demo(out, screen, images=images, epochs=epochs)


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
    _say_skipped(dataset.problems)


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

    values = _values(data, None, settings or [])
    from plures.experiment import Experiment

    experiment = Experiment(**values)
    dataset = read(experiment.data.name, skip_bad=skip_bad, verify=True, **experiment.data.options)
    dataset = dataset.with_labels(observe(dataset, experiment.supervision.name, **experiment.supervision.options))
    description = describe(dataset)
    for part in render(description):
        screen.print(part)
    _say_skipped(dataset.problems)
    if out is not None:
        for path in pictures(dataset, description, out):
            screen.print(f"wrote {path}", highlight=False)


@app.command()
def train(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[DATA] [KEY=VALUE]...")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, name:row, or a YAML file.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    skip_bad: Skip = False,
) -> None:
    """Train and evaluate a model. DATA: a path, voc:DIR, coco:DIR, folder:DIR, table:FILE, or scenes."""
    from plures.console import Show
    from plures.experiment import Experiment
    from plures.training.train import train as run_training

    if (out is None) == (resume is None):
        raise PluresError("say --out RUN for a new run, or --resume RUN to go on with one")
    if resume is not None and (arguments or recipe):
        raise PluresError("--resume takes everything from the run's own experiment; give no DATA, recipe or settings")
    where: Path = out or resume  # type: ignore[assignment]
    experiment = Experiment() if resume else Experiment(**_experiment_values(arguments or [], recipe))
    watch = Show(screen)
    try:
        run = run_training(experiment, where, resume=resume is not None, skip_bad=skip_bad, watch=watch)
    except KeyboardInterrupt:
        begun = (where / "experiment.yaml").exists()
        hint = f"; go on with `plures train --resume {where}`" if begun else " before training began"
        raise WorkFailed(f"stopped{hint}") from None
    finally:
        watch.close()
    _show_report(run.path)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[DATA] [data.OPTION=VALUE]...", help="Other data than the run's own.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    definition: Annotated[str | None, typer.Option(help="Definition of AP: plain, voc, voc07, mlspl, ...")] = None,
    threshold: Annotated[float | None, typer.Option(help="Probability from which a tag is called.")] = None,
    json: Json = None,
    skip_bad: Skip = False,
) -> None:
    """Score a run's model on a split: AP of each class, mAP with interval, precision, recall, F1."""
    from plures.training.evaluate import evaluate as run_evaluation

    data, options = _data_and_options(arguments or [])
    report = run_evaluation(
        run, data, split=split, definition=definition, threshold=threshold, options=options, skip_bad=skip_bad
    )
    if json is not None:
        report.save(json)
    screen.print(report.render())


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
    _say_skipped(summary.problems)


@app.command("import-weights")
def import_weights(
    kind: Annotated[str, typer.Argument(help="The program they come from: q2l, mlspl or timm.")],
    checkpoint: Annotated[Path, typer.Argument(help="Its checkpoint: .pkl, .pt, .pth or .safetensors.")],
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    config: Annotated[Path | None, typer.Option(help="Its options as JSON.")] = None,
    classes: Annotated[Path | None, typer.Option(help="A text file with one class a line.")] = None,
    reinitialise: Annotated[bool, typer.Option(help="Other classes: keep those known by name.")] = False,
    recipe: Annotated[str | None, typer.Option(help="The recipe:row whose weights these are, for `table`.")] = None,
) -> None:
    """Make a run folder of weights that Query2Label, MLSPL or timm published or trained; no code in them is run."""
    from plures.training.imported import import_weights as run_import

    run = run_import(kind, checkpoint, out, config=config, classes=classes, reinitialise=reinitialise, recipe=recipe)
    e = run.experiment
    screen.print(f"run folder: {run.path} ({e.embedder.name} and {e.head.name})", highlight=False)
    screen.print(f"next: plures evaluate {run.path} DATA", highlight=False)


@app.command()
def table(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Show the rows of this recipe that are missing, too.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write, with all columns: .md, .csv or .html.")] = None,
) -> None:
    """Show measured beside published: mean and spread over the seeds of runs that differ in nothing else."""
    from plures.report.table import render_table, table_rows, write_table

    rows = table_rows(runs or [], recipe)
    if out is not None:
        write_table(rows, out)
    screen.print(render_table(rows))


@app.command()
def parts() -> None:
    """List the losses, heads, embedders, data formats, schedules and recipes there are."""
    from plures.report.shelves import render_shelves

    for table in render_shelves():
        screen.print(table)


@app.command()
def doctor() -> None:
    """Print versions and device, what is broken, and how to mend it."""
    from plures.doctor import examine

    findings = examine()
    for finding in findings:
        mark = "ok  " if finding.fix is None else "!!  "
        screen.print(f"{mark}{finding.what}" + ("" if finding.fix is None else f"; {finding.fix}"), highlight=False)
    if any(finding.fix is not None for finding in findings):
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------------------ helpers


def _experiment_values(arguments: list[str], recipe: str | None) -> dict[str, Any]:
    settings = [a for a in arguments if SETTING.match(a)]
    data = [a for a in arguments if not SETTING.match(a)]
    if len(data) > 1:
        raise PluresError(f"one DATA at a time, got {' and '.join(data)}; settings are written key=value")
    if not data and recipe is None and not any(s.startswith("data=") for s in settings):
        raise PluresError("say what to train on: a path, voc:DIR, coco:DIR, folder:DIR, table:FILE, or scenes")
    return _values(data[0] if data else None, recipe, settings)


def _data_and_options(arguments: list[str]) -> tuple[str | None, dict[str, Any]]:
    """DATA and the options of its reader."""
    from plures.experiment import apply_settings

    settings = [a for a in arguments if SETTING.match(a)]
    data = [a for a in arguments if not SETTING.match(a)]
    if len(data) > 1:
        raise PluresError(f"one DATA at a time, got {' and '.join(data)}")
    strange = [s for s in settings if not s.startswith("data.")]
    if strange:
        raise PluresError(f"only the data's options can be set here, as in data.variant=query2label, not {strange[0]}")
    part = apply_settings({}, settings).get("data", {})
    return (data[0] if data else None), {k: v for k, v in part.items() if k != "name"}


def _values(data: str | None, recipe: str | None, settings: list[str]) -> dict[str, Any]:
    from plures.experiment import apply_settings
    from plures.recipes import recipe_settings

    values = recipe_settings(recipe) if recipe is not None else {}
    if data is not None:
        old = values.get("data")
        values["data"] = {**old, "name": data} if isinstance(old, dict) else data
    return apply_settings(values, settings)


def _say_skipped(problems: tuple[Any, ...]) -> None:
    left_out = [p for p in problems if p.severity == "error"]
    if left_out:
        errors.print(f"left out {len(left_out):,} unusable rows, the first: {left_out[0].file}: {left_out[0].what}")


def _show_report(run: Path) -> None:
    from plures.metrics.report import Report

    path = run / "report.json"
    if path.is_file():
        screen.print(Report.load(path).render())
    screen.print(f"run folder: {run}", highlight=False)


def _show_problems(bad: BadData) -> None:
    from rich.table import Table

    table = Table("file", "row", box=None)
    table.columns[0].overflow = "fold"
    for name in ("problem", "expected"):
        table.add_column(name, overflow="fold")
    here = Path.cwd()
    for problem in bad.problems[:200]:
        path = Path(problem.file)
        name = str(path.relative_to(here)) if path.is_relative_to(here) else problem.file
        table.add_row(name, "" if problem.row is None else str(problem.row), problem.what, problem.expected)
    errors.print(table)
    if len(bad.problems) > 200:
        errors.print(f"... and {len(bad.problems) - 200:,} more")


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: runs a command; any failure is one line on stderr and an exit code (1 failed, 2 bad usage)."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(prog_name="plures")  # ends with SystemExit: 0, or 2 for bad usage
    except BadData as bad:
        _show_problems(bad)
        count = f"{len(bad.problems):,} problem{'s' * (len(bad.problems) > 1)}"
        skip = ", or use --skip-bad to go on without these rows" if bad.skippable else ""
        errors.print(f"plures: {count}; mend the data{skip}")
        sys.exit(bad.exit_code)
    except PluresError as error:
        errors.print(f"plures: {error}", markup=False)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("PLURES_TRACEBACK"):
            raise
        line = " ".join(f"{type(error).__name__}: {error}".split())
        errors.print(f"plures: unexpected failure: {line}; PLURES_TRACEBACK=1 shows where", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
