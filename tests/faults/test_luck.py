"""Bad luck: kills, full disks, files that vanish or change, clocks that jump, two runs in one folder, no memory."""

import errno
import io
import os
import re
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.table import Table

from faults.chaos import Campaign
from plures import files
from plures.analysis.evaluate import scored_split
from plures.cli.app import Screen
from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.read import read
from plures.errors import BadData, Diverged, PluresError, WorkFailed
from plures.files import clear_left, writing
from plures.labels import Labels
from plures.losses.label_memory import LabelMemory
from plures.models import batch_halving as memory
from plures.models.model import FORMAT, Model, build_model, load
from plures.prediction.predict import predict
from plures.runs.run import Run
from plures.scoring.features import frozen_features
from plures.training import loop as fit_module
from plures.training.progress import Quiet
from plures.training.train import train

SMALL = {"backbone": {"name": "small_conv", "image_size": 16}, "epochs": 2, "batch_size": 4, "loss": "bce",
         "device": "cpu", "workers": 0}  # fmt: skip


def photos(folder, n=16):
    """A Dataset of n small photos on the disk, with one of two tags each."""
    random = np.random.default_rng(0)
    paths = [str(folder / f"{i}.png") for i in range(n)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    cells = np.array([[i % 2, 1 - i % 2] for i in range(n)], np.int8)
    splits = np.array([("train", "train", "val", "test")[i % 4] for i in range(n)])
    return Dataset(paths, Labels(cells), ("a", "b"), splits, name="photos")


class AfterEpoch(Quiet):
    """Does something after the first epoch."""

    def __init__(self, deed):
        self.deed = deed

    def epoch(self, record):
        if record["epoch"] == 0:
            self.deed()


def test_a_killed_write_leaves_the_old_file_and_its_rest_is_cleared(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    child = os.fork()
    if not child:
        with writing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with writing(tmp_path / "b.txt") as temporary:
        temporary.write_text("still being written")
        clear_left(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_umask_counts_for_every_file_of_a_run(tmp_path):
    before = os.umask(0o027)
    try:
        run = train(Experiment(**SMALL), tmp_path / "run", dataset=photos(tmp_path))
    finally:
        os.umask(before)
    rights = {p.name: p.stat().st_mode & 0o777 for p in run.path.iterdir() if p.suffix}
    assert {"model.safetensors", "checkpoint.pt", "log.csv"} <= set(rights)
    assert set(rights.values()) == {0o640}


@pytest.mark.skipif(os.name == "nt", reason="links are for administrators there")
def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Somebody who could foresee the name puts a link there, which leads to a file of ours."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "00")
    (tmp_path / "mine").write_text("precious")
    with writing(tmp_path / "a.txt") as temporary:
        name = temporary
    name.symlink_to(tmp_path / "mine")
    with pytest.raises(WorkFailed, match="File exists"), writing(tmp_path / "a.txt") as temporary:
        temporary.write_text("overwritten")
    assert (tmp_path / "mine").read_text() == "precious"


def test_the_next_command_clears_what_a_killed_one_left_whatever_it_writes(tmp_path):
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    host = files._HOST
    for name in (f".maps.png.{host}.{gone}.0a1b.tmp", f".old.{host}.{gone}.tmp", f".live.{host}.{os.getpid()}.0a.tmp",
                 f".theirs.other.{gone}.0a1b.tmp"):  # fmt: skip
        (tmp_path / name).touch()
    with writing(tmp_path / "thresholds.json") as temporary:
        temporary.write_text("{}")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"thresholds.json", f".live.{host}.{os.getpid()}.0a.tmp", f".theirs.other.{gone}.0a1b.tmp"}


@pytest.mark.slow
def test_kills_before_and_after_renamings_change_nothing(tmp_path):
    campaign = Campaign(tmp_path, 3)
    for number, renaming in enumerate((0, 8, 11)):  # a round raises where anything is not as it would have been
        assert campaign.round("train", "kill", number, renaming) == "killed"
    assert campaign.round("review", "kill", 9) == "killed"


def test_no_room_for_features_or_a_label_state_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WorkFailed, match=r"no space for 0\.00 GB of features"):
        train(Experiment(**SMALL, stages="probe"), tmp_path / "run", dataset=photos(tmp_path))
    assert not list((tmp_path / "cache").rglob("*.part"))
    with pytest.raises(WorkFailed, match="no space for a label state"):
        LabelMemory(torch.zeros(4, 3), learned=True, in_memory_at_most=0, folder=tmp_path)


def test_damaged_features_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURES_CACHE", str(tmp_path / "cache"))
    data = photos(tmp_path)
    train(Experiment(**SMALL, stages="probe"), tmp_path / "run", dataset=data)
    for file in (tmp_path / "cache").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(WorkFailed, match="remove the file, and the features are computed anew"):
        train(Experiment(**SMALL, stages="probe"), tmp_path / "again", dataset=data)


@pytest.mark.parametrize("content", [None, b"", b"broken"])
def test_an_image_that_vanishes_or_breaks_during_training(tmp_path, content):
    data = photos(tmp_path)
    whole = train(Experiment(**SMALL), tmp_path / "whole", dataset=data)
    path, good = data.images[0], (tmp_path / "0.png").read_bytes()

    def spoil():
        os.unlink(path) if content is None else (tmp_path / "0.png").write_bytes(content)

    with pytest.raises(PluresError, match=r"0\.png: (no such file|not an image|image file is empty)"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=data, callback=AfterEpoch(spoil))
    (tmp_path / "0.png").write_bytes(good)
    run = train(Experiment(), tmp_path / "run", dataset=data, resume=True)
    assert (run.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


def test_clocks_that_jump_change_nothing(tmp_path, monkeypatch):
    data = photos(tmp_path)
    whole = train(Experiment(**SMALL), tmp_path / "whole", dataset=data)
    jumps = iter(np.random.default_rng(0).normal(0, 1e9, 10**6))
    for name in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: float(next(jumps)))
    jumped = train(Experiment(**SMALL), tmp_path / "jumped", dataset=data)
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)  # and one that stands still
    still = train(Experiment(**SMALL), tmp_path / "still", dataset=data)
    for run in (jumped, still):
        assert (run.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


def test_two_runs_into_one_folder_are_refused(tmp_path):
    data = photos(tmp_path)
    run = train(Experiment(**SMALL), tmp_path / "run", dataset=data)
    with pytest.raises(PluresError, match="already holds a run"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=data)
    with run.locked(), pytest.raises(PluresError, match="another process is training into this folder"):
        train(Experiment(), tmp_path / "run", dataset=data, resume=True)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_out_of_memory_is_one_line_and_what_was_kept_stays(tmp_path, monkeypatch, error):
    real, data = fit_module.Step.forward, photos(tmp_path)

    def forward(self, *arguments):
        if arguments[4] == 1:  # the second epoch
            raise error
        return real(self, *arguments)

    monkeypatch.setattr(fit_module.Step, "forward", forward)
    with pytest.raises(
        WorkFailed, match=r"out of memory in epoch 2 .* use accumulate=2 .* smaller batch_size or image_size"
    ):
        train(Experiment(**SMALL), tmp_path / "run", dataset=data)
    assert Run(tmp_path / "run").load_checkpoint()["epoch"] == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: not enough memory")])  # fmt: skip
def test_the_optimizer_may_run_out_of_memory(tmp_path, monkeypatch, error):
    def step(*arguments):
        raise error

    monkeypatch.setattr(fit_module, "_optimizer_step", step)
    with pytest.raises(WorkFailed, match="out of memory in epoch 1"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=photos(tmp_path))


class Small:
    """A memory in which at most `most` images fit; `seen`: sizes of the batches that did."""

    def __init__(self, monkeypatch, most, error):
        self.seen, real = [], Model.tokens

        def tokens(model, images):
            if len(images) > most:
                raise error
            self.seen.append(len(images))
            return real(model, images)

        monkeypatch.setattr(Model, "tokens", tokens)
        memory._say.cache_clear()


@pytest.fixture
def trained(tmp_path):
    """A run on 64 photos, the whole of them for validation or test."""
    data = photos(tmp_path, 64)
    return train(Experiment(**SMALL | {"epochs": 1}), tmp_path / "run", dataset=data), data


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_evaluation_goes_on_in_halves_where_memory_is_short(trained, monkeypatch, caplog):
    run, data = trained
    whole, _ = scored_split(run, data, "train", None, False)
    small = Small(monkeypatch, 10, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    halved, _ = scored_split(run, data, "train", None, False)
    np.testing.assert_allclose(halved, whole, atol=1e-5)
    assert small.seen == [8, 8, 8, 8]  # 32 do not fit, nor do 16
    said = [r.getMessage() for r in caplog.records if r.name == "plures" and "memory" in r.getMessage()]
    assert said == ["out of memory on a batch of 32 images; continuing in halves, slower but with the same scores"]


def test_predictions_go_on_in_halves_where_memory_is_short(trained, tmp_path, monkeypatch, caplog):
    run, _ = trained
    (tmp_path / "list.txt").write_text("".join(f"{i}.png\n" for i in range(23)))

    def predicted(name):
        predict(run, tmp_path / "list.txt", tmp_path / name, batch_size=9, heatmaps=tmp_path / f"{name} maps")
        rows = [line.split(",") for line in (tmp_path / name).read_text().splitlines()[1:]]
        pictures = sorted(p.name for p in (tmp_path / f"{name} maps").glob("*"))
        return [r[0] for r in rows], np.array([r[2:] for r in rows], float), pictures

    names, scores, pictures = predicted("whole.csv")
    small = Small(monkeypatch, 5, OUT)
    again, halved, painted = predicted("halved.csv")
    np.testing.assert_allclose(halved, scores, atol=1e-5)
    assert (again, painted) == (names, pictures)
    assert small.seen == [4, 4, 1, 4, 4, 1, 4, 1]
    assert [r.name for r in caplog.records].count("plures") == 1


@pytest.mark.parametrize("head", ["linear", "codebook"])  # the mean of the tokens, and all of them
def test_features_are_computed_in_halves_where_memory_is_short(tmp_path, monkeypatch, head):
    data = photos(tmp_path)
    model = build_model("small_conv", head, data.classes, {"image_size": 16})
    tables = []
    for most in (99, 3):
        monkeypatch.setenv("PLURES_CACHE", str(tmp_path / f"cache{most}"))
        small = Small(monkeypatch, most, OUT)
        tables.append(frozen_features(model, data, pooled=head == "linear", device=torch.device("cpu")))
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-2 if head == "codebook" else 1e-4, atol=1e-5)
    assert set(small.seen) == {1, 2}  # 1: what the folded network is checked on


def test_a_single_image_too_large_for_memory_is_one_line(trained, monkeypatch):
    run, data = trained
    Small(monkeypatch, 0, OUT)
    with pytest.raises(WorkFailed, match="out of memory on a single image; use a smaller image_size"):
        scored_split(run, data, "test", None, False)


def test_another_error_is_not_taken_for_a_lack_of_memory(trained, monkeypatch):
    run, data = trained
    small = Small(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        scored_split(run, data, "test", None, False)
    assert small.seen == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PluresError, match=r"file/run: cannot be made \(Not a directory\)"):
        train(Experiment(**SMALL), tmp_path / "file" / "run", dataset=photos(tmp_path))


def test_a_batch_too_small_for_batch_norm_is_one_line(tmp_path, monkeypatch):
    def forward(self, *arguments):  # what torch says of a batch of one on a 1 x 1 map
        torch.nn.functional.batch_norm(torch.zeros(1, 3, 1, 1), None, None, training=True)

    monkeypatch.setattr(fit_module.Step, "forward", forward)
    with pytest.raises(PluresError, match=r"a batch of one image in epoch 1 .* use drop_last=true"):
        train(Experiment(**SMALL), tmp_path / "run", dataset=photos(tmp_path))


# ------------------------------------------------------------------------------------------------ oddities, one line


def test_a_learning_rate_beyond_all_numbers_is_one_line(tmp_path):
    with pytest.raises(Diverged, match=r"lr is too large .* in epoch 1"):
        train(Experiment(**SMALL, lr=1e38), tmp_path / "run", dataset=photos(tmp_path))


def test_a_model_of_a_newer_version_is_refused(trained):
    run, _ = trained
    spec = run.path / "model.json"
    assert '"format": 2' in spec.read_text()  # nothing in it that earlier versions would misread
    spec.write_text(spec.read_text().replace('"format": 2', f'"format": {FORMAT + 1}'))
    with pytest.raises(PluresError, match=r"model\.json: written by plures .* upgrade"):
        load(run.path)
    spec.write_text(spec.read_text().replace(f'"format": {FORMAT + 1},', ""))  # as earlier versions wrote it
    load(run.path)


def test_nan_in_a_report_is_one_line(plures, trained):
    run, _ = trained
    report = run.path / "report.json"
    report.write_text(report.read_text().replace('"images"', '"other": NaN, "images"', 1))
    code, _, err = plures("table", run.path)
    assert (code, err.count("\n")) == (2, 1)
    assert "NaN is not a number in JSON" in err


def test_a_name_that_is_not_utf8_is_one_line(plures, trained, tmp_path):
    run, _ = trained
    (tmp_path / "odd").mkdir()
    try:
        shutil.copy(tmp_path / "0.png", os.fsencode(tmp_path / "odd") + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this disk takes UTF-8 alone")
    shutil.copy(tmp_path / "1.png", tmp_path / "odd")
    code, _, err = plures("predict", run.path, tmp_path / "odd", "--out", tmp_path / "found.csv")
    assert code == 2
    assert "is not UTF-8; rename the file" in err
    assert not (tmp_path / "found.csv").exists()
    code, _, err = plures("predict", run.path, tmp_path / "odd", "--out", tmp_path / "found.csv", "--skip-bad")
    assert code == 0
    assert "odd/1.png" in (tmp_path / "found.csv").read_text().splitlines()[-1]
    code, _, err = plures("init", tmp_path / "odd", "--out", tmp_path / "tags.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "caf\\udce9.png" in err
    code, _, err = plures("init", tmp_path / "odd", "--out", tmp_path / "tags.csv", "--skip-bad")
    assert code == 0
    assert "left out 1 unusable rows, the first: " in err
    assert [line.partition(",")[0] for line in (tmp_path / "tags.csv").read_text().splitlines()][1:] == ['"odd/1.png"']


def test_more_rows_than_bytes_are_refused(tmp_path):
    """A Parquet file of half a megabyte can spell 30 million equal rows, which take gigabytes to read."""
    rows = 1_500_000
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["a"])
    pq.write_table(pa.table({"image": words, "tags": words}), tmp_path / "tags.parquet", compression="zstd")
    with pytest.raises(BadData, match=r"1,500,000 rows in 0\.\d MB"):
        read(str(tmp_path / "tags.parquet"))


@pytest.mark.parametrize("width", [None, 20, 40, 80])
def test_tables_lose_no_letter(width):
    """Into a pipe (width None) and on terminals however narrow; nothing that turns text around reaches them."""
    table = Table("class", "a long header", "AP", "precision", title="Classes")
    table.add_row("dining-table", "1234567.89", "99.9", "100.0")
    table.add_row("a\u202eb", "-", "-", "-")
    shown = io.StringIO()
    options = {} if width is None else {"width": width, "force_terminal": True, "no_color": True}
    Screen(file=shown, highlight=False, **options).print(table)
    text = re.sub(r"\x1b\[\d*m", "", shown.getvalue())
    for word in ("Classes", "dining-table", "1234567.89", "99.9", "100.0", "precision", "header", "a\\u202eb"):
        assert word in text
    assert "…" not in text


def test_a_card_holds_no_html_of_strangers(tmp_path):
    """Nor what turns the direction of all the text that follows."""
    data = replace(photos(tmp_path), classes=("<img src=x onerror=alert(1)>", "a|b\u202e"))
    run = train(Experiment(**SMALL | {"epochs": 1}), tmp_path / "run", dataset=data)
    card = (run.path / "model_card.md").read_text()
    assert "<img" not in card
    assert "&lt;img" in card
    assert "| a\\|b\\u202e |" in card
    assert "\u202e" not in card
