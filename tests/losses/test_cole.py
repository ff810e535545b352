"""The losses of Cole et al. 2021 against the numbers of their code."""

import pytest
import torch

from loss_reference import Table, array, compare, entries, say
from plures.labels import TensorLabels
from plures.losses import Context, losses
from plures.models.outputs import Output

EPS = {"eps": 1e-5}


@pytest.mark.parametrize("entry", entries("bce", "an", "wan", "iu"), ids=say)
def test_plain(entry):
    compare(entry, entry["loss"], EPS)


@pytest.mark.parametrize("entry", entries("bce_ls", "an_ls"), ids=say)
def test_smoothed(entry):
    compare(entry, entry["loss"], EPS | {"smoothing": entry["params"]["ls_coef"]})


@pytest.mark.parametrize("entry", entries("pr"), ids=say)
def test_ranking(entry):
    compare(entry, "pr", {})


@pytest.mark.parametrize("entry", entries("epr"), ids=say)
def test_expected_positives(entry):
    compare(entry, "epr", EPS | {"expected_positives": entry["params"]["expected_num_pos"]})


@pytest.mark.parametrize("entry", entries("role"), ids=say)
def test_role_in_both_directions(entry):
    state = Table(array(entry["est_logits"]), learned=True)
    compare(entry, "role", EPS | {"expected_positives": entry["params"]["expected_num_pos"]}, state=state)


@pytest.mark.parametrize("entry", entries("iun"), ids=say)
def test_the_oracle_is_iu_told_the_true_negatives(entry):
    """L_IUN has no class of its own: keep the true negatives in the labels."""
    full, observed = array(entry["extra"]["true_labels"]), array(entry["labels"])
    told = torch.where(full == 0, 0, observed).to(torch.int8)

    x = array(entry["logits"]).requires_grad_()
    value = sum(losses.make("iu", eps=1e-5).compute(Output(x), TensorLabels(told), Context()).values())
    assert float(value.detach()) == pytest.approx(entry["value"], rel=1e-9)
