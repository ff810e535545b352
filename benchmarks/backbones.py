"""Images a second of backbones on a CPU: what `plures train` waits for when it computes features. Needs no weights.

    python benchmarks/backbones.py [--rounds 3] [--only vit]     # a quarter of an hour

Writes benchmarks/results/backbones.csv: for each model of timm at a size the licence of its weights, parameters, the
size of the pretrained input, images a second of one core (uint8 images -> tokens as `plures` computes frozen features:
inference mode, channels last, batch 8; random weights, whose batch norms have seen the batch, since activations that
vanish are slow). Seconds are those of the process on one thread, in the fastest round, as others use the machine too:
two cores are up to twice as fast. Published quality stands in docs/backbones.md, with its source.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import timm
import torch
from environment import read_rows, write

from plures.models.model import build_model

BATCH = 8
CANDIDATES: tuple[tuple[str, int], ...] = (
    ("mobilenetv2_100.ra_in1k", 224),
    ("tf_efficientnet_lite2.in1k", 260),
    ("mobilenetv4_conv_small.e2400_r224_in1k", 224),
    ("mobilenetv4_conv_medium.e500_r256_in1k", 256),
    ("mobilenetv4_hybrid_medium.e200_r256_in12k_ft_in1k", 256),
    ("efficientnet_b0.ra4_e3600_r224_in1k", 224),
    ("efficientnet_b3.ra2_in1k", 288),
    ("tf_efficientnetv2_s.in21k_ft_in1k", 300),
    ("convnext_nano.in12k_ft_in1k", 224),
    ("convnext_tiny.in12k_ft_in1k", 224),
    ("convnextv2_nano.fcmae_ft_in22k_in1k", 224),
    ("convnextv2_tiny.fcmae_ft_in22k_in1k", 224),
    ("vit_small_patch14_reg4_dinov2.lvd142m", 224),
    ("vit_small_patch14_reg4_dinov2.lvd142m", 518),
    ("vit_small_patch16_dinov3.lvd1689m", 256),
    ("vit_base_patch14_reg4_dinov2.lvd142m", 224),
    ("vit_base_patch16_dinov3.lvd1689m", 256),
    ("vit_base_patch16_siglip_gap_256.v2_webli", 256),
)


@torch.inference_mode()
def measure(name: str, size: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build_model("timm", "linear", ("a", "b"), {"model": name, "image_size": size}).eval()
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    model.tokens(images)
    model.eval()
    seconds = []
    for _ in range(rounds + 1):  # the first warms up
        began = time.process_time()
        model.tokens(images)
        seconds.append(time.process_time() - began)
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    row = {
        "model": name, "image_size": size, "licence": cfg.license, "own_size": cfg.input_size[-1],
        "million_parameters": round(sum(p.numel() for p in model.backbone.parameters()) / 1e6, 1),
        "width": model.backbone.width, "images_per_core_second": round(BATCH / min(seconds[1:]), 2),
        "median": round(BATCH / statistics.median(seconds[1:]), 2), "rounds": rounds, "batch": BATCH,
        "timm": timm.__version__,
    }  # fmt: skip
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, size, args.rounds) for name, size in CANDIDATES if name.startswith(args.only)]
    print(write("backbones", [row for row in read_rows("backbones") if not row["model"].startswith(args.only)] + rows))


if __name__ == "__main__":
    main()
