"""Eight-bit forms of an ONNX graph, by ONNX Runtime's own quantiser.

dynamic: the weights of linear layers are bytes, activations become bytes while it runs; needs no images, and leaves
convolutions as they are. static: convolutions too, with ranges of activations measured on calibration images.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plures.export.formats import one_line_failure

Int8 = Literal["dynamic", "static"]


def quantised(proto: Any, how: Int8, pixels: Iterator[NDArray[np.uint8]]) -> Any:
    """The graph (before the resize) in 8 bits. pixels: batches uint8 [B, 3, S, S], read for static only.

    Raises WorkFailed if the quantiser cannot do it.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(pixels, None)
            return None if batch is None else {"pixels": batch}

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the quantiser talks to the root logger
    try:
        with tempfile.TemporaryDirectory() as folder, one_line_failure("8 bits"):
            plain, ready, done = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "done"))
            onnx.save(_without_shapes(proto), plain)
            quant_pre_process(plain, ready, skip_symbolic_shape=True)  # joins batch norms to their convolutions
            constant = {"MatMulConstBOnly": True}  # products of activations, as in attention, stay as they are
            if how == "dynamic":
                quantize_dynamic(ready, done, ["MatMul", "Gemm"], weight_type=QuantType.QInt8, extra_options=constant)
            else:
                quantize_static(
                    ready, done, Reader(), QuantFormat.QDQ, ["Conv", "MatMul", "Gemm"], per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, extra_options=constant,
                )  # fmt: skip
            return onnx.load(done)
    finally:
        logger.setLevel(level)


def _without_shapes(proto: Any) -> Any:
    """A copy without noted shapes: the quantiser turns the weights of linear layers around and trips over the old."""
    from onnx import ModelProto

    bare = ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    return bare
