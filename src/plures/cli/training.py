"""`plures demo`, `train`, `evaluate` and `import-weights`: making run folders and scoring them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Force, Json, Skip, app, data_and_options, experiment_values, say_next, screen, show_report
from plures.errors import PluresError, WorkFailed
from plures.files import refuse_replacing


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the three runs, pictures and the page.")] = Path("runs/demo"),
    images: Annotated[int, typer.Option(help="Training scenes.")] = 3000,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.")] = 10,
) -> None:
    """Train on built-in scenes with all tags, one tag, and one tag and the best loss; show what they find."""
    from plures.report.demo import run_demo

    run_demo(out, screen, images=images, epochs=epochs)
    say_next("plures", "init", "photos/", "--out", "tags.csv")


@app.command()
def train(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[DATA] [KEY=VALUE]...")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to create.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, name:row, or a YAML file.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume the interrupted run in this folder.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Classes beside those of DATA, as in cat,sofa (photographs without tags, too), or a file that says how"
            " classes belong together: classes.yaml, or a .csv of child,parent."
        ),
    ] = None,
    skip_bad: Skip = False,
) -> None:
    """Train and evaluate a model. DATA: a path, voc:DIR, coco:DIR, folder:DIR, table:FILE, or scenes."""
    from plures.config import Experiment
    from plures.console import Show
    from plures.training.train import train as run_training

    if (out is None) == (resume is None):
        raise PluresError("say --out RUN for a new run, or --resume RUN to continue one")
    if resume is not None and (arguments or recipe or classes):
        raise PluresError("--resume takes everything from the run's own experiment; give no DATA, recipe or settings")
    where: Path = out or resume  # type: ignore[assignment]
    given = [*(arguments or []), *([] if classes is None else [f"classes={classes}"])]
    experiment = Experiment() if resume else Experiment(**experiment_values(given, recipe))
    callback = Show(screen)
    try:
        run = run_training(experiment, where, resume=resume is not None, skip_bad=skip_bad, callback=callback)
    except KeyboardInterrupt:
        begun = (where / "experiment.yaml").exists()
        hint = f"; resume with `plures train --resume {where}`" if begun else " before training began"
        raise WorkFailed(f"stopped{hint}") from None
    finally:
        callback.close()
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
        show_report(run.path)
        say_next("plures", "report", run.path)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[DATA] [data.OPTION=VALUE]...", help="Other data than the run's own.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to score (default: test if there is one, else val).")] = None,
    definition: Annotated[str | None, typer.Option(help="Definition of AP: plain, voc, voc07, mlspl, ...")] = None,
    threshold: Annotated[float | None, typer.Option(help="Probability from which a tag is called.")] = None,
    positives_only: Annotated[
        bool, typer.Option("--positives-only", help="Use observed tags alone and estimate the rest.")
    ] = False,
    json: Json = None,
    skip_bad: Skip = False,
    force: Force = False,
) -> None:
    """Score a run's model on a split: AP of each class, mAP with interval, precision, recall, F1."""
    from plures.analysis.evaluate import evaluate as run_evaluation
    from plures.analysis.evaluate import evaluate_positives_only
    from plures.runs.run import Run

    data, options = data_and_options(arguments or [])
    if json is not None:
        refuse_replacing(json, force=force, inputs=Run(run).reads(data))
    if positives_only:
        if definition not in (None, "plain"):
            raise PluresError("--positives-only estimates plain average precision; leave --definition out")
        estimates = evaluate_positives_only(
            run, data, split=split, threshold=threshold, options=options, skip_bad=skip_bad
        )
        if json is not None:
            estimates.save(json)
        screen.print(estimates.render())
        say_next("plures", "report", run)
        return
    report = run_evaluation(
        run, data, split=split, definition=definition, threshold=threshold, options=options, skip_bad=skip_bad
    )
    if json is not None:
        report.save(json)
    screen.print(report.render())
    say_next("plures", "report", run)


@app.command("import-weights")
def import_weights(
    kind: Annotated[str, typer.Argument(help="The program they come from: q2l, mlspl or timm.")],
    checkpoint: Annotated[Path, typer.Argument(help="Its checkpoint: .pkl, .pt, .pth or .safetensors.")],
    out: Annotated[Path, typer.Option(help="The run folder to create.")],
    config: Annotated[Path | None, typer.Option(help="Its options as JSON.")] = None,
    classes: Annotated[Path | None, typer.Option(help="A text file with one class per line.")] = None,
    reinitialise: Annotated[bool, typer.Option(help="For other classes: keep those known by name.")] = False,
    recipe: Annotated[str | None, typer.Option(help="The recipe:row whose weights these are, for `table`.")] = None,
) -> None:
    """Make a run folder of weights that Query2Label, MLSPL or timm published or trained; no code in them is run."""
    from plures.runs.imported import import_weights as run_import

    run = run_import(kind, checkpoint, out, config=config, classes=classes, reinitialise=reinitialise, recipe=recipe)
    e = run.experiment
    screen.print(f"run folder: {run.path} ({e.backbone.name} and {e.head.name})", highlight=False)
    say_next("plures", "evaluate", run.path, "DATA")
