"""The command line, as a user meets it: the whole road once, then what goes wrong, with exit codes."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (40, 60, 230)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 60 pictures with one to three coloured squares, and a table with one tag each."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    rows = []
    for i in range(60):
        tags = random.permutation(list(COLOURS))[: random.integers(1, 4)]
        pixels = random.integers(0, 50, (40, 52, 3), dtype=np.uint8)
        for slot, tag in enumerate(tags):
            pixels[5:20, 3 + 16 * slot : 15 + 16 * slot] = COLOURS[tag]
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        rows.append({"image": f"{i:03d}.png", "tags": tags[0]})
    pd.DataFrame(rows).to_csv(folder / "tags.csv", index=False)
    return folder


SETTINGS = ("backbone=small_conv", "backbone.image_size=32", "epochs=2", "device=cpu", "workers=0", "batch_size=8")


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    from plures import Experiment, train

    out = tmp_path_factory.mktemp("runs") / "first"
    values = {"data": str(photos / "tags.csv"), "backbone": {"name": "small_conv", "image_size": 32}}
    train(Experiment(**values, epochs=2, device="cpu", workers=0, batch_size=8), out)
    return out


def test_the_whole_road(plures, photos, tmp_path):
    code, out, _ = plures("init", photos / "tags.csv", "--out", photos / "again.csv")
    assert code == 0
    assert "60 images, 3 classes" in out
    pd.read_csv(photos / "again.csv").assign(note="x").to_csv(photos / "again.csv", index=False)
    code, out, err = plures("check", photos / "again.csv", "--out", tmp_path / "look")
    assert code == 0, err
    assert "red" in out
    assert "format table: by what lies there; again.csv: images in 'image', tags in 'tags'" in out
    assert "'note'" in out
    assert len(list((tmp_path / "look").glob("*.png"))) == 2
    code, out, err = plures("train", photos / "again.csv", "--out", tmp_path / "run", *SETTINGS, "loss=an_ls",
                            "group_near_copies=false")  # fmt: skip  # these pictures are alike
    assert code == 0, err
    assert "run folder" in out
    assert "notice: column 'note' is not used" in out
    code, out, err = plures("evaluate", tmp_path / "run", "--split", "val", "--json", tmp_path / "r.json")
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["images"] == 10  # a fifth of the 48 rows that are not test
    assert {"definition", "map", "per_class", "classes_scored"} <= set(report)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_predict_writes_a_row_an_image(plures, run, photos, tmp_path, suffix):
    out = tmp_path / f"found.{suffix}"
    code, text, err = plures("predict", run, photos, "--out", out)
    assert code == 0, err
    assert "60 images" in text
    if suffix == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        scores = [row["scores"]["red"] for row in rows]
    else:
        read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "tsv": lambda p: pd.read_csv(p, sep="\t")}[suffix]
        table = read(out)
        rows, scores = table.to_dict("records"), table["red"].tolist()
    assert [r["image"] for r in rows] == sorted(str(photos / f"{i:03d}.png") for i in range(60))
    assert all(0 <= s <= 1 for s in scores)


def test_predictions_are_the_models(plures, run, photos, tmp_path):
    import torch

    from plures import load
    from plures.data.photos import Transform, open_image

    plures("predict", run, photos / "007.png", "--out", tmp_path / "one.csv", "--threshold", "0.01")
    model = load(run)
    image = Transform(32)(open_image(photos / "007.png"))[None]
    expected = model(image).logits.sigmoid()[0].tolist()
    with (tmp_path / "one.csv").open() as handle:
        row = next(csv.DictReader(handle))
    assert [float(row[c]) for c in model.classes] == pytest.approx(expected, abs=1e-5)
    order = torch.tensor(expected).argsort(descending=True).tolist()
    assert row["tags"].split(";") == [model.classes[i] for i in order if expected[i] >= 0.01]


def test_heat_maps_are_pictures_of_the_photos_own_size(plures, run, photos, tmp_path):
    arguments = ("--out", tmp_path / "p.csv", "--heatmaps", tmp_path / "maps", "--threshold", "0.0001")
    code, _, err = plures("predict", run, photos / "003.png", *arguments)
    assert code == 0, err
    pictures = sorted((tmp_path / "maps").glob("003.*.png"))
    assert [p.name for p in pictures] == ["003.blue.png", "003.green.png", "003.red.png"]
    assert all(Image.open(p).size[0] == 52 for p in pictures)


def test_bad_images_are_listed_and_skipped_on_request(plures, run, photos, tmp_path, monkeypatch):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good.png").write_bytes((photos / "000.png").read_bytes())
    (folder / "bad.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    code, _, err = plures("predict", run, folder, "--out", tmp_path / "p.csv")
    assert code == 2
    assert "bad.png" in err
    assert not (tmp_path / "p.csv").exists()
    code, out, err = plures("predict", run, folder, "--out", tmp_path / "p.csv", "--skip-bad")
    assert code == 0
    assert "1 images" in out
    assert "left out 1 unusable" in err


def test_resume_after_the_end_changes_nothing(plures, run):
    before = (run / "model.safetensors").read_bytes()
    code, _, err = plures("train", "--resume", run)
    assert code == 0, err
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "scenes", "--out", "r", "loss=rol"], "unknown loss 'rol'; did you mean 'role'?"),
        (["train", "scenes", "--out", "r", "epoch=3"], "no setting 'epoch'; did you mean 'epochs'?"),
        (["train", "scenes"], "--out RUN"),
        (["train", "--out", "r"], "say what to train on"),
        (["train", "scenes", "b", "--out", "r"], "one DATA at a time"),
        (["train", "scenes", "--resume", "r"], "give no DATA"),
        (["train", "--resume", "nowhere"], "no run here"),
        (["train", "nowhere.csv", "--out", "r"], "nowhere.csv"),
        (["train", "scenes", "--out", "r", "--recipe", "cole"], "unknown recipe 'cole'"),
        (["evaluate", "nowhere"], "no run here"),
        (["predict", "nowhere", "x", "--out", "p.csv"], "no run here"),
        (["check", "nowhere"], "nowhere"),
        (["init", "nowhere"], "nowhere"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(plures, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = plures(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("plures: ")]) == 1
    assert not (tmp_path / "r").exists()


def test_bad_output_suffix(plures, run, photos):
    code, _, err = plures("predict", run, photos, "--out", "found.xls")
    assert code == 2
    assert ".jsonl" in err


def test_bad_rows_are_listed_with_file_and_row(plures, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("image,red,blue\n000.png,1,2\nmissing.png,1,\n001.png,1,0\n")
    for name in ("000.png", "001.png"):
        (tmp_path / name).write_bytes((photos / name).read_bytes())
    code, _, err = plures("check", tmp_path / "bad.csv")
    assert code == 2
    assert "bad.csv" in err
    assert "missing.png" in err
    assert "--skip-bad" in err


def test_doctor_and_parts(plures):
    code, out, _ = plures("doctor")
    assert code == 0
    assert "torch" in out
    code, out, _ = plures("components")
    assert code == 0
    for name in ("role", "codebook", "small_conv", "voc", "cole2021"):
        assert name in out


def test_an_unexpected_failure_is_one_line_and_exit_code_1(plures, monkeypatch):
    def broken():
        raise RuntimeError("something\nodd")

    monkeypatch.setattr("plures.doctor.examine", broken)
    code, _, err = plures("doctor")
    assert code == 1
    assert err.count("\n") == 1
    assert "something odd" in err


def test_a_truncated_photo_is_known_before_training_and_can_be_skipped(plures, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = pd.read_csv(photos / "tags.csv")
    for name in rows["image"]:
        Image.open(photos / name).save(tmp_path / f"{name[:-4]}.jpg")
    (tmp_path / "011.jpg").write_bytes((tmp_path / "011.jpg").read_bytes()[:500])
    rows["image"] = rows["image"].str.replace(".png", ".jpg")
    rows.to_csv(tmp_path / "tags.csv", index=False)
    code, _, err = plures("train", "tags.csv", "--out", "run", *SETTINGS)
    assert code == 2
    assert "011.jpg" in err
    assert not (tmp_path / "run").exists()
    code, out, err = plures("train", "tags.csv", "--out", "run", "--skip-bad", *SETTINGS)
    assert code == 0, err
    assert "run folder" in out


def test_unlabelled_images_in_a_table_can_be_predicted(plures, run, photos, tmp_path):
    (tmp_path / "new.csv").write_text(f"image,tags\n{photos / '001.png'},\n{photos / '002.png'},\n")
    code, out, err = plures("predict", run, tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert code == 0, err
    assert "2 images" in out


def test_skip_bad_is_offered_only_where_it_helps(plures, photos, tmp_path):
    (tmp_path / "empty.csv").write_text(f"image,tags\n{photos / '001.png'},\n")
    code, _, err = plures("check", tmp_path / "empty.csv")
    assert code == 2
    assert "no image carries a tag" in err
    assert "--skip-bad" not in err


def test_photos_of_one_name_in_two_folders_keep_their_own_heat_maps(plures, run, photos, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "x.png").write_bytes((photos / "000.png").read_bytes())
    arguments = ("--out", tmp_path / "p.csv", "--heatmaps", tmp_path / "maps", "--threshold", "0.0001")
    code, _, err = plures("predict", run, tmp_path / "in", *arguments)
    assert code == 0, err
    assert len(list((tmp_path / "maps").glob("x-0.*.png"))) == len(list((tmp_path / "maps").glob("x-1.*.png"))) == 3


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("evaluate", "RUN", "--threshold", "1.5"), "threshold=1.5"),
        (("evaluate", "RUN", "--definition", "coco"), "average_precision='coco'"),
        (("predict", "RUN", "PHOTOS", "--out", "p.csv", "--threshold", "0"), "threshold=0"),
    ],
)
def test_thresholds_and_definitions_are_checked(plures, run, photos, command, message):
    places = {"RUN": run, "PHOTOS": photos}
    code, _, err = plures(*(places.get(word, word) for word in command))
    assert code == 2
    assert message in err


@pytest.mark.parametrize("there", [True, False])
def test_names_are_shown_as_they_are(plures, tmp_path, monkeypatch, there):
    """A file's name may hold what a terminal obeys, or what rich reads as markup or emoji."""
    monkeypatch.chdir(tmp_path)
    name, tag = "a[r]\x1b[1m:cat:.png", "do[/b]g\x1b[1m:cow:"
    if there:
        Image.new("RGB", (8, 8)).save(name)
    (tmp_path / "t.csv").write_text(f"image,tags\n{name},{tag}\n")
    code, out, err = plures("check", "t.csv")
    assert code == (0 if there else 2)
    assert "do[/b]g\\x1b[1m:cow:" in out if there else "a[r]\\x1b[1m:cat:.png" in err
    assert "\x1b" not in out + err
    _, _, err = plures("train", "no\x1b[1msuch[/b]", "--out", "run")
    assert "'no\\x1b[1msuch[/b]'" in err
