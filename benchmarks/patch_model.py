"""The patch model (248,850 parameters) at 640 x 640, 130 patches an image: one training step and one inference.

python benchmarks/patch_model.py                                  # batch 4, some minutes on one core
python benchmarks/patch_model.py --batch 8 --forms plain,plures   # 6 GB for the plain form

Forms, each in a process of its own, in turns, with the same weights: `plain` as one would write it (NCHW, float32,
patches cut with unfold and copied, each level a batch of its own); `plain kept` the same with
`keep_freed_memory`; `plures` as it trains; `plures bf16` under bfloat16 autocast (precision=bf16-mixed); `plures
compiled` (compile=true). Beside each: FLOPs and bytes that its operators read and write (counted at one image, not
timed; a step as three inferences), and the share reached of what the machine can do, measured in the same run:
float32 (or bfloat16) matrix products, and copying memory.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
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
from plures.models.outputs import Output, Tokens
from plures.training.allocator import keep_freed_memory


class Plain(nn.Module):
    """The same model written plainly."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor, maps: bool = False) -> Output:
        model, backbone = self.model, self.model.backbone
        images = (images.float() / 255 - model.mean) / model.std
        levels = [images]
        for _ in range(backbone.levels):
            side = levels[-1].shape[-1] // 2
            levels.append(F.interpolate(levels[-1], size=(side, side), mode="bilinear", align_corners=False))
        cut = []
        for level in levels:
            windows = level.unfold(2, 64, 64).unfold(3, 64, 64)  # [B, 3, rows, columns, 64, 64]
            cut.append(windows.permute(0, 2, 3, 1, 4, 5).reshape(len(images), -1, 3, 64, 64))
        patches = torch.cat(cut, 1)  # [B, P, 3, 64, 64]
        features = backbone.cnn(patches.flatten(0, 1).contiguous())
        features = F.silu(backbone.project(features.mean((2, 3)))).view(len(images), -1, 256)
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


def ceilings(device: torch.device, side: int = 2048) -> dict[str, float]:
    """GFLOP/s of matrix products in float32 and bfloat16, and GB/s (read and written) of a copy."""
    side = 4 * side if device.type == "cuda" else side
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(side, side, dtype=dtype, device=device)
        found[name] = 2 * side**3 / best(lambda a=a: a @ a, 4) / 1e9
    big = torch.zeros(side * 2**16, dtype=torch.float32, device=device)
    other = torch.empty_like(big)
    found["copy"] = 2 * big.numel() * 4 / best(lambda: other.copy_(big), 4) / 1e9
    return found


def made(
    form: str, batch: int, side: int = 640, compiler: str = "inductor"
) -> tuple[Any, Callable[[], None], Callable[[], None]]:
    """The model of this form, its inference and its training step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss = losses.make("wn", reduction="image")
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    values = torch.full((batch, 80), -1, dtype=torch.int8, device=device)
    values[:, 0] = 1
    labels = TensorLabels(values)
    torch.manual_seed(0)
    options = {"image_size": side, "levels": min(3, round(math.log2(side / 64)))}
    model: Any = build_model("patches", "codebook", tuple(str(k) for k in range(80)), options).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    net: Any = Plain(model) if "plain" in form else model
    if "compiled" in form:
        net = torch.compile(model, backend=compiler)
    elif "graphs" in form:  # CUDA graphs: one launch for the whole forward, one for the backward
        net = torch.compile(model, **({"mode": "reduce-overhead"} if compiler == "inductor" else {"backend": compiler}))
    half = "bf16" in form

    def mode(training: bool) -> None:
        model.train(training)
        for module in model.modules() if "plain" in form else ():
            if isinstance(module, nn.SiLU):
                module.inplace = True  # as timm has it

    def train() -> None:
        mode(True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = net(images, maps=False)
        sum(loss.compute(output, labels, Context()).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    def infer() -> None:
        mode(False)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            net(images, maps=False)

    return model, infer, train


def measure(form: str, batch: int, steps: int, counted: bool, side: int = 640) -> dict[str, Any]:
    """Seconds of each step of this form, with the memory it took; or, counted, what it computes and moves an image."""
    if form != "plain" and not torch.cuda.is_available():
        keep_freed_memory()
    _, infer, train = made(form, 1 if counted else batch, side)
    found: dict[str, Any] = {}
    for name, step in (("infer", infer), ("train", train)):
        if counted:
            with FlopCounterMode(display=False) as flops, Bytes() as moved:
                step()
            found[name] = (flops.get_total_flops() / 1e9, moved.total / 1e9)
            continue
        step()
        found[name] = (best(step, steps), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    return found


def apart(form: str, args: argparse.Namespace, counted: bool = False) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--forms", form, "--batch", str(args.batch), "--steps", str(args.steps)]
    done = subprocess.run(
        [*command, "--alone", *["--counted"] * counted], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row_of(name: str, form: str, args: argparse.Namespace, times: dict[str, Any], counts: Any) -> dict[str, Any]:
    seconds = min(times[form][name])
    row = {"what": name, "form": form, "batch": args.batch, "threads": torch.get_num_threads()}
    row |= {"seconds": round(seconds, 3), "slowest": round(max(times[form][name]), 3), "rounds": args.rounds}
    row |= {"images_per_second": round(args.batch / seconds, 2)}
    row["times_plain"] = round(min(times["plain"][name]) / seconds, 2) if "plain" in times else ""
    if counts is None:
        return row
    gflop = counts["infer"][0] * (1 if name == "infer" else 3)  # torch counts grouped convolutions backwards as dense
    top = args.machine["bfloat16" if "bf16" in form else "float32"]
    row |= {"gflop_an_image": round(gflop, 2), "gb_an_image": round(counts[name][1], 2)}
    row["share_of_flops"] = round(gflop * args.batch / seconds / top, 3)
    row["share_of_bandwidth"] = round(counts[name][1] * args.batch / seconds / args.machine["copy"], 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--forms", default="plain,plain kept,plures,plures bf16")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    forms = args.forms.split(",")
    if args.alone:
        print(json.dumps(measure(forms[0], args.batch, args.steps, args.counted)))
        return
    args.machine = ceilings(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print({name: round(value, 1) for name, value in args.machine.items()})
    times: dict[str, Any] = {form: {"infer": [], "train": []} for form in forms}
    peaks: dict[tuple[str, str], int] = {}
    for _ in range(args.rounds):
        for form in forms:
            for name, (seconds, peak) in apart(form, args).items():
                times[form][name].append(seconds)
                peaks[form, name] = peak
                print(form, name, round(seconds, 3), flush=True)
    rows: list[dict[str, Any]] = []
    for form in forms:
        counts = None if "compiled" in form else apart(form, args, counted=True)
        for name in ("infer", "train"):
            row = row_of(name, form, args, times, counts)
            row |= {f"machine_{key}": round(value, 1) for key, value in args.machine.items()}
            rows.append({**row, "peak_rss_mb": peaks[form, name]})
    print(write("patch_model", rows))


if __name__ == "__main__":
    main()
