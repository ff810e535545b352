"""How much memory training is likely to take at its peak, told before it starts rather than by the system's killer.

A rough sum, meant to be somewhat too large: weights with gradients and what an optimizer keeps, what a batch leaves
behind in the network (counted on one blank image), the label memory, features that are held.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.models.model import Model
from plures.system import free_memory

FLOAT = 4  # bytes
WHOLE_BATCHES = 2  # of decoded images that each worker holds ready


def warning(model: Model, train: Dataset, experiment: Experiment, workers: int) -> str:
    """A line for the user if training is likely to take more memory than there is; "" if not, or nobody can tell."""
    if next(model.parameters()).device.type != "cpu" or train.features is not None:
        return ""
    free, likely = free_memory(), peak(model, train, experiment, workers)
    if free is None or likely <= free:
        return ""
    return (
        f"training is likely to take {likely / 1e9:.1f} GB of memory at its peak, and {free / 1e9:.1f} GB are free; if"
        " it is stopped, use accumulate=2 or more, a smaller batch_size or image_size, or fewer workers"
    )


def peak(model: Model, train: Dataset, experiment: Experiment, workers: int) -> int:
    """Bytes of memory beyond what this process has already."""
    e, N, K = experiment, len(train), len(train.classes)
    size = model.preprocessing.image_size
    frozen = e.frozen
    rows = 16 if frozen else -(-e.batch_size // e.accumulate)
    largest, total = activations(model)
    images = (1 + WHOLE_BATCHES * workers) * rows * 3 * size * size
    needed = images + N * K * 3 * FLOAT  # labels that are learned, and two moments of each
    if frozen:  # one batch passes through, then the features are held
        width = int(getattr(model.backbone, "width", 0))
        needed += 2 * largest * rows + N * width * FLOAT * (2 if e.ridge else 1)
    else:  # every layer's output is kept until its gradient is known
        learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
        needed += (total + 2 * largest) * rows + 3 * learned * FLOAT
    return needed


@torch.inference_mode()
def activations(model: Model) -> tuple[int, int]:
    """Bytes of the largest output of a layer and of all layers' outputs, for one image."""
    sizes: list[int] = [0]

    def count(module: nn.Module, given: object, found: object) -> None:
        if isinstance(found, Tensor):
            sizes.append(found.numel() * FLOAT)

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    was_training = model.training
    size = model.preprocessing.image_size
    try:
        model.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8), maps=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return max(sizes), sum(sizes)
