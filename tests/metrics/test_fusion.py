"""How much head and prior count is found from observed positives alone."""

import numpy as np
import pytest

from plures.labels import Labels
from plures.metrics import fusion
from plures.metrics.average_precision import average_precision
from plures.metrics.fusion import LEAST, NOTHING, Seen, choose_fusion, prior_alone

N, K = 1500, 6
SAID = np.ones(K, np.bool_)


def world(seed, head, prior):
    """Truth [N, K], one observed positive per image, and scores that see it with these strengths [K]."""
    r = np.random.default_rng(seed)
    truth = r.random((N, K)) < 0.2
    truth[np.arange(N), r.integers(0, K, N)] = True
    observed = np.full((N, K), -1, np.int8)
    for row in range(N):
        observed[row, r.choice(np.flatnonzero(truth[row]))] = 1
    logits = truth * np.broadcast_to(head, K) + r.normal(size=(N, K))
    evidence = 5 * (truth * np.broadcast_to(prior, K) + r.normal(size=(N, K))) - 40  # on whatever scale
    return truth, Labels(observed), logits, evidence


def parts(head, prior, seed=0):
    _, observed, _, evidence = world(seed, head, prior)
    truth, val_observed, logits, val_evidence = world(seed + 100, head, prior)
    return truth, logits, val_evidence, Seen(evidence, observed), Seen(val_evidence, val_observed, logits)


def mean_ap(scores, truth):
    return float(np.nanmean(average_precision(scores, Labels.from_masks(truth))))


def fuse(found, logits, evidence):
    return found.head * logits + found.prior * evidence + found.offset


@pytest.mark.parametrize(("head", "prior"), [(1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 0.0), (0.5, 3.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_never_worse_than_the_better_of_the_two(head, prior, seed):
    _, _, _, train, val = parts(head, prior, seed)
    found = choose_fusion(train, val, SAID)
    truth, _, logits, evidence = world(seed + 200, head, prior)
    alone, without = mean_ap(evidence, truth), mean_ap(logits, truth)
    fused = mean_ap(fuse(found, logits, evidence), truth)
    assert fused > max(alone, without) - 0.005
    if prior and head / prior == 1:
        assert fused > max(alone, without) + 0.05
        assert found.weight == pytest.approx(1, abs=0.2)  # both know as much


def test_a_random_prior_counts_nothing():
    for seed in range(5):
        _, _, _, train, val = parts(1.0, 0.0, seed)
        found = choose_fusion(train, val, SAID)
        assert found.weight == 0 or not found.reliability.any()
        assert (found.prior == 0).all()
        assert (found.head == 1).all()
        assert (found.offset == 0).all()


def test_classes_of_which_it_knows_nothing_are_named():
    prior = np.array([2, 2, 0, 2, 2, 0.0])
    _, _, _, train, val = parts(1.0, prior)
    said = SAID.copy()
    said[4] = False
    train.evidence[:, 3] = -1
    found = choose_fusion(train, val, said)
    assert set(found.silent) == {2, 3, 4, 5}
    assert found.silent[2] == "observed images score no higher than others"
    assert found.silent[3] == found.silent[4] == "the prior says nothing of it"
    assert (found.prior[[2, 3, 4, 5]] == 0).all()
    assert (found.reliability[:2] > LEAST).all()
    assert np.isfinite(fuse(found, val.logits, val.evidence)).all()


def test_a_class_without_positives_is_taken_as_the_others():
    _, _, _, train, val = parts(1.0, 2.0)
    hidden = train.observed.values.copy()
    hidden[:, 0] = -1
    values = val.observed.values.copy()
    values[:, 0] = -1
    found = choose_fusion(Seen(train.evidence, Labels(hidden)), Seen(val.evidence, Labels(values), val.logits), SAID)
    assert 0 not in found.silent
    assert found.reliability[0] == pytest.approx(found.reliability[1:].mean(), abs=0.1)


def test_a_head_that_only_disturbs_is_left_out():
    truth, logits, evidence, train, val = parts(0.0, 2.0)
    against = Seen(val.evidence, val.observed, logits - 2 * truth)
    found = choose_fusion(train, against, SAID)
    assert np.isinf(found.weight)
    assert (found.head == 0).all()
    assert mean_ap(fuse(found, against.logits, evidence), truth) == pytest.approx(mean_ap(evidence, truth), abs=0.01)


def test_without_validation_images_the_usual_weight():
    _, _, _, train, _ = parts(1.0, 2.0)
    found = choose_fusion(train, None, SAID)
    assert found.weight == fusion.USUAL
    assert (found.prior > 0).all()


def test_more_images_than_are_looked_at(monkeypatch):
    _, _, _, train, val = parts(1.0, 2.0)
    whole = choose_fusion(train, val, SAID)
    monkeypatch.setattr(fusion, "ROWS", 500)
    assert choose_fusion(train, val, SAID).weight == pytest.approx(whole.weight, rel=0.3)


def test_the_prior_alone_lies_between_frequency_and_z_score():
    evidence = np.random.default_rng(0).normal([-3.0, 0.0, 3.0], 1.0, (4000, 3))
    found = prior_alone(evidence)
    logits = fuse(found, np.zeros_like(evidence), evidence)
    raw, z = evidence / evidence.std(), np.zeros(3)
    assert (found.head == 0).all()
    np.testing.assert_allclose(logits.mean(0), ((raw - raw.mean()).mean(0) + z) / 2, atol=0.05)
    evidence[:, 1] = 7
    constant = prior_alone(evidence)
    assert constant.silent == {1: "the prior says nothing of it"}
    assert (fuse(constant, np.zeros_like(evidence), evidence)[:, 1] == NOTHING).all()
