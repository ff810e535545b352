"""Several processes train one model as one process does; a step in pieces is the step at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plures.config import Experiment
from plures.data.loading import Order, shares_of
from plures.runs.run import Run
from plures.training.train import train

DATA = {"name": "scenes", "train": 45, "val": 21, "test": 22}  # neither divides by 2 nor by the batch
NET = {
    "name": "timm",
    "model": "test_vit",
    "image_size": 32,
}  # no batch norm: without a GPU its statistics are a process's own
COMMON = {"data": DATA, "backbone": NET, "epochs": 2, "batch_size": 8, "device": "cpu", "workers": 0, "lr": 1e-3}


def weights(run):
    return load_file(Path(run) / "model.safetensors")


def far(a, b):
    """The largest difference of two models' weights."""
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


# ------------------------------------------------------------------------------------------------------- who has what


@pytest.mark.parametrize(("rows", "batch", "accumulate", "processes"), [(45, 8, 1, 2), (45, 8, 3, 2), (17, 16, 2, 3)])
def test_pieces_of_all_processes_are_the_batches(rows, batch, accumulate, processes):
    orders = [Order(rows, batch, 3, accumulate=accumulate, rank=r, processes=processes) for r in range(processes)]
    everyone = [list(order.pieces(1)) for order in orders]
    steps, step, share = [], [], 0.0
    for pieces in zip(*everyone, strict=True):
        total = pieces[0].total
        for piece, count in zip(pieces, shares_of(total, processes), strict=True):
            assert len(piece.rows) == max(count, 1)  # an empty share still loads a row, which is not counted
            step += piece.rows[:count].tolist()
        share += pieces[0].share
        assert len({(p.total, p.share, p.last) for p in pieces}) == 1
        if pieces[0].last:
            assert share == pytest.approx(1)
            steps, step, share = [*steps, step], [], 0.0
    assert steps == [b.tolist() for b in Order(rows, batch, 3).batches(1)]


# --------------------------------------------------------------------------------------------------------- accumulation


def test_a_step_in_pieces_is_the_step_at_once(tmp_path):
    settings = {**COMMON, "loss": "an", "supervision": "single_positive", "optimizer": "sgd"}
    whole = train(Experiment(**settings), tmp_path / "whole")
    pieces = train(Experiment(**settings, accumulate=3), tmp_path / "pieces")
    faster = train(Experiment(**{**settings, "lr": 2e-3}), tmp_path / "faster")
    near, other = (far(weights(whole.path), weights(run.path)) for run in (pieces, faster))
    assert near < 1e-5
    assert other > 20 * near


# ----------------------------------------------------------------------------------------------------- two processes

CASES = {
    "an": {"loss": "an"},
    "epr looks at the batch": {"loss": {"name": "epr", "expected_positives": 2.0}},
    "role learns its labels": {"loss": {"name": "role", "expected_positives": 2.0}},
    "ignore looks twice": {"loss": {"name": "ignore", "warmup_epochs": 0, "momentum": 0.5}, "head": "linear"},
    "frozen": {"loss": "an", "stages": "probe", "head": "linear"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(tmp_path, name, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    experiment = Experiment(**COMMON, supervision="single_positive", augment="none" if "frozen" in name else "flip",
                            **CASES[name])  # fmt: skip
    torch.set_num_threads(1)
    one = train(experiment, tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "plures.cli"]
    command += ["train", *experiment.to_settings(), "--out", str(tmp_path / "two")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run folder") == 1
    two = Run(tmp_path / "two")
    assert far(weights(one.path), weights(two.path)) < 2e-4
    logs = [[r["loss"] for r in run.log] for run in (one, two)]
    np.testing.assert_allclose(*logs, rtol=1e-4)
    reports = [json.loads((run.path / "report.json").read_text()) for run in (one, two)]
    assert reports[0]["images"] == reports[1]["images"] == 22
    assert reports[0]["map"] == pytest.approx(reports[1]["map"], abs=1e-3)
    assert one.log[-1]["val_map"] == pytest.approx(two.log[-1]["val_map"], abs=0.2)
