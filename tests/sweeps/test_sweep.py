"""Sweeps: run folders, going on after a kill, equality with single runs, the choice by validation, bad input."""

import csv
import functools
import json

import numpy as np
import pytest
import torch

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.errors import Diverged, PluresError, WorkFailed
from plures.labels import Labels
from plures.models.model import load
from plures.report.table import table_rows
from plures.runs.run import Run
from plures.scoring import features as features_module
from plures.scoring.features import frozen_features
from plures.sweeps import frozen as frozen_sweep
from plures.sweeps import sweep as sweep_module
from plures.sweeps.sweep import sweep
from plures.training.train import train


@functools.cache
def coloured(n=64):
    """Images whose classes are easy to see: a red, a green and a blue square, each there or not. No splits."""
    random = np.random.default_rng(0)
    present = random.random((n, 3)) < 0.5
    present[:, 0] |= ~present.any(1)
    images = random.integers(0, 60, (n, 24, 24, 3), dtype=np.uint8)
    for i, k in zip(*np.nonzero(present), strict=True):
        images[i, 2:10, 8 * k : 8 * k + 8, k] = 255
    return Dataset(images, Labels.from_masks(present), ("red", "green", "blue"), None, name="coloured")


FROZEN = {
    "backbone": {"name": "small_conv", "image_size": 24}, "head": "linear", "stages": "probe", "epochs": 3,
    "batch_size": 8, "supervision": "single_positive", "loss": "an", "device": "cpu", "workers": 0,
}  # fmt: skip
GRID = {"lr": ["1e-2", "1e-3"], "loss": ["an", "role"]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))


def times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/report.json")}


def test_runs_trained_together_are_those_of_train(tmp_path):
    """Seeds change backbone, split, order and first weights; each run is the one that `train` makes of its settings."""
    found = sweep(FROZEN, tmp_path / "s", GRID, seeds=2, dataset=coloured())
    folders = sorted((tmp_path / "s" / "runs").iterdir())
    assert len(folders) == 8
    for folder in folders[::3]:
        alone = train(Experiment.load(folder / "experiment.yaml"), tmp_path / "a" / folder.name, dataset=coloured())
        mine, theirs = (json.loads((f / "report.json").read_text()) for f in (folder, alone.path))
        assert mine["selected"]["epoch"] == theirs["selected"]["epoch"]
        assert mine["selected"]["score"] == pytest.approx(theirs["selected"]["score"], abs=1e-3)
        assert mine["map"] == pytest.approx(theirs["map"], abs=1e-5)
        environments = [json.loads((f / "environment.json").read_text()) for f in (folder, alone.path)]
        assert len({e["train_labels_sha256"] for e in environments}) == 1
    assert found.chosen is not None
    assert found.chosen.score == max(cell.score for cell in found.cells)


def test_tables_read_the_runs_and_the_chosen_one_predicts(tmp_path):
    found = sweep({**FROZEN, "split": "mlspl"}, tmp_path / "s", {"lr": ["1e-2", "1e-3"]}, seeds=2, dataset=coloured())
    rows = table_rows(sorted((tmp_path / "s" / "runs").iterdir()))
    assert sorted(row["n"] for row in rows) == ["2", "2"]
    written = list(csv.DictReader((tmp_path / "s" / "sweep.csv").open()))
    assert [row["lr"] for row in written] == ["1e-2", "1e-3"]
    assert [row["chosen"] for row in written].count("yes") == 1
    assert {row["test_map"] for row in written} == {row["measured"] for row in rows}
    model = load(found.chosen.folder)
    e = Experiment.load(found.chosen.folder / "experiment.yaml")
    alone = train(e, tmp_path / "alone", dataset=coloured())
    images = torch.from_numpy(coloured().images[:4]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(model(images).logits, load(alone.path)(images).logits, atol=1e-4, rtol=1e-4)


def test_finished_runs_are_never_trained_again_and_a_grid_can_grow(tmp_path, monkeypatch):
    whole = sweep(FROZEN, tmp_path / "whole", GRID, seeds=2, dataset=coloured())
    write, calls = frozen_sweep.SharedData.write, []

    def killed(self, *arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, *arguments)

    monkeypatch.setattr(frozen_sweep.SharedData, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(FROZEN, tmp_path / "cut", GRID, seeds=2, dataset=coloured())
    monkeypatch.undo()
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    before = times(tmp_path / "cut")
    assert len(before) == 3
    cut = sweep(FROZEN, tmp_path / "cut", GRID, seeds=2, dataset=coloured())
    after = times(tmp_path / "cut")
    assert len(after) == 8
    assert before.items() <= after.items()
    for a, b in zip(whole.cells, cut.cells, strict=True):
        assert a.settings == b.settings
        assert a.validation == pytest.approx(b.validation, abs=1e-3)
    grown = sweep(FROZEN, tmp_path / "cut", {**GRID, "lr": ["1e-2", "1e-3", "1e-1"]}, seeds=2, dataset=coloured())
    assert len(grown.cells) == 6
    assert after.items() <= times(tmp_path / "cut").items()


def test_features_go_on_where_a_kill_left_them(tmp_path, monkeypatch):
    model, seen = frozen_sweep.untrained(Experiment(**FROZEN), coloured().classes), []
    whole = frozen_features(model, coloured(), pooled=True, device=torch.device("cpu"))
    real = features_module.engines.feature_function

    def killed(*given):
        compute = real(*given)

        def of_images(images):
            seen.append(len(images))
            if len(seen) == 3:
                raise KeyboardInterrupt
            return compute(images)

        return of_images

    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(features_module, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(features_module.engines, "feature_function", killed)
    for _ in range(2):
        try:
            again = frozen_features(model, coloured(), pooled=True, device=torch.device("cpu"))
        except KeyboardInterrupt:
            continue
    assert sum(seen) - seen[2] == len(coloured())  # no image twice but those of the batch that was lost
    np.testing.assert_array_equal(again, whole)


def test_other_runs_go_one_after_another_and_go_on(tmp_path, monkeypatch):
    values = {**FROZEN, "head": "codebook", "epochs": 2}
    real, seen = sweep_module.train, []

    def once(experiment, out, **rest):
        if seen:
            raise KeyboardInterrupt
        seen.append(out)
        return real(experiment, out, **rest)

    monkeypatch.setattr(sweep_module, "train", once)
    with pytest.raises(KeyboardInterrupt):
        sweep(values, tmp_path / "s", {"lr": ["1e-2", "1e-3"]}, dataset=coloured())
    monkeypatch.setattr(sweep_module, "train", real)
    said = []
    found = sweep(values, tmp_path / "s", {"lr": ["1e-2", "1e-3"]}, dataset=coloured(), say=said.append)
    assert said[0] == "1 of 2 runs are finished already"
    assert [len(cell.validation) for cell in found.cells] == [1, 1]


def test_a_run_that_fails_is_written_down_and_not_chosen(tmp_path, monkeypatch):
    real = sweep_module.train

    def fails(experiment, out, **rest):
        run = real(experiment, out, **rest)
        if experiment.lr > 5e-3:
            (run.path / "report.json").unlink()
            raise Diverged("the loss became nan")
        return run

    monkeypatch.setattr(sweep_module, "train", fails)
    found = sweep({**FROZEN, "head": "codebook"}, tmp_path / "s", {"lr": ["1e-2", "1e-3"]}, dataset=coloured())
    assert [cell.failed for cell in found.cells] == [1, 0]
    assert found.chosen is found.cells[1]


@pytest.mark.parametrize("error", [WorkFailed("log.csv: cannot be written (the disk is full)"),
                                   RuntimeError("could not create a primitive")])  # fmt: skip
def test_what_the_machine_did_is_tried_again(tmp_path, monkeypatch, error):
    """One run of two meets a full disk: the sweep fails, and the same command does that run alone again. So it does
    where an earlier version wrote the disk's fault down as the run's own."""
    real, values, grid = sweep_module.train, {**FROZEN, "head": "codebook", "epochs": 1}, {"lr": ["1e-2", "1e-3"]}
    trained = []

    def full(experiment, out, **rest):
        trained.append(experiment.lr)
        run = real(experiment, out, **rest)
        if experiment.lr > 5e-3 and len(trained) < 3:
            (run.path / "report.json").unlink()
            raise error
        return run

    monkeypatch.setattr(sweep_module, "train", full)
    with pytest.raises(WorkFailed, match=r"1 of 2 runs could not .*(disk is full|out of memory)"):
        sweep(values, tmp_path / "s", grid, dataset=coloured())
    first = next((tmp_path / "s" / "runs").glob("lr=1e-2*"))
    assert not (first / "failed.json").exists()
    (first / "failed.json").write_text(json.dumps({"reason": "cannot be written (the disk is full)"}))
    found = sweep(values, tmp_path / "s", grid, dataset=coloured())
    assert trained == [1e-2, 1e-3, 1e-2]
    assert [cell.failed for cell in found.cells] == [0, 0]


def test_a_search_goes_on_to_the_same_end(tmp_path):
    grid = {"lr": ["1e-4..1e-1"], "batch_size": ["4..16"], "loss": ["an", "wan"]}
    short = sweep(FROZEN, tmp_path / "s", grid, search=4, dataset=coloured())
    rates = [dict(s.split("=") for s in cell.settings) for cell in short.cells]
    assert all(1e-4 <= float(r["lr"]) <= 1e-1 and 4 <= int(r["batch_size"]) <= 16 for r in rates)
    before = times(tmp_path / "s")
    again = sweep(FROZEN, tmp_path / "s", grid, search=4, dataset=coloured())
    assert times(tmp_path / "s") == before
    assert again.cells == short.cells


@pytest.mark.parametrize(
    ("grid", "more", "message"),
    [
        ({"lr": ["1e-5..1e-2"]}, {}, "lr is a range: say how many settings to try with --search N"),
        ({"lr": ["1e-2..1e-5"]}, {"search": 3}, "a range goes from low to high"),
        ({"lr": ["a..b"]}, {"search": 3}, "a range is two numbers"),
        ({"lr": ["1e-3", "1e-3"]}, {}, "names a value twice"),
        ({"lr": [""]}, {}, "has no value"),
        ({"seed": ["1", "2"]}, {}, "seeds are set with --seeds"),
        ({"lrr": ["1"]}, {}, "there is no setting 'lrr'; did you mean"),
        ({"loss": ["rol"]}, {}, "unknown loss 'rol'; did you mean 'role'"),
        ({"lr": ["-1"]}, {}, "lr=-1"),
        ({"lr": ["1"]}, {"seeds": 0}, "are 1 or more"),
        ({"loss": ["wn"]}, {}, "heads that do"),
    ],
)
def test_bad_input_is_one_line(tmp_path, grid, more, message):
    with pytest.raises(PluresError) as caught:
        sweep(FROZEN, tmp_path / "s", grid, dataset=coloured(), **more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_runs_of_other_settings_is_refused(tmp_path):
    sweep(FROZEN, tmp_path / "s", {"lr": ["1e-2"]}, dataset=coloured())
    with pytest.raises(PluresError, match="holds a run of other settings; choose another --out"):
        sweep({**FROZEN, "epochs": 2}, tmp_path / "s", {"lr": ["1e-2"]}, dataset=coloured())


def test_command_line(plures, tmp_path):
    settings = [f"{k}={v}" for k, v in FROZEN.items() if k != "backbone"]
    code, out, err = plures(
        "sweep", "scenes", "data.train=40", "data.val=20", "data.test=20", *settings, "--out", tmp_path / "s",
        "--grid", "lr=1e-2,1e-3", "--grid", "loss=an,gr",
    )  # fmt: skip
    assert code == 0, err
    assert out.count("loss=") >= 4
    assert "chosen by validation" in out
    code, out, err = plures("sweep", "scenes", "--out", tmp_path / "t", "--grid", "lr")
    assert (code, err.strip()) == (2, "plures: --grid lr: write key=A,B,C, for example lr=1e-3,1e-4")
    code, out, err = plures("sweep", "scenes", "--out", tmp_path / "t")
    assert code == 2
    assert "say what to vary" in err


def test_every_run_has_a_card_and_the_chosen_one_is_renewed(tmp_path):
    found = sweep(FROZEN, tmp_path / "s", {"lr": ["1e-2", "1e-3"]}, seeds=1, dataset=coloured())
    for folder in (tmp_path / "s" / "runs").iterdir():
        text = (folder / "model_card.md").read_text()
        report = json.loads((folder / "report.json").read_text())
        assert f"- mAP {100 * report['map']:.1f} percent" in text
        assert "squashed to 24 x 24 pixels" in text
        whole = folder == found.chosen.folder
        assert ("MB of weights" in text, "the head alone lies here" in text) == (whole, not whole)


def test_a_kill_before_the_report_leaves_a_card_and_the_run_is_done_again(tmp_path, monkeypatch):
    write_json = Run.write_json

    def killed(self, name, content):
        if name == "report.json":
            raise KeyboardInterrupt
        write_json(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(FROZEN, tmp_path / "s", {"lr": ["1e-2"]}, dataset=coloured())
    (folder,) = (tmp_path / "s" / "runs").iterdir()
    assert "percent (average precision" in (folder / "model_card.md").read_text()
    assert sweep(FROZEN, tmp_path / "s", {"lr": ["1e-2"]}, dataset=coloured()).chosen.folder == folder


@pytest.mark.parametrize("normalise", [False, True])
def test_standardised_heads_trained_together_are_those_of_train(tmp_path, normalise):
    head = {"name": "linear", "standardise": True, "normalise": normalise}
    settings = FROZEN | {
        "head": head, "optimizer": "adamw", "weight_decay": 10.0, "loss": "auto",
    }  # fmt: skip
    found = sweep(settings, tmp_path / "s", {"lr": ["1e-3"]}, seeds=1, dataset=coloured())
    assert (found.chosen.folder / frozen_sweep.HEAD).is_file()  # trained together
    alone = train(Experiment(**settings), tmp_path / "alone", dataset=coloured())
    cards = [(folder / "model_card.md").read_text().splitlines() for folder in (found.chosen.folder, alone.path)]
    mine, theirs = (next(line for line in card if line.startswith("Loss `")) for card in cards)
    assert mine == theirs
    assert "auto" not in mine
    images = torch.from_numpy(coloured().images[:4]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(
            load(found.chosen.folder)(images).logits, load(alone.path)(images).logits, atol=1e-4, rtol=1e-4
        )
