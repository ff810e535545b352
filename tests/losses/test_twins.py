"""Losses written once more, slowly and literally, where the fast form is not obvious; and what has no reference."""

import itertools
from math import log

import numpy as np
import pytest
import torch

from loss_reference import Table
from plures.errors import PluresError
from plures.labels import Labels, TensorLabels
from plures.losses import Context, losses
from plures.losses.expected_negative import least_likely
from plures.losses.large_loss import growing_count
from plures.losses.weak_negatives import negative_weights
from plures.models.outputs import Output

B, K, D = 4, 5, 3


def some(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, K, generator=generator, dtype=torch.float64) * 2
    values = torch.randint(-1, 2, (B, K), generator=generator).to(torch.int8)
    return x, TensorLabels(values), torch.randn(B, K, D, generator=generator, dtype=torch.float64)


def test_ranking_is_the_hinge_over_all_pairs():
    x, labels, _ = some()
    p, total = torch.sigmoid(x), 0.0
    for b, i, j in itertools.product(range(B), range(K), range(K)):
        if labels.present[b, i] and not labels.present[b, j]:
            total += max(0.0, 1 - float(p[b, i]) + float(p[b, j]))
    value = losses.make("pr").compute(Output(x), labels, Context())["ranking"]
    assert float(value) == pytest.approx(total / (B * K), rel=1e-12)


@pytest.mark.parametrize("theta", [0.0, 0.4])
def test_weak_negatives_class_by_class(theta):
    _, labels, e = some(1)
    weights = negative_weights(e, labels.present, theta)
    for b, i in itertools.product(range(B), range(K)):
        cosines = [
            float(e[b, i] @ e[b, k] / (e[b, i].norm() * e[b, k].norm())) for k in range(K) if labels.present[b, k]
        ]
        assert float(weights[b, i]) == pytest.approx(max([c for c in cosines if c > theta], default=0.0))


def test_weak_negatives_stop_the_gradient_unless_told():
    for stop in (True, False):
        x, labels, e = some(2)
        e.requires_grad_()
        terms = losses.make("wn", stop_gradient=stop).compute(
            Output(x.requires_grad_(), embeddings=e), labels, Context()
        )
        sum(terms.values()).backward()
        assert (e.grad is None) == stop


def test_weak_negatives_say_which_head_they_want():
    x, labels, _ = some()
    with pytest.raises(PluresError, match="requires per-label embeddings; use a head that gives them"):
        losses.make("wn").compute(Output(x), labels, Context())


@pytest.mark.parametrize("k", [0, 1, 3])
def test_expected_negatives_row_by_row(k):
    x, labels, _ = some(3)
    chosen = least_likely(x, labels, k)
    for b in range(B):
        unknown = [i for i in range(K) if labels.unknown[b, i]]
        wanted = max(K - k - int(labels.absent[b].sum()), 0)
        lowest = sorted(unknown, key=lambda i: float(x[b, i]))[:wanted]
        assert chosen[b].nonzero()[:, 0].tolist() == sorted(lowest)


def test_expected_negatives_remember():
    loss = losses.make("en", expected_positives=1.0, momentum=0.75)
    labels = Labels(np.full((3, 2), -1, np.int8))
    state = Table(loss.initial_state(labels, 0).double())
    context = Context(index=torch.tensor([2]), label_state=state)
    row = TensorLabels(torch.full((1, 2), -1, dtype=torch.int8))
    loss.compute(Output(torch.tensor([[0.0, log(3)]])), row, context)
    assert state.values[2].tolist() == pytest.approx([0.5, 0.75])
    loss.compute(Output(torch.tensor([[log(3), 0.0]])), row, context)
    assert state.values[2].tolist() == pytest.approx([0.5625, 0.6875])
    assert state.values[:2].isnan().all()


def test_count_of_large_losses_has_the_official_rounding():
    shape = torch.Size([4, 5])
    assert [growing_count(shape, 5.0, epoch) for epoch in range(6)] == [0, 2, 3, 4, 5, 6]  # 1 - .95 * 20 is above 1
    assert growing_count(shape, 50.0, 9) == 20


def test_nnpu_equals_the_full_risk_where_the_prior_is_right():
    """Labels observed at random: the risk from positives and unlabelled estimates that from all labels."""
    generator = torch.Generator().manual_seed(0)
    N, rate = 400_000, 0.25
    truth = torch.rand(N, 1, generator=generator, dtype=torch.float64) < 0.4
    x = truth * 1.5 + torch.randn(N, 1, generator=generator, dtype=torch.float64)
    seen = truth & (torch.rand(N, 1, generator=generator) < rate)
    labels = Labels(np.where(seen.numpy(), 1, -1).astype(np.int8))
    loss = losses.make("nnpu", prior=(0.4,)).prepare(labels)
    full = losses.make("bce").compute(Output(x), TensorLabels(truth.to(torch.int8)), Context())
    risk = loss.compute(Output(x), TensorLabels(torch.from_numpy(labels.values)), Context())
    assert float(sum(risk.values())) == pytest.approx(float(sum(full.values())), rel=0.01)


def test_nnpu_steps_back_where_the_risk_is_negative():
    labels = Labels(np.array([[1], [-1]], np.int8))
    loss = losses.make("nnpu", prior=(1.0,), gamma=0.5).prepare(labels)
    x = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    rest = float(torch.nn.functional.softplus(x).mean() - 2 * torch.nn.functional.softplus(x[0]) / 2)
    assert rest < 0
    value = loss.compute(Output(x), TensorLabels(torch.from_numpy(labels.values)), Context())["unlabelled"]
    assert float(value) == pytest.approx(-0.5 * rest)


def test_nnpu_prior_from_a_number_of_labels():
    single = np.full((10, 2), -1, np.int8)
    single[:8, 0] = 1
    single[8:, 1] = 1
    loss = losses.make("nnpu", expected_positives=1.2).prepare(Labels(single))
    assert loss.class_weights == pytest.approx((0.96 / 0.8, 0.24 / 0.2))
    assert losses.make("nnpu").prepare(Labels(single)).class_weights == pytest.approx((1, 1))
    with pytest.raises(PluresError, match="3 class priors for 2 classes"):
        losses.make("nnpu", prior=(0.1, 0.2, 0.3)).prepare(Labels(single))
    with pytest.raises(ValueError, match=r"criterion.bind\(train_targets\) first"):
        losses.make("nnpu").compute(
            Output(torch.zeros(1, 2)), TensorLabels(torch.ones(1, 2, dtype=torch.int8)), Context()
        )


def test_pu_mlc_class_by_class_with_constant_factors():
    """Value and gradient against the formula with the temperature and the balance held."""
    x, labels, _ = some(4)
    x.requires_grad_()
    loss = losses.make("pu_mlc", gamma=0.5, alpha=0.6, absent_weight=0.0)
    sum(loss.compute(Output(x), labels, Context()).values()).backward()
    y = x.detach().clone().requires_grad_()
    total = 0.0
    for k in range(K):
        column, mask = y[:, k], labels.present[:, k]
        q = torch.sigmoid(column / min(0.6 * float(column.detach().std(correction=0)), 1.0))
        total = total + float(q.detach().mean()) ** 0.5 * torch.log(q.mean())
        if mask.any():
            total = total - torch.log(q[mask]).mean()
    (total / K).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_asymmetric_power_near_its_end_has_a_finite_gradient():
    x = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = losses.make("asl", gamma_pos=0.5, gamma_neg=0.5, clip=0.0, detach_focal_weight=False)
    for labels in ([[1, -1]], [[-1, 1]]):
        sum(
            loss.compute(Output(x), TensorLabels(torch.tensor(labels, dtype=torch.int8)), Context()).values()
        ).backward()
    assert x.grad.isfinite().all()


def test_role_starts_as_the_paper_says():
    labels = Labels(np.array([[1, 0] + [-1] * 998], np.int8))
    state = losses.make("role").initial_state(labels, seed=3)
    assert torch.sigmoid(state[0, :2]).tolist() == pytest.approx([0.995, 0.005])
    free = torch.sigmoid(state[0, 2:])
    assert 0.4 <= float(free.min()) < 0.405
    assert 0.595 < float(free.max()) <= 0.6
    assert torch.equal(state, losses.make("role").initial_state(labels, seed=3))
    assert not torch.equal(state, losses.make("role").initial_state(labels, seed=4))


def test_a_loss_with_memory_says_what_it_misses():
    x, labels, _ = some()
    with pytest.raises(PluresError, match="loss 'role' keeps a memory of the training labels and has none yet"):
        losses.make("role", expected_positives=1.0).compute(Output(x), labels, Context())


def test_zero_shot_scores_become_pseudo_labels(tmp_path):
    labels = Labels(np.array([[1, -1, -1]], np.int8))
    with pytest.raises(PluresError, match="requires zero-shot scores: scores=FILE"):
        losses.make("vlpl").check(labels)
    file = tmp_path / "scores.npy"
    np.save(file, np.array([[0.1, 0.4, 0.05]]))
    loss = losses.make("vlpl", scores=str(file), absent_below=0.06)
    loss.check(labels)
    assert loss.initial_state(labels, 0)[0].tolist() == pytest.approx([float("nan"), 1, 0], nan_ok=True)
    with pytest.raises(PluresError, match=r"scores of shape \(1, 3\), the training labels are \(2, 3\)"):
        loss.check(Labels(np.zeros((2, 3), np.int8)))
    file.write_text("no array")
    with pytest.raises(PluresError, match=r"not a readable \.npy array"):
        loss.check(labels)


def test_class_prior_must_fit_the_classes():
    with pytest.raises(PluresError, match="class_prior has 2 numbers, the data 3 classes"):
        losses.make("csl", class_prior=(0.1, 0.2)).check(Labels(np.zeros((2, 3), np.int8)))
    with pytest.raises(PluresError, match="no label is known to be absent"):
        losses.make("csl", unknown="ignore").check(Labels(np.full((2, 3), -1, np.int8)))


def test_weak_negatives_count_a_known_absence_once_and_fully():
    x, _, e = some(5)
    labels = TensorLabels(torch.tensor([[1, 0, 0, -1, -1]] * B, dtype=torch.int8))
    terms = losses.make("wn", reduction="sum").compute(Output(x, embeddings=e), labels, Context())
    cost = torch.nn.functional.softplus(x)
    weights = negative_weights(e, labels.present, 0.0)
    torch.testing.assert_close(terms["absent"], cost[:, 1:3].sum())
    torch.testing.assert_close(terms["weak_negatives"], (weights * cost)[:, 3:].sum())
    assert float(weights[:, 1:3].sum()) > 0


def test_asymmetric_clip_leaves_easy_negatives_alone_without_focusing_too():
    loss = losses.make("asl", gamma_neg=0.0, clip=0.25)
    x = torch.tensor([[-log(3), -5.0, 0.0]], dtype=torch.float64)
    labels = TensorLabels(torch.full((1, 3), -1, dtype=torch.int8))
    assert float(loss.compute(Output(x), labels, Context())["assumed_absent"]) == pytest.approx(log(4 / 3) / 3)


def test_nnpu_prior_is_a_share():
    frequent = np.full((10, 2), -1, np.int8)
    frequent[:, 0], frequent[0, 1] = 1, 1
    assert losses.make("nnpu", expected_positives=2.2).prepare(Labels(frequent)).class_weights == pytest.approx((1, 2))


def test_gr_courses_run_over_the_epochs_after_the_linear_ones():
    loss = losses.make("gr", linear_epochs=2, slope=(0, 8), centre=(0, 8))
    seen = [loss.curves(Context(epoch, 10)) for epoch in (0, 1, 2, 3, 9)]
    assert [slope for slope, *_ in seen] == [0, 0, 0, 1, 7]
    assert [centre for _, _, centre, _ in seen] == [0, 0, 1, 2, 8]


def test_splc_never_switches_a_known_absence():
    x = torch.full((1, 2), 5.0)
    for value, corrected in ((-1, True), (0, False)):
        labels = TensorLabels(torch.full((1, 2), value, dtype=torch.int8))
        terms = losses.make("splc").compute(Output(x), labels, Context(epoch=1))
        assert (float(terms["corrected"]) > 0) == corrected
        assert (float(terms["assumed_absent"]) > 0) != corrected
