"""Schedules against the ones they are named after."""

import pytest
import torch

from plures.training.schedules import schedules


@pytest.mark.parametrize(("steps", "epochs", "rise"), [(10, 5, 0.2), (7, 3, 0.2), (40, 6, 0.3)])
def test_onecycle_is_torchs(steps, epochs, rise):
    factor = schedules.make("onecycle", rise=rise)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps * epochs, pct_start=rise)
    for step in range(steps * epochs):
        assert factor(step, steps, epochs) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        if step + 1 < steps * epochs:
            theirs.step()
