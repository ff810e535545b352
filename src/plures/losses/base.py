"""What every loss is: a criterion (an nn.Module) on logits and three-valued targets.

A loss is written by its mathematics alone, `compute(output, labels, context)`, which never looks at a value on the
host, so a GPU never waits; training and the vectorized sweep call that. What a stranger calls, `criterion(logits,
targets)`, is the same after its arguments have been checked.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plures.errors import PluresError
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels, TensorLabels
from plures.losses.context import Context, Need
from plures.losses.label_memory import LabelMemory
from plures.models.outputs import Output
from plures.registry import Registry

SHAPES = {"embeddings": "[B, K, D]", "attention": "[B, K, P]", "region_logits": "[B, K, P]"}


@dataclass(eq=False, repr=False)
class Loss(nn.Module):
    """A criterion: `criterion(logits, targets)` is a scalar, `criterion.terms(logits, targets)` its named terms.

    To write one, subclass it and define `compute`. A dataclass whose fields are the options is shortest; an ordinary
    `__init__` does as well. It works on logits, stays finite at any finite logit, and reads labels through the masks
    present / absent / unknown. The class attributes say what else it requires and what is known of its form.

    Args:
        unobserved: None, or the code in the targets that means "not known" beside -1: 0 for targets in {0, 1} where 0
            is "nobody said so". Without it a 0 is a label that is known to be absent.
    """

    unobserved: int | None = field(default=None, kw_only=True, repr=False)
    memory: LabelMemory | None = field(default_factory=lambda: None, init=False, repr=False)
    _said: frozenset[str] = field(default_factory=frozenset, init=False, repr=False)

    needs: ClassVar[frozenset[Need]] = frozenset()
    per_image: ClassVar[bool] = False
    """The value is a mean (or sum) over images of something that depends on one image alone, at every epoch."""
    closed_form: ClassVar[bool] = False
    """It has `weights` and `gradient`, which spares vectorized training the cost of autograd."""
    per_cell: ClassVar[bool] = False
    """In closed form, and nothing joins cells (see WeightedBCE)."""
    complete_only: ClassVar[bool] = False
    """Unknown labels are refused."""
    unknown_differs: ClassVar[bool] = False
    """An unknown label counts differently from an absent one."""
    learned: ClassVar[bool] = False
    """Its memory is trained by gradient (`step`), not only written."""
    carries_state: ClassVar[bool] = False
    """Its memory goes over from the probe to the stage finetune (`carry_state`)."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        made = super().__new__(cls)
        nn.Module.__init__(made)  # here, so that a dataclass requires no __init__ of its own
        made.register_module("memory", None)
        made._said = frozenset()
        return made

    def __init_subclass__(cls, **options: Any) -> None:
        """What was declared of a parent's `compute` need not hold of the class's own."""
        super().__init_subclass__(**options)
        for name in ("per_image", "closed_form", "per_cell") if "compute" in cls.__dict__ else ():
            if name not in cls.__dict__:
                setattr(cls, name, False)

    def extra_repr(self) -> str:
        """The options, also of a loss that is not a dataclass."""
        hidden = ("training", "unobserved")
        return ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_") and k not in hidden)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    # ------------------------------------------------------------------------------- what a loss defines

    def compute(self, output: Output, labels: TensorLabels, context: Context) -> dict[str, Tensor]:
        """The named terms, whose sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} defines no compute(output, labels, context)")

    def check(self, labels: Labels) -> None:
        """Raise PluresError if this loss cannot learn from such training labels."""
        if self.complete_only and not labels.complete:
            raise incomplete(self, int(labels.unknown.sum()), labels.values.size)

    def prepare(self, labels: Labels) -> Self:
        """This loss, with options that are estimated from the observed training labels ("auto") as numbers.

        It sees the observed labels only, so a single-positive run cannot learn the true number of labels from it.
        """
        return self

    def follows(self) -> tuple[str, ...]:
        """Which of "epoch" and "epochs" the value depends on."""
        return ()

    def weights(self, labels: TensorLabels, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """In closed form: how much -log p and how much -log(1 - p) of each cell counts, both [..., K]."""
        raise NotImplementedError

    def gradient(self, logits: Tensor, yes: Tensor, no: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """In closed form: the gradient of the sum of terms by the logits and by the rows of a learned memory.

        logits [B, ..., K], several runs between B and K; these weights, and what the label state gives, of the same
        shape.
        """
        raise NotImplementedError

    def initial_state(self, labels: Labels, seed: int) -> Tensor:
        """The first memory, [N, K, ...], of a loss with "label_state"; in float32, or float16 if only written."""
        raise NotImplementedError

    def carry_state(self, values: Tensor) -> Tensor:
        """The first memory [N, K] of the stage finetune from that of the best epoch of the probe, [N, K]."""
        raise NotImplementedError

    def changed_inputs(self, inputs: Tensor, output: Output, labels: TensorLabels | Tensor) -> Tensor:
        """The inputs whose logits a loss with "changed_logits" compares: a second look, without gradient.

        inputs: images [B, 3, H, W] (uint8, or float in [0, 1]) or features [B, P, D]; output: what the head said of
        them, maps included.
        """
        raise NotImplementedError

    def needs_scores(self, context: Context) -> bool:
        """Whether it requires the scores of the whole training set after this epoch."""
        return False

    def after_epoch(self, logits: Tensor, labels: Labels, context: Context) -> None:
        """Look at the logits [N, K] of the whole training set after an epoch (pseudo-labels)."""

    # ------------------------------------------------------------------------------- what a stranger calls

    def forward(self, logits: Tensor | Output, targets: Tensor, **known: Any) -> Tensor:
        """The loss, a scalar. Arguments as in `terms`."""
        return torch.stack(list(self.terms(logits, targets, **known).values())).sum()

    def terms(
        self,
        logits: Tensor | Output,
        targets: Tensor,
        *,
        index: Tensor | None = None,
        epoch: int | None = None,
        epochs: int | None = None,
        progress: float | None = None,
        views: Tensor | None = None,
        changed_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The named terms of the loss; their sum is `criterion(logits, targets)`.

        Args:
            logits: [B, K], or the Output of a head for a loss that requires embeddings, attention or region logits.
            targets: [B, K] in {1, 0, -1} (present, absent, unknown), of any int or float dtype; or bool, which are
                complete labels (False: absent).
            index: int64 [B], the rows of the batch in the training set, for a loss with a memory (see `bind`).
            epoch, epochs: the 0-based epoch and how many there will be, for a loss that follows them.
            progress: share of all training steps done, in [0, 1]; None: epoch / epochs.
            views: [B, 4], see `Context`.
            changed_logits: [B, K], see `changed_inputs`.

        Raises:
            PluresError: for targets of another shape or with other values, and for what is missing. The values are
                looked at in every call on the CPU, and in the first call only elsewhere: to look makes a GPU wait.
        """
        output = logits if isinstance(logits, Output) else Output(logits)
        self._check_output(output)
        labels = TensorLabels(self._checked(targets, output.logits))
        if not torch.compiler.is_compiling():
            self._check_course(epoch, epochs)
        if self.memory is not None and index is not None:
            _check_index(index, len(targets), len(self.memory.table))
        now, of = epoch or 0, epochs or 1
        course = progress if progress is not None else now / of if epochs else 0.0
        return self.compute(output, labels, Context(now, of, course, index, self.memory, views, changed_logits))

    def bind(self, targets: Labels | Tensor | NDArray[Any], *, seed: int = 0) -> Self:
        """A new loss that knows the training set: "auto" options are numbers, and there is a memory if it keeps one.

        Args:
            targets: [N, K], the labels of the whole training set, coded as in `terms`.
            seed: of the first memory, where that is random.

        Raises:
            PluresError: if the loss cannot learn from such labels.
        """
        labels = as_labels(targets, self.unobserved)
        self.check(labels)
        if self.unknown_differs and labels.complete:
            self._say_complete()
        bound = self.prepare(labels).remember(labels, seed)
        bound._said |= {"bound"}
        return bound

    def step(self, lr: float, loss_scale: float = 1.0) -> None:
        """Train the memory by the gradients of the batches since the last step; call after `loss.backward()`.

        Does nothing for a loss without a learned memory.

        Args:
            lr: the model's learning rate at this step; the memory's own is `state_lr_multiplier` times that.
            loss_scale: what a gradient scaler multiplied the loss by.
        """
        if self.memory is not None and self.memory.learned:
            self.memory.apply_gradient(lr * getattr(self, "state_lr_multiplier", 1.0), loss_scale)

    def epoch_end(self, logits: Tensor, targets: Labels | Tensor | NDArray[Any], *, epoch: int, epochs: int) -> None:
        """Let a loss with pseudo-labels look at the whole training set after an epoch; others do nothing.

        Args:
            logits: [N, K] of the training set in the order of its rows, without gradient.
            targets: [N, K], as given to `bind`.
            epoch, epochs: the 0-based epoch that has ended and how many there will be.
        """
        context = Context(epoch, epochs, (epoch + 1) / epochs, None, self.memory)
        if self.needs_scores(context):
            self.after_epoch(logits.detach(), as_labels(targets, self.unobserved), context)
            self._said |= {f"scores {epoch}"}

    def remember(
        self, labels: Labels, seed: int, device: torch.device | str = "cpu", carried: Tensor | None = None
    ) -> Self:
        """A copy with a memory of these training labels, begun anew or from what was carried over, [N, K]."""
        bound = copy.deepcopy(self, {id(self.memory): None})  # without the old memory, which may be large
        if "label_state" in self.needs:
            state = self.initial_state(labels, seed) if carried is None else self.carry_state(carried)
            dense = bool(getattr(self, "dense_adam", False))
            bound.memory = LabelMemory(state, learned=self.learned, device=device, dtype=state.dtype, dense_adam=dense)
        return bound

    # ------------------------------------------------------------------------------- checks

    def _say(self, text: str) -> None:
        """Warn once."""
        if text not in self._said:
            self._said |= {text}
            warnings.warn(f"{type(self).__name__} {text}", stacklevel=4)

    def _say_complete(self) -> None:
        self._say(
            "treats unknown labels (-1) in a way of its own, and there are none among these targets: 0 means known to"
            " be absent; if it means not observed, say unobserved=0 or use plures.labels.from_positives(targets)"
        )

    def _check_output(self, output: Output) -> None:
        name = type(self).__name__
        if not isinstance(output.logits, Tensor) or output.logits.ndim != 2:
            got = tuple(output.logits.shape) if isinstance(output.logits, Tensor) else type(output.logits).__name__
            raise PluresError(f"{name}: logits are a tensor [B, K] or a plures.Output, got {got}")
        for need in SHAPES:
            if need in self.needs and not output.has(need):
                raise PluresError(
                    f"{name} requires Output.{need} {SHAPES[need]}, which is missing: call criterion(output, targets)"
                    " with the Output of a head that gives it, or plures.Output(logits, " + need + "=...)"
                )

    def _checked(self, targets: Tensor, logits: Tensor) -> Tensor:
        """The targets as int8 [B, K]."""
        name = type(self).__name__
        if not isinstance(targets, Tensor):
            raise PluresError(f"{name}: targets are a tensor [B, K], got {type(targets).__name__}")
        if targets.shape != logits.shape:
            raise PluresError(
                f"{name}: targets of shape {list(targets.shape)} for logits {list(logits.shape)}; both are [B, K], one"
                " target in {1, 0, -1} (present, absent, unknown) per image and class"
            )
        if targets.device != logits.device:
            raise PluresError(f"{name}: the targets are on {targets.device}, the logits on {logits.device}")
        first = "looked" not in self._said
        look = not torch.compiler.is_compiling() and (first or targets.device.type == "cpu")
        values = as_codes(targets, self.unobserved, look)
        if look and values.numel():
            self._said |= {"looked"}
            unknown = int((values == UNKNOWN).sum()) if self.complete_only or (first and self.unknown_differs) else 1
            if self.complete_only and unknown:
                raise incomplete(self, unknown, values.numel())
            if unknown == 0 and not self.complete_only and "bound" not in self._said:
                self._say_complete()
        return values

    def _check_course(self, epoch: int | None, epochs: int | None) -> None:
        follows = self.follows()
        if "epoch" in follows and epoch is None:
            also = ", epochs=" if "epochs" in follows else ""
            self._say(f"changes with the epochs and was called without epoch={also}: it stays as in the first one")
        elif "epochs" in follows and epoch is not None and epochs is None:
            raise PluresError(f"{type(self).__name__} follows the course of training: with epoch= give epochs= as well")
        elif epoch is not None and epochs is not None and not 0 <= epoch < epochs:
            raise PluresError(f"{type(self).__name__}: epoch is 0-based and below epochs={epochs}, got {epoch}")
        before = Context((epoch or 0) - 1, epochs or 1)
        if before.epoch >= 0 and f"scores {before.epoch}" not in self._said and self.needs_scores(before):
            self._say(
                "learns from the scores of the whole training set: call criterion.epoch_end(logits, targets, epoch=,"
                " epochs=) after every epoch"
            )


losses: Registry[Loss] = Registry(
    "loss", "plures.losses", ("unobserved",), "plures.losses",
    ("a subclass of plures.losses.Loss", lambda made: issubclass(made, Loss)),
)  # fmt: skip


def as_codes(targets: Tensor, unobserved: int | None = None, look: bool = True) -> Tensor:
    """Targets of any dtype as int8 in {1, 0, -1}. Raises PluresError for other codes, if it may look at the values."""
    if targets.is_complex() or targets.is_quantized:
        raise PluresError(f"targets are int, float or bool, got {targets.dtype}")
    if look and targets.dtype != torch.bool:
        wrong = (targets != PRESENT) & (targets != ABSENT)
        if targets.dtype != torch.uint8:  # which knows no -1, and 255 is no code
            wrong &= targets != UNKNOWN
        if bool(wrong.any()):
            raise PluresError(
                f"targets are 1 (present), 0 (absent) or -1 (unknown), found {targets[wrong][0].item():g}"
                f" ({int(wrong.sum()):,} of {targets.numel():,} have other codes); soft labels are not supported"
            )
    values = targets.to(torch.int8)
    return values if unobserved is None else torch.where(values == unobserved, UNKNOWN, values).to(torch.int8)


def as_labels(targets: Labels | Tensor | NDArray[Any], unobserved: int | None = None) -> Labels:
    """The targets [N, K] of a whole training set as Labels."""
    if isinstance(targets, Labels):
        return targets
    try:
        given = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluresError(
            f"targets [N, K] are numbers in {{1, 0, -1}}, got {type(targets).__name__} ({error})"
        ) from None
    if given.ndim != 2:
        raise PluresError(f"the targets of a training set are [N, K], got {list(given.shape)}")
    return Labels(as_codes(given.detach().cpu(), unobserved).numpy())


def incomplete(loss: Loss, unknown: int, cells: int) -> PluresError:
    """The error of a loss that requires complete labels."""
    return PluresError(
        f"{said(loss)} requires complete labels, but {unknown:,} of {cells:,} are unknown; use supervision=full,"
        " loss=iu (unknown ignored) or loss=an (unknown taken as absent)"
    )


def said(loss: Loss) -> str:
    """What messages call a loss: by its name in the registry, or by its class."""
    names = [entry.name for entry in losses if entry.make is type(loss)]
    return f"loss '{names[0]}'" if names else type(loss).__name__


def _check_index(index: Tensor, batch: int, rows: int) -> None:
    if index.ndim != 1 or len(index) != batch or index.is_floating_point() or index.dtype == torch.bool:
        raise PluresError(
            f"index is int64 [{batch}], the row of each image of the batch in the training set, got"
            f" {index.dtype} {list(index.shape)}"
        )
    if index.device.type == "cpu" and rows > 1 and len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
        raise PluresError(
            f"index runs from {int(index.min())} to {int(index.max())}, but the criterion was bound to {rows} training"
            " images; bind it to the targets of the whole training set"
        )
