"""`plures sweep`: a grid or a search of settings times seeds, trained together where that is possible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plures.cli.app import Skip, app, experiment_values, say_next, screen
from plures.errors import PluresError, WorkFailed

if TYPE_CHECKING:
    from plures.sweeps.sweep import Sweep


@app.command()
def sweep(
    out: Annotated[Path, typer.Option(help="Folder for all runs and sweep.csv.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[DATA] [KEY=VALUE]...")] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="key=A,B,C: values to combine; with --search also key=LOW..HIGH.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs per combination, with consecutive seeds.")] = 1,
    search: Annotated[int | None, typer.Option(help="Try this many settings chosen by optuna instead of all.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs (or groups of runs trained together) at the same time.")] = 1,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, name:row, or a YAML file.")] = None,
    skip_bad: Skip = False,
) -> None:
    """Train with every combination of settings and seeds; validation chooses. Run it again to resume."""
    from plures.sweeps.sweep import sweep as run_sweep

    values = experiment_values(arguments or [], recipe)
    if not grid:
        raise PluresError("say what to vary, as in --grid lr=1e-3,1e-4 --grid loss=an,role")
    try:
        found = run_sweep(
            values, out, dict(_grid(text) for text in grid), seeds=seeds, search=search, jobs=jobs,
            skip_bad=skip_bad, say=lambda line: screen.print(line, highlight=False),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise WorkFailed(f"stopped; the same command continues with what {out} holds") from None
    _show(found)


def _grid(text: str) -> tuple[str, list[str]]:
    """key=A,B,C; commas inside brackets belong to a value."""
    key, equals, values = text.partition("=")
    if not equals:
        raise PluresError(f"--grid {text}: write key=A,B,C, for example lr=1e-3,1e-4")
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return key.strip(), parts


def _show(found: Sweep) -> None:
    from rich.table import Table

    from plures.sweeps.sweep import mean, spread

    table = Table("settings", title="mAP in percent, mean and sd over seeds", title_justify="left", box=None)
    for name in ("val", "sd", "test", "sd", "n", "failed", ""):
        table.add_column(name, justify="right")
    for cell in found.cells:
        numbers = [f(values) for values in (cell.validation, cell.test) for f in (mean, spread)]
        chosen = "chosen" if cell is found.chosen else ""
        table.add_row(" ".join(cell.settings), *numbers, str(len(cell.validation)), str(cell.failed or ""), chosen)
    screen.print(table)
    if found.chosen is None or found.chosen.folder is None:
        screen.print("nothing is chosen: no cell has a validation score for every seed", highlight=False)
    else:
        screen.print(f"chosen by validation: {' '.join(found.chosen.settings)}; its best run: {found.chosen.folder}",
                     highlight=False)  # fmt: skip
    screen.print(f"all cells: {found.folder / 'sweep.csv'}", highlight=False)
    if found.chosen is not None and found.chosen.folder is not None:
        say_next("plures", "report", found.chosen.folder)
