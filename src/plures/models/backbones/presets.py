"""Backbones by what people have: the names `fast`, `balanced` and `best`, and any name of timm.

Why these: docs/backbones.md. All have weights under a permissive licence (Apache-2.0) on timm's hub. DINOv2 is taken at
224 pixels and with its class token, as its published linear accuracy was measured.
"""

from __future__ import annotations

from typing import Any

FAST = "tf_efficientnet_lite2.in1k"  # where nobody says otherwise
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"model": FAST},
    "balanced": {"model": "vit_small_patch14_reg4_dinov2.lvd142m", "image_size": 224, "class_token": True},
    "best": {"model": "vit_base_patch14_reg4_dinov2.lvd142m", "image_size": 224, "class_token": True},
}


def timm_options(name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The options of the backbone `timm` that a preset or a name of timm stands for, those given on top; None if it is
    neither. Pretrained, unless they say otherwise."""
    from timm import is_model

    if name not in PRESETS and not is_model(name.partition(".")[0]):
        return None
    start = {} if options.get("weights") else {"pretrained": True}
    return {**PRESETS.get(name, {"model": name}), **start, **options}


def on_disk() -> dict[str, str | None]:
    """For each preset the file of its weights in the cache of the hub, None where it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from timm import get_pretrained_cfg

    found: dict[str, str | None] = {}
    for name, options in PRESETS.items():
        cfg = get_pretrained_cfg(options["model"])
        file = try_to_load_from_cache(str(cfg.hf_hub_id), "model.safetensors") if cfg is not None else None
        found[name] = file if isinstance(file, str) else None
    return found
