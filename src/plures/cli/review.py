"""`plures suggest` and `plures review`: which tags are probably missing, and a page to answer that on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plures.cli.app import SETTING, Force, SafeCsv, Skip, app, data_and_options, say_next, screen
from plures.errors import PluresError, require
from plures.files import mark_folder, refuse_folder, refuse_replacing


@app.command()
def suggest(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[DATA] [data.OPTION=VALUE]...", help="Other data than the run's own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write: .csv or .tsv.")] = Path("review.csv"),
    top: Annotated[int, typer.Option(min=1, help="At most this many of each kind.")] = 1000,
    cross_fit: Annotated[
        int | None,
        typer.Option(
            min=0, help="Score training images with models that did not see them, in this many folds; 0: off."
        ),
    ] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Correct for each class's usual score first.")] = False,
    with_wrong: Annotated[bool, typer.Option("--with-wrong", help="Also list known tags that look wrong.")] = False,
    heatmaps: Annotated[Path | None, typer.Option(help="Folder for one heat map per suggestion.")] = None,
    skip_bad: Skip = False,
    force: Force = False,
    safe_csv: SafeCsv = True,
) -> None:
    """Write the tags that are probably missing, best first, for `plures review`."""
    from collections import Counter

    from plures.analysis.missing import draw_heatmaps, write_suggestions
    from plures.analysis.missing import suggest as run_suggest
    from plures.runs.run import Run
    from plures.scoring.heatmaps import HEATMAPS

    if cross_fit == 1:
        raise PluresError("--cross-fit 1 leaves nothing to train on; use 2 folds or more, or 0 for none")
    data, options = data_and_options(arguments or [])
    refuse_replacing(out, force=force, inputs=Run(run).reads(data))
    if heatmaps is not None:
        refuse_folder(heatmaps, HEATMAPS)
    found, dataset = run_suggest(
        run,
        data,
        top=top,
        cross_fit=cross_fit,
        with_wrong=with_wrong,
        normalise="prior" if by_class else "none",
        options=options,
        skip_bad=skip_bad,
    )
    if not found:
        raise PluresError(
            f"{dataset.name}: no label is unknown, so no tag can be missing; --with-wrong doubts known ones"
        )
    if heatmaps is not None:
        mark_folder(heatmaps, HEATMAPS)
        found = draw_heatmaps(run, found, dataset, heatmaps)
    write_suggestions(found, out, dataset, safe_csv)
    kinds = Counter(s.kind for s in found)
    counts = f"{kinds['missing']:,} tags probably missing" + (f", {kinds['wrong']:,} look wrong" if with_wrong else "")
    screen.print(f"{out}: {counts} ({found[0].method})", highlight=False)
    for tag, times in Counter(s.tag for s in found if s.kind == "missing").most_common(5):
        screen.print(f"  {tag}: {times:,}", highlight=False)
    table = Path((data or Run(run).experiment.data.name).removeprefix("table:"))
    say_next("plures", "review", table if table.is_file() else "TABLE", out, "--run", run)


@app.command()
def review(
    table: Annotated[Path, typer.Argument(help="The table to complete: .csv, .tsv or .parquet; or a folder.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUGGESTIONS] [data.OPTION=VALUE]...",
            help="What `plures suggest` wrote; how the table is read, if not as the run did.",
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run folder: its model draws heat maps, its own table is read as it was.")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Label every class of this many random images: a clean validation set.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    classes: Annotated[
        Path | None,
        typer.Option(help="classes.yaml or a .csv of child,parent: what follows from an answer; default: --run's own."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8765,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host name by which others may reach the page.")
    ] = None,
) -> None:
    """Open a page on this machine to answer suggestions (keys y n ? u), label a sample (--sample), or give the images
    of a folder or table their first tags; answers are kept at once."""
    require("reviewing", "web", ["fastapi", "uvicorn"])
    from plures.web.connections import listen, run_server
    from plures.web.guard import allowed_hosts, is_loopback
    from plures.web.review import SECONDS, Review, create_app, options_of_run

    hosts = allowed_hosts(host, allow_host or [])
    suggestions, options = _suggestions_and_options(arguments or [])
    if table.is_dir() and suggestions is None and not sample:
        table = _table_in(table)
    if not table.is_file():
        raise PluresError(f"no table '{table}'; make one of other data with `plures init DATA --out tags.csv`")
    if run is not None:
        of_run = options_of_run(run, table)
        options = of_run | options
        if of_run:
            said = " ".join(f"data.{name}={value}" for name, value in options.items())
            screen.print(f"{table} is read as {run} did: {said}", highlight=False)
    with listen(host, port) as listening:
        work = Review(table, suggestions, run=run, sample=sample, seed=seed, options=options, classes=classes)
        try:
            state = work.state()
            what = "suggestions" if suggestions else "images"
            name = "localhost" if is_loopback(host) else f"[{host}]" if ":" in host else host
            screen.print(f"{state['done']:,} of {state['total']:,} {what} are answered", highlight=False)
            screen.print(f"open http://{name}:{listening.getsockname()[1]}/  (Ctrl-C ends it)", highlight=False)
            run_server(create_app(work, hosts), listening, SECONDS)
        except KeyboardInterrupt:
            pass
        finally:
            work.close()
    screen.print(f"{table} is up to date; journal: {work.decisions.journal.path}", highlight=False)
    settings = [a for a in arguments or [] if SETTING.match(a)]
    say_next("plures", "train", table, *settings, "--out", "runs/next" if run else "runs/first")


def _table_in(folder: Path) -> Path:
    """The table of a folder of photographs, made where there is none."""
    from plures.data.write import init_table

    table = folder / "tags.csv"
    if not table.exists():
        listed = init_table(f"folder:{folder}", table)
        screen.print(f"{table}: {listed.added:,} images; tags go there", highlight=False)
    return table


def _suggestions_and_options(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    paths = [a for a in arguments if not SETTING.match(a)]
    if len(paths) > 1:
        raise PluresError(f"one file of suggestions at a time, got {' and '.join(paths)}")
    _, options = data_and_options([a for a in arguments if SETTING.match(a)])
    return (Path(paths[0]) if paths else None), options
