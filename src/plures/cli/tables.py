"""`plures table`, `components` and `doctor`: what was measured, what can be chosen, and whether it works here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Force, app, say_next, say_skipped, screen
from plures.errors import PluresError
from plures.files import refuse_replacing


@app.command()
def table(
    what: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; a recipe's name among them is as --recipe.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Also show the rows of this recipe that were not run.")] = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Only count DATA's images beside the recipe's paper; exit 1 if they differ."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write, with all columns: .md, .csv or .html.")] = None,
    force: Force = False,
) -> None:
    """Show measured beside published: mean and spread over the seeds of runs that differ in nothing else."""
    from plures.recipes import recipe_names
    from plures.report.table import render_table, table_rows, write_table

    named = [str(one) for one in what or [] if str(one) in recipe_names() and not one.is_dir()]
    runs = [one for one in what or [] if str(one) not in named]
    recipes = list(dict.fromkeys([*([] if recipe is None else [recipe]), *named]))
    if len(recipes) > 1:
        raise PluresError(f"one recipe a table, got {', '.join(recipes)}")
    recipe = recipes[0] if recipes else None
    if check is not None:
        _check(recipe, check)
        return
    if out is not None:
        refuse_replacing(out, force=force)
    rows = table_rows(runs, recipe)
    if out is not None:
        write_table(rows, out)
    screen.print(render_table(rows))
    missing = [row["command"] for row in rows if row["command"]]
    if missing:
        told = "the file has" if out is not None else "--out FILE.md writes"
        said = f"{len(missing)} rows are missing; {told} a command for each, the first: {missing[0]}"
        screen.print(said, highlight=False, soft_wrap=True)
    if runs:
        say_next("plures", "report", runs[0])


def _check(recipe: str | None, data: str) -> None:
    """A line for each split; exit code 1 if one differs from the paper."""
    from plures.report.table_check import check_data

    if recipe is None:
        raise PluresError("--check counts beside a paper: name its recipe, as in plures table cole2021 --check voc:DIR")
    counts, problems = check_data(recipe, data)
    for count in counts:
        screen.print(str(count), highlight=False, soft_wrap=True)
    say_skipped(problems)
    if not all(count.ok for count in counts):
        raise typer.Exit(1)


@app.command("parts", hidden=True)  # its name in 0.1
@app.command()
def components() -> None:
    """List the losses, heads, backbones, priors, data formats, schedules and recipes, with their options."""
    from plures.report.components import render_registries

    for table in render_registries():
        screen.print(table)
    say_next("plures", "train", "DATA", "--out", "RUN", "loss=NAME", "head=NAME")


@app.command()
def doctor(
    cache: Annotated[bool, typer.Option("--cache", help="Print what the cache of features holds instead.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="With --cache: remove all of it.")] = False,
) -> None:
    """Print versions and device, what is broken, and how to fix it."""
    from plures.doctor import examine

    if clear and not cache:
        raise PluresError("--clear removes cached features: write plures doctor --cache --clear")
    if cache:
        _show_cache(clear)
        return
    findings = examine()
    for finding in findings:
        mark = "ok  " if finding.fix is None else "!!  "
        screen.print(f"{mark}{finding.what}" + ("" if finding.fix is None else f"; {finding.fix}"), highlight=False)
    if any(finding.fix is not None for finding in findings):
        raise typer.Exit(1)
    say_next("plures", "init", "photos/", "--out", "tags.csv")


def _show_cache(clear: bool) -> None:
    """What is kept, the most recently used first; or what was removed."""
    from rich.table import Table

    from plures.scoring import cache

    folder, most = cache.cache_folder(), cache.limit()
    found = list(cache.clear()) if clear else cache.held()
    shown = Table("data", "backbone", "engine", "file", "MB", "last used", box=None)
    for one in reversed(found):
        days = cache.days_since(one.used)
        when = "today" if days == 0 else f"{days:,} days ago"
        said = [one.what.get(name, "-") for name in ("data", "backbone", "engine")]
        shown.add_row(*said, f"{one.path.parent.name}/{one.path.name}", f"{one.size / 1e6:,.1f}", when)
    if found:
        screen.print(shown)
    size = f"{len(found):,} files, {sum(one.size for one in found) / 1e9:.2f} GB"
    rest = f"at most {most / 1e9:g} GB (PLURES_CACHE_GB), least recently used removed first"
    screen.print(f"removed {size} from {folder}" if clear else f"{folder}: {size}; {rest}", highlight=False)
