"""Weights of the papers' own programs as plures models.

Query2Label: Liu et al. 2021, arXiv 2107.10834, github.com/SlongLiu/query2labels.
MLSPL: Cole et al. 2021, arXiv 2106.09708, github.com/elijahcole/single-positive-multi-label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import swin_transformer, tresnet
from torch import Tensor, nn

from plures.errors import PluresError
from plures.files import parse_json
from plures.models.backbones import backbones
from plures.models.heads.transformer import sine_code
from plures.models.model import Model, Parts, Preprocessing, assemble
from plures.models.outputs import grid_boxes
from plures.models.weights.checkpoint_file import read_state

State = dict[str, Tensor]

COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
    "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
)
VOC_NAMES = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,"
    "sheep,sofa,train,tvmonitor"
)
KNOWN_CLASSES = {80: tuple(COCO_NAMES.split(",")), 20: tuple(VOC_NAMES.split(","))}
Depths = tuple[int, ...]
RESNETS: dict[Depths, str] = {
    (2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}
TRESNETS: dict[Depths, str] = {(3, 4, 11, 3): "m", (4, 5, 18, 3): "l", (4, 5, 24, 3): "xl", (3, 4, 23, 3): "v2_l"}
SWINS: dict[tuple[int, Depths], str] = {
    (96, (2, 2, 6, 2)): "tiny",
    (96, (2, 2, 18, 2)): "small",
    (128, (2, 2, 18, 2)): "base",
    (192, (2, 2, 18, 2)): "large",
}


def import_q2l(
    checkpoint: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    reinitialise: bool = False,
) -> Model:
    """A released or self-trained checkpoint of the official Query2Label code.

    Sizes follow from the tensors. config: the JSON of options beside a released checkpoint, or its content; read are
    `nheads` (default 4), `dropout`, `img_size` and `orid_norm` (images stay in [0, 1]; default: ImageNet's mean and
    standard deviation). classes: their names in the checkpoint's order; default those of MS-COCO or VOC for 80 or 20.
    reinitialise: `classes` may be others, in any number and order; those that the checkpoint knows by name (80: the
    names of MS-COCO, 20: VOC) keep their query and classifier, the rest start anew.
    Raises PluresError if the file is not such a checkpoint, or names what is missing, unexpected or of another shape.
    """
    state, options = read_state(checkpoint), read_config(config)
    absent = [name for name in ("query_embed.weight", "fc.W", "fc.b") if name not in state]
    if absent:
        raise PluresError(f"{checkpoint} is not a Query2Label checkpoint: it has no {', '.join(absent)}")
    known, wanted = class_names(len(state["query_embed.weight"]), classes, reinitialise, str(checkpoint))
    backbone, backbone_options, prefix = _backbone(state, str(checkpoint))
    code = state.pop("backbone.1.pe", None)
    if code is not None:
        backbone_options["image_size"] = code.shape[2] * (16 if backbone == "cvt" else 32)
    backbone_options["image_size"] = options.get("img_size", backbone_options.get("image_size", 448))
    raw = bool(options.get("orid_norm"))
    backbone_options["mean"] = [0.0, 0.0, 0.0] if raw else list(IMAGENET_DEFAULT_MEAN)
    backbone_options["std"] = [1.0, 1.0, 1.0] if raw else list(IMAGENET_DEFAULT_STD)
    head_options, head = _q2l_head(state, code, options)
    model = build(Parts(backbone, "query2label", backbone_options, head_options), wanted)
    inner = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith("backbone.0.")}
    mapped = _backbone_names(cast(nn.Module, model.backbone), backbone_options.get("model", ""), inner) | head
    if reinitialise:
        keep_known(model, mapped, known)
    return fill(model, mapped, str(checkpoint))


def import_mlspl(
    checkpoint: str | Path,
    classes: Sequence[str] | None = None,
    reinitialise: bool = False,
    image_size: int = 448,
) -> Model:
    """`best_model_state_f.pt` of the official MLSPL code in end-to-end or LinearInit mode: ResNet-50 and linear.

    classes, reinitialise: as in `import_q2l`. Raises PluresError if the file is another.
    """
    state = read_state(checkpoint)
    if "linear_classifier.fc.weight" in state:
        raise PluresError(
            f"{checkpoint} was trained on frozen features and holds no backbone; only end-to-end weights are imported"
        )
    if "linear_classifier.weight" not in state or "feature_extractor.0.weight" not in state:
        raise PluresError(f"{checkpoint} is not an MLSPL checkpoint: it has no feature_extractor and linear_classifier")
    known, wanted = class_names(len(state["linear_classifier.weight"]), classes, reinitialise, str(checkpoint))
    model = build(Parts("timm", "linear", {"model": "resnet50", "image_size": image_size}), wanted)
    places = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    mapped = {}
    for name, tensor in state.items():
        if name.startswith("feature_extractor."):
            number, rest = name.split(".", 2)[1:]
            mapped[f"backbone.backbone.{places.get(number, number)}.{rest}"] = tensor
        else:
            mapped[name.replace("linear_classifier.", "head.classifier.")] = tensor
    if reinitialise:
        keep_known(model, mapped, known)
    return fill(model, mapped, str(checkpoint))


def build(parts: Parts, classes: tuple[str, ...]) -> Model:
    backbone = backbones.make(parts.backbone, **parts.backbone_options)
    return assemble(backbone, parts, classes, Preprocessing(backbone.image_size, backbone.mean, backbone.std))


def read_config(config: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a released checkpoint."""
    if config is None or isinstance(config, Mapping):
        return dict(config or {})
    try:
        content = parse_json(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluresError(f"cannot read the configuration {config}: {error}") from None
    if not isinstance(content, dict):
        raise PluresError(f"the configuration {config} is not a JSON object")
    return content


def class_names(
    count: int, classes: Sequence[str] | None, reinitialise: bool, origin: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the checkpoint's classes as far as known, and of the model's."""
    known = KNOWN_CLASSES.get(count, tuple(f"class {i}" for i in range(count)))
    if classes is None or (len(classes) == count and not reinitialise):
        return known, tuple(classes or known)
    if not reinitialise:
        raise PluresError(
            f"{origin} knows {count} classes, {len(classes)} are named; name {count}, or use reinitialise to keep"
            " what is known by name and start the other classes anew"
        )
    return known, tuple(classes)


def _depths(state: State, pattern: str) -> tuple[int, ...]:
    """How many blocks each stage has, from names that match `pattern` with the groups stage and block."""
    last: dict[int, int] = {}
    for name in state:
        if found := re.match(pattern, name):
            stage, block = int(found[1]), int(found[2])
            last[stage] = max(last.get(stage, 0), block + 1)
    return tuple(last[stage] for stage in sorted(last))


def _backbone(state: State, origin: str) -> tuple[str, dict[str, Any], str]:
    """Backbone, its options, and what stands before the backbone's own names."""
    if "backbone.0.body.body.conv1.0.weight" in state:
        size = TRESNETS.get(_depths(state, r"backbone\.0\.body\.body\.layer(\d)\.(\d+)"))
        if size:
            return "timm", {"model": f"tresnet_{size}"}, "backbone.0.body."
    elif "backbone.0.body.conv1.weight" in state:
        name = RESNETS.get(_depths(state, r"backbone\.0\.body\.layer(\d)\.(\d+)"))
        if name == "resnet50" and "backbone.0.body.layer1.0.conv3.weight" not in state:
            name = "resnet34"
        if name:
            return "timm", {"model": name, "frozen_norm": True}, "backbone.0.body."
    elif "backbone.0.patch_embed.proj.weight" in state:
        width = len(state["backbone.0.patch_embed.proj.weight"])
        size = SWINS.get((width, _depths(state, r"backbone\.0\.layers\.(\d)\.blocks\.(\d+)")))
        table = state.get("backbone.0.layers.0.blocks.0.attn.relative_position_bias_table")
        window = (int(len(table) ** 0.5) + 1) // 2 if table is not None else 0
        if size and window in (7, 12):
            return "timm", {"model": f"swin_{size}_patch4_window{window}_{32 * window}"}, "backbone.0."
    elif "backbone.0.stage0.patch_embed.proj.weight" in state:
        widths = [len(state[f"backbone.0.stage{i}.patch_embed.proj.weight"]) for i in range(3)]
        depths = list(_depths(state, r"backbone\.0\.stage(\d)\.blocks\.(\d+)"))
        return "cvt", {"widths": widths, "depths": depths, "attention_heads": [w // 64 for w in widths]}, "backbone.0."
    raise PluresError(f"{origin}: its backbone is none of ResNet, TResNet, Swin and CvT in the sizes that plures knows")


def _backbone_names(backbone: nn.Module, model: str, state: State) -> State:
    """The backbone's tensors under plures' names."""
    if model.startswith("tresnet"):
        state = tresnet.checkpoint_filter_fn(state, backbone.backbone)  # type: ignore[no-untyped-call]
    elif model.startswith("swin"):
        state = swin_transformer.checkpoint_filter_fn(state, cast(nn.Module, backbone.backbone))
    before = "backbone.backbone." if model else "backbone."
    return {before + name: tensor for name, tensor in state.items()}


def _q2l_head(state: State, code: Tensor | None, config: Mapping[str, Any]) -> tuple[dict[str, Any], State]:
    """The head's options and its tensors under plures' names."""
    decoder = "transformer.decoder.layers."
    layers = {name.split(".")[3] for name in state if name.startswith(decoder)}
    talking = {layer for layer in layers if f"{decoder}{layer}.self_attn.in_proj_weight" in state}
    options: dict[str, Any] = {
        "hidden": len(state["input_proj.weight"]) if "input_proj.weight" in state else None,
        "attention_heads": config.get("nheads", 4),
        "encoder_layers": len({n.split(".")[3] for n in state if n.startswith("transformer.encoder.layers.")}),
        "decoder_layers": len(layers),
        "feedforward": len(state.get(f"{decoder}0.linear1.bias", ())),
        "dropout": config.get("dropout", 0.1),
        "self_attention": "none" if not talking else "all" if "0" in talking else "later",
    }
    head = {_q2l_name(name): tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    for name in ("head.classifier.weight", "head.classifier.bias"):
        head[name] = head[name][0]  # [1, K, d] -> [K, d]; [1, K] -> [K]
    if "head.input_proj.weight" in head:
        head["head.input_proj.weight"] = head["head.input_proj.weight"].flatten(1)  # [d, D, 1, 1] -> [d, D]
    if code is not None:
        stored = code[0].flatten(1).T  # [1, d, rows, columns] -> [P, d]
        computed = sine_code(grid_boxes(*code.shape[2:]), code.shape[1])
        if (stored - computed).abs().max() > 1e-4:  # not the sine code, so the weights know it by heart
            options |= {"position": "fixed", "positions": len(stored)}
            head["head.position_code"] = stored
    return options, head


def _q2l_name(name: str) -> str:
    """The official name of a tensor of the head -> plures' name."""
    fixed = {"query_embed.weight": "queries", "fc.W": "classifier.weight", "fc.b": "classifier.bias"}
    name = fixed.get(name, name).removeprefix("transformer.").replace("coder.layers.", "coder.")
    name = name.replace("decoder.norm.", "norm.")
    return "head." + re.sub(r"(linear[12])", r"feedforward.\1", name)


def keep_known(model: Model, mapped: State, known: tuple[str, ...]) -> None:
    """Put the rows of classes known by name into a head for other classes."""
    fresh = model.state_dict()
    for name, tensor in mapped.items():
        if name in ("head.queries", "head.classifier.weight", "head.classifier.bias"):
            rows = fresh[name].clone()
            for row, wanted in enumerate(model.classes):
                if wanted in known:
                    rows[row] = tensor[known.index(wanted)]
            mapped[name] = rows


def fill(model: Model, mapped: State, origin: str) -> Model:
    """Load tensors that fit exactly. Raises PluresError with the names that do not."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in mapped and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in mapped if name not in expected]
    shapes = [
        f"{name} {list(mapped[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in mapped and mapped[name].shape != expected[name].shape
    ]
    wrong = [
        f"{len(names)} {what}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if wrong:
        raise PluresError(
            f"{origin} does not fit {model.parts.backbone_options.get('model', 'cvt')}: {'; '.join(wrong)}"
        )
    model.load_state_dict(mapped, strict=False)
    return model.eval()
