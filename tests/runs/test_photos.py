"""A run remembers its photographs: none that it was trained on is ever judged, whatever becomes of its data."""

import csv
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from plures.analysis.evaluate import evaluate, judged
from plures.analysis.localise import localise
from plures.analysis.missing import suggest
from plures.analysis.thresholds import choose_thresholds, held_out
from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.read import read
from plures.errors import PluresError
from plures.export.export import _own
from plures.labels import Labels
from plures.report.compare import compare
from plures.report.scored import score_run
from plures.runs.data import IN_MEMORY, with_splits
from plures.runs.own_data import own_data
from plures.runs.photos import PHOTOS, Photos, contents, contents_of, copies_across, drawn, label_numbers
from plures.runs.run import Run
from plures.sweeps.sweep import sweep
from plures.training import cross_fitting
from plures.training.train import train

N, TAGS = 72, ("cat", "dog", "tree")
SMALL = {"backbone": {"name": "small_conv", "image_size": 16, "width": 8}, "head": "linear", "loss": "wan"}
SMALL |= {"epochs": 1, "device": "cpu", "workers": 0}


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def labels_of(count):
    generator = np.random.default_rng(5)
    values = (generator.random((count, len(TAGS))) < 0.4).astype(np.int8)
    values[np.arange(count), np.arange(count) % len(TAGS)] = 1
    return values


def write_photos(folder, count=N, first=0):
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.fromarray(picture(first + n)).save(folder / f"photos/{n:03}.png")
    return folder


def write_table(file, rows, head=("image", *TAGS)):
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([head, *rows])
    return file


def rows_of(count=N):
    return [[f"photos/{n:03}.png", *map(int, row)] for n, row in enumerate(labels_of(count))]


def names(dataset):
    return [Path(str(image)).name for image in dataset.images]


def split_of(run):
    """The split of each photograph by name, as the run began with it."""
    known = Photos.load(Run(run).path)
    return {Path(name).name: str(split) for name, split in zip(known.names.to_pylist(), known.splits, strict=True)}


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    """A folder with 72 photographs, their table and a run that was trained on it."""
    folder = write_photos(tmp_path_factory.mktemp("began"))
    table = write_table(folder / "tags.csv", rows_of())
    train(Experiment(data=str(table), **SMALL), folder / "run")
    return folder


@pytest.fixture
def world(began, tmp_path, monkeypatch):
    """A copy of it, in the current folder, which a test may spoil; the run was trained here."""
    shutil.copytree(began, tmp_path / "w")
    for file in ("environment.json", "experiment.yaml"):
        path = tmp_path / "w/run" / file
        path.write_text(path.read_text().replace(str(began), str(tmp_path / "w")))
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def trained_among(run, dataset):
    """How many of these photographs the run was trained on."""
    return int(np.isin(contents(dataset), Photos.load(Path(run)).trained).sum())


# ------------------------------------------------------------------------------------------------ the data have changed


def tagged(rows):
    return [[image, 1, 1, 1] if n in (3, 30, 60) else [image, *tags] for n, (image, *tags) in enumerate(rows)]


EDITS = {
    "nothing": (lambda rows: rows, ""),
    "a tag added in three rows": (tagged, "labelled otherwise"),
    "a row deleted": (lambda rows: rows[:9] + rows[10:], "1 photograph is gone"),
    "rows reversed": (lambda rows: rows[::-1], ""),
}


@pytest.mark.parametrize("name", EDITS)
def test_no_photograph_changes_its_split_when_the_table_is_edited(world, name, caplog):
    edit, said = EDITS[name]
    before = split_of("run")
    write_table(world / "tags.csv", edit(rows_of()))
    anew = with_splits(read("tags.csv"), Run("run").experiment).split("test")
    assert (trained_among("run", anew) > 0) == (name != "nothing")  # what dividing again would do
    with caplog.at_level(logging.INFO, "plures"):
        data = own_data(Run("run"), {}, False)
    assert trained_among("run", data.split("test")) == trained_among("run", data.split("val")) == 0
    now = dict(zip(names(data), data.splits.tolist(), strict=True))
    assert now == {image: split for image, split in before.items() if image in now}
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_new_photographs_are_divided_and_old_ones_stay(world, caplog):
    before = split_of("run")
    write_photos(world, 200)
    for count in (150, 200):
        write_table(world / "tags.csv", rows_of(N) + rows_of(count)[N:])
        data = own_data(Run("run"), {}, False)
        now = dict(zip(names(data), data.splits.tolist(), strict=True))
        assert {image: now[image] for image in before} == before
        if count == 150:
            first = now
            assert "78 photographs are new" in caplog.text
    assert {image: now[image] for image in first} == first
    new = [now[image] for image in now if image not in before]
    assert {"train", "val", "test"} == set(new)
    assert names(data)[:N] == list(before)  # in the order of the run, new ones last


def test_lots_have_the_shares_that_were_asked_for():
    splits = [drawn(np.bytes_(f"{n:016}"), 3, 0.2, 0.25) for n in range(4000)]
    shares = {name: splits.count(name) / 4000 for name in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.6, "val": 0.2, "test": 0.2}, abs=0.03)


def test_what_became_of_photographs_is_said_in_one_line(world, caplog):
    before = split_of("run")
    os.rename("photos/010.png", "photos/renamed.png")
    Image.fromarray(picture(999)).save("photos/020.png")  # other content
    shutil.copy("photos/030.png", "photos/copy.png")
    rows = [[image.replace("010", "renamed"), *tags] for image, *tags in rows_of()]
    write_table(world / "tags.csv", [*rows, ["photos/copy.png", 1, 0, 0]])
    data = own_data(Run("run"), {}, False)
    now = dict(zip(names(data), data.splits.tolist(), strict=True))
    assert now["renamed.png"] == before["010.png"]
    assert now["020.png"] == before["020.png"]
    assert now["copy.png"] == ""
    (line,) = caplog.messages
    assert line == (
        "tags: since run was trained, 1 photograph is new with the content of another, and not judged;"
        " 1 photograph is of other content (020.png)"
    )


def test_the_split_of_the_run_counts_before_a_column_that_comes_later(world, caplog):
    before = split_of("run")
    rows = [[*row, "val" if n < 30 else "train"] for n, row in enumerate(rows_of())]
    write_table(world / "tags.csv", rows, ("image", *TAGS, "split"))
    data = own_data(Run("run"), {}, False)
    assert dict(zip(names(data), data.splits.tolist(), strict=True)) == before
    contradicted = sum(split != ("val" if n < 30 else "train") for n, split in enumerate(before.values()))
    assert f"{contradicted} photographs are in another split by the data's own column" in caplog.text


def test_a_resumed_run_goes_on_as_it_began_with_rows_moved_and_added(world, monkeypatch):
    experiment = Experiment(data="tags.csv", **{**SMALL, "epochs": 2})
    whole = train(experiment, "whole")

    class Stop(Exception):
        pass

    class Once:
        def __getattr__(self, name):
            return lambda *given: None

        def epoch(self, record):
            raise Stop

    with pytest.raises(Stop):
        train(experiment, "cut", callback=Once())
    write_photos(world, 80)
    write_table(world / "tags.csv", rows_of(N)[::-1] + rows_of(80)[N:])
    cut = train(experiment, "cut", resume=True)
    one, other = (load_file(run.path / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


# --------------------------------------------------------------------------------------------------------- other data


def test_photographs_of_the_training_are_left_out_of_other_data(plures, world):
    trained = sum(split == "train" for split in split_of("run").values())
    assert (trained, N - trained) == (42, 30)
    line = "left out 42 of 72 photographs: run was trained on them"
    code, out, err = plures("evaluate", "run", "tags.csv")
    assert (code, err.splitlines()) == (0, [line, "next: plures report run"])
    assert "tags: 30 photographs (no splits)" in out
    code, out, err = plures("thresholds", "run", "tags.csv", "--from", "clean", "data.complete=true")
    assert (code, err.splitlines()[0]) == (0, line)
    rows, _ = held_out(Run("run"), "tags.csv", "val", {}, False)
    assert (len(rows), trained_among("run", rows)) == (30, 0)
    assert evaluate("run", "tags.csv").images == 30
    assert evaluate("run", read("tags.csv")).images == 30


def test_data_of_training_photographs_alone_are_refused(plures, world):
    split = split_of("run")
    write_table(world / "only.csv", [row for row in rows_of() if split[row[0][7:]] == "train"])
    for command in ("evaluate", "thresholds"):
        code, _, err = plures(command, "run", "only.csv")
        assert (code, "run was trained on all 42 photographs" in err) == (2, True)


def test_the_own_training_split_is_judged_and_called_that(plures, world):
    code, out, err = plures("evaluate", "run", "--split", "train")
    assert code == 0
    assert "42 photographs of split 'train': run was trained on these" in err
    code, out, err = plures("evaluate", "run", "--split", "val")
    assert (code, err) == (0, "next: plures report run\n")
    assert "of split 'val', on which the epoch and by default" in out
    code, _, err = plures("thresholds", "run", "--split", "train")
    assert (code, "do not hold for others" in err) == (2, True)


def test_one_rule_for_the_split_in_every_verb(world):
    """Test where there is one, else val; a split that is named is there or is refused."""
    assert judged(Run("run"), None, None, {}, False).split == "test"
    assert score_run("run", resamples=2).split == "test"
    rows = [[*row, "val" if n < 30 else "train"] for n, row in enumerate(rows_of())]
    write_table(world / "review.csv", rows, ("image", *TAGS, "split"))
    train(Experiment(data="review.csv", **SMALL), "second")
    assert evaluate("second").images == score_run("second", resamples=2).report.images == 30
    assert score_run("second", resamples=2).split == "val"
    for verb in (evaluate, score_run):
        with pytest.raises(PluresError, match="no split 'test'"):
            verb("second", split="test")


def test_compared_runs_are_judged_on_what_neither_was_trained_on(world, caplog):
    rows = [[*row, "val" if n < 30 else "train"] for n, row in enumerate(rows_of())]
    write_table(world / "tags.csv", rows, ("image", *TAGS, "split"))
    train(Experiment(data="tags.csv", **SMALL), "second")
    found = compare(["run", "second"], resamples=2)
    before = split_of("run")
    fair = {image for n, image in enumerate(before) if n < 30 and before[image] != "train"}
    first, second = (scored.dataset for scored in found.runs)
    assert set(names(first)) == fair
    assert names(first) == names(second)
    assert trained_among("run", first) == trained_among("second", first) == 0
    assert f"compared on {len(fair)} photographs" in caplog.text


def test_runs_with_nothing_in_common_are_not_compared(world):
    split = split_of("run")
    rows = [[*row, "train" if split[row[0][7:]] != "train" else "val"] for row in rows_of()]
    write_table(world / "turned.csv", rows, ("image", *TAGS, "split"))
    train(Experiment(data="turned.csv", **SMALL), "second")
    with pytest.raises(PluresError, match="nothing can be compared"):
        compare(["run", "second"], resamples=2)


def test_runs_judged_by_other_labels_are_not_compared(world):
    image = next(image for image, split in split_of("run").items() if split == "test")
    other = [[row[0], 1, 1, 1] if row[0].endswith(image) else row for row in rows_of()]
    rows = [[*row, split_of("run")[row[0][7:]]] for row in other]
    write_table(world / "other.csv", rows, ("image", *TAGS, "split"))
    train(Experiment(data="other.csv", **SMALL), "second")
    with pytest.raises(PluresError, match=r"judged by other labels of 'test' \(18 images, sha256 \w{8}, and 18"):
        compare(["run", "second"], resamples=2)


def test_suggestions_know_the_training_photographs_of_other_tables(world):
    """By content: renamed photographs too. They are not judged, so they stay."""
    shutil.copytree("photos", "elsewhere")
    write_table(
        world / "other.csv", [[row[0].replace("photos", "elsewhere"), "cat"] for row in rows_of()], ("image", "tags")
    )
    found, data = suggest("run", "other.csv", cross_fit=2)
    assert len(data) == N
    assert found[0].method.startswith("model + cross-fit 2")


def test_a_run_that_starts_from_another_knows_its_photographs_too(world, caplog):
    rows = [[*row, "test" if n < 30 else "train"] for n, row in enumerate(rows_of())]
    write_table(world / "second.csv", rows, ("image", *TAGS, "split"))
    train(Experiment(data="second.csv", start="run", **SMALL), "second")
    data = own_data(Run("second"), {}, False)
    assert trained_among("run", data.split("test")) == trained_among("run", data.split("val")) == 0
    assert set(split_of("run").values()) == {"train", "val", "test"}
    train(Experiment(data="tags.csv", start="run", **SMALL), "third")  # no splits of its own: those of the first
    assert split_of("third") == split_of("run")
    half = write_table(world / "half.csv", rows_of()[:40])
    train(Experiment(data=str(half), start="run", **SMALL), "fourth")
    assert evaluate("fourth", "tags.csv").images <= 30


# ------------------------------------------------------------------------------------------------------ data in memory


@pytest.fixture(scope="module")
def in_hand():
    images = np.stack([picture(n) for n in range(N)])
    return Dataset(images, Labels(labels_of(N)), TAGS, name="in hand")


@pytest.fixture(scope="module")
def memory_run(in_hand, tmp_path_factory):
    return train(Experiment(**SMALL), tmp_path_factory.mktemp("memory") / "run", dataset=in_hand)


def test_a_run_on_images_in_memory_never_reads_other_data(memory_run, tmp_path):
    assert Experiment.load(memory_run.path / "experiment.yaml").data.name == IN_MEMORY
    for verb in (evaluate, score_run, choose_thresholds, suggest, localise):
        with pytest.raises(PluresError, match="Dataset in memory"):
            verb(memory_run.path)
    with pytest.raises(PluresError, match="Dataset in memory"):
        train(Experiment(), memory_run.path, resume=True)
    with pytest.raises(PluresError, match="in_memory"):
        train(memory_run.experiment, tmp_path / "again")
    assert _own(memory_run, needed=False) is None
    with pytest.raises(PluresError, match="--calibration DATA"):
        _own(memory_run, needed=True)


def test_the_dataset_in_hand_is_divided_as_the_run_was(memory_run, in_hand):
    test = Photos.load(memory_run.path)
    test = test.contents[test.splits == "test"]
    for data in (in_hand, in_hand.take(np.arange(N)[::-1])):
        rows = judged(memory_run, data, None, {}, False)
        assert sorted(contents(rows.dataset).tolist()) == sorted(test.tolist())
        assert evaluate(memory_run, data).images == len(test)
    assert evaluate(memory_run, in_hand).map == pytest.approx(memory_report(memory_run), nan_ok=True)
    assert choose_thresholds(memory_run, in_hand, source="clean").images == len(
        own_data(memory_run, {}, False, in_hand).split("val")
    )
    (memory_run.path / "thresholds.json").unlink()
    _, data = suggest(memory_run, in_hand, with_wrong=True, cross_fit=0)
    assert len(data) == N


def memory_report(run):
    return json.loads((run.path / "report.json").read_text())["map"]


def test_a_sweep_in_memory_can_be_continued_and_its_runs_say_so(in_hand, tmp_path):
    values = {**SMALL, "stages": "probe"}
    for _ in range(2):
        found = sweep(values, tmp_path / "s", {"lr": ["1e-3"]}, dataset=in_hand)
    run = Run(found.cells[0].folder)
    assert run.experiment.data.name == IN_MEMORY
    assert evaluate(run, in_hand).images == (Photos.load(run.path).splits == "test").sum()


# ---------------------------------------------------------------------------------------------------- where it lies


def test_from_another_folder_the_same_data_are_read(began, tmp_path, monkeypatch):
    """A table of the same name with photographs of the same names lies there (case 22)."""
    monkeypatch.chdir(began)
    train(Experiment(data="tags.csv", **SMALL), tmp_path / "run")
    here = evaluate(tmp_path / "run", split="val")
    other = write_photos(tmp_path / "other", 30, first=500)
    write_table(other / "tags.csv", rows_of(30))
    monkeypatch.chdir(other)
    there = evaluate(tmp_path / "run", split="val")
    assert (here.images, here.to_dict()) == (there.images, there.to_dict())
    assert score_run(tmp_path / "run", "val", resamples=2).report.images == here.images


def test_data_that_moved_are_found_and_others_are_not_taken_for_them(world, monkeypatch, caplog, tmp_path):
    train(Experiment(data="tags.csv", **SMALL), "run2")
    images = evaluate("run2").images
    os.rename(world, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert evaluate("run2").images == images
    assert "its data are no longer at" in caplog.text
    shutil.rmtree("photos")
    write_photos(Path(), N, first=500)  # the same names, other photographs
    with pytest.raises(PluresError, match=r"tags\.csv holds none of the 72 photographs of run2"):
        evaluate("run2")
    os.unlink("tags.csv")
    with pytest.raises(
        PluresError, match=r"data it was trained on are gone \(.*tags\.csv\); put them back, or name other"
    ):
        evaluate("run2")


def test_a_run_of_the_first_version_works_and_says_what_it_does_not_know(world, caplog):
    whole = evaluate("run").to_dict()
    os.unlink(f"run/{PHOTOS}")
    environment = Path("run/environment.json")
    kept = json.loads(environment.read_text())
    environment.write_text(json.dumps({key: value for key, value in kept.items() if key != "source"}))
    assert evaluate("run").to_dict() == whole
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    write_table(world / "tags.csv", tagged(rows_of()))
    evaluate("run")
    assert "does not remember its splits" in caplog.text
    evaluate("run", "tags.csv")
    assert "which photographs it was trained on is not recorded" in caplog.text


def test_a_damaged_memory_is_one_line(world):
    Path("run", PHOTOS).write_bytes(b"nothing")
    with pytest.raises(PluresError, match=r"photos\.parquet: damaged"):
        evaluate("run")


# -------------------------------------------------------------------------------------------------------------- copies


def test_copies_are_kept_on_one_side_of_a_drawn_split(tmp_path):
    images = np.stack([picture(n // 3) for n in range(N)])
    data = Dataset(images, Labels(labels_of(N)), TAGS, name="copies")
    for seed in range(5):
        split = with_splits(data, Experiment(seed=seed)).splits.reshape(-1, 3)
        assert (split == split[:, :1]).all()
        assert set(split[:, 0]) == {"train", "val", "test"}
    official = with_splits(data, Experiment(split="mlspl")).splits
    single = Dataset(np.stack([picture(n) for n in range(N)]), data.labels, TAGS)
    assert (official == with_splits(single, Experiment(split="mlspl")).splits).all()


def test_copies_across_given_splits_are_named_and_not_judged(plures, world, caplog):
    shutil.copy("photos/000.png", "photos/070.png")
    shutil.copy("photos/040.png", "photos/071.png")
    rows = [[*row, "train" if n < 40 else "val" if n < 60 else "test"] for n, row in enumerate(rows_of())]
    write_table(world / "split.csv", rows, ("image", *TAGS, "split"))
    code, out, _ = plures("check", "split.csv")
    assert code == 0
    assert out.count("copy of") == 2
    assert [(Path(one.file).name, one.what) for one in copies_across(read("split.csv"))] == [
        ("070.png", "'test' and a copy of 000.png in 'train'"),
        ("071.png", "'test' and a copy of 040.png in 'val'"),
    ]
    data = with_splits(read("split.csv"), Experiment())
    assert "2 photographs are copies of one in another split (070.png in 'test')" in caplog.text
    now = dict(zip(names(data), data.splits.tolist(), strict=True))
    assert (now["000.png"], now["040.png"], now["070.png"], now["071.png"]) == ("train", "val", "", "")
    assert len(data.split("test")) == 10
    run = train(Experiment(data="split.csv", **SMALL), "split")
    assert evaluate(run).images == 10  # the same rows once more, not the copy as a training photograph
    assert len(own_data(run, {}, False).split("train")) == 40


# ---------------------------------------------------------------------------------------------------------- the pieces


def test_contents_are_of_bytes_not_of_names(tmp_path):
    write_photos(tmp_path, 3)
    shutil.copy(tmp_path / "photos/000.png", tmp_path / "photos/zzz.png")
    paths = [str(tmp_path / f"photos/{name}.png") for name in ("000", "001", "zzz")]
    first, second, copy = contents_of(paths)
    assert first == copy != second
    whole = (tmp_path / "photos/000.png").read_bytes()
    (tmp_path / "shard.bin").write_bytes(b"12345" + whole + b"6")
    assert contents_of([f"{tmp_path}/shard.bin#5:{len(whole)}"])[0] == first
    far = contents_of(["s3://bucket/a.png", "s3://bucket/b.png", "s3://bucket/a.png"])  # nothing is fetched
    assert far[0] == far[2] != far[1]
    assert len(set(contents_of([paths[0], "gone.png", str(tmp_path)]).tolist())) == 3
    images = np.stack([picture(0), picture(1), picture(0)])
    assert [int(c == contents_of(images)[0]) for c in contents_of(images)] == [1, 0, 1]


def test_a_memory_comes_back_as_it_was_saved(tmp_path):
    raw = np.frombuffer(bytes(range(1, 17)) + bytes(16) + bytes([7] * 15 + [0]), "S16")  # zeros at the end count
    splits = np.array(["train", "", "a long name of a split"])
    names = pa.array(["a.png", "b;c.png", "ü.png"])
    Photos(names, raw, splits, np.array([0, 1, 2**64 - 1], np.uint64)).save(tmp_path)
    back = Photos.load(tmp_path)
    assert back.names.equals(names)
    assert back.contents.tobytes() == raw.tobytes()
    assert back.splits.tolist() == splits.tolist()
    assert back.labels.tolist() == [0, 1, 2**64 - 1]


def test_label_numbers_follow_from_labels_alone():
    values = np.array([[1, 0, -1], [1, 0, -1], [0, 1, -1], [1, -1, -1]], np.int8)
    images = np.zeros((4, 2, 2, 3), np.uint8)
    numbers = label_numbers(Dataset(images, Labels(values), TAGS))
    assert numbers[0] == numbers[1]
    assert len(set(numbers.tolist())) == 3
    turned = label_numbers(Dataset(images, Labels(values[:, ::-1].copy()), TAGS[::-1]))
    more = label_numbers(Dataset(images, Labels(np.pad(values, ((0, 0), (1, 0)), constant_values=-1)), ("new", *TAGS)))
    assert (numbers == turned).all()
    assert (numbers == more).all()


def test_copies_are_scored_in_one_fold(monkeypatch, tmp_path, memory_run):
    """A copy whose labels the fold's model has seen would bring them along."""
    images = np.stack([picture(n // 2) for n in range(40)])
    data = Dataset(images, Labels(labels_of(40)), TAGS, name="copies")
    seen = []

    def scores(self, rest, held_out, seed, callback):
        seen.append((set(rest // 2), set(held_out // 2)))
        return np.zeros((len(held_out), len(TAGS)), np.float32)

    monkeypatch.setattr(cross_fitting, "_HeadOnly", lambda run, dataset, workers: type("H", (), {"scores": scores})())
    run = Run(memory_run.path)
    run.experiment = run.experiment.change(["stages=probe"])
    assert np.isfinite(cross_fitting.out_of_fold(run, data, 4)).all()
    assert len(seen) == 4
    assert not any(rest & held_out for rest, held_out in seen)


def test_cells_of_parquet_have_the_content_of_their_files(tmp_path):
    write_photos(tmp_path, 20)
    raw = [(tmp_path / f"photos/{n:03}.png").read_bytes() for n in range(20)]
    table = pa.table({"image": pa.array(raw, pa.binary()), "tags": ["cat"] * 20})
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=3)
    files = contents_of([str(tmp_path / f"photos/{n:03}.png") for n in range(20)])
    assert (contents(read(str(tmp_path / "s.parquet"))) == files).all()
