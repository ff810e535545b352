"""The later losses against the numbers of their published code, epochs and label state included."""

import json

import numpy as np
import pytest
import torch

from loss_reference import FOLDER, Table, array, compare, entries, say
from plures.labels import Labels
from plures.losses import Context, losses

EPS = {"eps": 1e-5}


@pytest.mark.parametrize("entry", entries("asl", "q2l_asl"), ids=say)
def test_asymmetric(entry):
    options = dict(entry["params"])
    extra = {"factor": options.pop("scale")} if "scale" in options else {"reduction": "sum"}
    compare(entry, entry["loss"], options | extra)


@pytest.mark.parametrize("entry", entries("focal"), ids=say)
def test_focal(entry):
    given = entry["params"]
    options = {"gamma": given["gamma_pos"], "detach_focal_weight": given["detach_focal_weight"], "eps": given["eps"]}
    compare(entry, "focal", options | {"reduction": "sum"})


@pytest.mark.parametrize("entry", entries("csl"), ids=say)
def test_class_aware_selective(entry):
    given = dict(entry["params"])
    mode = {None: "negative", "ignore_normalize_classes": "ignore_normalised"}.get(given["mode"], given["mode"])
    options = {"unknown": mode, "clip": given["clip"], "reduction": "sum", "eps": 1e-8}
    for ours, theirs in (("pos", "pos"), ("neg", "neg"), ("unknown", "unann")):
        options |= {f"gamma_{ours}": given[f"gamma_{theirs}"], f"alpha_{ours}": given[f"alpha_{theirs}"]}
    if "likelihood_topk" in given:
        options["selected_per_image"] = given["likelihood_topk"]
    if "class_prior" in entry.get("extra", {}):
        options["class_prior"] = tuple(array(entry["extra"]["class_prior"]).tolist())
        options["prior_threshold"] = given["prior_threshold"]
    compare(entry, "csl", options)


@pytest.mark.parametrize("entry", entries("hill"), ids=say)
def test_hill(entry):
    given = dict(entry["params"])
    compare(entry, "hill", {"height": given.pop("lamb"), "reduction": "sum"} | given)


@pytest.mark.parametrize("entry", entries("splc"), ids=say)
def test_self_paced_correction(entry):
    given = dict(entry["params"])
    epoch = given.pop("epoch")
    compare(entry, "splc", {"threshold": given.pop("tau"), "reduction": "sum"} | given, epoch=epoch, epochs=9)


@pytest.mark.parametrize("entry", entries("em"), ids=say)
def test_entropy(entry):
    compare(entry, "em", EPS | entry["params"])


@pytest.mark.parametrize("entry", entries("em_apl"), ids=say)
def test_entropy_with_pseudo_labels(entry):
    compare(entry, "em_apl", EPS | entry["params"], state=Table(array(entry["extra"]["pseudo"])))


@pytest.mark.parametrize("entry", entries("vlpl_em_pl"), ids=say)
def test_vision_language_pseudo_labels(entry):
    given = dict(entry["params"])
    epoch = given.pop("epoch") - 1  # the official code counts from 1
    options = EPS | {"alpha": given["alpha"], "beta": given["beta_pos"], "warmup_epochs": given["warmup_epoch"]}
    pseudo = array(entry["extra"]["pseudo"]).double()
    pseudo[pseudo < 0] = torch.nan
    compare(entry, "vlpl", options, epoch=epoch, state=Table(pseudo))


@pytest.mark.parametrize("entry", entries("vlpl_em_pl_asl"), ids=say)
def test_vision_language_pseudo_labels_with_focus(entry):
    given = entry["params"]
    powers = {"gamma_present": given["positive"], "gamma_absent": given["negative"], "gamma_unknown": given["unknown"]}
    pseudo = array(entry["extra"]["pseudo"]).double()
    pseudo[pseudo < 0] = torch.nan
    options = EPS | powers | {"form": "asl", "warmup_epochs": given["warmup_epoch"]}
    compare(entry, "vlpl", options, epoch=given["epoch"] - 1, state=Table(pseudo))


@pytest.mark.parametrize("entry", entries("gr"), ids=say)
def test_generalised_robust(entry):
    given = entry["params"]
    (w0, w1, b0, b1), (mu0, sigma0, mu1, sigma1) = given["beta"], given["alpha"]
    options = {
        "slope": (w0, w1),
        "offset": (b0, b1),
        "centre": (mu0, mu1),
        "width": (sigma0, sigma1),
        "q_missing": given["q2"],
        "q_absent": given["q3"],
        "linear_epochs": given["linear_init"],
        "eps": 1e-7,
    }
    compare(entry, "gr", options, epoch=given["epoch"] - 1, epochs=given["num_epochs"])


@pytest.mark.parametrize("entry", entries("ll_r", "ll_ct"), ids=say)
def test_large_loss(entry):
    given = entry["params"]
    compare(entry, entry["loss"], {"delta_rel": given["delta_rel"] * 100}, epoch=given["epoch"] - 1)


@pytest.mark.parametrize("entry", entries("ll_cp"), ids=say)
def test_large_loss_kept(entry):
    given, labels = entry["params"], array(entry["labels"])
    before = (array(entry["extra"]["observed_now"]) == 1) & (labels != 1)
    state = Table(before.double())
    options = {"delta_rel": given["delta_rel"] * 100, "include_threshold": entry["source"].startswith("youngwk")}
    compare(entry, "ll_cp", options, epoch=given["epoch"] - 1, state=state)
    new = ((state.values > 0) & ~before).nonzero().tolist()
    assert new == sorted(entry["permanent_new_cells"])


@pytest.mark.parametrize(
    "case", json.loads((FOLDER / "apl.json").read_text())["entries"], ids=lambda case: case["name"]
)
def test_asymmetric_pseudo_labels_epoch_by_epoch(case):
    arrays = np.load(FOLDER / "apl.npz")
    warm, epochs = case["warmup_epoch"], case["num_epochs"]
    loss = losses.make("em_apl", warmup_epochs=warm, negative_proportion=case["neg_proportion"])
    labels = Labels(arrays[case["labels"]].astype(np.int8))
    state = Table(loss.initial_state(labels, 0).double())
    assert [e for e in range(epochs) if loss.needs_scores(Context(e, epochs))] == list(range(warm - 1, epochs - 1))
    for step in case["epochs"]:
        before = state.values.clone()
        context = Context(step["epoch"] - 1, epochs, label_state=state)
        loss.after_epoch(torch.from_numpy(arrays[step["logits"]]), labels, context)
        new = before.isnan() & ~state.values.isnan()
        picked = new.T.nonzero().flip(1)  # (row, class), sorted by class then row
        assert np.array_equal(picked.numpy(), arrays[step["picked"]])
        scores = state.values[picked[:, 0], picked[:, 1]].numpy()
        np.testing.assert_allclose(scores, arrays[step["picked_score"]], atol=1e-12)
        assert torch.equal(state.values[~before.isnan()], before[~before.isnan()])  # for good
