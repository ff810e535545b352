"""Learning-rate schedules: functions of how far training is, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

from plures.config import schedules as schedules

Schedule = Callable[[float, int, int], float]  # (step, steps per epoch, epochs) -> factor on the learning rate


@schedules.register("constant", title="constant")
def constant() -> Schedule:
    """Always 1."""
    return lambda step, steps, epochs: 1.0


@schedules.register("step", title="drops after some epochs", source="Jouanneau et al. 2022, section 4.1")
def step_down(every: int = 5, factor: float = 0.5, drops: int = 3) -> Schedule:
    """Times `factor` after each `every` epochs, `drops` times at most, then constant."""
    return lambda step, steps, epochs: factor ** min(drops, step // (every * steps))


@schedules.register("cosine", title="linear warm-up, then half a cosine")
def cosine(warmup_epochs: float = 0.0, final: float = 0.0) -> Schedule:
    """From 0 to 1 over the warm-up, then down to `final` at the end."""

    def factor(step: float, steps: int, epochs: int) -> float:
        warm, total = warmup_epochs * steps, epochs * steps
        if step < warm:
            return (step + 1) / (warm + 1)
        share = (step - warm) / max(1.0, total - warm)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))

    return factor


@schedules.register("onecycle", title="one cycle", source="Smith 2018, arXiv 1803.09820; shape as torch's OneCycleLR")
def onecycle(rise: float = 0.2, start: float = 0.04, final: float = 4e-6) -> Schedule:
    """Cosine from `start` up to 1 over the share `rise` of training, then cosine down to `final`."""

    def factor(step: float, steps: int, epochs: int) -> float:
        peak, last = rise * steps * epochs - 1, steps * epochs - 1
        low, done = (
            (start, step / peak) if step <= peak and peak > 0 else (final, (last - step) / max(1.0, last - peak))
        )
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * min(1.0, max(0.0, done))))

    return factor
