"""benchmarks/gpu.py on a CPU: every row is written, and a row that fails stops no other."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from plures.data.dataset import Dataset
from plures.data.loading import ImageBatches, Order
from plures.data.photos import Transform
from plures.labels import Labels

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def rows_of(folder, *arguments):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--out", folder, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)
    with (folder / "gpu.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
def test_every_row_is_written_and_a_failing_one_stops_no_other(tmp_path):
    rows = rows_of(tmp_path, "--backbones", "no_such_network,resnet18", "--budget-s", 1200)
    bad = [(row["job"], row["status"]) for row in rows if row["status"] != "ok"]
    assert [job for job, _ in bad] == ["features, no_such_network"]
    assert "timm has no model" in bad[0][1]
    assert "Traceback" in (tmp_path / "errors.txt").read_text(encoding="utf-8")
    jobs = {row["job"].split(",")[0] for row in rows if row["status"] == "ok"}
    assert jobs == {"patch model", "table 1", "end to end", "heads", "grid", "metrics", "features", "predict"}
    assert {row["job"].split(", ")[1] for row in rows if row["job"].startswith("table 1")} == {
        "bce", "an", "epr", "role", "wn"
    }  # fmt: skip
    trained = [row for row in rows if row["job"].startswith(("table 1", "end to end"))]
    assert len(trained) == 5 + 8 + 4
    assert all(0 < float(row["test_map_20"]) < 100 for row in trained)
    assert all(row["machine"] and row["date"] for row in rows)
    assert "plures bf16" in (tmp_path / "profile.txt").read_text(encoding="utf-8")


def test_what_does_not_fit_the_budget_is_skipped_and_said_and_the_next_run_continues(tmp_path):
    rows = rows_of(tmp_path, "--only", "metrics;grid", "--budget-s", 0)
    assert [row["status"].split(":")[0] for row in rows] == ["skipped", "skipped"]
    rows = rows_of(tmp_path, "--only", "metrics")
    assert [(row["job"], row["status"]) for row in rows] == [("metrics", "ok")]
    rows = rows_of(tmp_path, "--only", "metrics;grid", "--budget-s", 0)
    assert [(row["job"], row["status"].split(":")[0]) for row in rows] == [("metrics", "ok"), ("grid", "skipped")]


def test_batches_on_the_card_are_those_of_the_loader(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    data = Dataset(images, Labels(np.ones((9, 2), np.int8)), ("a", "b"))
    order = Order(9, 4, shuffle_seed=3)
    card = gpu.CardBatches(torch.from_numpy(images), torch.from_numpy(data.labels.values), order, True, 5)
    for epoch in range(2):
        for ours, theirs in zip(
            card.epoch(epoch), ImageBatches(data, Transform(16, "flip"), order, seed=5).epoch(epoch), strict=True
        ):
            assert torch.equal(ours.inputs, theirs.inputs)
            assert torch.equal(ours.index, theirs.index)


def test_a_pack_holds_the_photographs_with_labels_and_splits(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pack
    from PIL import Image

    for number, colour in enumerate(((200, 30, 30), (30, 30, 200), (30, 200, 30))):
        Image.new("RGB", (500, 400), colour).save(tmp_path / f"{number}.jpg")
    labels = Labels(np.array([[1, 0], [0, 1], [1, 1]], np.int8))
    paths = [str(tmp_path / f"{number}.jpg") for number in range(3)]
    data = Dataset(paths, labels, ("red", "blue"), np.array(["train", "train", "test"]))
    assert pack.pack(data, tmp_path) == (tmp_path / "photographs.npz").stat().st_size
    found = pack.unpacked(tmp_path, 32)
    assert found.classes == data.classes
    assert (found.labels.values == labels.values).all()
    assert list(found.splits) == ["train", "train", "test"]
    assert found.images.shape == (3, 32, 32, 3)
    assert np.abs(found.images[1].mean((0, 1)) - [30, 30, 200]).max() < 6
    assert len(set(found.contents)) == 3
