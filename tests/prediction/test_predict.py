"""Predictions of many images: each listed image exactly once, killed or not, whole or in shards, bad files aside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from plures.config import Experiment
from plures.data.formats.table import Table
from plures.data.read import read
from plures.errors import BadData, PluresError
from plures.models.model import build_model, save
from plures.prediction import predict as module
from plures.prediction.predict import predict
from plures.runs.run import Run
from plures.scoring.sources import images_of, parse_shard, sharded

CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained model in a run folder: what it says does not matter here, only that it says it once an image."""
    folder = tmp_path_factory.mktemp("run") / "run"
    torch.manual_seed(0)
    made = Run.create(folder, Experiment(backbone={"name": "small_conv", "image_size": 16}, device="cpu"))
    save(build_model("small_conv", "codebook", CLASSES, {"image_size": 16}), folder)
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for row in range(23):
        Image.fromarray(random.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(folder / f"{row:02d}.png")
    (folder / "07.png").write_bytes(b"broken")
    (folder / "19.png").write_bytes(b"")
    (folder / "list.txt").write_text("".join(f"{row:02d}.png\n" for row in range(23)))
    return folder


GOOD = [f"{row:02d}.png" for row in range(23) if row not in (7, 19)]


def table(folder):
    """All parts of a folder, one after another: {file name of the image: scores}, and the names in order."""
    rows = [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    names = [os.path.basename(row["image"]) for row in rows]
    return names, {name: [row[c] for c in CLASSES] for name, row in zip(names, rows, strict=True)}


def test_parts_hold_every_readable_image_once_and_the_others_are_logged(run, photos, tmp_path):
    summary = predict(run, photos / "list.txt", tmp_path / "out", parts=5, batch_size=3)
    names, scores = table(tmp_path / "out")
    assert names == GOOD
    assert (summary.images, summary.skipped) == (21, 2)
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 5
    logs = "".join(p.read_text() for p in sorted((tmp_path / "out").glob("*.bad.csv")))
    assert logs.count("07.png") == logs.count("19.png") == 1
    assert "not an image" in logs
    whole = predict(run, photos / "list.txt", tmp_path / "one.parquet", skip_bad=True)
    one = {
        os.path.basename(r["image"]): [r[c] for c in CLASSES]
        for r in pq.read_table(tmp_path / "one.parquet").to_pylist()
    }
    assert one.keys() == scores.keys()
    np.testing.assert_allclose([one[n] for n in GOOD], [scores[n] for n in GOOD], atol=2e-6)
    assert (whole.images, whole.skipped, whole.tags_per_image) == (21, 2, pytest.approx(summary.tags_per_image))


def test_shards_divide_the_images(run, photos, tmp_path):
    for number in (1, 2, 3):
        predict(run, photos / "list.txt", tmp_path / "out", parts=4, shard=f"{number}/3")
    names, _ = table(tmp_path / "out")
    assert sorted(names) == GOOD
    with pytest.raises(PluresError, match="was begun with shards=3"):
        predict(run, photos / "list.txt", tmp_path / "out", parts=4, shard="1/2", resume=True)


class Stop(Exception):
    pass


@pytest.mark.parametrize("batches", [1, 2, 4, 6])
def test_a_stopped_run_goes_on_without_a_lost_or_doubled_row(run, photos, tmp_path, monkeypatch, batches):
    whole = predict(run, photos / "list.txt", tmp_path / "whole", parts=5, batch_size=3)
    call, done = module.Predictor.score, []

    def stopping(self, images, maps=False):
        if len(done) == batches:
            raise Stop
        done.append(1)
        return call(self, images, maps)

    with monkeypatch.context() as patch:
        patch.setattr(module.Predictor, "score", stopping)
        with pytest.raises(Stop):
            predict(run, photos / "list.txt", tmp_path / "cut", parts=5, batch_size=3)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.parquet")}
    assert len(before) == batches // 2
    if before:
        with pytest.raises(PluresError, match="--resume"):
            predict(run, photos / "list.txt", tmp_path / "cut", parts=5)
    summary = predict(run, photos / "list.txt", tmp_path / "cut", parts=5, batch_size=3, resume=True)
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert (summary.images, summary.skipped, summary.tags_per_image) == (
        whole.images,
        whole.skipped,
        whole.tags_per_image,
    )
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.parquet")}
    assert all(after[name] == written for name, written in before.items())  # whole parts are not made again


def test_a_changed_source_or_model_is_refused_on_resume(run, photos, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("".join(f"{photos / n}\n" for n in GOOD[:10]))
    predict(run, names, tmp_path / "out", parts=5)
    names.write_text("".join(f"{photos / n}\n" for n in GOOD[1:11]))
    with pytest.raises(PluresError, match="it has changed"):
        predict(run, names, tmp_path / "out", parts=5, resume=True)
    with pytest.raises(PluresError, match="was begun with thresholds"):
        predict(run, names, tmp_path / "out", parts=5, resume=True, threshold=0.1)
    with pytest.raises(PluresError, match="was begun with images_a_part=5, now it is 6"):
        predict(run, names, tmp_path / "out", parts=6, resume=True)
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(PluresError, match="not a part that plures wrote"):
        predict(run, names, tmp_path / "out", parts=5, resume=True)


def test_a_file_wants_every_image_or_skip_bad(run, photos, tmp_path):
    with pytest.raises(BadData) as caught:
        predict(run, photos, tmp_path / "p.csv")
    assert [os.path.basename(p.file) for p in caught.value.problems] == ["07.png", "19.png"]
    assert not (tmp_path / "p.csv").exists()
    with pytest.raises(PluresError, match=r"--parts requires a folder of parts; use --out .*p$"):
        predict(run, photos, tmp_path / "p.csv", parts=5)


def test_parts_at_an_address(run, photos, tmp_path):
    import fsspec

    summary = predict(run, photos / "list.txt", "memory://found/here", parts=10)
    files = fsspec.filesystem("memory").ls("/found/here", detail=False)
    assert sorted(f.rsplit("/", 1)[1] for f in files if f.endswith(".parquet")) == [
        f"part-{n:05d}.parquet" for n in range(3)
    ]
    again = predict(run, photos / "list.txt", "memory://found/here", parts=10, resume=True)
    assert (again.images, again.skipped) == (summary.images, summary.skipped) == (21, 2)


def test_workers_change_nothing(run, photos, tmp_path):
    predict(run, photos / "list.txt", tmp_path / "a", parts=8, batch_size=4)
    predict(run, photos / "list.txt", tmp_path / "b", parts=8, batch_size=4, workers=2)
    assert table(tmp_path / "a") == table(tmp_path / "b")


def test_bfloat16_is_close_and_int8_says_what_it_cannot_do(run, photos, tmp_path):
    names = tmp_path / "l.txt"
    names.write_text("".join(f"{photos / n}\n" for n in GOOD))
    predict(run, names, tmp_path / "a")
    predict(run, names, tmp_path / "b", precision="bfloat16")
    exact, rough = (np.array(list(table(tmp_path / f)[1].values())) for f in "ab")
    assert 0 < np.abs(exact - rough).max() < 0.02
    with pytest.raises(PluresError, match="'small_conv' has no 8-bit form"):
        predict(run, names, tmp_path / "c", precision="int8")


@pytest.mark.slow
def test_int8_of_a_timm_backbone_and_of_the_patch_model(tmp_path, photos):
    from plures.scoring.predictor import load

    for name, options in (
        ("timm", {"model": "mobilenetv2_050", "image_size": 64, "model_options": {"pad_type": "same"}}),
        ("patches", {"image_size": 128, "levels": 1}),
    ):
        torch.manual_seed(0)
        folder = tmp_path / name
        run = Run.create(folder, Experiment(backbone={"name": name, **options}, device="cpu"))
        save(build_model(name, "codebook", CLASSES, options), folder)
        items = [(n, str(photos / n)) for n in GOOD]
        images = torch.randint(0, 256, (4, 3, options["image_size"], options["image_size"]), dtype=torch.uint8)
        exact = load(run).score(images).logits
        rough = load(run, precision="int8", calibration=iter(items)).score(images).logits
        assert (exact - rough).abs().max() > 0
        assert torch.corrcoef(torch.stack([exact.flatten(), rough.flatten()]))[0, 1] > 0.8


def test_timm_layers_that_cannot_be_traced_become_plain_ones_with_the_same_outputs():
    import timm
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.norm_act import BatchNormAct2d

    from plures.scoring.eight_bits import plain_layers

    torch.manual_seed(0)
    network = timm.create_model("mobilenetv2_050", pad_type="same", bn_eps=1e-3, num_classes=0).eval()
    for norm in network.modules():
        if isinstance(norm, BatchNormAct2d):
            torch.nn.init.uniform_(norm.running_mean)
            torch.nn.init.uniform_(norm.weight)
    images = torch.randn(2, 3, 71, 52)
    exact = network(images)
    plain = plain_layers(network, images[:1])
    assert not any(isinstance(layer, Conv2dSame | BatchNormAct2d) for layer in plain.modules())
    torch.testing.assert_close(plain(images), exact, rtol=0, atol=1e-5)
    assert exact.std() > 0.01


# ---------------------------------------------------------------------------------------------------------- sources


def test_a_folder_is_walked_in_the_order_of_whole_paths(tmp_path):
    names = ["a.png", "a/b.png", "a/z/c.JPG", "a-b.png", "a.b/d.png", "b.webp"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    found = [path for path, _ in images_of(tmp_path)()]
    assert found == sorted(str(tmp_path / name) for name in names)


def test_lists_and_tables(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    wanted = [str(tmp_path / "images" / "a.png"), "s3://bucket/x.jpg", "/far/y.png"]
    (tmp_path / "l.txt").write_text("a.png\n\n  s3://bucket/x.jpg\n/far/y.png\n")
    (tmp_path / "t.csv").write_text("tags,image\ncat,a.png\n,s3://bucket/x.jpg\n,/far/y.png\n")
    import pandas as pd

    pd.DataFrame({"image": ["a.png", "s3://bucket/x.jpg", "/far/y.png"]}).to_parquet(tmp_path / "t.parquet")
    for name in ("l.txt", "t.csv", "t.parquet"):
        assert [path for path, _ in images_of(tmp_path / name)()] == wanted, name
    (tmp_path / "other.csv").write_text("scan,tags\na.png,cat\n")
    with pytest.raises(BadData, match="no column 'image' among scan, tags"):
        images_of(tmp_path / "other.csv")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(PluresError, match="no image in this list"):
        images_of(tmp_path / "empty.txt")


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_wrong_shard_is_one_line(text):
    with pytest.raises(PluresError, match="i/n with i from 1 to n"):
        parse_shard(text)


def test_shards_are_the_whole():
    items = [(str(i), str(i)) for i in range(10)]
    shares = [list(sharded(iter(items), n, 3)) for n in (1, 2, 3)]
    assert sorted(i for share in shares for i in share) == items
    assert [len(share) for share in shares] == [4, 3, 3]


@pytest.mark.slow
def test_a_killed_process_goes_on(run, photos, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("".join(f"{photos / n}\n" for n in GOOD * 150))
    command = [sys.executable, "-m", "plures.cli", "predict", run.path, names, "--out", tmp_path / "cut", "--parts"]
    command = [*map(str, command), "100", "--batch-size", "8"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "cut").glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(list((tmp_path / "cut").glob("*.parquet")))
    assert 3 <= there < 32
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    found, _ = table(tmp_path / "cut")
    assert found == GOOD * 150
    assert not list((tmp_path / "cut").glob(".*"))
    assert json.loads((tmp_path / "cut" / "prediction.json").read_text())["images_a_part"] == 100


# ---------------------------------------------------------------------------------- read back from where it was written


@pytest.fixture
def world(tmp_path, monkeypatch, photos):
    """Photos below photos/ of the folder worked in, some in folders of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("00.png", "sub/01.png", "sub/02 a.png"):
        os.makedirs(os.path.dirname(f"photos/{name}"), exist_ok=True)
        shutil.copy(photos / f"{name[-6:-4] if ' ' not in name else '02'}.png", f"photos/{name}")
    Path("far/away/from").mkdir(parents=True)
    os.symlink("far/away/from", "link")
    Path("photos/tags.csv").write_text("image,tags\n00.png,red\nsub/01.png,blue\n")
    Path("photos/list.txt").write_text("sub/01.png\n00.png\n")
    return tmp_path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("place", ["", "deep/", "deep/er/", "photos/sub/", "link/"])
@pytest.mark.parametrize("source", ["photos", "./photos/", "photos/list.txt", "photos/sub/01.png", "{here}/photos"])
def test_a_file_of_predictions_finds_its_images(run, world, source, place, suffix):
    out = f"{place}found{suffix}"
    source = source.format(here=world)
    summary = predict(run, source, out, threshold=0.01)
    data = read(out)
    asked = [name for name, _ in images_of(source)()]
    assert [os.path.realpath(image) for image in data.images] == [os.path.realpath(name) for name in asked]
    assert summary.images == len(asked)
    assert data.labels.present.all()  # the tags are what was called, and no score is read as a label
    what = "columns 'red', 'green', 'blue' are not used"
    assert next(p.what for p in data.problems if p.severity == "notice") == what
    names = Table(exist=False).read(out)[0]
    if source.startswith("/"):  # an absolute path stays what it is
        assert list(names.images) == asked


def test_names_stay_those_of_a_table_beside_which_they_are_written(run, world):
    predict(run, "photos/tags.csv", "photos/found.csv")
    assert pd.read_csv("photos/found.csv")["image"].tolist() == ["00.png", "sub/01.png"]
    predict(run, "photos/tags.csv", "found.jsonl")
    lines = Path("found.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["photos/00.png", "photos/sub/01.png"]


def test_parts_can_be_predicted_again_from_any_folder(run, world):
    Path("photos/sub/broken.png").write_bytes(b"broken")
    predict(run, "photos", "deep/parts", parts=2)
    assert [name for name, _ in images_of("deep/parts/part-00000.parquet")()] == [
        "deep/parts/../../photos/00.png",
        "deep/parts/../../photos/sub/01.png",
    ]
    assert Path("deep/parts/part-00001.bad.csv").read_text().splitlines()[1].startswith("../../photos/sub/broken.png,")
    predict(run, "photos", "deep/parts", parts=2, resume=True)  # knows its images by the names they were asked by


def test_images_in_memory_and_at_addresses_keep_their_names(run, world, photos):
    Image.open(photos / "00.png").convert("RGB").save("memory.png")
    with fsspec.open("memory://a.png", "wb") as there:
        there.write(Path("memory.png").read_bytes())
    predict(run, "memory://a.png", "deep/a.csv")
    assert pd.read_csv("deep/a.csv")["image"].tolist() == ["memory://a.png"]
    predict(run, "scenes", "deep/s.csv", shard="1/100")
    assert pd.read_csv("deep/s.csv", dtype=str)["image"].tolist()[:2] == ["000000", "000100"]


def test_classes_called_as_columns_with_a_meaning(run, world, tmp_path):
    folder = tmp_path / "odd"
    Run.create(folder, Experiment(device="cpu"))
    save(build_model("small_conv", "codebook", ("absent", "image", "red", "split", "tags"), {"image_size": 16}), folder)
    predict(folder, "photos", "found.csv", threshold=0.01)
    header = Path("found.csv").read_text().splitlines()[0]
    assert header == '"image","tags","score of absent","score of image","red","score of split","score of tags"'
    data = read("found.csv")
    assert (data.splits, data.labels.absent.any(), data.labels.present.all()) == (None, False, True)
