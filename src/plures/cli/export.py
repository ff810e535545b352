"""`plures export`: a run's model as one file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plures.cli.app import Force, app, say_next, screen


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[str, typer.Option(help="Format: onnx, openvino or torch.")],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, .xml (and .bin beside it) or .pt2.")],
    int8: Annotated[str | None, typer.Option(help="dynamic: linear layers in 8 bits; static: all layers.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Images for --int8 static: a folder or DATA; otherwise the training images.")
    ] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Export attention maps as well.")] = False,
    tolerance: Annotated[
        float, typer.Option(help="Largest allowed difference from the model; ten times that on resized images.")
    ] = 1e-3,
    force: Force = False,
) -> None:
    """Write one file that takes images of any size and gives calibrated scores and tags, checked against the model."""
    from typing import cast

    from plures.export.export import export as run_export
    from plures.export.formats import Format
    from plures.export.quantise import Int8

    made = run_export(
        run,
        cast(Format, to),
        out,
        int8=cast(Int8 | None, int8),
        calibration=calibration,
        maps=maps,
        tolerance=tolerance,
        force=force,
    )
    found = made.agreement
    sizes = ", ".join(f"{width} x {height}" for height, width in found.sizes)
    names = " and ".join(str(path) for path in made.files)
    screen.print(f"{names}: {made.bytes / 1e6:.1f} MB", highlight=False)
    screen.print(
        f"checked on {found.images} images in batches of 1 and 3 ({sizes} pixels): largest difference from the model"
        f" {found.exact:.1e}, {found.resized:.1e} on resized images",
        highlight=False,
    )
    if made.cost is not None:
        c = made.cost
        screen.print(
            f"8 bits: mAP {c.before:.2f} -> {c.after:.2f} ({c.after - c.before:+.2f}) on {c.images:,} {c.split} images",
            highlight=False,
        )
    elif int8:
        screen.print("8 bits: loss of mAP not measured, the run has no data of its own", highlight=False)
    say_next("plures", "serve", run)
