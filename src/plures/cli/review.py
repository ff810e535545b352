"""`plures suggest` and `plures review`: which tags are probably missing, and a page to answer that on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Force, Skip, app, data_and_options, screen
from plures.errors import PluresError, require
from plures.files import mark_folder, refuse_folder, refuse_replacing


@app.command()
def suggest(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[DATA] [data.OPTION=VALUE]...", help="Other data than the run's own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write: .csv or .tsv.")] = Path("review.csv"),
    top: Annotated[int, typer.Option(min=1, help="At most so many of each kind.")] = 1000,
    cross_fit: Annotated[
        int | None,
        typer.Option(min=0, help="Score training images by models that did not see them, in so many folds; 0: do not."),
    ] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Take each class's usual score out first.")] = False,
    with_wrong: Annotated[bool, typer.Option("--with-wrong", help="Known tags that look wrong, too.")] = False,
    heatmaps: Annotated[Path | None, typer.Option(help="Folder for a picture of each suggestion.")] = None,
    skip_bad: Skip = False,
    force: Force = False,
) -> None:
    """Write the tags that are probably missing, best first, for `plures review`."""
    from collections import Counter

    from plures.inference.heatmaps import HEATMAPS
    from plures.inference.missing import draw_heatmaps, write_suggestions
    from plures.inference.missing import suggest as run_suggest
    from plures.training.run import Run

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
    write_suggestions(found, out, dataset)
    kinds = Counter(s.kind for s in found)
    counts = f"{kinds['missing']:,} tags probably missing" + (f", {kinds['wrong']:,} look wrong" if with_wrong else "")
    screen.print(f"{out}: {counts} ({found[0].method})", highlight=False)
    for tag, times in Counter(s.tag for s in found if s.kind == "missing").most_common(5):
        screen.print(f"  {tag}: {times:,}", highlight=False)


@app.command()
def review(
    table: Annotated[Path, typer.Argument(help="The table to complete: .csv, .tsv or .parquet.")],
    suggestions: Annotated[Path | None, typer.Argument(help="What `plures suggest` wrote.")] = None,
    run: Annotated[Path | None, typer.Option(help="A run folder whose model draws heat maps.")] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Ask every class of so many random images: a clean validation set.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8765,
    allow_host: Annotated[list[str] | None, typer.Option(help="A name by which others may call the page.")] = None,
) -> None:
    """Open a page on this machine to answer suggestions (keys y n ? u) or label a sample; answers are kept at once."""
    require("reviewing", "web", ["fastapi", "uvicorn"])
    import uvicorn

    from plures.web.guard import allowed_hosts, is_loopback
    from plures.web.review import Review, create_app

    hosts = allowed_hosts(host, allow_host or [])
    if not table.is_file():
        raise PluresError(f"no table '{table}'; make one of other data with `plures init DATA --out tags.csv`")
    work = Review(table, suggestions, run=run, sample=sample, seed=seed)
    try:
        state = work.state()
        what = "images" if sample else "suggestions"
        screen.print(f"{state['done']:,} of {state['total']:,} {what} are answered", highlight=False)
        screen.print(
            f"open http://{'localhost' if is_loopback(host) else host}:{port}/  (Ctrl-C ends it)", highlight=False
        )
        server = uvicorn.Server(uvicorn.Config(create_app(work, hosts), host=host, port=port, log_level="warning"))
        server.run()
        if not server.started:
            raise PluresError(f"cannot listen on {host}:{port}; is it in use? choose another --port")
    except KeyboardInterrupt:
        pass
    finally:
        work.close()
    screen.print(f"{table} is up to date; journal: {work.decisions.journal.path}", highlight=False)
