"""Optimizers by name, from timm (which knows torch's own too): Adam, AdamW, SGD, LAMB and many more."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from plures.errors import PluresError, did_you_mean


def parameter_groups(
    model: nn.Module, head: nn.Module, lr: float, head_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups by place (backbone, head) and kind: norms and biases are not decayed. `base_lr` is kept for schedules."""
    of_head = {id(p) for p in head.parameters()}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        in_head, decays = id(parameter) in of_head, parameter.ndim > 1 and weight_decay > 0
        rate = lr * (head_lr if in_head else 1.0)
        group = groups.setdefault(
            (in_head, decays),
            {"params": [], "lr": rate, "base_lr": rate, "weight_decay": weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(name: str, options: dict[str, Any], groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer of this name over these groups. Raises PluresError for a wrong name or option."""
    known = [str(known) for known in list_optimizers()]
    if name not in known:
        raise PluresError(f"unknown optimizer '{name}'{did_you_mean(name, known)}")
    try:
        optimizer: Optimizer = create_optimizer_v2(groups, opt=name, **options)
    except (TypeError, ValueError) as error:
        raise PluresError(f"optimizer '{name}' with {options or 'no options'}: {error}") from None
    return optimizer


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's rate to its base rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
