"""Regularised online label estimation (ROLE): the training labels are estimated together with the model.

"Multi-Label Learning from Single Positive Labels", Cole et al. 2021, arXiv 2106.09708 (L_ROLE). The
estimates are an [N, K] table of logits with its own learning rate (ten times the model's) and its own Adam. Official
code: unobserved entries start uniform in (-logit .6, logit .6), observed ones at +-logit .995; cross entropy runs over
all cells, the observed ones included; the table's Adam is dense, so rows drift between visits (`dense_adam`).
Beyond the paper, cells known to be absent count as negatives in the term of known labels.

A dense Adam step moves an entry by some thirty times the learning rate for every visit; a lazy one (the default, which
updates visited rows only) by about one. With the small learning rates of end-to-end training either leaves the table
close to its random start; see docs of the recipe before reading much into such a run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from plures.labels import Labels, TensorLabels
from plures.losses.base import Loss, losses
from plures.losses.context import Context, Need, rows_of
from plures.losses.epr import deviation, known_cells, pull_to
from plures.losses.expected_positives import ExpectedPositives, check_expected, estimate, resolved
from plures.losses.log_terms import Reduction, check_common, check_range, cross_entropy, reduce, scale, slope, widen
from plures.models.outputs import Output

UNKNOWN_AT_MOST, OBSERVED_AT = 0.6, 0.995  # probabilities of the first estimates, as in the official code
CARRIED_WITHIN = 1e-5  # how close to 0 or 1 an estimate may come that is carried to the next stage


@losses.register("role", title="Regularised online label estimation", source="Cole et al. 2021, arXiv 2106.09708")
@dataclass(eq=False)
class ROLE(Loss):
    """Regularised online label estimation: half the loss of the model plus half that of the estimates of the labels,
    each taught by the other.

    The estimates are its memory [N, K], trained by an Adam of its own: call `criterion.step(lr)` after
    `loss.backward()`, beside the step of the optimizer.

    Args:
        expected_positives: labels per image, or "auto", as in EPR.
        state_lr_multiplier: the learning rate of the memory over that of the model.
        dense_adam: its Adam moves every row at every step, as in the official code.

    Shapes: logits and targets [B, K].

    Source: Cole et al. 2021, arXiv 2106.09708 (L_ROLE).

    Example:
        >>> train_targets = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, 1, 0]])
        >>> criterion = plures.losses.ROLE(expected_positives=1.5).bind(train_targets)
        >>> logits, index = torch.zeros(1, 3, requires_grad=True), torch.tensor([0])
        >>> loss = criterion(logits, train_targets[index], index=index)
        >>> loss.backward()
        >>> criterion.step(lr=1e-3)
    """

    expected_positives: ExpectedPositives = "auto"
    state_lr_multiplier: float = 10.0
    dense_adam: bool = False
    reduction: Reduction = "mean"
    eps: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"label_state"})
    learned: ClassVar[bool] = True
    closed_form: ClassVar[bool] = True
    carries_state: ClassVar[bool] = True

    unknown_differs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_common(self.reduction, self.eps)
        check_expected(self.expected_positives)
        check_range("state_lr_multiplier", self.state_lr_multiplier, 0.0, float("inf"))

    def prepare(self, labels: Labels) -> Self:
        return replace(self, expected_positives=estimate(labels)) if self.expected_positives == "auto" else self

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        """[N, K] float32 logits: near zero where unknown, +-logit(.995) where known."""
        spread, known = _logit(UNKNOWN_AT_MOST), _logit(OBSERVED_AT)
        state = torch.rand(labels.values.shape, generator=torch.Generator().manual_seed(seed))
        state.mul_(2 * spread).sub_(spread)
        state[torch.from_numpy(labels.present)] = known
        state[torch.from_numpy(labels.absent)] = -known
        return state

    def carry_state(self, values: Tensor) -> Tensor:
        """The estimates of the best frozen epoch continue end to end, as probabilities cut at 1e-5 and 1 - 1e-5; the
        official LinearInit does so, and what was observed is not set anew."""
        bound = _logit(1 - CARRIED_WITHIN)
        return values.clamp(-bound, bound)

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        x = widen(output.logits)
        estimate = rows_of(context, "role").to(x.dtype)
        k, eps, factor = resolved(self.expected_positives), self.eps, scale(x.shape, self.reduction)
        model, table = (known_cells(logits, labels, eps, self.reduction) for logits in (x, estimate))
        to_model = cross_entropy(torch.sigmoid(estimate).detach(), x, eps)
        to_table = cross_entropy(torch.sigmoid(x).detach(), estimate, eps)
        return {
            "present": (model["present"] + table["present"]) / 2,
            "absent": (model["absent"] + table["absent"]) / 2,
            "agreement": reduce(to_model + to_table, self.reduction) / 2,
            "expected_positives": factor * (deviation(x, k) + deviation(estimate, k)) / 2,
        }

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        return labels.present.to(dtype), labels.absent.to(dtype)

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        both = torch.stack([logits, rows_of(context, "role")], 1)  # [B, 2, ..., K], each taught by the other
        target = torch.sigmoid(both.flip(1))
        pull = pull_to(resolved(self.expected_positives))
        halves = slope(both, target + yes[:, None], (1 - target) + no[:, None], self.eps, self.reduction, pull)
        by_logits, by_state = halves.div_(2).unbind(1)
        return by_logits, by_state


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
