"""Training from an Experiment to a run folder: what it writes, how it resumes, how it fails."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.errors import PluresError, WorkFailed
from plures.labels import Labels
from plures.losses import losses
from plures.runs.run import Run
from plures.training import loop as fit_module
from plures.training.progress import Quiet
from plures.training.train import train


def coloured(n=60, seed=0):
    """Images whose classes are easy to see: a red, a green and a blue square, each there or not."""
    random = np.random.default_rng(seed)
    present = random.random((n, 3)) < 0.5
    present[:, 0] |= ~present.any(1)
    images = random.integers(0, 60, (n, 24, 24, 3), dtype=np.uint8)
    for i, k in zip(*np.nonzero(present), strict=True):
        images[i, 2:10, 8 * k : 8 * k + 8, k] = 255
    splits = np.array(["train"] * (n // 2) + ["val"] * (n // 4) + ["test"] * (n - n // 2 - n // 4))
    return Dataset(images, Labels.from_masks(present), ("red", "green", "blue"), splits, name="coloured")


SMALL = {
    "backbone": {"name": "small_conv", "image_size": 24},
    "epochs": 3,
    "batch_size": 8,
    "lr": 3e-3,
    "device": "cpu",
    "workers": 0,
}


class StopAfter(Quiet):
    """A Callback that stops the run like Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch, step):
        self.at, self.done = (epoch, step), 0

    def epoch(self, record):
        self.done = record["epoch"] + 1

    def step(self, done, images):
        if (self.done, done) == self.at:
            raise KeyboardInterrupt


def weights(run):
    return load_file(run.path / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


VARIANTS = {
    "plain": {"loss": "an", "supervision": "single_positive"},
    "role, flip, ema": {"loss": "role", "supervision": "single_positive", "augment": "flip", "ema": 0.9},
    "lamb, onecycle, clip": {"loss": "bce", "optimizer": "lamb", "schedule": "onecycle", "clip": 1.0},
    "probe": {"loss": "wan", "stages": "probe", "supervision": "single_positive"},
    "probe, finetune": {"loss": "an", "stages": [{"name": "probe", "epochs": 2}, "finetune"]},
    "role, probe, finetune": {
        "loss": "role",
        "stages": [{"name": "probe", "epochs": 2}, "finetune"],
        "supervision": "single_positive",
    },
    "en_scl, crop": {"loss": "en_scl", "head": "linear", "augment": "crop", "supervision": "single_positive"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, name):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    data, experiment = coloured(), Experiment(**SMALL, **VARIANTS[name])
    whole = train(experiment, tmp_path / "whole", dataset=data)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path / "cut", dataset=data, callback=StopAfter(1, 2))
    cut = train(experiment, tmp_path / "cut", dataset=data, resume=True)
    assert same(weights(whole), weights(cut))
    end = [run.load_checkpoint()["net"] for run in (whole, cut)]
    assert same(*end)
    drop = ("seconds", "images_per_second")
    logs = [[{k: v for k, v in r.items() if k not in drop} for r in run.log] for run in (whole, cut)]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_weights(tmp_path):
    data = {"name": "scenes", "train": 96, "val": 32, "test": 32}
    experiment = Experiment(data=data, epochs=4, device="cpu", loss="role", supervision="single_positive")
    whole = train(experiment, tmp_path / "whole")
    command = [sys.executable, "-m", "plures.cli", "train", *experiment.to_settings(), "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "cut" / "log.jsonl", time.monotonic() + 300
    while (not log.exists() or len(log.read_text().splitlines()) < 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "report.json").exists()
    cut = train(experiment, tmp_path / "cut", resume=True)
    assert same(weights(whole), weights(cut))


def test_it_learns_and_the_folder_is_complete(tmp_path):
    run = train(
        Experiment(**{**SMALL, "epochs": 12}, loss="bce", supervision="full"), tmp_path / "run", dataset=coloured(160)
    )
    names = {p.name for p in run.path.iterdir()}
    wanted = {"experiment.yaml", "model.safetensors", "model.json", "checkpoint.pt", "log.jsonl", "log.csv"}
    assert wanted | {"report.json", "environment.json"} <= names
    assert not [n for n in names if n.endswith(".tmp")]
    assert run.log[-1]["val_map"] > 90
    assert [r["epoch"] for r in run.log] == list(range(12))
    assert run.log[-1]["loss"] < run.log[0]["loss"] / 2


def test_the_best_epoch_is_kept_not_the_last(tmp_path):
    run = train(Experiment(**SMALL, loss="an", supervision="single_positive"), tmp_path / "run", dataset=coloured())
    maps = [r["val_map"] for r in run.log]
    assert run.log[-1]["best_epoch"] == int(np.argmax(maps))


def test_one_seed_one_result(tmp_path):
    runs = [train(Experiment(**SMALL, seed=s), tmp_path / str(i), dataset=coloured()) for i, s in enumerate((3, 3, 4))]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


def test_frozen_leaves_the_backbone_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    run = train(Experiment(**SMALL, stages="probe", head="linear"), tmp_path / "run", dataset=coloured())
    first = train(
        Experiment(**{**SMALL, "epochs": 1, "lr": 1e-12}, stages="probe", head="linear"),
        tmp_path / "b",
        dataset=coloured(),
    )
    a, b = weights(run), weights(first)
    backbone = [k for k in a if k.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(a[k], b[k]) for k in backbone)
    assert not torch.equal(a["head.classifier.weight"], b["head.classifier.weight"])


# ------------------------------------------------------------------------------------------------------- what fails


def test_a_folder_with_a_run_is_refused(tmp_path):
    train(Experiment(**{**SMALL, "epochs": 1}), tmp_path / "run", dataset=coloured())
    with pytest.raises(PluresError, match="already holds a run"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=coloured())
    with pytest.raises(PluresError, match="no run here"):
        train(Experiment(**SMALL), tmp_path / "empty", dataset=coloured(), resume=True)


def test_two_processes_in_one_folder_are_refused(tmp_path):
    run = train(Experiment(**{**SMALL, "epochs": 1}), tmp_path / "run", dataset=coloured())
    with run.locked(), pytest.raises(PluresError, match="another process"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=coloured(), resume=True)


def test_nan_loss_is_one_line_and_the_last_good_epoch_stays(tmp_path, monkeypatch):
    good = fit_module.train_epoch

    def poisoned(epoch, stage, *rest):
        if epoch == 1:
            with torch.no_grad():
                next(stage.net.parameters()).fill_(float("nan"))
        return good(epoch, stage, *rest)

    monkeypatch.setattr(fit_module, "train_epoch", poisoned)
    with pytest.raises(WorkFailed, match="the loss became nan in epoch 2"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=coloured())
    run = Run(tmp_path / "run")
    assert [r["epoch"] for r in run.log] == [0]
    assert all(torch.isfinite(v).all() for v in weights(run).values())


def test_out_of_memory_is_one_line(tmp_path, monkeypatch):
    def too_much(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(fit_module.Step, "forward", too_much)
    with pytest.raises(WorkFailed, match="out of memory in epoch 1") as caught:
        train(Experiment(**SMALL), tmp_path / "run", dataset=coloured())
    assert "batch_size" in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full_at_the_second(state, path):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full_at_the_second)
    with pytest.raises(WorkFailed, match="the disk is full"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=coloured())
    monkeypatch.undo()
    assert Run(tmp_path / "run").load_checkpoint()["epoch"] == 0
    assert not list((tmp_path / "run").glob(".*.tmp"))
    whole = train(Experiment(**SMALL), tmp_path / "whole", dataset=coloured())
    assert same(weights(whole), weights(train(Experiment(**SMALL), tmp_path / "run", dataset=coloured(), resume=True)))


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    run = train(Experiment(**{**SMALL, "epochs": 1}), tmp_path / "run", dataset=coloured())
    path = run.path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PluresError, match="damaged"):
        run.load_checkpoint()


def test_a_loss_that_the_head_cannot_serve_names_the_heads_that_can(tmp_path):
    with pytest.raises(PluresError, match=r"needs embeddings.*heads that do: codebook"):
        train(Experiment(**SMALL, loss="wn", head="linear"), tmp_path / "run", dataset=coloured())


def test_nothing_known_is_refused(tmp_path):
    with pytest.raises(PluresError, match="nothing to learn from"):
        train(Experiment(**SMALL, supervision="none"), tmp_path / "run", dataset=coloured())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'"),
        ({"optimizer": {"name": "adam", "speed": 3}}, "optimizer 'adam' has no option 'speed'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"batch_size": 500, "drop_last": True}, "make no batch of 500"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, change, message):
    with pytest.raises(PluresError) as caught:
        train(Experiment(**{**SMALL, **change}), tmp_path / "run", dataset=coloured())
    assert message in str(caught.value)


def test_linear_init_carries_the_estimates_of_the_best_frozen_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    began = []
    build = fit_module._build

    def spy(stage, loss, fabric):
        machine = build(stage, loss, fabric)
        began.append(machine.memory.rows(torch.arange(machine.memory.shape[0])).detach().clone())
        return machine

    monkeypatch.setattr(fit_module, "_build", spy)
    settings = {"stages": [{"name": "probe", "epochs": 3, "lr": 2.0}, "finetune"], "epochs": 1}
    experiment = Experiment(**{**SMALL, **settings}, loss="role", supervision="single_positive")
    run = train(experiment, tmp_path / "run", dataset=coloured())
    kept = load_file(run.path / "label_state.safetensors")["table"]
    assert not torch.equal(kept, began[0])
    bound = float(np.log((1 - 1e-5) / 1e-5))
    assert kept.abs().max() > bound  # with so large a rate the cut matters
    torch.testing.assert_close(began[1], kept.clamp(-bound, bound))


SUPERVISION = {"bce": "full", "bce_ls": "full", "iu": {"name": "fraction", "fraction": 0.5}}


@pytest.mark.parametrize("name", losses.names())
def test_every_loss_trains(tmp_path, name):
    loss = {"name": name}
    if name in ("vlpl", "gpr"):  # pseudo-labels from a table of zero-shot scores, one row a training image
        np.save(tmp_path / "scores.npy", np.random.default_rng(0).random((12, 3)))
        loss["scores"] = str(tmp_path / "scores.npy")
    head = "linear" if "region_logits" in losses.make(name).needs else "codebook"
    values = {**SMALL, "epochs": 2, "head": head, "loss": loss}
    experiment = Experiment(**values, supervision=SUPERVISION.get(name, "single_positive"))
    run = train(experiment, tmp_path / "run", dataset=coloured(24))
    assert np.isfinite(run.log[-1]["loss"])


def test_tensorboard_is_written_or_asked_for(tmp_path):
    experiment = Experiment(**{**SMALL, "epochs": 2}, log="tensorboard")
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(PluresError, match=r"pip install \"plures\[track\]\""):
            train(experiment, tmp_path / "run", dataset=coloured(24))
    else:
        run = train(experiment, tmp_path / "run", dataset=coloured(24))
        assert list((run.path / "tensorboard").glob("events*"))


class Service:
    """Stands for wandb or mlflow: remembers what it is told, or fails."""

    def __init__(self, broken=False):
        self.told, self.ended, self.broken = [], 0, broken
        self.util = self
        self.generate_id = lambda: "abc"

    def init(self, **settings):
        if self.broken:
            raise OSError("no\nnetwork")
        self.settings = settings
        return self

    def log(self, numbers):
        self.told.append(numbers)

    def start_run(self, run_name):
        self.settings = {"name": run_name}

    def log_params(self, values):
        self.settings["config"] = values

    def log_metrics(self, numbers, step):
        self.told.append({**numbers, "epoch": step})

    def finish(self):
        self.ended += 1

    end_run = finish


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_numbers_go_to_a_tracker(tmp_path, monkeypatch, name, caplog):
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    run = train(Experiment(**{**SMALL, "epochs": 2}, log=name), tmp_path / "run", dataset=coloured(24))
    assert [told["epoch"] for told in service.told] == [r["epoch"] for r in run.log]
    assert service.told[0]["finetune/loss"] == run.log[0]["loss"]
    assert (service.settings["name"], service.ended) == ("run", 1)
    assert str(service.settings["config"]["epochs"]) == "2"
    monkeypatch.setitem(sys.modules, name, Service(broken=True))
    if name == "wandb":
        run = train(Experiment(**{**SMALL, "epochs": 2}, log=name), tmp_path / "other", dataset=coloured(24))
        assert len(run.log) == 2
        assert [r.getMessage() for r in caplog.records if "log=" in r.getMessage()] == [
            "log=wandb failed (no network); training continues without it"
        ]


def test_the_old_spelling_of_tensorboard_is_read(tmp_path):
    (tmp_path / "e.yaml").write_text("data: scenes\ntensorboard: true\n")
    assert Experiment.load(tmp_path / "e.yaml").log == "tensorboard"
    (tmp_path / "e.yaml").write_text("data: scenes\ntensorboard: false\n")
    assert Experiment.load(tmp_path / "e.yaml").log == "none"


def test_resuming_on_other_labels_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(Experiment(**SMALL), tmp_path / "run", dataset=coloured(), callback=StopAfter(1, 1))
    data = coloured()
    other = data.with_labels(Labels.from_masks(data.labels.present[:, ::-1]))
    with pytest.raises(PluresError, match=r"data have changed since this run began \(30 training images then, 30 now"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=other, resume=True)
    with pytest.raises(PluresError, match="coloured holds none of the 60 photographs"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=coloured(seed=1), resume=True)


def test_what_is_undefined_is_null_in_the_files(tmp_path):
    def strict(text):
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    data = coloured(40)
    data = data.with_labels(Labels(np.where(data.labels.present, 1, -1).astype(np.int8)))  # nothing known to be absent
    run = train(Experiment(**{**SMALL, "epochs": 2}, loss="an", select="last"), tmp_path / "run", dataset=data)
    assert strict((run.path / "report.json").read_text())["selected"] == {"by": "last", "epoch": 1, "score": None}
    assert [strict(line)["val_map"] for line in (run.path / "log.jsonl").read_text().splitlines()] == [None, None]


def test_the_closed_form_then_everything_fine_tuned(tmp_path, monkeypatch):
    """The second stage begins with the solved head, learns by the loss of the experiment, and resumes."""
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    stages = ["ridge", {"name": "finetune", "lr": 1e-12}]
    settings = {**SMALL, "loss": "role", "stages": stages, "supervision": "single_positive", "epochs": 2}
    run = train(Experiment(**settings, head="linear"), tmp_path / "run", dataset=coloured())
    solved = {**settings, "stages": "ridge", "loss": "least_squares"}
    ridge = train(Experiment(**solved, head="linear"), tmp_path / "ridge", dataset=coloured())
    assert [record["stage"] for record in run.log] == ["ridge"] * 7 + ["finetune"] * 2
    assert "regularizer" in run.log[-1] or len(run.log[-1]) > len(run.log[0])  # terms of ROLE
    assert [r["loss"] for r in run.log[:7]] == [r["loss"] for r in ridge.log]
    for name in ("head.classifier.weight", "head.classifier.bias"):
        torch.testing.assert_close(weights(run)[name], weights(ridge)[name], rtol=0, atol=1e-6)


def test_a_run_of_the_first_version_resumes(tmp_path):
    """Its log and checkpoint say phase, its experiment says mode."""
    run = train(Experiment(**SMALL, stages="finetune"), tmp_path / "run", dataset=coloured())
    end = weights(run)
    experiment = (run.path / "experiment.yaml").read_text().replace("stages:\n- finetune", "mode: end_to_end")
    assert "mode: end_to_end" in experiment
    (run.path / "experiment.yaml").write_text(experiment + "frozen_epochs: 25\nfrozen_lr: 0.001\n")
    log = (run.path / "log.jsonl").read_text().replace('"stage": "finetune"', '"phase": "end_to_end"')
    (run.path / "log.jsonl").write_text(log)
    state = torch.load(run.path / "checkpoint.pt", weights_only=True)
    torch.save({"phase": state.pop("stage"), **state}, run.path / "checkpoint.pt")
    (run.path / "report.json").unlink()
    again = train(Run(run.path).experiment, run.path, dataset=coloured(), resume=True)
    assert [record["stage"] for record in again.log] == ["finetune"] * SMALL["epochs"]
    assert same(weights(again), end)
    assert (run.path / "report.json").is_file()
