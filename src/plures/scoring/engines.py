"""What computes frozen features: torch, or on a CPU ONNX Runtime or OpenVINO, which are faster and agree within 1e-4.

Every engine computes the backbone with its batch norms folded into the convolutions before them, as one function of
uint8 images. `auto` (the default) takes ONNX Runtime for networks with batch norms (EfficientNet-Lite2 is 2.75 times as
fast there, a ViT no faster: benchmarks/engines.py), on a CPU, where it is installed and there are images enough to pay
for the export; else torch. A network that cannot be exported, or does not agree, stays with torch.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from plures.errors import PluresError, WorkFailed, require
from plures.files import writing
from plures.models.model import Model
from plures.system import signal_stack_kept

Engine = Literal["torch", "onnxruntime", "openvino"]
Outputs = dict[str, NDArray[Any]]
Runner = Callable[[NDArray[np.uint8]], Outputs]  # uint8 images [B, 3, H, W] -> its outputs by name

OPSET = 20
PACKAGES: dict[str, tuple[str, ...]] = {name: ("onnx", "onnxscript", name) for name in ("onnxruntime", "openvino")}
WORTH_EXPORTING = 1000  # images: an export takes some seconds, and saves some hundredths of a second on each
TOLERANCE = 1e-4  # of the largest feature: how far engines may differ


def chosen(asked: str, model: Model, device: torch.device, images: int) -> Engine:
    """The engine for so many images of this model. Raises PluresError if it is not installed or not for this device."""
    if asked == "auto":
        usable = device.type == "cpu" and images >= WORTH_EXPORTING and any(map(_is_batch_norm, model.modules()))
        return "onnxruntime" if usable and all(map(find_spec, PACKAGES["onnxruntime"])) else "torch"
    if asked != "torch":
        if device.type != "cpu":
            raise PluresError(f"engine={asked} computes on a CPU, got device={device.type}; use engine=torch")
        require(f"engine={asked}", "export", PACKAGES[asked])
    return cast(Engine, asked)


def made_by(engine: Engine) -> list[str]:
    """What of an engine changes its features' last digits, for the key that they are kept under."""
    return [engine, *([] if engine == "torch" else [version(engine), version("onnxscript")])]


class Pooled(nn.Module):
    """uint8 images [B, 3, S, S] -> features [B, P, D], or their mean over the regions [B, 1, D]."""

    def __init__(self, model: Model, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.tokens(images).features
        return features.mean(1, keepdim=True) if self.pooled else features


@torch.inference_mode()
def feature_function(model: Model, pooled: bool, engine: Engine, graph: Path) -> Callable[[Tensor], Tensor]:
    """Images uint8 [B, 3, S, S] on any device -> features [B, P, D] or [B, 1, D], computed on the model's device.

    graph: where the exported backbone is kept, as its export takes seconds.
    Raises WorkFailed if the network cannot be exported, or does not then give the same features.
    """
    device, side = next(model.parameters()).device, model.preprocessing.image_size
    random = np.random.default_rng(0).integers(0, 256, (3, 3, side, side), np.uint8)
    example = torch.from_numpy(random)
    module = Pooled(model.eval(), pooled)
    if (other := folded(model, example[:1].to(device))) is not None:
        inside = Pooled(other, pooled)
        if _agree(module(example[:1].to(device)), inside(example[:1].to(device))):
            module = inside

    def by_torch(images: Tensor) -> Tensor:
        return cast(Tensor, module(images.to(device)))

    if engine == "torch":
        return by_torch
    if not graph.is_file():
        proto = onnx_proto(module.eval(), example[:2], "images", ["features"])
        graph.parent.mkdir(parents=True, exist_ok=True)
        with writing(graph) as temporary:
            temporary.write_bytes(_serialised(proto))
    content, threads = graph.read_bytes(), torch.get_num_threads()
    with one_line_failure(engine):
        run = run_onnx(content, threads) if engine == "onnxruntime" else run_openvino(content, None, threads)
        found = run(random)["features"]
    if not _agree(by_torch(example), torch.from_numpy(found)):
        raise WorkFailed(f"engine={engine}: this network gives other features there; use engine=torch")
    return lambda images: torch.from_numpy(run(images.cpu().numpy())["features"])


def _agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= TOLERANCE * (1 + float(one.abs().max()))


# ------------------------------------------------------------------------------------------------------------ folding


@torch.inference_mode(False)
@torch.no_grad()
def folded(model: Model, example: Tensor) -> Model | None:
    """A copy of the model in which each batch norm that takes what a convolution gives has become part of it (wrong
    where something else takes it too); None where there is none. example: uint8 images, to see what follows what."""
    gave: dict[int, tuple[Tensor, str]] = {}  # the output too, so that its id stays its own
    pairs: list[tuple[str, str]] = []

    def after(name: str, output: Tensor) -> None:
        gave[id(output)] = output, name

    def before(name: str, given: Tensor) -> None:
        if id(given) in gave:
            pairs.append((gave[id(given)][1], name))

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda _, x, y, n=name: after(n, y)))
        elif _is_batch_norm(module):
            handles.append(module.register_forward_pre_hook(lambda _, x, n=name: before(n, x[0])))
    model.tokens(example)
    for handle in handles:
        handle.remove()
    for place in range(2):  # a module that is used twice stays as it is
        names = [pair[place] for pair in pairs]
        pairs = [pair for pair in pairs if names.count(pair[place]) == 1]
    if not pairs:
        return None
    model = copy.deepcopy(model)
    for convolution, norm in pairs:
        conv, bn = cast(Any, model.get_submodule(convolution)), cast(Any, model.get_submodule(norm))
        numbers = [None if t is None else t.double() for t in (conv.bias, bn.running_mean, bn.running_var)]
        weight, bias = fuse_conv_bn_weights(conv.weight.double(), *numbers, bn.eps, bn.weight, bn.bias)  # type: ignore[arg-type,call-arg]
        conv.weight, conv.bias = nn.Parameter(weight.to(conv.weight.dtype)), nn.Parameter(bias.to(conv.weight.dtype))
        parent, _, own = norm.rpartition(".")
        rest = [getattr(bn, part) for part in ("drop", "act") if isinstance(getattr(bn, part, None), nn.Module)]
        setattr(model.get_submodule(parent), own, nn.Sequential(*rest))  # timm's norms hold their activation
    return model.eval().to(memory_format=torch.channels_last)


def _is_batch_norm(module: nn.Module) -> bool:
    """Also timm's norms with fixed statistics."""
    return "BatchNorm" in type(module).__name__ and getattr(module, "running_var", None) is not None


# ------------------------------------------------------------------------------------------- ONNX and what runs it


def onnx_proto(module: nn.Module, example: Tensor, given: str, gives: list[str]) -> Any:
    """The module as an onnx.ModelProto for batches of any length. example: [2, ...]; given, gives: names of its input
    and outputs."""
    with one_line_failure("onnx"), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[given],
            output_names=gives,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    del proto.metadata_props[:]
    for node in proto.graph.node:  # where in the source a node came from: as large as the weights of a small model
        del node.metadata_props[:]
        node.doc_string = ""
    return proto


def _serialised(proto: Any) -> bytes:
    try:
        return cast(bytes, proto.SerializeToString())
    except ValueError as error:
        raise WorkFailed(f"one ONNX file holds 2 GB, this model is larger ({error}); use engine=torch") from None


def run_onnx(content: bytes, threads: int = 0) -> Runner:
    """A function that runs the file with ONNX Runtime. threads: 0 for as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))


def run_openvino(model: bytes, weights: bytes | None, threads: int = 0) -> Runner:
    """A function that runs an ONNX file (weights None), or OpenVINO's two files, with OpenVINO on the CPU, in float32
    as the model was trained."""
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    with one_line_failure("openvino"), signal_stack_kept():  # its own passes trip over some graphs
        core = openvino.Core()
        read = openvino.convert_model(io.BytesIO(model)) if weights is None else core.read_model(model, weights)
        compiled = core.compile_model(read, "CPU", settings)
    names = [output.any_name for output in compiled.outputs]
    return lambda images: dict(zip(names, (np.array(v) for v in compiled(images).values()), strict=True))


@contextmanager
def one_line_failure(what: str) -> Iterator[None]:
    """Exporters warn of their own future; a failure in them becomes one line that says which part cannot do it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except PluresError:
        raise
    except Exception as error:  # each of these programs raises kinds of its own
        line = " ".join(str(error).split())[:300]
        raise WorkFailed(f"this model cannot be exported to {what} ({type(error).__name__}: {line})") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
