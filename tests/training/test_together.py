"""Runs trained together against the same runs trained one by one, for every loss on the shelf."""

import functools

import numpy as np
import pytest
import torch

from plures.data.loading import FeatureBatches, Order
from plures.experiment import Experiment
from plures.labels import Labels, observe_fraction, observe_single_positive
from plures.losses import losses
from plures.models.linear import Linear
from plures.models.output import grid_boxes
from plures.training.evaluate import make_fabric
from plures.training.fit import HeadOnFeatures, Phase, fit
from plures.training.progress import Quiet
from plures.training.together import FrozenData, HeadRun, train_together
from plures.training.train import make_loss

N, M, D, K = 45, 30, 12, 5
FULL, HALF = {"bce", "bce_ls"}, {"iu"}
NAMES = [n for n in losses.names() if not set(losses[n].make.__dict__.get("needs", ())) - {"label_state"}]


@functools.cache
def data(seed=0):
    """Features in which the classes can be seen, and full labels."""
    random = np.random.default_rng(seed)
    present = random.random((N + M, K)) < 0.35
    present[np.arange(N + M), random.integers(0, K, N + M)] = True
    centres = random.normal(size=(K, D))
    x = (present @ centres + random.normal(size=(N + M, D))).astype(np.float32)
    labels = Labels.from_masks(present)
    return FrozenData(x[:N], x[N:], labels.take(slice(N, None))), labels.take(slice(0, N))


def observed(name, labels, seed):
    if name in FULL:
        return labels
    return observe_fraction(labels, 0.5, seed) if name in HALF else observe_single_positive(labels, seed)


def run_of(name, tmp_path=None, draw=1, options=None, **settings):
    """A run on `data()`, its first weights from its seed as `train` would make them."""
    shared, labels = data()
    loss = {"name": name, **(options or {})}
    if name == "vlpl":
        np.save(tmp_path / "scores.npy", np.random.default_rng(5).random((N, K)))
        loss["scores"] = str(tmp_path / "scores.npy")
    e = Experiment(**{"mode": "frozen", "head": "linear", "epochs": 4, "batch_size": 8, "device": "cpu"} | settings,
                   loss=loss)  # fmt: skip
    torch.manual_seed(e.seed)
    head = Linear(D, K)
    seen = observed(name, labels, draw)
    made = make_loss(e, seen, head)
    val_seen = observed(name, shared.val_labels, draw)
    return HeadRun(e, shared, seen, made, head.classifier.weight.detach().clone(),
                   head.classifier.bias.detach().clone(), "val_map", val_seen)  # fmt: skip


class Keeper:
    """Scores as `train` does and keeps the weights of every best epoch."""

    def __init__(self, run):
        self.run, self.scores, self.kept = run, [], None

    def score(self, net):
        from plures.training.evaluate import validation_map
        from plures.training.fit import logits_of

        x = self.run.data.val[:, None]
        batches = FeatureBatches(x, self.run.data.val_labels.values, Order(M, 64))
        fabric = make_fabric(self.run.experiment)
        found = validation_map(
            logits_of(net, batches, fabric), self.run.data.val_labels, self.run.val_observed, self.run.experiment
        )
        self.scores.append(dict(found))
        return {**found, "score": found["val_map"]}

    def keep_best(self, net):
        self.kept = [p.detach().clone() for p in net.head.parameters()]

    def keep_state(self, state, record):
        pass


def alone(run):
    """The same run by the ordinary loop."""
    e = run.experiment
    head = Linear(D, K)
    with torch.no_grad():
        head.classifier.weight.copy_(run.weight)
        head.classifier.bias.copy_(run.bias)
    x, y = run.data.train[:, None], run.labels.values
    phase = Phase(
        "frozen", 0, HeadOnFeatures(head, grid_boxes(1, 1)), head, FeatureBatches(x, y, run.order), run.labels,
        e.epochs, e.lr, FeatureBatches(x, y, Order(N, 64)),
    )  # fmt: skip
    keeper = Keeper(run)
    best = fit(phase, e, run.loss, make_fabric(e), keeper, Quiet())
    return keeper, best


def same(together, run, tolerance=1e-4):
    keeper, best = alone(run)
    assert not together.failed
    weight, bias = keeper.kept
    assert together.best.epoch == best.epoch
    torch.testing.assert_close(together.weight, weight, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(together.bias, bias, atol=tolerance, rtol=tolerance)
    for record, scores in zip(together.records, keeper.scores, strict=True):
        assert {k: record[k] for k in scores} == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_gives_what_the_ordinary_loop_gives(name, tmp_path):
    """Two rates, two seeds and two draws of the observed labels, in one group."""
    runs = [run_of(name, tmp_path, draw=seed + 1, lr=lr, seed=seed) for seed in (0, 3) for lr in (1e-2, 3e-3)]
    for run, together in zip(runs, train_together(runs), strict=True):
        same(together, run)
