"""What every loss is: a callable on an Output and the batch's labels, and what it may know besides (Context)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from plures.labels import Labels, TensorLabels
from plures.models.output import Output
from plures.shelf import Shelf

Need = Literal["embeddings", "attention", "region_logits", "label_state", "views", "changed_logits"]
FROM_TRAINING: frozenset[Need] = frozenset({"label_state", "views", "changed_logits"})  # by the loop, not by a head
OF_REGIONS: frozenset[Need] = frozenset({"attention", "region_logits", "changed_logits"})  # want tokens and maps


class LabelState(Protocol):
    """An [N, K] (or [N, K, ...]) memory that a loss keeps about the training labels, one row a training image.

    `rows` gives the rows of a batch; for a learned memory the result is a leaf whose gradient the training loop
    applies after the backward pass. `write` replaces rows at once, without gradient.
    """

    def rows(self, index: Tensor) -> Tensor: ...  # index [B] -> [B, K]

    def write(self, index: Tensor, values: Tensor) -> None: ...  # index [B], values [B, K]


@dataclass(frozen=True)
class Context:
    """What a loss may know besides outputs and labels.

    epoch: 0-based; epochs: how many there will be; progress: share of all training steps done, in [0, 1].
    index: [B], row of each image in the training set; label_state: the memory of a loss that asked for one.
    views: [B, 4], where in its image each input lies after augmentation: left, top, right, bottom in [0, 1], left
      and right exchanged if mirrored; None: the whole image as it is. Regions' boxes are shares of this view.
    changed_logits: [B, K] without gradient, of the inputs that the loss had changed (see LooksAgain).
    """

    epoch: int = 0
    epochs: int = 1
    progress: float = 0.0
    index: Tensor | None = None
    label_state: LabelState | None = None
    views: Tensor | None = None
    changed_logits: Tensor | None = None


@runtime_checkable
class Loss(Protocol):
    """A loss: named terms whose sum is minimised.

    A loss is a frozen dataclass whose fields are its options. It works on logits, stays finite at any finite logit,
    and reads the labels through the masks present / absent / unknown.
    """

    needs: ClassVar[frozenset[Need]]

    def __call__(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]: ...


@runtime_checkable
class ChecksLabels(Protocol):
    """A loss that cannot learn from every kind of label. Called once before training; raises PluresError.

    It stands apart from `__call__` because looking at the values of a batch would make a GPU wait at every step.
    """

    def check(self, labels: Labels) -> None: ...


@runtime_checkable
class PreparesForLabels(Protocol):
    """A loss with options that are estimated from the observed training labels ("auto").

    Called once before training; returns a copy with numbers in their place, which is what a checkpoint should name.
    It sees the observed labels only, so a single-positive run cannot learn the true number of labels from it.
    """

    def prepare(self, labels: Labels) -> Loss: ...


@runtime_checkable
class ClosedForm(Protocol):
    """A loss that knows its gradient, which spares heads that are trained together the cost of autograd."""

    def cell_weights(self, labels: TensorLabels) -> tuple[Tensor, Tensor]: ...

    # float32 and as many as the labels: how much -log p, and how much -log(1 - p), of each cell counts

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, Tensor | None]: ...

    # logits [B, ..., K], several runs between B and K; these weights, and what the label state gives, of the same shape
    # -> the gradient of the sum of terms by the logits and by the rows of a learned label state (None: there is none)


@runtime_checkable
class RemembersLabels(Protocol):
    """A loss with a label state. `learned`: trained by gradient (its own Adam) or only written by the loss."""

    learned: ClassVar[bool]

    def initial_state(self, labels: Labels, seed: int) -> Tensor: ...

    # the training labels -> [N, K, ...]; kept in this dtype: float32, or float16 if it is only written


@runtime_checkable
class CarriesState(Protocol):
    """A loss whose label state goes over from the frozen phase of training to the end-to-end phase."""

    def carry_state(self, values: Tensor) -> Tensor: ...  # of the best frozen epoch, [N, K] -> initial one, [N, K]


@runtime_checkable
class LooksAgain(Protocol):
    """A loss that runs the network a second time, without gradient, on inputs it has changed ("changed_logits")."""

    def changed_inputs(self, inputs: Tensor, output: Output, labels: TensorLabels) -> Tensor: ...

    # images [B, 3, H, W] (uint8, or float in [0, 1]) or features [B, P, D]; what the head said of them, maps included


@runtime_checkable
class ActsAfterEpoch(Protocol):
    """A loss that looks at its scores of the whole training set after an epoch (pseudo-labels)."""

    def wants_scores(self, context: Context) -> bool: ...  # whether to run the model over the training set now

    def after_epoch(self, logits: Tensor, labels: Labels, context: Context) -> None: ...  # logits [N, K]


losses: Shelf[Loss] = Shelf("loss", "plures.losses")
