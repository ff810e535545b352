"""What a run keeps of its epochs, when it stops early, and which weights it refuses to spoil."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import plures
from plures.errors import PluresError
from plures.runs.data import prepare, selection
from plures.scoring.device import make_fabric
from plures.scoring.logits import logits_of_dataset
from plures.training.history import ScoreHistory, mean_logits
from plures.training.progress import Quiet

SCENES = {"name": "scenes", "train": 40, "val": 20, "test": 8, "size": 32}
SMALL = {"data": SCENES, "image_size": 32, "batch_size": 8, "device": "cpu", "workers": 0, "head": "linear"}


def experiment(**values):
    return plures.Experiment(**{**SMALL, "loss": "wan", "supervision": "single_positive", **values})


def scenes():
    return plures.read("scenes", **{option: value for option, value in SCENES.items() if option != "name"})


def test_the_history_of_one_epoch_is_the_models_scores(tmp_path):
    run = plures.train(experiment(epochs=1, history=True, select="last"), tmp_path / "run")
    kept = mean_logits(run.load_checkpoint()["history"])
    rows = prepare(run.experiment, scenes()).train
    expected = logits_of_dataset(plures.load(run.path), rows, run.experiment, make_fabric(run.experiment))
    assert kept.std() > 0
    assert np.allclose(kept, expected, atol=1e-5)


def test_the_mean_is_over_epochs():
    history = ScoreHistory(2, 2)
    history.add(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    history.add(np.array([[3.0, 2.0], [1.0, 0.0]], np.float32))
    assert mean_logits(history.state_dict()).tolist() == [[2, 2], [2, 2]]
    assert mean_logits(ScoreHistory(2, 2).state_dict()) is None
    assert mean_logits(None) is None


class StopAfter(Quiet):
    """Stops the run like Ctrl-C after two whole epochs; keeps what was said."""

    def __init__(self, epochs=99):
        self.left, self.said = epochs, []

    def step(self, done, images):
        if self.left == 0:
            raise KeyboardInterrupt

    def epoch(self, record):
        self.left -= 1

    def say(self, line):
        self.said.append(line)


def test_a_resumed_run_has_the_whole_history(tmp_path):
    whole = plures.train(experiment(epochs=3, history=True), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        plures.train(experiment(epochs=3, history=True), tmp_path / "cut", callbacks=[StopAfter(2)])
    cut = plures.train(experiment(), tmp_path / "cut", resume=True)
    a, b = (mean_logits(run.load_checkpoint()["history"]) for run in (whole, cut))
    assert np.array_equal(a, b)


def test_patience_ends_a_phase_after_so_many_epochs_that_were_no_better(tmp_path):
    callback = StopAfter()
    run = plures.train(experiment(epochs=30, patience=2, lr=0.0003), tmp_path / "run", callbacks=[callback])
    best = run.log[-1]["best_epoch"]
    assert len(run.log) == best + 3 < 30
    scores = [record["val_map"] for record in run.log]
    assert max(scores) == scores[best]
    assert callback.said[1:] == [f"finetune: no better score for 2 epochs; stopped after epoch {best + 3}"]
    again = plures.train(experiment(), tmp_path / "run", resume=True)
    assert again.log == run.log


def test_patience_without_a_score_to_wait_for_is_refused(tmp_path):
    with pytest.raises(PluresError, match="compares no epochs"):
        plures.train(experiment(patience=2, select="last"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    prepared = replace(prepare(experiment(), scenes()), val=None, val_observed=None)
    with pytest.raises(PluresError, match="no validation split"):
        selection(experiment(patience=2), prepared)


@pytest.fixture
def folded(tmp_path):
    """Weights whose batch norms have no statistics, as after folding them into the convolutions."""
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "folded.safetensors")
    return str(tmp_path / "folded.safetensors")


def test_weights_with_folded_batch_norms_train_only_with_these_frozen(tmp_path, folded, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    backbone = {"name": "timm", "model": "test_resnet", "weights": folded}
    with pytest.raises(PluresError, match=r"backbone\.frozen_norm=true"):
        plures.train(experiment(backbone=backbone, epochs=1, stages="finetune"), tmp_path / "run")
    plures.train(experiment(backbone=backbone, epochs=1, stages="probe"), tmp_path / "frozen")
    plures.train(experiment(backbone={**backbone, "frozen_norm": True}, epochs=1, stages="finetune"), tmp_path / "run")
    state = timm.create_model("test_resnet").state_dict()
    state["bn1.running_mean"] = torch.ones_like(state["bn1.running_mean"])
    save_file(state, folded)
    plures.train(experiment(backbone=backbone, epochs=1, stages="finetune"), tmp_path / "sound")
