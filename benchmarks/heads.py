"""Speed of the heads: query2label against a transformer written plainly after the official one, and all four heads.

    OMP_NUM_THREADS=1 python benchmarks/heads.py [--rounds N] [--device cuda]

Writes benchmarks/results/query2label_speed.csv (448 pixels: 14 x 14 tokens of 2048, feed-forward 8192, 80 classes,
batch 4) and heads_speed.csv (7 x 7 tokens of 1280, 20 classes, batch 32). The plain and our form run in turn, round by
round, on the same weights; `ratio` is the median over rounds of plain / ours, so that a busy machine slows both alike.
A step is forward, loss and backward with dropout 0.1, without the optimizer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from environment import write
from torch import Tensor, nn
from voc12_heads import SMALL

from plures.models import Tokens
from plures.models.heads import heads
from plures.models.heads.query2label import Query2Label
from plures.models.heads.transformer import sine_code
from plures.models.outputs import grid_boxes

D, INNER, K, SIDE, B = 2048, 8192, 80, 14, 4


class PlainEncoder(nn.Module):
    """One encoder layer on torch's own attention, tokens first: [P, B, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(D, 4, dropout=0.1)
        self.linear1, self.linear2 = nn.Linear(D, INNER), nn.Linear(INNER, D)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(0.1) for _ in range(3))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        q = k = x + position
        x = self.norm1(x + self.dropout1(self.self_attn(q, k, value=x)[0]))
        return self.norm2(x + self.dropout2(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class PlainDecoder(nn.Module):
    """One decoder layer without self-attention of the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(D, 4, dropout=0.1)
        self.linear1, self.linear2 = nn.Linear(D, INNER), nn.Linear(INNER, D)
        self.norm2, self.norm3 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.dropout, self.dropout2, self.dropout3 = (nn.Dropout(0.1) for _ in range(3))

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        found, seen = self.multihead_attn(query=x + queries, key=memory + position, value=memory)
        x = self.norm2(x + self.dropout2(found))
        return self.norm3(x + self.dropout3(self.linear2(self.dropout(F.relu(self.linear1(x)))))), seen


class Plain(nn.Module):
    """The whole head as the official program lays it out: one encoder layer, two decoder layers, attention kept."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([PlainEncoder()])
        self.decoder = nn.ModuleList([PlainDecoder(), PlainDecoder()])
        self.norm, self.queries = nn.LayerNorm(D), nn.Parameter(torch.empty(K, D))
        self.weight, self.bias = nn.Parameter(torch.empty(1, K, D)), nn.Parameter(torch.empty(1, K))
        code = sine_code(grid_boxes(SIDE, SIDE), D).float().T.reshape(1, D, SIDE, SIDE)
        self.register_buffer("code", code)

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D, rows, columns] -> logits [B, K], attention [B, K, P]."""
        images = len(grid)
        position = self.code.repeat(images, 1, 1, 1).flatten(2).permute(2, 0, 1)  # [P, B, D]
        memory = grid.flatten(2).permute(2, 0, 1)
        queries = self.queries.unsqueeze(1).repeat(1, images, 1)  # [K, B, D]
        for layer in self.encoder:
            memory = layer(memory, position)
        x = torch.zeros_like(queries)
        for layer in self.decoder:
            x, seen = layer(x, queries, memory, position)
        x = self.norm(x).transpose(0, 1)  # [B, K, D]
        return (self.weight * x).sum(-1) + self.bias, seen


def pair(device: str) -> tuple[Plain, Query2Label]:
    """Both forms with the same weights."""
    torch.manual_seed(0)
    ours, plain = Query2Label(D, K, feedforward=INNER), Plain()
    state = {name.replace("feedforward.", ""): tensor for name, tensor in ours.state_dict().items()}
    state["weight"], state["bias"] = state.pop("classifier.weight")[None], state.pop("classifier.bias")[None]
    plain.load_state_dict(state | {"code": plain.code})
    return plain.to(device), ours.to(device)


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def step(forward: Callable[[], Tensor], target: Tensor) -> None:
    F.binary_cross_entropy_with_logits(forward(), target).backward()


def against_plain(rounds: int, device: str) -> list[dict[str, Any]]:
    plain, ours = pair(device)
    grid = torch.randn(B, D, SIDE, SIDE, device=device)
    tokens = Tokens(grid.flatten(2).transpose(1, 2).contiguous(), grid_boxes(SIDE, SIDE).to(device))
    target = torch.rand(B, K, device=device).round()
    rows = []
    for what in ("forward", "step"):
        training = what == "step"
        plain.train(training)
        ours.train(training)
        works: dict[str, Callable[[], Tensor]] = {
            "plain": lambda: plain(grid)[0],
            "ours": lambda: ours(tokens, maps=False).logits,
            "ours with the attention map": lambda: ours(tokens, maps=True).logits,
        }
        if not training:
            with torch.inference_mode():
                difference = max(float((works[w]() - works["plain"]()).abs().max()) for w in works)
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds + 1):  # the first warms up
            for name, work in works.items():
                if training:
                    plain.zero_grad()
                    ours.zero_grad()
                    seconds = timed(lambda work=work: step(work, target), device)
                else:
                    with torch.inference_mode():
                        seconds = timed(work, device)
                times[name].append(seconds)
        for name, all_seconds in times.items():
            seconds = all_seconds[1:]
            ratios = [a / b for a, b in zip(times["plain"][1:], seconds, strict=True)]
            rows.append(
                {
                    "what": what,
                    "form": name,
                    "median_seconds": round(statistics.median(seconds), 4),
                    "min_seconds": round(min(seconds), 4),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_of_minima": round(min(times["plain"][1:]) / min(seconds), 3),
                    "rounds": rounds,
                    "largest_difference_of_logits": f"{difference:.1e}",
                    "threads": torch.get_num_threads(),
                }
            )
            print(rows[-1], flush=True)
    return rows


def all_heads(rounds: int, device: str) -> list[dict[str, Any]]:
    images = 32
    tokens = Tokens(torch.randn(images, 49, 1280, device=device), grid_boxes(7, 7).to(device))
    target = torch.rand(images, 20, device=device).round()
    options: dict[str, dict[str, Any]] = {"linear": {}, "codebook": {}, "query2label": SMALL, "ml_decoder": SMALL}
    made: dict[str, Any] = {
        name: heads.make(name, {"width": 1280, "classes": 20}, **options[name]).to(device) for name in options
    }
    times: dict[tuple[str, str], list[float]] = {(n, w): [] for n in made for w in ("forward", "step")}
    for _ in range(rounds + 1):
        for name, head in made.items():
            head.train()
            forward = lambda head=head: head(tokens, maps=False).logits  # noqa: E731
            times[name, "step"].append(timed(lambda forward=forward: step(forward, target), device))
            head.zero_grad()
            head.eval()
            with torch.inference_mode():
                times[name, "forward"].append(timed(forward, device))
    rows = []
    for name, head in made.items():
        row: dict[str, Any] = {"head": name, "parameters": sum(p.numel() for p in head.parameters())}
        for what in ("forward", "step"):
            row[f"{what}_images_per_second"] = round(images / statistics.median(times[name, what][1:]))
            row[f"{what}_images_per_second_best"] = round(images / min(times[name, what][1:]))
        rows.append({**row, "threads": torch.get_num_threads()})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry", action="store_true", help="print only")
    args = parser.parse_args()
    for name, measure in (("heads_speed", all_heads), ("query2label_speed", against_plain)):
        rows = measure(args.rounds, args.device)
        if not args.dry:
            print(write(name, rows))


if __name__ == "__main__":
    main()
