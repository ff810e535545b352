"""loss=auto: chosen from what the labels tell, said aloud, and the run equals one that names the loss."""

import numpy as np
import pytest

from plures.config import Component, Experiment
from plures.data.dataset import Dataset
from plures.errors import PluresError
from plures.labels import Labels
from plures.training.auto import choose_loss
from plures.training.progress import Quiet
from plures.training.train import train


@pytest.mark.parametrize(
    ("values", "head", "stages", "loss"),
    [
        ([[1, 0], [0, 1]], "linear", "probe", "bce"),
        ([[1, -1], [-1, 1]], "linear", "finetune", "wan"),
        ([[1, 0], [-1, 1]], "query2label", "finetune", "wan"),
        ([[1, -1], [-1, 1]], "codebook", "finetune", "gr"),
        ([[1, -1], [-1, 1]], "codebook", "probe", "wan"),
        ([[1, -1], [-1, 1]], "codebook", "probe,finetune", "wan"),
    ],
)
def test_the_choice(values, head, stages, loss):
    part, reason = choose_loss(Labels(np.array(values, np.int8)), Experiment(head=head, stages=stages))
    assert part == Component(name=loss)
    assert reason.startswith("every training label" if loss == "bce" else ("some", "nothing"))


class Heard(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_auto_is_the_loss_it_names(tmp_path):
    rng = np.random.default_rng(0)
    values = np.full((24, 3), -1, np.int8)
    values[np.arange(24), np.arange(24) % 3] = 1
    images = rng.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
    splits = np.array(["train"] * 16 + ["val"] * 8)
    dataset = Dataset(images, Labels(values), ("a", "b", "c"), splits)
    common = {"head": "linear", "epochs": 1, "batch_size": 8, "device": "cpu", "workers": 0}
    heard = Heard()
    chosen = train(Experiment(loss="auto", **common), tmp_path / "auto", dataset=dataset, callback=heard)
    named = train(Experiment(loss="wan", **common), tmp_path / "wan", dataset=dataset)
    assert any(line.startswith("loss=auto: wan, since nothing is known to be absent") for line in heard.lines)
    assert chosen.log[0]["loss"] == named.log[0]["loss"]


def test_the_head_learns_the_statistics_of_frozen_features(tmp_path):
    from plures.models.model import load
    from plures.scoring.features import frozen_features

    rng = np.random.default_rng(1)
    labels = Labels(np.eye(2, dtype=np.int8)[np.arange(24) % 2])
    splits = np.array(["train"] * 16 + ["val"] * 8)
    dataset = Dataset(rng.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8), labels, ("a", "b"), splits)
    experiment = Experiment(
        head={"name": "linear", "standardise": True}, stages="probe", epochs=1, device="cpu", workers=0
    )
    model = load(train(experiment, tmp_path / "run", dataset=dataset).path)
    x = frozen_features(model, dataset.take(splits == "train"), pooled=True, device="cpu", workers=0)[:, 0]
    assert model.head.feature_mean.numpy() == pytest.approx(x.mean(0), abs=1e-5)
    assert (1 / model.head.feature_scale.numpy())[x.std(0) > 1e-3] == pytest.approx(x.std(0)[x.std(0) > 1e-3], rel=1e-3)


def test_without_frozen_features_there_are_no_statistics(tmp_path):
    experiment = Experiment(head={"name": "linear", "standardise": True}, stages="finetune", epochs=1, device="cpu")
    with pytest.raises(PluresError, match="takes its statistics from frozen features"):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()
