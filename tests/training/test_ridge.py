"""stages=ridge: the minimum itself, for every kind of label; through training, resume, cross-fitting and errors."""

import json

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.loading import FeatureBatches, Order
from plures.errors import PluresError, WorkFailed
from plures.labels import Labels, mask_to_single_positive
from plures.losses import losses
from plures.models.heads.linear import Linear
from plures.training import ridge as exact
from plures.training.cross_fitting import out_of_fold
from plures.training.progress import Quiet
from plures.training.ridge import Rows, fit_ridge, solve
from plures.training.stages import Best, Stage
from plures.training.train import train

N, K, D = 60, 4, 7
SMALL = {
    "backbone": "small_conv", "head": {"name": "linear", "standardise": True, "normalise": True},
    "stages": {"name": "ridge", "l2": [0.1, 1.0, 10.0]},
    "image_size": 16, "device": "cpu", "workers": 0,
}  # fmt: skip


def some(kind, width=D):
    random = np.random.default_rng(0)
    truth = random.random((N, K)) < 0.4
    features = truth @ random.normal(size=(K, width)) + random.normal(size=(N, width)) + 2
    full = Labels.from_masks(truth)
    partial = np.where(random.random((N, K)) < {"few": 0.2, "many": 0.8}.get(kind, 1), full.values, -1)
    labels = {"single": mask_to_single_positive(full), "full": full}.get(kind, Labels(partial.astype(np.int8)))
    return features.astype(np.float32)[:, None], labels


@pytest.mark.parametrize("width", [D, 90])  # fewer features than labels of a class, and more
@pytest.mark.parametrize("negative_weight", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("kind", ["full", "single", "few", "many"])
def test_is_the_ridge_regression_of_scikit_learn(kind, negative_weight, width, monkeypatch):
    monkeypatch.setattr(exact, "ROWS_AT_ONCE", 17)
    features, labels = some(kind, width)
    loss = losses.make("least_squares", target=2.0, negative_weight=negative_weight)
    head = Linear(width, K)
    weights, biases, costs = solve(Rows(features, head, torch.device("cpu")), labels, loss, [0.01, 2.0])
    for place, l2 in enumerate((0.01, 2.0)):
        left = []
        for k in range(K):
            w = np.where(labels.unknown[:, k], negative_weight, 1.0)
            target = np.where(labels.present[:, k], 2.0, -2.0)
            ridge = Ridge(alpha=l2 * w.sum()).fit(features[:, 0].astype(float), target, w)
            np.testing.assert_allclose(weights[place, k], ridge.coef_, rtol=1e-4, atol=1e-5)
            assert float(biases[place, k]) == pytest.approx(ridge.intercept_, rel=1e-4, abs=1e-5)
            left.append(np.average((ridge.predict(features[:, 0].astype(float)) - target) ** 2, weights=w))
        assert float(costs[place]) == pytest.approx(np.mean(left), rel=1e-4, abs=1e-6)


def test_nothing_near_it_has_a_smaller_loss():
    """By the loss itself, which weighs by number of cells, so that l2 does: no weight decay in the comparison."""
    features, labels = some("full")
    loss, head = losses.make("least_squares"), Linear(D, K)
    weights, biases, costs = solve(Rows(features, head, torch.device("cpu")), labels, loss, [1e-9])
    x, values = torch.from_numpy(features[:, 0]), torch.from_numpy(labels.values)

    def value(weight, bias):
        from plures.labels import TensorLabels
        from plures.losses import Context
        from plures.models.outputs import Output

        return float(sum(loss.compute(Output(x @ weight.T + bias), TensorLabels(values), Context()).values()))

    least = value(weights[0], biases[0])
    assert least == pytest.approx(float(costs[0]), rel=1e-4)
    torch.manual_seed(0)
    assert all(
        value(weights[0] + 0.05 * torch.randn(K, D), biases[0] + 0.05 * torch.randn(K)) > least for _ in range(9)
    )


def test_a_class_nobody_has_and_a_class_nobody_knows():
    features, labels = some("full")
    values = labels.values.copy()
    values[:, 0], values[:, 1] = 0, -1
    for weight in (0.3, 0.0):
        loss = losses.make("least_squares", negative_weight=weight)
        weights, biases, costs = solve(Rows(features, Linear(D, K), torch.device("cpu")), Labels(values), loss, [1.0])
        assert weights.isfinite().all()
        assert costs.isfinite().all()
        assert float(biases[0, 0]) == pytest.approx(-3)
        assert float(biases[0, 1]) == pytest.approx(-3 if weight else 0)


def test_features_that_are_no_numbers_end_the_run():
    features, labels = some("full")
    features[3, 0, 2] = np.nan
    with pytest.raises(WorkFailed, match="not a number"):
        solve(Rows(features, Linear(D, K), torch.device("cpu")), labels, losses.make("least_squares"), [1.0])


def coloured(n=60, seed=0):
    """Images whose classes are colours."""
    random = np.random.default_rng(seed)
    truth = random.random((n, 3)) < 0.5
    images = random.integers(0, 60, (n, 16, 16, 3), dtype=np.uint8)
    images[:, 4:12, 4:12] += (truth[:, None, None] * 180).astype(np.uint8)
    splits = np.array(["train"] * (n // 2) + ["val"] * (n // 4) + ["test"] * (n - n // 2 - n // 4))
    return Dataset(images, Labels.from_masks(truth), ("red", "green", "blue"), splits)


class Stop:
    """A Callback that interrupts after an epoch."""

    def __init__(self, after):
        self.after = after

    def stage(self, *args):
        pass

    def step(self, *args):
        pass

    def say(self, line):
        pass

    def epoch(self, record):
        if record["epoch"] == self.after:
            raise KeyboardInterrupt


def test_trains_keeps_the_best_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    experiment = Experiment(**SMALL, supervision="single_positive")
    run = train(experiment, tmp_path / "run", dataset=coloured())
    assert [record["l2"] for record in run.log] == [0.1, 1.0, 10.0]
    report = json.loads((run.path / "report.json").read_text())
    assert report["map"] > 0.9
    assert "in closed form for 3 strengths of l2" in (run.path / "model_card.md").read_text()
    assert json.loads((run.path / "environment.json").read_text())["loss"] == "least_squares"
    best = report["selected"]["epoch"]
    key = json.loads((run.path / "report.json").read_text())["selected"]["by"]
    assert run.log[best][key] == max(record[key] for record in run.log)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "killed", dataset=coloured(), callback=Stop(0))
    again = train(experiment, tmp_path / "killed", dataset=coloured(), resume=True)
    assert [r["epoch"] for r in again.log] == [0, 1, 2]
    one, two = (load_file(r.path / "model.safetensors") for r in (run, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


class Judge:
    """A Checkpointer that gives these scores in turn, and notes what it was asked to keep."""

    def __init__(self, *scores):
        self.scores, self.kept = list(scores), []

    def score(self, net):
        self.now = net.classifier.weight.detach().clone()
        return {"score": self.scores.pop(0)}

    def keep_best(self, net):
        self.kept.append(self.now)

    def keep_state(self, state, record):
        pass


def test_keeps_the_strength_that_scores_best():
    features, labels = some("single")
    head = Linear(D, K)
    batches = FeatureBatches(features, labels.values, Order(N, 64))
    stage = Stage("ridge", 0, head, head, batches, labels, Experiment(**SMALL), batches)
    judge, loss = Judge(1.0, 3.0, 2.0), losses.make("least_squares")
    best = fit_ridge(stage, loss, Fabric(accelerator="cpu"), judge, Quiet())
    assert best == Best(3.0, 1)
    expected = solve(Rows(features, head, torch.device("cpu")), labels, loss, [0.1, 1.0])[0]
    assert torch.equal(torch.stack(judge.kept), expected)


def test_cross_fitting_solves_anew_on_standardised_features(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    data = coloured(80)
    run = train(Experiment(**SMALL), tmp_path / "run", dataset=data)
    rows = data.take(np.flatnonzero(data.splits == "train"))
    fitted = []
    fit_features = Linear.fit_features
    monkeypatch.setattr(Linear, "fit_features", lambda *given: (fitted.append(given[1]), fit_features(*given)))
    logits = out_of_fold(run, rows, folds=4)
    assert len(fitted) == 4
    assert len({tuple(mean.tolist()) for mean in fitted}) == 4  # of the rows that each head learns from
    order = [
        (logits[rows.labels.present[:, k], k].mean() - logits[rows.labels.absent[:, k], k].mean()) for k in range(3)
    ]
    assert min(order) > 2  # targets are 6 apart


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head": "codebook"}, "not head=codebook; use head=linear loss=least_squares, or stages=probe"),
        ({"loss": "wan"}, "not loss=wan"),
        ({"ema": 0.9, "history": True}, "not history=true, ema"),
        ({"stages": {"name": "ridge", "l2": []}}, "stages.ridge.l2 is a list of strengths above 0"),
        ({"stages": {"name": "ridge", "l2": [1, -1]}}, "l2 is a list"),
        ({"stages": {"name": "ridge", "lr": 1}}, "stage 'ridge' has no option 'lr'"),
    ],
)
def test_says_what_it_cannot_solve(change, words):
    with pytest.raises(PluresError, match=words):
        Experiment(**{**SMALL, **change})
