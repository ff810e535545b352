"""`plures thresholds`: from which probability on each class is called a tag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Skip, app, data_and_options, say_next, screen


@app.command()
def thresholds(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA] [data.OPTION=VALUE]...", help="Other images than the run's validation split."),
    ] = None,
    source: Annotated[
        str, typer.Option("--from", help="clean (all labels known), positives (observed tags alone) or reviewed.")
    ] = "positives",
    objective: Annotated[str, typer.Option(help="f1, precision=0.9, recall=0.9 or tags=1.5 (per image).")] = "f1",
    per_class: Annotated[
        bool, typer.Option("--per-class/--global", help="One threshold per class, or one for all classes.")
    ] = True,
    calibrate: Annotated[
        str, typer.Option(help="none, temperature (one scale and shift) or isotonic (one curve per class).")
    ] = "none",
    split: Annotated[str, typer.Option(help="Split to choose on.")] = "val",
    skip_bad: Skip = False,
) -> None:
    """Choose thresholds on held-out images and save them in the run, for predict and evaluate."""
    from rich.table import Table

    from plures.analysis.thresholds import choose_thresholds
    from plures.metrics.report import percent
    from plures.metrics.thresholds import NEVER

    data, options = data_and_options(arguments or [])
    choice = choose_thresholds(
        run,
        data,
        source=source,  # type: ignore[arg-type]
        objective=objective,
        per_class=per_class,
        calibrating=calibrate,  # type: ignore[arg-type]
        split=split,
        options=options,
        skip_bad=skip_bad,
    )
    about = "estimated from positives" if choice.estimated else "from known labels"
    table = Table("class", title=f"Thresholds ({choice.thresholds.objective}); shares in percent, {about}")
    for name in ("threshold", "present", "called", "precision", "recall", "F1", "positives"):
        table.add_column(name, justify="right")
    table.add_column("")
    for c in choice.per_class:
        threshold = "never" if c.threshold >= NEVER else f"{c.threshold:.3g}"
        shares = [percent(value) for value in (c.prior, c.called, c.precision, c.recall, c.f1)]
        note = f"pooled: {c.pooled}" if c.pooled else ""
        table.add_row(c.name, threshold, *shares, f"{c.positives:,}", note)
    screen.print(table)
    screen.print(
        f"{choice.images:,} images: {choice.tags_called:.2f} tags called, {choice.tags_present:.2f} present"
        f" ({about}){'; ' + choice.warning if choice.warning else ''}",
        highlight=False,
    )
    screen.print(f"Assumes: {choice.thresholds.assumes}", highlight=False)
    screen.print(f"Guarantees: {choice.thresholds.guarantees}", highlight=False)
    screen.print(f"saved: {run / 'thresholds.json'}", highlight=False)
    say_next("plures", "predict", run, "PHOTOS", "--out", "found.csv")
