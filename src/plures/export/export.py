"""`plures.export.export.export`: one file that runs without plures, checked against the model before it is written.

The file takes uint8 images [B, 3, H, W] of any size (all of one batch alike); resize and normalisation are inside. It
gives scores [B, K] (calibrated probabilities), tags [B, K] (by the run's thresholds), logits [B, K] (not calibrated)
and, on request, maps [B, K, P].
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.data.dataset import Dataset
from plures.data.photos import list_images
from plures.data.read import read
from plures.errors import PluresError, WorkFailed, require
from plures.export import formats
from plures.export.checks import Agreement, Cost, agreement, cost, pixels_of, some
from plures.export.description import card_of, metadata_of
from plures.export.formats import Format, Runner
from plures.export.graph import Graph
from plures.export.quantise import Int8, quantised
from plures.files import clear_left, refuse_replacing, writing
from plures.models.model import Model
from plures.runs.own_data import match_classes, own_data
from plures.runs.photos import log
from plures.runs.run import Run
from plures.scoring.features import refuse_features, token_boxes
from plures.scoring.logits import refuse_names
from plures.scoring.predictor import load

SUFFIX: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
TOLERANCE = 1e-3  # of scores in [0, 1] and of maps' shares
ROUNDING = 10  # times the tolerance where a resize may round a pixel to the next level
CALIBRATION_IMAGES = 200


@dataclass(frozen=True)
class Exported:
    """What was written and what was found out about it. bytes: of all files; cost: what 8 bits cost, or None."""

    files: tuple[Path, ...]
    bytes: int
    agreement: Agreement
    cost: Cost | None


def export(
    run: str | Path | Run,
    to: Format,
    out: str | Path,
    *,
    int8: Int8 | None = None,
    calibration: str | None = None,
    maps: bool = False,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> Exported:
    """Write a run's model as one file for another program: .onnx, .xml (with its .bin beside it) or .pt2.

    int8: `dynamic` or `static` 8-bit weights; calibration: the images for `static` (a folder, or DATA), by default the
    run's own training images. maps: attention maps as a third output. force: replace files that are there.
    Raises WorkFailed, with nothing written, if the file's scores or maps differ from the model's by more than
    `tolerance`, or ROUNDING times that on resized images (with int8: the file before it is made 8-bit; `cost` says
    what 8 bits cost).
    """
    out = Path(out)
    _refuse_wrong_wishes(to, out, int8, calibration)
    require("exporting", "export", formats.NEEDS[to] + (("onnxruntime",) if int8 else ()))
    run = run if isinstance(run, Run) else Run(run)
    for path in (out, out.with_suffix(".bin"))[: 1 + (to == "openvino")]:
        refuse_replacing(path, force=force, inputs=run.reads(calibration))
    model = load(run, device="cpu")
    refuse_features(model, "an exported file")
    refuse_names(model, "an exported file")
    thresholds = model.thresholds
    graph = Graph(model, thresholds, maps)
    metadata = metadata_of(model, thresholds, token_boxes(model, pooled=False).float().numpy() if maps else None, int8)
    card = card_of(run, model, thresholds)
    proto = None if to == "torch" else formats.onnx_of(graph)
    files, runner = _made(to, graph, proto, metadata, card)
    found = agreement(runner, model, maps)
    _refuse_beyond(found, tolerance)
    price = None
    if int8 is not None:
        own = _own(run, needed=int8 == "static" and calibration is None)
        pixels = _calibration_pixels(model, calibration, own) if int8 == "static" else iter(())
        files, runner = _made(to, graph, quantised(proto, int8, pixels), metadata, card)
        found = agreement(runner, model, maps)
        if own is not None:
            validation = match_classes(own.split("val"), model.classes)
            price = cost(runner, model, validation, "val", run.experiment.average_precision)
    return Exported(_write(out, files), sum(map(len, files)), found, price)


def _own(run: Run, needed: bool) -> Dataset | None:
    """The run's own data, if it has any that can be read. Raises PluresError if they are needed and cannot be."""
    if run.imported:
        return None
    try:
        return own_data(run, {}, skip_bad=True)
    except PluresError as error:
        if needed:
            raise PluresError(f"--int8 static measures ranges on images: --calibration DATA, since {error}") from None
        log.warning(f"what 8 bits cost is not measured: {error}")
        return None


def _refuse_wrong_wishes(to: Format, out: Path, int8: Int8 | None, calibration: str | None) -> None:
    if to not in SUFFIX:
        raise PluresError(f"--to {to}: choose onnx, openvino or torch")
    if out.suffix.lower() != SUFFIX[to]:
        raise PluresError(f"{out}: a file for {to} ends with {SUFFIX[to]}; write --out {out.with_suffix(SUFFIX[to])}")
    if int8 not in (None, "dynamic", "static"):
        raise PluresError(f"--int8 {int8}: choose dynamic or static")
    if int8 is not None and to == "torch":
        raise PluresError("--int8 is for onnx and openvino; torch files keep 32 bits")
    if int8 == "dynamic" and to == "openvino":
        raise PluresError("OpenVINO has no fast form of dynamic int8; use --int8 static")
    if calibration is not None and int8 != "static":
        raise PluresError("--calibration is for --int8 static; nothing else measures ranges on images")


def _refuse_beyond(found: Agreement, tolerance: float) -> None:
    for what, worst, allowed in (
        ("the model's own size", found.exact, tolerance),
        ("other sizes", found.resized, ROUNDING * tolerance),
        ("any size after calibration", found.calibrated, tolerance),
    ):
        if worst > allowed:
            raise WorkFailed(
                f"the exported file differs from the model by {worst:.1e} on images of {what}, more than the tolerance"
                f" {allowed:.0e}; nothing written"
            )
    if found.tags:
        raise WorkFailed(f"the exported file calls {found.tags} tags otherwise than the model; nothing written")


def _made(
    to: Format, graph: Graph, proto: Any, metadata: dict[str, Any], card: str
) -> tuple[tuple[bytes, ...], Runner]:
    """The contents of the file or files, and a function that runs just these bytes."""
    preprocessing = graph.model.preprocessing
    if to == "torch":
        content = formats.torch_bytes(graph, metadata, card)
        return (content,), formats.run_torch(content, graph.maps)
    if to == "onnx":
        content = formats.onnx_bytes(formats.with_resize(proto, preprocessing), metadata, card)
        return (content,), formats.run_onnx(content)
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "model.xml"
        made = formats.openvino_of(proto, preprocessing, metadata, card)
        openvino.save_model(made, xml, compress_to_fp16=False)
        files = xml.read_bytes(), xml.with_suffix(".bin").read_bytes()
    return files, formats.run_openvino(*files)


def _calibration_pixels(model: Model, source: str | None, own: Dataset | None) -> Iterator[NDArray[np.uint8]]:
    """Batches uint8 [B, 3, S, S] of up to CALIBRATION_IMAGES images."""
    if source is not None:
        images: Any = list_images(source) if Path(source).is_dir() else read(source, labelled=False).images
    elif own is not None:
        images = own.split("train").images
    else:
        raise PluresError("--int8 static measures ranges on images, and this run has none: --calibration DATA")
    rows = some(len(images), CALIBRATION_IMAGES)
    chosen = images[rows] if isinstance(images, np.ndarray) else [images[row] for row in rows]
    return pixels_of(model, chosen, 4, "measuring ranges for 8 bits")


def _write(out: Path, files: tuple[bytes, ...]) -> tuple[Path, ...]:
    """The main file last: where it lies, everything it needs lies too."""
    paths = (out, out.with_suffix(".bin"))[: len(files)]
    clear_left(out.parent)  # of an export that was killed
    if len(files) > 1:
        out.unlink(missing_ok=True)
    for path, content in reversed(list(zip(paths, files, strict=True))):
        with writing(path) as temporary:
            temporary.write_bytes(content)
    return paths
