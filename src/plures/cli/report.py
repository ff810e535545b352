"""`plures report` and `plures compare`: a run as one page, and runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Force, Skip, app, say_next, screen
from plures.files import refuse_replacing

Split = Annotated[str | None, typer.Option(help="Split to score (default: test if there is one, else val).")]
Resamples = Annotated[int, typer.Option(min=2, help="Bootstrap resamples for the intervals.")]


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option(help="The page to write (RUN/report.html).")] = None,
    split: Split = None,
    resamples: Resamples = 200,
    skip_bad: Skip = False,
    force: Force = False,
) -> None:
    """Write one page: what a run was trained on, how good it is, and where it fails."""
    from plures.report.page import write_report

    page = write_report(run, out, split, resamples, skip_bad, force)
    screen.print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens without a network", highlight=False)
    say_next("plures", "thresholds", run)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the others are compared to the first.")],
    out: Annotated[Path | None, typer.Option(help="Also write this page.")] = None,
    split: Split = None,
    resamples: Resamples = 200,
    skip_bad: Skip = False,
    force: Force = False,
) -> None:
    """Show runs side by side, with paired bootstrap differences from the first."""
    from plures.report.compare import compare as run_comparison
    from plures.report.compare import render_terminal, write_comparison
    from plures.runs.run import Run

    if out is not None:
        refuse_replacing(out, force=force, inputs=[file for run in runs for file in Run(run).reads()])
    found = run_comparison(runs, split, resamples, skip_bad)
    screen.print(render_terminal(found))
    if out is not None:
        write_comparison(found, out)
        screen.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, opens without a network", highlight=False)
    say_next("plures", "report", runs[-1])
