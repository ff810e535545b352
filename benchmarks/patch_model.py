"""The patch model (248,850 parameters) at 640 x 640, 130 patches an image: one training step and one inference.

python benchmarks/patch_model.py               # batch 4, about a minute on one core
python benchmarks/patch_model.py --batch 16    # the paper's batch: minutes, and 11 GB for the plain form

Forms, all in one run and with the same weights: `plain` as one would write it (NCHW, float32, patches cut with unfold
and copied, each level a batch of its own); `plures` as it is; `plures bf16` under bfloat16 autocast
(precision=bf16-mixed); with --compile also `plures compiled` (compile=true). Beside each: FLOPs and bytes that its
operators read and write (counted, not timed; a step as three inferences), and the share reached of what the machine
can do, measured in the same run: float32 (or bfloat16) matrix products, and copying memory.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from environment import write
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from plures.labels import TensorLabels
from plures.losses import Context, losses
from plures.models.model import Model, build_model
from plures.models.output import Output, Tokens


class Plain(nn.Module):
    """The same model written plainly."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor, maps: bool = False) -> Output:
        model, embedder = self.model, self.model.embedder
        images = (images.float() / 255 - model.mean) / model.std
        levels = [images]
        for _ in range(embedder.levels):
            side = levels[-1].shape[-1] // 2
            levels.append(F.interpolate(levels[-1], size=(side, side), mode="bilinear", align_corners=False))
        cut = []
        for level in levels:
            windows = level.unfold(2, 64, 64).unfold(3, 64, 64)  # [B, 3, rows, columns, 64, 64]
            cut.append(windows.permute(0, 2, 3, 1, 4, 5).reshape(len(images), -1, 3, 64, 64))
        patches = torch.cat(cut, 1)  # [B, P, 3, 64, 64]
        features = embedder.cnn(patches.flatten(0, 1).contiguous())
        features = F.silu(embedder.project(features.mean((2, 3)))).view(len(images), -1, 256)
        return model.head(Tokens(features, torch.zeros(features.shape[1], 4)), maps=maps)


class Bytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators read and write (views read and write nothing)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        inputs = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(o.untyped_storage().data_ptr() == i.untyped_storage().data_ptr() for o in outputs for i in inputs):
            self.total += sum(t.numel() * t.element_size() for t in inputs + outputs)
        return result


def best(work: Callable[[], Any], runs: int) -> float:
    seconds = math.inf
    for _ in range(runs):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - started)
    return seconds


def ceilings(device: torch.device) -> dict[str, float]:
    """GFLOP/s of matrix products in float32 and bfloat16, and GB/s (read and written) of a copy."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(2048, 2048, dtype=dtype, device=device)
        found[name] = 2 * 2048**3 / best(lambda a=a: a @ a, 4) / 1e9
    big = torch.zeros(2**27, dtype=torch.float32, device=device)
    other = torch.empty_like(big)
    found["copy"] = 2 * big.numel() * 4 / best(lambda: other.copy_(big), 4) / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = ceilings(device)
    print({name: round(value, 1) for name, value in machine.items()})
    loss = losses.make("wn", reduction="image")
    images = torch.randint(0, 256, (args.batch, 3, 640, 640), dtype=torch.uint8, device=device)
    values = torch.full((args.batch, 80), -1, dtype=torch.int8, device=device)
    values[:, 0] = 1
    labels = TensorLabels(values)
    rows: list[dict[str, Any]] = []
    forward = math.nan
    for form in ("plain", "plures", "plures bf16", *(["plures compiled"] if args.compile else [])):
        torch.manual_seed(0)
        model: Any = build_model("patches", "codebook", tuple(str(k) for k in range(80))).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        net = Plain(model) if form == "plain" else torch.compile(model) if "compiled" in form else model
        half = "bf16" in form

        def train(net: Any = net, optimizer: Any = optimizer, half: bool = half) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                output = net(images, maps=False)
            sum(loss(output, labels, Context()).values()).backward()  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

        def infer(net: Any = net, half: bool = half) -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                net(images, maps=False)

        for name, step in (("infer", infer), ("train", train)):
            model.train(name == "train")
            counted: dict[str, Any] = {"gflop_an_image": "", "gb_an_image": ""}
            if "compiled" not in form:
                with FlopCounterMode(display=False) as flops, Bytes() as moved:
                    step()
                if name == "infer":  # torch counts grouped convolutions backwards as if they were dense
                    forward = flops.get_total_flops() / args.batch / 1e9
                counted = {
                    "gflop_an_image": round(forward * (1 if name == "infer" else 3), 2),
                    "gb_an_image": round(moved.total / args.batch / 1e9, 2),
                }
            else:
                step()
            seconds = best(step, args.steps)
            row = {"what": name, "form": form, "batch": args.batch, "threads": torch.get_num_threads()}
            row |= {"seconds": round(seconds, 3), "images_per_second": round(args.batch / seconds, 2)}
            first = next((r for r in rows if r["what"] == name), row)
            row["times_plain"] = round(first["seconds"] / seconds, 2)
            row |= counted
            if counted["gflop_an_image"]:
                per_second = args.batch / seconds
                top = machine["bfloat16" if half else "float32"]
                row["share_of_flops"] = round(counted["gflop_an_image"] * per_second / top, 3)
                row["share_of_bandwidth"] = round(counted["gb_an_image"] * per_second / machine["copy"], 3)
            row |= {f"machine_{key}": round(value, 1) for key, value in machine.items()}
            row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            rows.append(row)
            print(row, flush=True)
    print(write("patch_model", rows))


if __name__ == "__main__":
    main()
