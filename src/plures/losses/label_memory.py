"""LabelMemory: the [N, K] memory that a loss keeps about the training labels, one row per training image.

ROLE's estimates, pseudo-labels, corrections, running predictions and running heat maps [N, K, ...] all live here. A
learned memory is trained by its own Adam: lazily by default (only the rows of the batch move; each row has its own
moments and its own step count for the bias correction), or densely as torch.optim.Adam on the whole table would
(`dense_adam`: rows drift between visits as their momentum dies away; every step then costs time in proportion to N).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from math import log
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.adam import adam

from plures.errors import PluresError, WorkFailed
from plures.files import claim, writing

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's own, which the official ROLE code uses
IN_MEMORY_AT_MOST = 4 * 2**30  # bytes


class LabelMemory(nn.Module):
    """A table [N, K] with rows to read, write and (if learned) train. Implements `losses.context.LabelState`.

    Its buffers (`table`, and the moments of Adam if it is learned) are in `state_dict()`; `.to(device)` moves them and
    never changes their dtype.
    With several processes (torch.distributed) every process holds the whole memory, and what one learns from its
    batch is exchanged, so the copies stay equal; all processes then call `write` and `apply_gradient` equally often.

    Args:
        initial: [N, K], or [N, K, ...] if it is only written.
        learned: rows carry gradient, which `apply_gradient` turns into an Adam step.
        device: where the table lives.
        dtype: float32, or float16 for a table that is only written.
        dense_adam: Adam moves every row at every step.
        in_memory_at_most: a table (with its moments) of more bytes lives in a memory-mapped file and on the CPU,
            whatever the device.
        folder: of that file; None: a temporary one.
    """

    table: Tensor
    first: Tensor
    second: Tensor
    visits: Tensor
    steps: Tensor

    def __init__(
        self,
        initial: Tensor,
        *,
        learned: bool,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        dense_adam: bool = False,
        in_memory_at_most: int = IN_MEMORY_AT_MOST,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        if initial.ndim < 2 or (learned and initial.ndim > 2):
            what = "[N, K]" if learned else "[N, K] or [N, K, ...]"
            raise ValueError(f"a label state is {what}, got {tuple(initial.shape)}")
        if learned and dtype != torch.float32:
            raise ValueError(f"a learned label state is float32, got {dtype}: half precision swallows small steps")
        if dense_adam and not learned:
            raise ValueError("dense_adam is for a learned label state")
        self.learned, self.dense = learned, dense_adam
        bytes_needed = initial.numel() * (dtype.itemsize + (8 if learned else 0))
        self._folder: Any = None
        self._path: Path | None = None
        place = torch.device(device)
        if bytes_needed > in_memory_at_most:
            place = torch.device("cpu")
            self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="label-state-")
            self._path = Path(self._folder.name)
        self.register_buffer("table", self._zeros("table", initial.shape, dtype, place))
        self.table.copy_(initial)
        if learned:
            for name in ("first", "second"):
                self.register_buffer(name, self._zeros(name, initial.shape, torch.float32, place))
        if dense_adam:
            self.register_buffer("steps", torch.zeros(()))
        elif learned:
            self.register_buffer("visits", torch.zeros(len(initial), dtype=torch.int32, device=place))
        self._read: list[tuple[Tensor, Tensor]] = []  # index [B] and leaf [B, K] of every read since the last step

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LabelMemory:
        """Move to the device that `fn` moves to. Dtypes stay; a mapped memory stays where it is."""
        device = fn(torch.empty(0, device=self.table.device)).device
        if not self.mapped and device != self.table.device:
            for name, buffer in list(self.named_buffers()):
                if name != "steps":  # Adam reads it on the CPU
                    self._buffers[name] = buffer.to(device)
        return self

    def _zeros(self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self._path is None:
            return torch.zeros(shape, dtype=dtype, device=device)
        cells = shape.numel()
        try:
            with open(self._path / name, "wb") as file:
                claim(file.fileno(), cells * dtype.itemsize)
        except OSError as error:
            size = cells * dtype.itemsize / 1e9
            raise WorkFailed(f"{self._path}: no space for a label state of {size:.2f} GB ({error.strerror})") from None
        return torch.from_file(str(self._path / name), shared=True, size=cells, dtype=dtype).view(shape)

    @property
    def shape(self) -> torch.Size:
        """[N, K], or [N, K, ...]."""
        return self.table.shape

    @property
    def mapped(self) -> bool:
        """Whether the table lives in a memory-mapped file."""
        return self._path is not None

    def rows(self, index: Tensor) -> Tensor:
        """index [B] -> float32 [B, K, ...] on the index's device; a leaf that requires gradient if this is learned."""
        values = self.table[index.to(self.table.device)].to(index.device, torch.float32)
        if self.learned and torch.is_grad_enabled():
            if sum(len(one) for one, _ in self._read) >= max(len(self.table), 2 * len(index)):
                self._forget_old_reads()
            values.requires_grad_()
            self._read.append((index, values))
        return values

    def _forget_old_reads(self) -> None:
        """Every row has been read and no step made since: say that the memory learns nothing that way."""
        if any(leaf.grad is not None for _, leaf in self._read):
            warnings.warn(
                "the loss's label memory got gradients for a whole epoch and was never stepped; call criterion.step(lr)"
                " after loss.backward(), beside optimizer.step()",
                stacklevel=2,
            )
        self._read = []

    @torch.no_grad()
    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace rows index [B] by values [B, K, ...], without gradient."""
        index, values = _from_all_processes(index.to(self.table.device), values.detach().to(self.table.device))
        self.table[index] = values.to(self.table.dtype)

    @torch.no_grad()
    def apply_gradient(self, lr: float, loss_scale: float = 1.0) -> None:
        """One Adam step with the gradients of the rows read since the last one; call after the backward pass.

        loss_scale: what a gradient scaler multiplied the loss by. Rows whose gradient is not finite stay as they are.
        """
        read, self._read = self._read, []
        indices = [index for index, leaf in read if leaf.grad is not None]
        gradients = [leaf.grad for _, leaf in read if leaf.grad is not None]
        K = self.shape[1]
        index = (
            torch.cat(indices).to(self.table.device)
            if indices
            else torch.empty(0, dtype=torch.long, device=self.table.device)
        )
        gradient = (
            torch.cat(gradients).to(self.table.device) if gradients else torch.empty(0, K, device=self.table.device)
        )
        index, gradient = _from_all_processes(index, gradient)
        if len(index):
            gradient = gradient / (loss_scale * _processes())
            gradient = torch.where(gradient.isfinite().all(1, keepdim=True), gradient, torch.nan)  # [B, K]
            self._dense_step(index, gradient, lr) if self.dense else self._lazy_step(index, gradient, lr)

    def _dense_step(self, index: Tensor, gradient: Tensor, lr: float) -> None:
        """A step of torch's own Adam on the whole table."""
        whole = torch.zeros_like(self.table).index_add_(0, index, gradient.nan_to_num(nan=0.0))
        adam(
            [self.table], [whole], [self.first], [self.second], [], [self.steps], amsgrad=False, beta1=BETA1,
            beta2=BETA2, lr=lr, weight_decay=0.0, eps=ADAM_EPS, maximize=False,
        )  # fmt: skip

    def _lazy_step(self, index: Tensor, gradient: Tensor, lr: float) -> None:
        usable = ~gradient.isnan().any(1, keepdim=True)  # [B, 1]
        gradient = gradient.nan_to_num(nan=0.0)
        same = (index[:, None] == index[None, :]).to(gradient.dtype)  # [B, B]; a row read twice gets both gradients,
        gradient = same @ gradient  # [B, K], and both copies make the same step, so it does not matter which one stays
        visits = self.visits[index] + 1
        first = BETA1 * self.first[index] + (1 - BETA1) * gradient
        second = BETA2 * self.second[index] + (1 - BETA2) * gradient.square()
        t = visits[:, None].float()
        grown1, grown2 = -torch.expm1(t * log(BETA1)), -torch.expm1(t * log(BETA2))  # 1 - beta^t, exact in float32
        step = lr * (first / grown1) / ((second / grown2).sqrt() + ADAM_EPS)
        old = self.table[index].float()
        self.table[index] = torch.where(usable, old - step, old).to(self.table.dtype)
        self.first[index] = torch.where(usable, first, self.first[index])
        self.second[index] = torch.where(usable, second, self.second[index])
        self.visits[index] = torch.where(usable[:, 0], visits, visits - 1)

    def save(self, path: Path) -> None:
        """Write the table alone, for a later stage of training to begin with; see `load_table`."""
        with writing(path) as temporary:
            save_file({"table": self.table.detach().contiguous()}, temporary)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take up a saved state. Raises PluresError if it belongs to a memory of another shape or kind."""
        mine = self.state_dict()
        if mine.keys() != state.keys() or state["table"].shape != self.shape:
            raise PluresError(
                f"the saved label state has {sorted(state)} of shape {tuple(state['table'].shape)}, this run requires"
                f" {sorted(mine)} of shape {tuple(self.shape)}; resume with the same data, loss and options"
            )
        return super().load_state_dict(state, strict=strict)


def load_table(path: Path, shape: torch.Size) -> Tensor:
    """The table that `LabelMemory.save` wrote. Raises PluresError if it is not there or of another shape."""
    try:
        table = load_file(path)["table"]
    except (OSError, KeyError, SafetensorError) as error:
        raise PluresError(f"{path}: no label state to begin with ({error}); train the stage before it again") from None
    if table.shape != shape:
        raise PluresError(f"{path}: a label state of shape {tuple(table.shape)}, this run requires {tuple(shape)}")
    return table


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _from_all_processes(index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """index [B], values [B, ...] of this process -> those of all processes, in the order of their ranks."""
    world = _processes()
    if world == 1:
        return index, values
    wanted = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    home, index, values = index.device, index.to(wanted), values.to(wanted)
    sizes = [torch.zeros(1, dtype=torch.long, device=wanted) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(index)], device=wanted))
    longest = int(max(int(size) for size in sizes))
    indices = [index.new_zeros(longest) for _ in range(world)]
    rows = [values.new_zeros(longest, *values.shape[1:]) for _ in range(world)]
    dist.all_gather(indices, torch.cat([index, index.new_zeros(longest - len(index))]))
    dist.all_gather(rows, torch.cat([values, values.new_zeros(longest - len(values), *values.shape[1:])]))
    counts = [int(size) for size in sizes]
    return (
        torch.cat([one[:n] for one, n in zip(indices, counts, strict=True)]).to(home),
        torch.cat([one[:n] for one, n in zip(rows, counts, strict=True)]).to(home),
    )
