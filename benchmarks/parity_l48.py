"""A second check of losses: those of github.com/cvl-umass/l48-benchmarking (MIT) beside ours on random numbers.

That repository is a second, independent writing of published losses. A checkout of it is read where it lies; nothing
of it is kept. Logits, targets in {1, 0, -1}; values are means over the cells, gradients by logits (and by the table of
ROLE). Several shapes, three seeds, four patterns of labels: one positive per image, positives alone, partial labels
with known absent ones (their mask), complete ones.

    python benchmarks/parity_l48.py CHECKOUT        # seconds

Writes benchmarks/results/parity_l48.csv: a row for each loss, its options and pattern of labels.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import write
from torch import Tensor

from plures import losses

SHAPES, SEEDS = ((1, 4), (5, 7), (16, 20), (8, 80), (3, 100)), (0, 1, 2)
PATTERNS = ("single positive", "positives", "partial")
WITHIN = {torch.float64: 1e-12, torch.float32: 1e-6}  # float32 where theirs or our table is so whatever it is given
Answer = tuple[float, list[Tensor]]


@dataclass(frozen=True)
class Case:
    """x, table: logits [B, K]; targets int8 [B, K]."""

    x: Tensor
    targets: Tensor
    table: Tensor

    @property
    def theirs(self) -> tuple[Tensor, Tensor]:
        """Their labels, 0 where unknown, and their mask, 0 where unknown."""
        return (self.targets == 1).to(self.x.dtype), (self.targets >= 0).to(self.x.dtype)


@dataclass(frozen=True)
class Pair:
    """A loss of theirs and one of ours, each Case -> value and gradients. why: of a difference that is known."""

    loss: str
    options: str
    theirs: Callable[[Case], Answer]
    ours: Callable[[Case], Answer]
    patterns: tuple[str, ...] = PATTERNS
    why: str = ""
    dtype: torch.dtype = torch.float64
    logits: float = 3.0


def cases(pattern: str, dtype: torch.dtype, spread: float) -> Iterator[Case]:
    for B, K in SHAPES:
        for seed in SEEDS:
            random = np.random.default_rng([seed, B, K])
            targets = np.full((B, K), -1, np.int8)
            targets[np.arange(B), random.integers(K, size=B)] = 1
            if pattern != "single positive":
                targets[random.random((B, K)) < 0.15] = 1
            if pattern == "partial":
                targets[(targets < 0) & (random.random((B, K)) < 0.3)] = 0
            if pattern == "complete":
                targets[targets < 0] = 0
            x, table = (torch.from_numpy(random.normal(0, spread, (B, K))).float().to(dtype) for _ in range(2))
            yield Case(x, torch.from_numpy(targets), table)


def answer(value: Tensor, *leaves: Tensor) -> Answer:
    return value.item(), list(torch.autograd.grad(value, leaves))


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def of_ours(criterion: Any, terms: tuple[str, ...] = (), **known: Any) -> Callable[[Case], Answer]:
    """terms: those of the loss that are summed, or all."""

    def run(case: Case) -> Answer:
        x = leaf(case.x)
        bound = criterion.bind(case.targets) if "label_state" in criterion.needs else criterion
        parts = bound.terms(x, case.targets, index=torch.arange(len(x)), **known)
        return answer(sum((v for k, v in parts.items() if not terms or k in terms), torch.zeros(())), x)

    return run


def ours_role(*terms: str) -> Callable[[Case], Answer]:
    def run(case: Case) -> Answer:
        x, criterion = leaf(case.x), losses.ROLE(expected_positives=1.5).bind(case.targets)
        criterion.memory.table.copy_(case.table)
        parts = criterion.terms(x, case.targets, index=torch.arange(len(x)))
        read = criterion.memory._read[-1][1]
        return answer(sum((v for k, v in parts.items() if not terms or k in terms), torch.zeros(())), x, read)

    return run


def ours_wan_known(case: Case) -> Answer:
    """WAN where unknown, and absent labels that are known at full weight."""
    x = leaf(case.x)
    weak = losses.WAN()(x, torch.where(case.targets == 0, -1, case.targets).to(torch.int8))
    rest = 1 - 1 / (x.shape[1] - 1)
    known = losses.IgnoreUnknown().terms(x, case.targets)["absent"]
    return answer(weak + rest * known, x)


def of_theirs(make: Callable[[int, int], Any], epoch: int | None = None) -> Callable[[Case], Answer]:
    """make: B, K -> their loss."""

    def run(case: Case) -> Answer:
        x, (y, mask) = leaf(case.x), case.theirs
        loss = make(*x.shape)
        if epoch is not None:
            loss.set_epoch(epoch)
        out = loss(x, y, mask)
        return answer((out[0] if isinstance(out, tuple) else out).mean(), x)

    return run


def theirs_role(make: Callable[[int, int], Any]) -> Callable[[Case], Answer]:
    def run(case: Case) -> Answer:
        x, table, (y, mask) = leaf(case.x), leaf(case.table), case.theirs
        return answer(make(*x.shape)(x, y, mask, table).mean(), x, table)

    return run


def two_steps(make: Callable[[int, int], Any] | None, delta: float) -> Callable[[Case], Answer]:
    """Permanent correction: the second look at a batch whose labels the first has changed. make: None for ours."""

    def run(case: Case) -> Answer:
        x, again = case.x, leaf(case.x.flip(0))
        if make is None:
            criterion = losses.LargeLossCp(delta_rel=100 * delta).bind(case.targets)
            known: dict[str, Any] = {"index": torch.arange(len(x)), "epoch": 1}
            criterion(x, case.targets, **known)
            return answer(criterion(again, case.targets, **known), again)
        y, mask = case.theirs
        loss = make(*x.shape)
        changed = loss(x, y, mask)[1]
        y[changed], mask[changed] = 1, 1
        return answer(loss(again, y, mask)[0].mean(), again)

    return run


def pairs(at: Path) -> list[Pair]:
    sys.path.insert(0, str(at))

    def of(name: str, part: str = "") -> Any:
        return getattr(importlib.import_module(f"losses.{name}"), part or name)

    an, ls, wan = of("AssumeNegativeLoss"), of("LabelSmoothingLoss"), of("WeakNegativesLoss")
    em, ll, role = of("EntropyMaximizationLoss"), of("IgnoreLargeLoss"), of("ROLELoss")
    epr = of("ROLELoss", "ExpectedPositiveLoss")
    em5, em0 = losses.EM(eps=1e-5), losses.EM()

    def em_ours(case: Case) -> Answer:
        (a, (ga,)), (b, (gb,)) = of_ours(em0, ("present", "absent"))(case), of_ours(em5, ("entropy",))(case)
        return a + b, [ga + gb]

    smooth = Pair(
        "LabelSmoothingLoss / an_ls", "eps 0.2 / smoothing 0.1", of_theirs(lambda B, K: ls(eps=0.2)),
        of_ours(losses.AssumeNegativeLabelSmoothing(smoothing=0.1)), dtype=torch.float32, logits=1.0,
    )  # fmt: skip
    weak = Pair(
        "WeakNegativesLoss / wan", "gamma 1/(K-1)", of_theirs(lambda B, K: wan(gamma=1 / (K - 1))),
        of_ours(losses.WAN()), PATTERNS[:2],
    )  # fmt: skip
    expected = Pair(
        "ExpectedPositiveLoss / epr", "k 1.5, lamb B K", of_theirs(lambda B, K: epr(lamb=B * K, k=1.5, L=K)),
        of_ours(losses.EPR(expected_positives=1.5)), PATTERNS[:2],
    )  # fmt: skip
    online = Pair(
        "ROLELoss / role", "k 1.5, lamb B K", theirs_role(lambda B, K: role(lamb=B * K, k=1.5, L=K)),
        ours_role(), PATTERNS[:2], dtype=torch.float32,
    )  # fmt: skip
    divided = (
        "theirs adds the regulariser, divided by B K, to each cell before the mean: B K times weaker than published"
    )
    positives_only = "theirs leaves known absent labels out of this term, ours counts them as negatives"
    found = [
        Pair("AssumeNegativeLoss / an", "eps 1e-5", of_theirs(lambda B, K: an()),
             of_ours(losses.AssumeNegative(eps=1e-5))),
        Pair("AssumeNegativeLoss / bce", "eps 1e-5", of_theirs(lambda B, K: an()), of_ours(losses.BCE(eps=1e-5)),
             ("complete",)),
        smooth,
        replace(smooth, loss="LabelSmoothingLoss / bce_ls", ours=of_ours(losses.BCELabelSmoothing(smoothing=0.1)),
                patterns=("complete",)),
        replace(smooth, loss="LabelSmoothingLoss / an_ls, default", options="eps 0.1 / smoothing 0.1",
                theirs=of_theirs(lambda B, K: ls(eps=0.1)), why="theirs halves eps: its 0.1 smooths by 0.05"),
        replace(smooth, options="the same, logits of 100", logits=100.0,
                why="theirs takes the logarithm of a float32 probability, which is 0 there: not finite; ours is"),
        weak,
        replace(weak, patterns=PATTERNS[2:], why="known absent labels weigh 1 in theirs, 1/(K-1) in ours"),
        Pair("WeakNegativesLoss / an", "gamma 0.3 / negative_weight 0.3", of_theirs(lambda B, K: wan(gamma=0.3)),
             of_ours(losses.AssumeNegative(negative_weight=0.3)), PATTERNS[:2]),
        Pair("WeakNegativesLoss / iu", "gamma 0", of_theirs(lambda B, K: wan(gamma=0.0)),
             of_ours(losses.IgnoreUnknown()), PATTERNS[2:]),
        Pair("WeakNegativesLoss / wan + iu", "known absent labels at weight 1", weak.theirs, ours_wan_known,
             PATTERNS[2:]),
        Pair("EntropyMaximizationLoss / em", "alpha 0.1; eps 1e-5 in the entropy alone", of_theirs(lambda B, K: em()),
             em_ours),
        Pair("EntropyMaximizationLoss / em", "alpha 0.1; eps 1e-5", of_theirs(lambda B, K: em()), of_ours(em5),
             why="ours has eps in all logarithms, as the authors' code; theirs in the entropy alone"),
        expected,
        replace(expected, patterns=PATTERNS[2:], why=positives_only),
        replace(expected, loss="ExpectedPositiveLoss / epr without `absent`", patterns=PATTERNS[2:],
                ours=of_ours(losses.EPR(expected_positives=1.5), ("present", "expected_positives"))),
        replace(expected, options="k 1.5, lamb 1, its default",
                theirs=of_theirs(lambda B, K: epr(lamb=1, k=1.5, L=K)), why=divided),
        online,
        replace(online, patterns=PATTERNS[2:], why=positives_only),
        replace(online, loss="ROLELoss / role without `absent`", patterns=PATTERNS[2:],
                ours=ours_role("present", "agreement", "expected_positives")),
        replace(online, options="k 1.5, lamb 1, its default", theirs=theirs_role(lambda B, K: role(lamb=1, k=1.5, L=K)),
                why=divided),
        Pair("IgnoreLargeLoss perm_correction / ll_cp", "delta 0.05 / delta_rel 5, two steps",
             two_steps(lambda B, K: ll("perm_correction", 0.05), 0.05), two_steps(None, 0.05), dtype=torch.float32),
        Pair("IgnoreLargeLoss perm_correction / ll_cp", "the same, the first epoch",
             of_theirs(lambda B, K: ll("perm_correction", 0.05), 1), of_ours(losses.LargeLossCp(delta_rel=5), epoch=0),
             why="theirs corrects in the first epoch already; ours from the second on, as the authors' code"),
        Pair("AssetReg / none", "", of_theirs(lambda B, K: None), of_ours(em0), (),
             why="not compared: it ties images of one recording together, which plures does not have"),
    ]  # fmt: skip
    rounding = "ours counts as the authors' code does, whose repeated subtraction may round up: 10 cells of 300, not 9"
    for mode, criterion, name in (
        ("rejection", losses.LargeLossR, "ll_r"),
        ("temp_correction", losses.LargeLossCt, "ll_ct"),
    ):
        for delta, epoch in ((1 / 32, 1), (1 / 32, 2), (1 / 32, 5), (0.03, 2)):
            found.append(
                Pair(
                    f"IgnoreLargeLoss {mode} / {name}",
                    f"delta {delta} / delta_rel {100 * delta}, epoch {epoch}",
                    of_theirs(lambda B, K, mode=mode, delta=delta: ll(mode, delta), epoch),
                    of_ours(criterion(delta_rel=100 * delta), epoch=epoch - 1),
                    why=rounding if delta == 0.03 else "",
                    dtype=torch.float32,
                )
            )
    return found


def compared(pair: Pair, pattern: str) -> dict[str, Any]:
    by_value, by_gradient, n = 0.0, 0.0, 0
    for case in cases(pattern, pair.dtype, pair.logits):
        (theirs, gradients), (ours, mine) = pair.theirs(case), pair.ours(case)
        by_value = float(np.fmax(by_value, abs(theirs - ours) if np.isfinite(theirs) else np.inf))
        for one, other in zip(gradients, mine, strict=True):
            far = (one - other).abs()
            by_gradient = float(np.fmax(by_gradient, float(far.nan_to_num(nan=np.inf).max())))
        n += 1
    same = max(by_value, by_gradient) <= WITHIN[pair.dtype]
    return {
        "loss": pair.loss, "options": pair.options, "labels": pattern, "inputs": n,
        "value": f"{by_value:.1e}", "gradient": f"{by_gradient:.1e}", "within": WITHIN[pair.dtype],
        "agrees": "yes" if same else "no", "why_not": "" if same else pair.why,
    }  # fmt: skip


def main() -> None:
    at = Path(sys.argv[1]) if len(sys.argv) == 2 else Path()
    if not (at / "losses" / "ROLELoss.py").is_file():
        print("skipped: give the folder of a checkout of github.com/cvl-umass/l48-benchmarking")
        return
    rows = []
    for pair in pairs(at):
        rows += [compared(pair, pattern) for pattern in pair.patterns]
        if not pair.patterns:
            rows.append({"loss": pair.loss, "inputs": 0, "agrees": "no", "why_not": pair.why})
    for row in rows:
        print(
            *(row.get(key, "") for key in ("loss", "options", "labels", "value", "gradient", "agrees", "why_not")),
            sep=" | ",
        )
    print(write("parity_l48", rows))


if __name__ == "__main__":
    main()
