"""`plures localise`: how well heat maps meet true boxes, and boxes to start annotating from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plures.cli.app import Force, Json, Skip, app, data_and_options, say_next, screen
from plures.errors import PluresError

if TYPE_CHECKING:
    from rich.table import Table

    from plures.metrics.localisation import Localisation


@app.command()
def localise(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[DATA] [data.OPTION=VALUE]...", help="Other data than the run's own.")
    ] = None,
    boxes: Annotated[Path | None, typer.Option(help="Write the boxes found to this COCO JSON file.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to judge (default: test if there is one, else val).")] = None,
    share: Annotated[
        float, typer.Option(help="A box encloses pixels of at least this share of the hottest one.")
    ] = 0.2,
    json: Json = None,
    skip_bad: Skip = False,
    force: Force = False,
) -> None:
    """Judge a model's heat maps by true boxes, and write boxes around the tags it finds (COCO JSON)."""
    from plures.analysis.localise import localise as run_localise
    from plures.analysis.localise import write_coco
    from plures.files import refuse_replacing, writing
    from plures.runs.run import Run

    data, options = data_and_options(arguments or [])
    if not 0 < share <= 1:
        raise PluresError(f"--share {share:g}: expected a share of the hottest pixel, in (0, 1]")
    for path in filter(None, (boxes, json)):
        refuse_replacing(path, force=force, inputs=Run(run).reads(data))
    found = run_localise(run, data, split=split, share=share, options=options, skip_bad=skip_bad)
    if found.scores is None and boxes is None:
        raise PluresError(
            f"{found.dataset.name or 'the data'}: no true boxes to judge by; --boxes FILE writes the boxes found"
        )
    if found.scores is not None and found.flat is not None:
        screen.print(_table(found.scores, found.flat))
    width, height = found.region
    screen.print(
        f"resolution: a region is {width:.0%} x {height:.0%} of the photo; what is smaller is found, not outlined"
    )
    if json is not None and found.scores is not None and found.flat is not None:
        import json as spelling

        with writing(json) as temporary:
            values = {"share": share, "scores": asdict(found.scores), "flat": asdict(found.flat)}
            temporary.write_text(spelling.dumps(values, indent=2) + "\n", encoding="utf-8")
    if boxes is not None:
        write_coco(found, boxes)
        screen.print(f"{boxes}: {len(found.found):,} boxes in {len(found.dataset):,} images", highlight=False)
    say_next("plures", "report", run)


def _table(scores: Localisation, flat: Localisation) -> Table:
    from rich.table import Table

    from plures.metrics.report import percent

    table = Table("percent", title=f"Heat maps against true boxes: {scores.maps:,} maps, {scores.boxes:,} boxes")
    table.add_column("maps", justify="right")
    table.add_column("flat maps", justify="right")
    rows = {
        "pointing game: the hottest pixel is in a box": "pointing",
        "energy: share of the heat inside boxes": "energy",
        "hit: the map's box meets a true one, IoU >= 0.5": "box_hit",
        "recall: true boxes met by the map's one box": "box_recall",
        "recall: true boxes met by a box of any part": "parts_recall",
    }
    for words, name in rows.items():
        table.add_row(words, percent(getattr(scores, name)), percent(getattr(flat, name)))
    return table
