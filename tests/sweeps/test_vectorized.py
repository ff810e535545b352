"""Runs trained together against the same runs trained one by one, for every loss of the registry."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from plures.config import Experiment
from plures.data.loading import FeatureBatches, Order
from plures.labels import Labels, TensorLabels, mask_to_fraction, mask_to_single_positive
from plures.losses import Context, losses
from plures.losses.label_memory import LabelMemory
from plures.metrics.report import evaluate_scores
from plures.models.heads.linear import Linear
from plures.models.outputs import Output, grid_boxes
from plures.scoring.device import make_fabric
from plures.scoring.logits import HeadOnFeatures
from plures.sweeps.vectorized.losses import LossBlock
from plures.sweeps.vectorized.scores import Curves
from plures.sweeps.vectorized.training import FrozenData, HeadRun, _groups, train_together, why_not
from plures.training.loop import fit
from plures.training.progress import Quiet
from plures.training.stages import Stage
from plures.training.train import make_loss

N, M, D, K = 45, 30, 12, 5
FULL, HALF = {"bce", "bce_ls"}, {"iu"}
NAMES = [n for n in losses.names() if not set(losses[n].make.needs) - {"label_state"}]


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
    return mask_to_fraction(labels, 0.5, seed) if name in HALF else mask_to_single_positive(labels, seed)


def run_of(name, tmp_path=None, draw=1, options=None, **settings):
    """A run on `data()`, its first weights from its seed as `train` would make them."""
    shared, labels = data()
    loss = {"name": name, **(options or {})}
    if name in ("vlpl", "gpr"):
        np.save(tmp_path / "scores.npy", np.random.default_rng(5).random((N, K)))
        loss["scores"] = str(tmp_path / "scores.npy")
    usual = {"stages": "probe", "head": "linear", "optimizer": "adam", "epochs": 4, "batch_size": 8, "device": "cpu"}
    e = Experiment(**usual | settings, loss=loss)
    torch.manual_seed(e.seed)
    head = Linear(D, K)
    seen = observed(name, labels, draw)
    made = make_loss(e, seen, head)
    val_seen = observed(name, shared.val_labels, draw)
    return HeadRun(e, shared, seen, made, head.classifier.weight.detach().clone(),
                   head.classifier.bias.detach().clone(), "val_map", val_seen)  # fmt: skip


class Checkpointer:
    """Scores as `train` does and keeps the weights of every best epoch."""

    def __init__(self, run):
        self.run, self.scores, self.kept = run, [], None

    def score(self, net):
        from plures.scoring.logits import logits_of
        from plures.scoring.measure import validation_map

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
    stage = Stage(
        "probe", 0, HeadOnFeatures(head, grid_boxes(1, 1)), head, FeatureBatches(x, y, run.order), run.labels,
        e, FeatureBatches(x, y, Order(N, 64)),
    )  # fmt: skip
    checkpointer = Checkpointer(run)
    best = fit(stage, run.loss, make_fabric(e), checkpointer, Quiet())
    return checkpointer, best


def same(together, run, tolerance=1e-4):
    checkpointer, best = alone(run)
    assert not together.failed
    weight, bias = checkpointer.kept
    assert together.best.epoch == best.epoch
    torch.testing.assert_close(together.weight, weight, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(together.bias, bias, atol=tolerance, rtol=tolerance)
    for record, scores in zip(together.records, checkpointer.scores, strict=True):
        assert {k: record[k] for k in scores} == pytest.approx(scores, abs=0.1)  # rounding may swap two images


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_gives_what_the_ordinary_loop_gives(name, tmp_path):
    """Two rates, two seeds and two draws of the observed labels, in one group."""
    runs = [run_of(name, tmp_path, draw=seed + 1, lr=lr, seed=seed) for seed in (0, 3) for lr in (1e-2, 3e-3)]
    for run, together in zip(runs, train_together(runs), strict=True):
        same(together, run)


def test_these_runs_went_in_one_group(tmp_path):
    runs = [run_of("an", tmp_path, draw=seed + 1, lr=lr, seed=seed) for seed in (0, 3) for lr in (1e-2, 3e-3)]
    assert [len(places) for places in _groups(runs)] == [4]


def test_losses_batch_sizes_and_lengths_side_by_side(tmp_path):
    runs = [
        run_of("an"), run_of("epr", lr=1e-2), run_of("role", options={"dense_adam": True}), run_of("an", batch_size=16),
        run_of("wan", epochs=2), run_of("gr", seed=2), run_of("an", options={"reduction": "sum"}, lr=1e-2),
        run_of("epr", options={"reduction": "image"}), run_of("an", head_lr=3.0), run_of("role", weight_decay=0.05),
        run_of("wan", schedule={"name": "cosine"}), run_of("an", drop_last=True, average_precision="mlspl"),
        run_of("ll_ct", seed=5, epochs=4), run_of("an", weight_decay=0.1, lr=1e-2),
        run_of("em", weight_decay=5.0, optimizer="adamw"), run_of("epr", draw=2), run_of("wan", draw=3),
    ]  # fmt: skip
    finished = {}
    for run, together in zip(runs, train_together(runs, threads=2, kept=finished.__setitem__), strict=True):
        same(together, run)
    assert sorted(finished) == list(range(len(runs)))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_called_row_wise_is_a_mean_over_rows(name, tmp_path):
    """Its gradient for two batches at once is half that of each; one for which this fails is not `per_image`."""
    run = run_of(name, tmp_path, options={"selected_per_image": 1} if name == "csl" else None)
    if not run.loss.per_image:
        return
    random = torch.Generator().manual_seed(0)
    labels = torch.from_numpy(run.labels.values[:16])
    for epoch in (0, 3):
        x = 3 * torch.randn(16, K, generator=random)
        both, halves = x.clone().requires_grad_(), x.clone().requires_grad_()
        state = None
        if "label_state" in run.loss.needs:
            state = LabelMemory(run.loss.initial_state(run.labels, 0), learned=run.loss.learned)

        def loss(x, y, index, epoch=epoch, state=state):
            context = Context(epoch, 4, epoch / 4, index, state)
            return sum(run.loss.compute(Output(x), TensorLabels(y), context).values())

        index = torch.arange(16)
        loss(both, labels, index).backward()
        if state is not None:
            state = LabelMemory(run.loss.initial_state(run.labels, 0), learned=run.loss.learned)
        (
            loss(halves[:8], labels[:8], index[:8], state=state) + loss(halves[8:], labels[8:], index[8:], state=state)
        ).backward()
        torch.testing.assert_close(2 * both.grad, halves.grad)


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "image", "sum"])
@pytest.mark.parametrize("name", ["bce", "bce_ls", "iu", "an", "an_ls", "wan", "epr"])
def test_a_block_knows_the_gradient_of_its_loss_in_every_size(name, reduction, eps):
    """Adam hides a wrong scale, so the gradient itself is compared: of two runs, of a whole and of a last batch."""
    runs = [run_of(name, draw=draw, options={"reduction": reduction, "eps": eps}, lr=lr)
            for draw, lr in ((1, 0.5), (1, 0.25), (2, 0.125))]  # fmt: skip
    for some in (runs, runs[:2], runs[:1]):  # the first two see the same labels
        L = len(some)
        rates = torch.tensor([run.experiment.lr for run in some]).repeat_interleave(K).view(1, 1, L * K)
        block = LossBlock(list(range(L)), some, rates, torch.device("cpu"))
        index = torch.arange(13)[None]
        seen = [torch.from_numpy(run.labels.values[:13]) for run in some]
        labels = (seen[0][:, None].expand(-1, L, -1) if L < 3 else torch.stack(seen, 1))[None]
        logits = 4 * torch.randn(1, 13, L * K, generator=torch.Generator().manual_seed(0))
        for given, rows in zip(block.given(labels, 8), (slice(0, 8), slice(8, 13)), strict=True):
            slope = block.learn(logits[:, rows] / rates, given, index[:, rows], Context(), 1.0)
            for i, run in enumerate(some):
                x = logits[0, rows, i * K : (i + 1) * K].clone().requires_grad_()
                run.loss(x, seen[i][rows]).backward()
                torch.testing.assert_close(slope[0, :, i * K : (i + 1) * K], x.grad)


def test_a_loss_that_vmap_refuses_is_called_run_by_run(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise RuntimeError("vmap: data-dependent control flow")

    monkeypatch.setattr(torch, "vmap", lambda function: refuse)
    for name in ("epr", "role", "ll_cp"):
        run = run_of(name, tmp_path)
        same(train_together([run])[0], run)


def test_memory_mapped_features_give_the_same(tmp_path):
    run = run_of("an")
    np.save(tmp_path / "x.npy", run.data.train)
    mapped = replace(run, data=replace(run.data, train=np.load(tmp_path / "x.npy", mmap_mode="r")))
    a, b = train_together([run]) + train_together([mapped])
    assert torch.equal(a.weight, b.weight)


def test_a_run_that_diverges_does_not_stop_the_others():
    good, bad = run_of("an"), run_of("an", lr=3e-3)
    bad = replace(bad, weight=torch.full((K, D), torch.inf))
    found = train_together([good, bad])
    assert "nan in epoch 1; try a smaller lr than 0.003" in found[1].failed
    same(found[0], good)


@pytest.mark.parametrize("definition", ["plain", "mlspl", "voc", "voc07", "asl"])
def test_scores_of_many_runs_are_those_of_the_report(definition):
    """With ties, unknown cells, a class without positives and one of which nothing but positives is known."""
    random = np.random.default_rng(0)
    values = random.choice([1, 0, -1], (60, 6), p=[0.3, 0.5, 0.2]).astype(np.int8)
    values[:, 1] = np.minimum(values[:, 1], 0)
    values[:, 2] = np.where(values[:, 2] == 1, 1, -1)
    scores = random.normal(size=(3, 60, 6)).round(1).astype(np.float32)
    labels, names = Labels(values), tuple("abcdef")
    found = Curves(labels, definition).mean(np.ascontiguousarray(scores.transpose(2, 0, 1)))
    wanted = [evaluate_scores(one, labels, names, definition, bootstrap=0).map for one in scores]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stages": "finetune"}, "stages=finetune"), ({"head": "codebook"}, "head=codebook"), ({"ema": 0.9}, "ema"),
        ({"optimizer": "lamb"}, "optimizer=lamb"), ({"clip": 1.0}, "clip"), ({"precision": "64-true"}, "64-true"),
        ({"teacher": "RUN"}, "teacher"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_together_says_why(change, reason):
    e = Experiment(**{"stages": "probe", "head": "linear", "optimizer": "adam", **change})
    assert reason in why_not(e, ())
    able = Experiment(stages="probe", head="linear", optimizer="adam")
    assert why_not(able, {"label_state"}) == ""
    assert "embeddings" in why_not(able, {"embeddings"})
