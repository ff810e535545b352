"""LabelMemory: the [N, K] memory that a loss keeps about the training labels, one row a training image.

ROLE's estimates, pseudo-labels, corrections, running predictions and running heat maps [N, K, ...] all live here. A
learned memory is trained by its own Adam: lazily by default (only the rows of the batch move; each row has its own
moments and its own step count for the bias correction), or densely as torch.optim.Adam on the whole table would
(`dense_adam`: rows drift between visits as their momentum dies away; every step then costs time in proportion to N).
"""

from __future__ import annotations

import tempfile
from math import log
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plures.errors import PluresError, WorkFailed
from plures.files import claim, writing

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's own, which the official ROLE code uses
IN_MEMORY_AT_MOST = 4 * 2**30  # bytes


class LabelMemory:
    """A table [N, K] with rows to read, write and (if learned) train. Implements `losses.context.LabelState`.

    initial: [N, K], or [N, K, ...] if it is only written. learned: rows carry gradient, which `apply_gradient` turns
    into an Adam step.
    device: where the table lives. dtype: float32, or float16 for a table that is only written.
    in_memory_at_most: a table (with its moments) of more bytes lives in a memory-mapped file in `folder` (None: a
    temporary one) and on the CPU, whatever the device.
    With several processes (torch.distributed) every process holds the whole memory, and what one learns from its
    batch is exchanged, so the copies stay equal; all processes then call `write` and `apply_gradient` equally often.
    """

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
        if initial.ndim < 2 or (learned and initial.ndim > 2):
            what = "[N, K]" if learned else "[N, K] or [N, K, ...]"
            raise ValueError(f"a label state is {what}, got {tuple(initial.shape)}")
        if learned and dtype != torch.float32:
            raise ValueError(f"a learned label state is float32, got {dtype}: half precision swallows small steps")
        if dense_adam and not learned:
            raise ValueError("dense_adam is for a learned label state")
        self.learned = learned
        bytes_needed = initial.numel() * (dtype.itemsize + (8 if learned else 0))
        self._folder: Any = None
        self._path: Path | None = None
        self._device = torch.device(device)
        if bytes_needed > in_memory_at_most:
            self._device = torch.device("cpu")
            self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="label-state-")
            self._path = Path(self._folder.name)
        self._table = self._zeros("table", initial.shape, dtype)
        self._table.copy_(initial)
        self._first, self._second, self._visits = (None, None, None)
        self._adam: torch.optim.Adam | None = None
        if dense_adam:
            self._adam = torch.optim.Adam([nn.Parameter(self._table)], betas=(BETA1, BETA2), eps=ADAM_EPS)
        elif learned:
            self._first = self._zeros("first", initial.shape, torch.float32)
            self._second = self._zeros("second", initial.shape, torch.float32)
            self._visits = torch.zeros(len(initial), dtype=torch.int32, device=self._device)
        self._read: list[tuple[Tensor, Tensor]] = []  # index [B] and leaf [B, K] of every read since the last step

    def _zeros(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if self._path is None:
            return torch.zeros(shape, dtype=dtype, device=self._device)
        cells = shape.numel()
        try:
            with open(self._path / name, "wb") as file:
                claim(file.fileno(), cells * dtype.itemsize)
        except OSError as error:
            size = cells * dtype.itemsize / 1e9
            raise WorkFailed(f"{self._path}: no room for a label state of {size:.2f} GB ({error.strerror})") from None
        return torch.from_file(str(self._path / name), shared=True, size=cells, dtype=dtype).view(shape)

    @property
    def shape(self) -> torch.Size:
        """[N, K], or [N, K, ...]."""
        return self._table.shape

    @property
    def mapped(self) -> bool:
        """Whether the table lives in a memory-mapped file."""
        return self._path is not None

    def rows(self, index: Tensor) -> Tensor:
        """index [B] -> float32 [B, K, ...] on the index's device; a leaf that wants gradient if this is learned."""
        values = self._table[index.to(self._device)].to(index.device, torch.float32)
        if self.learned and torch.is_grad_enabled():
            values.requires_grad_()
            self._read.append((index, values))
        return values

    @torch.no_grad()
    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace rows index [B] by values [B, K, ...], without gradient."""
        index, values = _from_all_processes(index.to(self._device), values.detach().to(self._device))
        self._table[index] = values.to(self._table.dtype)

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
            torch.cat(indices).to(self._device) if indices else torch.empty(0, dtype=torch.long, device=self._device)
        )
        gradient = torch.cat(gradients).to(self._device) if gradients else torch.empty(0, K, device=self._device)
        index, gradient = _from_all_processes(index, gradient)
        if len(index):
            gradient = gradient / (loss_scale * _processes())
            gradient = torch.where(gradient.isfinite().all(1, keepdim=True), gradient, torch.nan)  # [B, K]
            self._dense_step(index, gradient, lr) if self._adam else self._lazy_step(index, gradient, lr)

    def _dense_step(self, index: Tensor, gradient: Tensor, lr: float) -> None:
        assert self._adam is not None
        parameter = self._adam.param_groups[0]["params"][0]
        parameter.grad = torch.zeros_like(parameter).index_add_(0, index, gradient.nan_to_num(nan=0.0))
        self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
        parameter.grad = None

    def _lazy_step(self, index: Tensor, gradient: Tensor, lr: float) -> None:
        assert self._first is not None
        assert self._second is not None
        assert self._visits is not None
        usable = ~gradient.isnan().any(1, keepdim=True)  # [B, 1]
        gradient = gradient.nan_to_num(nan=0.0)
        same = (index[:, None] == index[None, :]).to(gradient.dtype)  # [B, B]; a row read twice gets both gradients,
        gradient = same @ gradient  # [B, K], and both copies make the same step, so it does not matter which one stays
        visits = self._visits[index] + 1
        first = BETA1 * self._first[index] + (1 - BETA1) * gradient
        second = BETA2 * self._second[index] + (1 - BETA2) * gradient.square()
        t = visits[:, None].float()
        grown1, grown2 = -torch.expm1(t * log(BETA1)), -torch.expm1(t * log(BETA2))  # 1 - beta^t, exact in float32
        step = lr * (first / grown1) / ((second / grown2).sqrt() + ADAM_EPS)
        old = self._table[index].float()
        self._table[index] = torch.where(usable, old - step, old).to(self._table.dtype)
        self._first[index] = torch.where(usable, first, self._first[index])
        self._second[index] = torch.where(usable, second, self._second[index])
        self._visits[index] = torch.where(usable[:, 0], visits, visits - 1)

    def save(self, path: Path) -> None:
        """Write the table alone, for a later phase of training to begin with; see `load_table`."""
        with writing(path) as temporary:
            save_file({"table": self._table.detach().contiguous()}, temporary)

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs: the table and the moments (the tensors themselves, not copies)."""
        state: dict[str, Any] = {"table": self._table}
        if self._adam is not None:
            state["adam"] = self._adam.state_dict()
        elif self.learned:
            state |= {"first": self._first, "second": self._second, "visits": self._visits}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state. Raises PluresError if it belongs to a memory of another shape or kind."""
        mine = self.state_dict()
        if mine.keys() != state.keys() or state["table"].shape != self.shape:
            raise PluresError(
                f"the saved label state has {sorted(state)} of shape {tuple(state['table'].shape)}, this run wants"
                f" {sorted(mine)} of shape {tuple(self.shape)}; resume with the same data, loss and options"
            )
        for name, value in state.items():
            if name == "adam":
                assert self._adam is not None
                self._adam.load_state_dict(value)
            else:
                mine[name].copy_(value)


def load_table(path: Path, shape: torch.Size) -> Tensor:
    """The table that `LabelMemory.save` wrote. Raises PluresError if it is not there or of another shape."""
    try:
        table = load_file(path)["table"]
    except (OSError, KeyError, SafetensorError) as error:
        raise PluresError(f"{path}: no label state to begin with ({error}); train the frozen phase again") from None
    if table.shape != shape:
        raise PluresError(f"{path}: a label state of shape {tuple(table.shape)}, this run wants {tuple(shape)}")
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
