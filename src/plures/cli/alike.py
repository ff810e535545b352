"""`plures duplicates` and `plures similar`: copies in data, and what is most like a photograph."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Force, Skip, app, data_and_options, say_notices, say_skipped, screen, settings_values
from plures.errors import PluresError
from plures.files import refuse_replacing

PAGES, TABLES = (".html", ".htm"), (".csv", ".tsv")


class Copies(StrEnum):
    exact = "exact"
    near_exact = "near-exact"
    near = "near"


def _refuse_other(out: Path) -> None:
    if out.suffix.lower() not in (*PAGES, *TABLES):
        raise PluresError(f"--out {out}: expected a page (.html) or a table (.csv, .tsv)")


@app.command()
def duplicates(
    data: Annotated[str, typer.Argument(help="DATA as `train` takes it.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="data.OPTION=..., and for near copies backbone.weights=FILE.")
    ] = None,
    kind: Annotated[
        Copies,
        typer.Option(
            help="exact: the same bytes; near-exact: and other sizes and encodings; near: and crops and series, by a"
            " backbone's features."
        ),
    ] = Copies.near_exact,
    similarity: Annotated[float, typer.Option(help="For near: cosine of features from which two are alike.")] = 0.85,
    run: Annotated[Path | None, typer.Option(help="For near: the run whose backbone gives the features.")] = None,
    out: Annotated[Path | None, typer.Option(help="A page with thumbnails (.html), or a table (.csv, .tsv).")] = None,
    skip_bad: Skip = False,
    force: Force = False,
) -> None:
    """Find photographs that are copies of each other, and say which of them lie in several splits."""
    from plures.analysis.neighbours import across_splits, find_copies, space_of, write_groups
    from plures.config import Experiment
    from plures.data.read import read
    from plures.report.alike import write_copies
    from plures.runs.run import Run

    if out is not None:
        _refuse_other(out)
        refuse_replacing(out, force=force, inputs=[data])
    experiment = Experiment(**settings_values(data, None, settings or []))
    opened = None if run is None else Run(run)
    dataset = read(experiment.data.name, skip_bad=skip_bad, verify=True, labelled=False, **experiment.data.options)
    vectors = space_of(dataset, run=opened, experiment=experiment).vectors if kind == "near" else None
    groups = find_copies(dataset, kind.value, vectors=vectors, similarity=similarity)
    across = across_splits(dataset, groups)
    more = sum(map(len, groups)) - len(groups)
    said = f"{len(dataset):,} photographs, {len(groups):,} groups of {kind.value} copies: {more:,} could go"
    said += f"; {len(across):,} groups lie in several splits" if across else ""
    screen.print(said, highlight=False)
    say_skipped(dataset.problems)
    say_notices(tuple(across))
    if out is None:
        for group in groups[:10]:
            screen.print("  " + "  ".join(str(dataset.images[m.row]) for m in group[:6]), highlight=False)
    elif out.suffix.lower() in PAGES:
        write_copies(groups, dataset, out, said)
    else:
        write_groups(groups, dataset, out)
    if out is not None:
        screen.print(f"wrote {out}", highlight=False)


@app.command()
def similar(
    run: Annotated[Path, typer.Argument(help="A run folder, whose backbone compares.")],
    source: Annotated[str, typer.Argument(metavar="PHOTO", help="A photograph, or a folder or list of some.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA] [data.OPTION=VALUE]...", help="Where to look: other data than the run's own."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many to show of each.")] = 12,
    out: Annotated[Path | None, typer.Option(help="A page with thumbnails (.html), or a table (.csv, .tsv).")] = None,
    skip_bad: Skip = False,
    force: Force = False,
) -> None:
    """Show the photographs that are most like a given one, with their tags."""
    from itertools import islice

    from plures.analysis.neighbours import most_similar, space_of, tags_of, write_similar_rows
    from plures.data.read import read
    from plures.report.alike import write_similar
    from plures.runs.own_data import own_data
    from plures.runs.run import Run
    from plures.scoring.sources import images_of

    opened = Run(run)
    data, options = data_and_options(arguments or [])
    if out is not None:
        _refuse_other(out)
        refuse_replacing(out, force=force, inputs=[*opened.reads(data), source])
    asked = list(islice(images_of(source, skip_bad)(), 101))
    if len(asked) > 100:
        raise PluresError(f"{source}: more than 100 photographs to look for; name one, or a list of some")
    if data is None:
        dataset = own_data(opened, options, skip_bad)
    else:
        dataset = read(data, skip_bad=skip_bad, verify=True, labelled=False, **options)
    space = space_of(dataset, run=opened)
    found = [most_similar(space.vectors, place, top) for place in space.place([image for _, image in asked])]
    for (name, _), rows in zip(asked, found, strict=True) if out is None else ():
        screen.print(f"more like {name}", highlight=False)
        for row, alike in rows:
            image = f"row {row}" if dataset.in_memory else str(dataset.images[row])
            screen.print(f"  {alike:.2f}  {image}  {', '.join(tags_of(dataset, row))}", highlight=False)
    if out is not None:
        names = [name for name, _ in asked]
        if out.suffix.lower() in PAGES:
            write_similar(asked, found, dataset, out)
        else:
            write_similar_rows(names, found, dataset, out)
        screen.print(f"wrote {out}", highlight=False)
