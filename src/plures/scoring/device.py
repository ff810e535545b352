"""Where a model runs, and from which score on it calls a tag."""

from __future__ import annotations

import os

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from plures.config import Experiment
from plures.errors import PluresError
from plures.metrics.thresholds import Thresholds
from plures.models.model import read_taxonomy
from plures.runs.run import Run
from plures.scoring.distributed import world_size


def make_fabric(experiment: Experiment) -> Fabric:
    """One device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; under torchrun one a process, and all of them together."""
    kind, _, number = experiment.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise PluresError(f"device '{experiment.device}' is unknown; use auto, cpu, cuda, cuda:1 or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise PluresError("device=cuda, but torch sees no GPU here; use device=auto, and see `plures doctor`")
    # Lightning makes torch look for a GPU through NVML, which without one opens a library at every optimizer step
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1" if torch.cuda.is_available() else "0"
    if world_size() > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
        ddp = DDPStrategy(find_unused_parameters=True)
        nodes = world_size() // here
        fabric = Fabric(accelerator=kind, devices=here, num_nodes=nodes, strategy=ddp, precision=experiment.precision)
        fabric.launch()
        return fabric
    return Fabric(accelerator=kind, devices=[int(number)] if number else 1, precision=experiment.precision)


def thresholds_of(run: Run, classes: tuple[str, ...], threshold: float | None = None) -> Thresholds:
    """The given threshold for every class; else those saved with the run; else the experiment's; and what the run's
    model knows of how classes belong together."""
    taxonomy = read_taxonomy(run.path)
    if threshold is not None:
        if not 0 < threshold < 1:
            raise PluresError(f"threshold={threshold:g}: a probability between 0 and 1 was expected, such as 0.5")
        return Thresholds.constant(classes, threshold, taxonomy)
    saved = Thresholds.load(run.path, classes, taxonomy)
    return saved or Thresholds.constant(classes, run.experiment.cut, taxonomy)
