"""A model's network in 8-bit integers, for CPUs (`plures predict --precision int8`).

Post-training quantisation by torch: each layer's weights become bytes, one scale an output channel, and activations
bytes with a range measured on images. The head, and layers that have no 8-bit form, stay as they are.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import get_same_padding
from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.model import Model

AT_ONCE = 32  # images that ranges are measured on together


def to_int8(model: Model, images: Tensor | None) -> None:
    """Turn the backbone's network into 8 bits, its ranges measured on images uint8 [B, 3, H, W] of the model's size.

    Raises PluresError if there are no images or the network cannot be traced.
    """
    if images is None:
        raise PluresError(
            "--precision int8 requires readable images at the beginning of the source, to measure ranges on"
        )
    backbone = cast(Any, model.backbone)
    place = next((name for name in ("backbone", "cnn") if hasattr(backbone, name)), None)
    if place is None:
        raise PluresError(f"--precision int8: backbone '{model.parts.backbone}' has no 8-bit form; use bfloat16")
    network = getattr(backbone, place)
    try:
        if place == "backbone":
            backbone.int8 = _quantised(_Features(network), model.normalise(images))
            backbone.backbone.forward_features = backbone.int8.forward
        else:
            setattr(backbone, place, _quantised(network, _input_of(network, model, images[:8])))
    except Exception as error:  # tracing meets whatever a network's author wrote
        line = " ".join(str(error).split())[:200]
        raise PluresError(f"--precision int8: this network cannot be traced ({line}); use bfloat16") from None


class _Features(nn.Module):
    """A timm backbone up to its feature map, as a module that can be traced."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = cast(Any, self.backbone).forward_features(images)
        return features


def _input_of(network: nn.Module, model: Model, images: Tensor) -> Tensor:
    """What the network inside the backbone is given for these images."""
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.tokens(images)
    handle.remove()
    return seen[0].clone()


def _quantised(network: nn.Module, inputs: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    # activations of 8 bits want sums that cannot overflow (VNNI); the older engine has 7 bits for them
    engine = "onednn" if torch.cpu._is_vnni_supported() else "x86"
    torch.backends.quantized.engine = engine  # of the process: it also chooses the kernels that run
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch announces that this interface will move
        traced = plain_layers(copy.deepcopy(network).eval(), inputs[:1])
        prepared = prepare_fx(traced, get_default_qconfig_mapping(engine), (inputs[:1],))
        for batch in torch.split(inputs, AT_ONCE):
            prepared(batch)
        quantised: nn.Module = convert_fx(prepared)
    return quantised


@torch.no_grad()
def plain_layers(network: nn.Module, inputs: Tensor) -> nn.Module:
    """Replace timm's own convolutions and norms by torch's, in place, with the same outputs for inputs of this size.

    torch traces and joins only its own: TensorFlow's padding, which depends on the input's size, becomes a constant,
    and batch norm with an activation becomes the two of them.
    """
    sizes: dict[str, torch.Size] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: sizes.update({name: given[0].shape[2:]}))
        for name, module in network.named_modules()
        if isinstance(module, Conv2dSame)
    ]
    network(inputs)
    for hook in hooks:
        hook.remove()
    for name, module in list(network.named_modules()):
        if isinstance(module, Conv2dSame):
            plain: nn.Module = _padded(module, sizes[name])
        elif type(module) is BatchNormAct2d:
            plain = nn.Sequential(_norm(module), module.drop, module.act)
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, plain.eval())
    return network


def _padded(module: Conv2dSame, size: torch.Size) -> nn.Conv2d:
    """The convolution with the padding that it gives an input of this size.

    TensorFlow pads more at the right and below. A layer that pads so would leave 8 bits; instead all edges get the
    larger padding, and the kernel zeros on its left and above.
    """
    given = zip(size, module.kernel_size, module.stride, module.dilation, strict=True)
    whole = [get_same_padding(*one) for one in given]  # rows, columns
    largest = [pad - pad // 2 for pad in whole]
    more = [pad - 2 * (pad // 2) for pad in whole]  # 0 or 1
    if any(extra and step > 1 for extra, step in zip(more, module.dilation, strict=True)):
        raise ValueError("a dilated convolution with padding of unequal sides")
    kernel = [k + extra for k, extra in zip(module.kernel_size, more, strict=True)]
    plain = nn.Conv2d(
        module.in_channels, module.out_channels, cast(Any, kernel), cast(Any, module.stride), cast(Any, largest),
        cast(Any, module.dilation), module.groups, module.bias is not None,
    )  # fmt: skip
    plain.weight.zero_()
    plain.weight[:, :, more[0] :, more[1] :] = module.weight
    if plain.bias is not None and module.bias is not None:
        plain.bias.copy_(module.bias)
    return plain


def _norm(module: BatchNormAct2d) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(module.num_features, module.eps)
    norm.load_state_dict({key: value for key, value in module.state_dict().items() if "." not in key})
    return norm
