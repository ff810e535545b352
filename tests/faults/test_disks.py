"""Disks that are full or read-only, under every command that writes: one line, exit 1 or 2, and nothing is lost.

Each disk is a small tmpfs of its own, which only root may mount; elsewhere these tests are skipped.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plures.config import Experiment
from plures.errors import WorkFailed
from plures.training.train import train

SETTINGS = ("backbone=small_conv", "backbone.image_size=16", "epochs=1", "device=cpu", "workers=0", "loss=role")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """16 photos with a tag each, a run of them, and a list of suggestions."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    rows = []
    for i in range(16):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},{('train', 'train', 'val', 'test')[i // 4]}\n")
    (folder / "tags.csv").write_text("image,tags,split\n" + "".join(rows))
    (folder / "review.csv").write_text("image,tag,kind,score,rank,method,heatmap\n0.png,b,missing,0.9,1,model,\n")
    backbone = {"name": "small_conv", "image_size": 16}
    values = {"data": str(folder / "tags.csv"), "backbone": backbone, "loss": "role", "device": "cpu", "workers": 0}
    train(Experiment(**values, epochs=1), folder / "run")
    return folder


@pytest.fixture
def disk(world, tmp_path, monkeypatch):
    """A disk with a copy of the world on it, and the room for features."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a disk to fill it is for root alone")
    monkeypatch.setenv("PLURES_CACHE", str(place / "cache"))
    try:
        shutil.copytree(world, place, dirs_exist_ok=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave `room` bytes free, in whole pages."""
    stat = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (stat.f_bavail - -(-room // stat.f_frsize)) * stat.f_frsize)


def protect(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def files_of(disk: Path) -> dict[str, bytes]:
    """What is on the disk; empty files, such as locks, do not count."""
    found = {str(p.relative_to(disk)): p.read_bytes() for p in disk.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if content}


COMMANDS = {
    "train": ("train", "{world}/tags.csv", "--out", "{disk}/new", *SETTINGS),
    "train, frozen": ("train", "{world}/tags.csv", "--out", "{disk}/../new", *SETTINGS, "stages=probe", "loss=an"),
    "train, again": ("train", "--resume", "{disk}/run"),
    "predict": ("predict", "{world}/run", "{world}/0.png", "--out", "{disk}/found.csv"),
    "predict, Parquet": ("predict", "{world}/run", "{world}/0.png", "--out", "{disk}/found.parquet"),
    "predict into parts": ("predict", "{world}/run", "{world}/tags.csv", "--out", "{disk}/found", "--parts", "4"),
    "predict, maps": ("predict", "{world}/run", "{world}/0.png", "--out", "{world}/f.csv", "--heatmaps", "{disk}/maps",
                      "--threshold", "0.001"),
    "thresholds": ("thresholds", "{disk}/run"),
    "suggest": ("suggest", "{world}/run", "--out", "{disk}/new.csv"),
    "suggest, maps": ("suggest", "{world}/run", "--out", "{world}/new.csv", "--heatmaps", "{disk}/maps"),
    "report": ("report", "{disk}/run", "--resamples", "2"),
    "compare": ("compare", "{disk}/run", "{world}/run", "--out", "{disk}/page.html", "--resamples", "2"),
    "evaluate": ("evaluate", "{disk}/run", "--json", "{disk}/report.json"),
    "init": ("init", "{world}/tags.csv", "--out", "{disk}/new.csv"),
    "check": ("check", "{world}/tags.csv", "--out", "{disk}/look"),
    "merge": ("merge", "a={world}/tags.csv", "--out", "{disk}/new.csv"),
    "review": ("review", "{disk}/tags.csv", "{disk}/review.csv"),
    "export": ("export", "{world}/run", "--to", "torch", "--out", "{disk}/model.pt2"),
}  # fmt: skip
SLOW = ("check", "export", "report")


def refused(plures, world, disk, command):
    """Run a command that cannot write: checks that it says so in one line. Gives the line."""
    code, _, err = plures(*(word.format(world=world, disk=disk) for word in command))
    assert code in (1, 2), err
    assert err.startswith("plures: "), err
    assert err.count("\n") == 1, err
    assert "unexpected" not in err, err
    return err


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in COMMANDS])
def test_a_read_only_folder(plures, world, disk, name):
    before = files_of(disk)
    protect(disk)
    assert "ead-only" in refused(plures, world, disk, COMMANDS[name])
    assert files_of(disk) == before


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW))
                                  for n in COMMANDS if n != "review"])  # fmt: skip
def test_a_full_disk(plures, world, disk, name):
    fill(disk, 0)
    before = files_of(disk)
    line = refused(plures, world, disk, COMMANDS[name])
    assert "the disk is full" in line or "no space" in line or "No space" in line
    assert files_of(disk) == before


def test_a_disk_that_fills_up_at_any_moment_of_a_sweep(plures, world, disk):
    """Within the weights and within the checkpoint of the first run, and in the second: one line, no run is given up,
    and with room again the same command finishes all of them."""
    command = (
        "sweep",
        world / "tags.csv",
        "--out",
        disk / "s",
        *SETTINGS,
        "backbone.width=8",
        "--grid",
        "lr=1e-3,1e-4",
    )
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert plures(*command)[0] == 0
    run = next((disk / "s" / "runs").iterdir())
    weights, checkpoint = ((run / name).stat().st_size for name in ("model.safetensors", "checkpoint.pt"))
    places = []
    for room in (weights // 2, weights + checkpoint // 2, 2 * weights + checkpoint):
        shutil.rmtree(disk / "s")
        fill(disk, room)
        code, _, err = plures(*command)
        (disk / "filler").unlink()
        assert (code, err.count("\n")) == (1, 1), err
        assert "the disk is full" in err
        places.append(next(name for name in ("model.safetensors", "checkpoint.pt") if name in err))
        assert not [*disk.rglob("failed.json"), *disk.rglob("*.tmp")]
    assert set(places[:2]) == {"model.safetensors", "checkpoint.pt"}
    assert plures(*command)[0] == 0
    assert len(list(disk.glob("s/runs/*/report.json"))) == 2


def test_answers_on_a_full_disk_are_refused_until_there_is_room(disk):
    """First there is no room for the journal, then for the journal alone."""
    pytest.importorskip("fastapi", reason="reviewing needs the web packages")
    from plures.web.decisions import Decision, Decisions

    answer = Decision("first", "0.png", {"b": "yes"}, {"b": 0})
    before = (disk / "tags.csv").read_bytes()
    fill(disk, 0)
    kept = Decisions(disk / "tags.csv")
    try:
        with pytest.raises(WorkFailed, match="the decision could not be kept"):
            kept.keep([answer], "tab")
        assert kept.journal.path.read_bytes() == b""
        (disk / "filler").unlink()
        fill(disk, 4096)
        assert [outcome.status for outcome in kept.keep([answer], "tab")] == ["kept"]
        with pytest.raises(WorkFailed, match="the disk is full"):
            kept.flush()
        assert (disk / "tags.csv").read_bytes() == before
        assert not list(disk.glob(".*.tmp"))
    finally:
        (disk / "filler").unlink()
        kept.close()
    assert "0.png,a;b,train" in (disk / "tags.csv").read_text()
