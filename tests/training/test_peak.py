"""The estimate of memory: of the right size, and told only where it exceeds what there is."""

import numpy as np
import pytest
import torch

from plures import system
from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.labels import Labels
from plures.models.model import Preprocessing, build_model
from plures.training import peak as peak_module
from plures.training.peak import activations, peak, warning


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("small_conv", "linear", ("a", "b"), {"image_size": 32})


def data(rows):
    labels = Labels(np.tile(np.array([[1, 0]], np.int8), (rows, 1)))
    return Dataset(np.zeros((rows, 2, 2, 3), np.uint8), labels, ("a", "b"), None, name="blank")


def test_activations_are_those_that_the_layers_give():
    """A convolution to 4 channels and one to 8, of 32 x 32 numbers, 4 bytes each."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 8, 3, padding=1))

    class Small(torch.nn.Module):
        preprocessing = Preprocessing(32, (0.0,) * 3, (1.0,) * 3)

        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, images, maps):
            return self.layers(images.float())

    assert activations(Small()) == (8 * 32 * 32 * 4, 12 * 32 * 32 * 4)


def test_the_peak_grows_with_what_fills_memory(model):
    def at(rows=10, workers=0, **settings):
        return peak(model, data(rows), Experiment(stages="finetune", **settings), workers)

    one = at(batch_size=1)
    assert 8 * one > at(batch_size=8) > one
    assert at(batch_size=8, accumulate=4) == at(batch_size=2)
    assert at(batch_size=8, workers=2) > at(batch_size=8)
    assert at(rows=20) - at(rows=10) == 10 * 2 * 3 * 4
    frozen = [peak(model, data(rows), Experiment(stages="probe", head="linear"), 0) for rows in (10, 20)]
    assert frozen[1] - frozen[0] == 10 * (2 * 3 * 4 + model.backbone.width * 4)


def test_it_is_told_only_where_it_exceeds_what_is_free(model, monkeypatch):
    e = Experiment(stages="finetune", batch_size=8)
    likely = peak(model, data(10), e, 0)
    for free, told in ((likely, False), (likely - 1, True), (None, False)):
        monkeypatch.setattr(peak_module, "free_memory", lambda free=free: free)
        assert ("use accumulate=2 or more" in warning(model, data(10), e, 0)) is told


def test_the_smallest_limit_counts(tmp_path, monkeypatch):
    """Of the machine's memory and the container's; a container without a limit says "max"."""
    texts = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4000 kB\n",
             "/sys/fs/cgroup/memory.max": "3000000\n",
             "/sys/fs/cgroup/memory.current": "1000000\n",
             "/sys/fs/cgroup/memory.stat": "inactive_file 500000\n"}  # fmt: skip

    def read(path, *_, **__):
        if str(path) not in texts:
            raise FileNotFoundError
        return texts[str(path)]

    monkeypatch.setattr(system.Path, "read_text", read)
    assert system.free_memory() == 2_500_000
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert system.free_memory() == 4000 * 1024
