"""The three kinds of file: how each is made of the graph, and how each is run again. Everything happens in memory;
nothing is written here."""

from __future__ import annotations

import io
import json
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from plures.errors import WorkFailed
from plures.export.graph import AnySize, Graph
from plures.models.model import Preprocessing
from plures.scoring.engines import OPSET, Outputs, Runner, one_line_failure, onnx_proto, run_onnx, run_openvino

__all__ = ["OPSET", "Outputs", "Runner", "one_line_failure", "run_onnx", "run_openvino"]

Format = Literal["onnx", "openvino", "torch"]
NEEDS: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch": (),
}
METADATA, CARD = "plures", "model_card"  # names under which a file carries its metadata (JSON) and its model card


def output_names(maps: bool) -> list[str]:
    return ["scores", "tags", "logits", "maps"] if maps else ["scores", "tags", "logits"]


# --------------------------------------------------------------------------------------------------------------- ONNX


def onnx_of(graph: Graph) -> Any:
    """The graph as an onnx.ModelProto that takes pixels [batch, 3, S, S] of the model's own side."""
    side = graph.model.preprocessing.image_size
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    return onnx_proto(graph, example, "pixels", output_names(graph.maps))


def with_resize(proto: Any, preprocessing: Preprocessing) -> Any:
    """A copy of the model with a resize before it, which takes images [batch, 3, height, width] of any size.

    ONNX Runtime resizes bytes as Pillow does, in whole levels after each direction. Where a photo is narrower and
    taller than the model's side the two differ (Pillow 13 seems to go down first there), by a level if bilinear.
    """
    from onnx import ModelProto, TensorProto, helper

    whole = ModelProto()
    whole.CopyFrom(proto)
    side = preprocessing.image_size
    how: dict[str, Any] = {"mode": "linear"}
    if preprocessing.interpolation == "bicubic":
        how = {"mode": "cubic", "cubic_coeff_a": -0.5}
    resize = helper.make_node(
        "Resize", ["images", "", "", "side"], ["pixels"], "resize", antialias=1, axes=[2, 3],
        exclude_outside=1, coordinate_transformation_mode="half_pixel", **how,
    )  # fmt: skip
    whole.graph.initializer.append(helper.make_tensor("side", TensorProto.INT64, [2], [side, side]))
    whole.graph.node.insert(0, resize)
    shape: list[str | int | None] = ["batch", 3, "height", "width"]
    whole.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))
    return whole


def onnx_bytes(proto: Any, metadata: dict[str, Any], card: str) -> bytes:
    """The file, with its metadata and card. Raises WorkFailed above the 2 GB that one ONNX file holds."""
    from onnx import helper

    helper.set_model_props(proto, {METADATA: json.dumps(metadata, ensure_ascii=False), CARD: card})
    proto.producer_name, proto.producer_version = "plures", metadata["plures"]
    try:
        return cast(bytes, proto.SerializeToString())
    except ValueError as error:
        raise WorkFailed(f"one ONNX file holds 2 GB, this model is larger ({error}); use --to torch") from None


# ----------------------------------------------------------------------------------------------------------- OpenVINO


def openvino_of(proto: Any, preprocessing: Preprocessing, metadata: dict[str, Any], card: str) -> Any:
    """The ONNX model as an openvino.Model, with OpenVINO's own Pillow resize before it."""
    import openvino
    from openvino import opset11 as op

    with one_line_failure("openvino"):
        model = openvino.convert_model(io.BytesIO(proto.SerializeToString()))
    side = preprocessing.image_size
    images = op.parameter([-1, 3, -1, -1], np.uint8, name="images")
    images.output(0).set_names({"images"})
    resized = op.interpolate(
        images, np.array([side, side], np.int64), f"{preprocessing.interpolation}_pillow", "sizes",
        cube_coeff=-0.5, axes=np.array([2, 3], np.int64),
    )  # fmt: skip
    old = model.get_parameters()[0]
    old.output(0).replace(resized.output(0))
    model.add_parameters([images])
    model.remove_parameter(old)
    model.validate_nodes_and_infer_types()
    model.set_rt_info(json.dumps(metadata, ensure_ascii=False), [METADATA])
    model.set_rt_info(card, [CARD])
    return model


# -------------------------------------------------------------------------------------------------------------- torch


def torch_bytes(graph: Graph, metadata: dict[str, Any], card: str) -> bytes:
    """A torch.export program (.pt2) that takes images [batch, 3, height, width] of any size."""
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "height", "width"))
    example = torch.zeros(2, 3, 67, 71, dtype=torch.uint8)
    with one_line_failure("torch"):
        program = torch.export.export(
            AnySize(graph).eval(), (example,), dynamic_shapes=({0: batch, 2: height, 3: width},)
        )
        file = io.BytesIO()
        extra = {METADATA: json.dumps(metadata, ensure_ascii=False), CARD: card}
        torch.export.save(program, file, extra_files=extra)
    return file.getvalue()


def run_torch(content: bytes, maps: bool) -> Runner:
    """A function that runs the program."""
    module = torch.export.load(io.BytesIO(content)).module()
    names = output_names(maps)

    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            return {n: v.numpy() for n, v in zip(names, module(torch.from_numpy(images)), strict=True)}

    return run
