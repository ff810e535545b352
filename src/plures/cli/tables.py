"""`plures table`, `parts` and `doctor`: what was measured, what there is, and whether it works here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Force, app, screen
from plures.files import refuse_replacing


@app.command()
def table(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Show the rows of this recipe that are missing, too.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write, with all columns: .md, .csv or .html.")] = None,
    force: Force = False,
) -> None:
    """Show measured beside published: mean and spread over the seeds of runs that differ in nothing else."""
    from plures.report.table import render_table, table_rows, write_table

    if out is not None:
        refuse_replacing(out, force=force)
    rows = table_rows(runs or [], recipe)
    if out is not None:
        write_table(rows, out)
    screen.print(render_table(rows))


@app.command()
def parts() -> None:
    """List the losses, heads, backbones, data formats, schedules and recipes there are."""
    from plures.report.components import render_shelves

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
