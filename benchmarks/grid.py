"""The official MLSPL grid (batch 8 and 16, four learning rates, 25 epochs) on fixed features, trained together.

Data: fixtures/peer in the folder that PLURES_SHARED names. Beside it in the same process: the plain form, one run after
another with a DataLoader over single samples, torch's Adam and scikit-learn's AP each epoch, from the same first
weights and in the same order of batches; and the seconds of the official code, recorded on a machine of this kind
(80-90 % of them its logger's). Seconds are wall-clock; `cpu` are processor seconds of this process, which do not grow
when other work shares the machine. A row for each loss; those of losses that are not asked for stay.

--perturbed n: beside that, the first run (batch 8, the largest rate, where training is chaotic) n times more in both
forms, each time with first weights that differ by a relative 1e-7, the rounding of float32. It writes no grid but
benchmarks/results/grid_chaos.csv: how far runs that ought to be equal come to lie apart, whatever the code.

    PLURES_SHARED=... python benchmarks/grid.py --losses an,wan,epr,role --plain 8
    PLURES_SHARED=... python benchmarks/grid.py --losses an,an_ls --perturbed 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from environment import read_rows, write
from peer_mlspl import K_EXPECTED, arrays, recorded, split
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, Dataset

from plures.config import Experiment
from plures.labels import Labels
from plures.losses import losses
from plures.metrics.average_precision import average_precision
from plures.models.heads.linear import Linear
from plures.sweeps.vectorized.training import FrozenData, HeadRun, train_together

EPOCHS, RATES, BATCHES = 25, (1e-2, 1e-3, 1e-4, 1e-5), (8, 16)


def runs_of(name: str, data: dict[str, Any], shared: FrozenData, seed: int) -> list[HeadRun]:
    """The eight runs of the grid, in the order batch 8 then 16, rate 1e-2 to 1e-5."""
    options: dict[str, Any] = {"eps": 1e-5}
    if name in ("epr", "role"):
        options["expected_positives"] = K_EXPECTED
    if name == "role":
        options["dense_adam"] = True
    full = data["train_labels"].astype(np.int8)
    observed = full if name == "bce" else np.where(data["train_labels_obs"] == 1, 1, -1).astype(np.int8)
    labels = Labels(observed[split()[0]])
    torch.manual_seed(seed)
    head = Linear(shared.train.shape[1], labels.classes).classifier
    found = []
    for batch in BATCHES:
        for lr in RATES:
            e = Experiment(
                stages="probe", head="linear", epochs=EPOCHS, batch_size=batch, lr=lr, seed=seed, device="cpu",
                average_precision="mlspl",
            )  # fmt: skip
            first = head.weight.detach().clone(), head.bias.detach().clone()
            found.append(HeadRun(e, shared, labels, losses.make(name, **options), *first, "val_map"))
    return found


class Samples(Dataset[Any]):
    """One sample an item, as the official code has them."""

    def __init__(self, features: Any, labels: Any) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, row: int) -> Any:
        return torch.from_numpy(self.features[row]), torch.from_numpy(self.labels[row]), row


class InOrder:
    """The engine's order of batches, so that both forms see the same."""

    def __init__(self, run: HeadRun) -> None:
        self.run, self.epoch = run, 0

    def __iter__(self) -> Any:
        return iter(batch.tolist() for batch in self.run.order.batches(self.epoch))

    def __len__(self) -> int:
        return len(self.run.order)


def plain(run: HeadRun) -> tuple[torch.Tensor, torch.Tensor]:
    """One run in the plain form; weight and bias of the epoch with the best validation mAP."""
    e, data, loss = run.experiment, run.data, run.loss
    head = torch.nn.Linear(run.weight.shape[1], run.weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(run.weight)
        head.bias.copy_(run.bias)
    adam, loss = torch.optim.Adam(head.parameters(), lr=e.lr), loss.bind(run.labels, seed=e.seed)
    order = InOrder(run)
    train = DataLoader(Samples(data.train, run.labels.values), batch_sampler=order)
    assert data.val is not None
    assert data.val_labels is not None
    val = DataLoader(Samples(data.val, data.val_labels.values), batch_size=e.batch_size)
    best, kept = -1.0, (run.weight, run.bias)
    for epoch in range(e.epochs):
        order.epoch = epoch
        for x, y, rows in train:
            adam.zero_grad()
            loss(head(x), y, index=rows, epoch=epoch, epochs=e.epochs).backward()
            adam.step()
            loss.step(e.lr)
        with torch.no_grad():
            scores = torch.cat([head(x) for x, _, _ in val]).numpy()
        present = data.val_labels.present
        ap = [average_precision_score(p, s) if p.any() else 0.0 for p, s in zip(present.T, scores.T, strict=True)]
        if np.mean(ap) > best:
            best, kept = float(np.mean(ap)), (head.weight.detach().clone(), head.bias.detach().clone())
    return kept


def perturbed(run: HeadRun, seed: int) -> HeadRun:
    """The run with first weights that differ in their last digits; seed 0: the run itself."""
    if seed == 0:
        return run
    noise = torch.randn(run.weight.shape, generator=torch.Generator().manual_seed(seed))
    return replace(run, weight=run.weight * (1 + 1e-7 * noise))


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", default="bce,an,an_ls,wan,epr,role")
    parser.add_argument("--plain", type=int, default=8, help="runs of the grid done in the plain form, the first ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--perturbed", type=int, default=0)
    parser.add_argument("--name", default="grid")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = arrays()
    train, val = split()
    full, test = (Labels(data[f"{part}_labels"].astype(np.int8)) for part in ("train", "val"))
    shared = FrozenData(data["train_features"][train], data["train_features"][val], full.take(val))
    kept = [data["classes"].index(c) for c in data["results"]["setting"]["kept_classes"]]

    def test13(weight: torch.Tensor, bias: torch.Tensor) -> float:
        scores = data["val_features"] @ weight.numpy().T + bias.numpy()
        return 100 * float(average_precision(scores, test, "mlspl")[kept].mean())

    train_together(runs_of("an", data, shared, 0)[:1])  # loads what is loaded once
    names = args.losses.split(",")
    if args.perturbed:
        rows = [row for row in read_rows("grid_chaos") if row["loss"] not in names]
        for name in names:
            runs = [perturbed(runs_of(name, data, shared, 0)[0], seed) for seed in range(args.perturbed)]
            forms = {"together": train_together(runs), "plain": [plain(run) for run in runs]}
            for form, found in forms.items():
                tests = [test13(*one) if form == "plain" else test13(one.weight, one.bias) for one in found]
                row = {"loss": name, "form": form, "batch": 8, "lr": RATES[0], "n": len(tests)}
                row |= {"mean": round(float(np.mean(tests)), 2), "sd": round(float(np.std(tests, ddof=1)), 2)}
                rows.append({**row, "least": round(min(tests), 2), "most": round(max(tests), 2)})
                print(rows[-1], flush=True)
        print(write("grid_chaos", rows))
        return
    rows = [row for row in read_rows(args.name) if row["loss"] not in names]
    for name in names:
        runs = runs_of(name, data, shared, 0)
        heads, wall, cpu = timed(lambda runs=runs: train_together(runs, threads=args.threads))
        mine = [test13(head.weight, head.bias) for head in heads]
        ones = [timed(lambda run=run: plain(run)) for run in runs[: args.plain]]
        theirs = [test13(*one[0]) for one in ones]
        official = sum(recorded(data["results"], name, b, lr)["seconds"] for b in BATCHES for lr in RATES)
        times = {"plain_seconds": sum(o[1] for o in ones), "plain_cpu": sum(o[2] for o in ones)}
        scaled = {key: value * len(runs) / max(len(ones), 1) for key, value in times.items()}
        row = {
            "loss": name, "runs": len(runs), "epochs": EPOCHS, "threads": args.threads, "seconds": round(wall, 3),
            "cpu": round(cpu, 3), "official_seconds": round(official, 1), "official_over_ours": round(official / wall),
            "plain_runs_timed": len(ones), **{key: round(value, 2) for key, value in scaled.items()},
            "plain_over_ours": round(scaled["plain_seconds"] / wall, 1),
            "plain_over_ours_cpu": round(scaled["plain_cpu"] / cpu, 1),
            "test13_mean": round(float(np.mean(mine)), 3),
            "plain_test13_mean_of_those_timed": round(float(np.mean(theirs)), 3) if theirs else "",
            "differences": " ".join(f"{a - b:+.3f}" for a, b in zip(mine, theirs, strict=False)),
            "largest_difference": round(max(abs(a - b) for a, b in zip(mine, theirs, strict=False)), 3) if ones else "",
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    print(write(args.name, rows))


if __name__ == "__main__":
    main()
