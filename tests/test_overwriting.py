"""What a person may have made is never written over: files, folders, and what a command itself reads."""

import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import typer.main
from PIL import Image

from plures.cli.app import app
from plures.config import Experiment
from plures.data.formats.table import Table
from plures.data.write import init_table
from plures.errors import PluresError
from plures.files import PAGE, mark_folder, refuse_folder, refuse_replacing
from plures.models.model import build_model, save
from plures.prediction.predict import predict
from plures.runs.run import FILES, Run
from plures.sweeps.sweep import sweep

MINE = b"image,tags\nphotos/0.png,what I wrote\n"
COMMANDS = typer.main.get_command(app).commands
# a command that writes one file, by the option that names it; run/ holds an experiment and no model, so that a command
# which refuses too late fails in another way
FILE = {
    ("predict", "out"): ("run", "photos", "--out", "mine.csv"),
    ("suggest", "out"): ("run", "--out", "mine.csv"),
    ("evaluate", "json"): ("run", "--json", "mine.json"),
    ("localise", "json"): ("run", "--json", "mine.json"),
    ("localise", "boxes"): ("run", "--boxes", "mine.json"),
    ("export", "out"): ("run", "--to", "onnx", "--out", "mine.onnx"),
    ("report", "out"): ("run", "--out", "mine.html"),
    ("compare", "out"): ("run", "run", "--out", "mine.html"),
    ("table", "out"): ("run", "--out", "mine.csv"),
    ("merge", "out"): ("tags.csv", "--out", "mine.csv"),
    ("convert", "out"): ("tags.csv", "--to", "roboflow", "--out", "mine.csv"),
    ("duplicates", "out"): ("tags.csv", "--out", "mine.csv"),
    ("similar", "out"): ("run", "photos/0.png", "--out", "mine.csv"),
}
FOLDER = {
    ("train", "out"): ("tags.csv", "--out", "mine"),
    ("sweep", "out"): ("tags.csv", "--grid", "lr=1,2", "--out", "mine"),
    ("demo", "out"): ("--out", "mine"),
    ("check", "out"): ("tags.csv", "--out", "mine"),
    ("import-weights", "out"): ("timm", "nothing.pth", "--out", "mine"),
    ("predict", "out"): ("run", "photos", "--out", "mine"),
    ("predict", "heatmaps"): ("run", "photos", "--out", "new.csv", "--heatmaps", "mine"),
    ("suggest", "heatmaps"): ("run", "--out", "new.csv", "--heatmaps", "mine"),
}
EXTENDS = {("init", "out")}  # adds to the table


@pytest.fixture
def place(tmp_path, monkeypatch):
    """photos/, tags.csv and run/, a run that holds no model."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for n in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * n, np.uint8)).save(f"photos/{n}.png")
    Path("tags.csv").write_text("image,tags\nphotos/0.png,red\nphotos/1.png,blue\nphotos/2.png,red\n")
    Run.create("run", Experiment(data="tags.csv", device="cpu"))
    return tmp_path


def add_model(folder="run"):
    torch.manual_seed(0)
    save(build_model("small_conv", "codebook", ("blue", "red"), {"image_size": 16}), Path(folder))


def test_every_option_that_names_an_output_is_tried_here():
    outputs = {
        (name, option.name)
        for name, command in COMMANDS.items()
        for option in command.params
        if option.name in ("out", "json", "boxes", "heatmaps")
    }
    assert outputs == FILE.keys() | FOLDER.keys() | EXTENDS
    assert all(any(option.name == "force" for option in COMMANDS[name].params) for name, _ in FILE)


@pytest.mark.parametrize("case", FILE, ids=" ".join)
def test_a_file_that_is_there_is_refused_before_any_work(place, plures, case):
    file = Path(FILE[case][-1])
    file.write_bytes(MINE)
    code, _, err = plures(case[0], *FILE[case])
    assert (code, err) == (2, f"plures: {file} is there already; choose another name, or replace it with --force\n")
    assert file.read_bytes() == MINE


@pytest.mark.parametrize("case", FOLDER, ids=" ".join)
def test_a_folder_of_other_origin_is_refused_before_any_work(place, plures, case):
    folder = place / "mine"
    folder.mkdir()
    names = ["co_occurrence.png", "log.csv", "model.safetensors", "report.json", "sweep.csv"]
    for name in names:
        (folder / name).write_bytes(MINE)
    code, _, err = plures(case[0], *FOLDER[case])
    expected = "mine holds files of other origin (co_occurrence.png, ...); choose a new or an empty folder"
    assert (code, err.strip()) == (2, f"plures: {expected}")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == dict.fromkeys(names, MINE)


@pytest.mark.parametrize("end", ["csv", "sources.json", "cells.parquet", "conflicts.csv"])
def test_merge_spares_what_lies_beside_its_table(place, plures, end):
    file = Path(f"merged.{end}")
    file.write_bytes(MINE)
    code, _, err = plures("merge", "tags.csv")
    assert (code, err.split(";")[0]) == (2, f"plures: {file} is there already")
    assert sorted(place.glob("merged*")) == [place / file]
    assert file.read_bytes() == MINE
    assert plures("merge", "tags.csv", "--force")[0] == 0
    if end == "conflicts.csv":
        assert not file.exists()  # it would speak of another merging
    else:
        assert file.read_bytes() != MINE


def test_export_spares_the_second_file_of_openvino(place, plures):
    Path("model.bin").write_bytes(MINE)
    code, _, err = plures("export", "run", "--to", "openvino", "--out", "model.xml")
    assert (code, err.split(";")[0]) == (2, "plures: model.bin is there already")
    assert "no run" not in plures("export", "run", "--to", "onnx", "--out", "model.onnx")[2]  # which has no such file
    assert Path("model.bin").read_bytes() == MINE


READ = {
    "predict": ("predict", "run", "tags.csv", "--out", "{}", "--force"),
    "suggest": ("suggest", "run", "--out", "{}", "--force"),
    "suggest with data": ("suggest", "run", "table:tags.csv", "--out", "{}", "--force"),
    "evaluate": ("evaluate", "run", "--json", "{}", "--force"),
    "localise": ("localise", "run", "--boxes", "{}", "--force"),
    "merge": ("merge", "mine=tags.csv", "--out", "{}", "--force"),
    "convert": ("convert", "tags.csv", "--out", "{}", "--force"),
    "init": ("init", "tags.csv", "--out", "{}", "--force"),
    "init, without --force": ("init", "table:tags.csv", "--out", "{}"),
}


@pytest.mark.parametrize("name", ["tags.csv", "photos/../tags.csv", "link.csv", "twin.csv"])
@pytest.mark.parametrize("case", READ)
def test_what_a_command_reads_is_never_replaced(place, plures, case, name):
    os.symlink("tags.csv", "link.csv")
    os.link("tags.csv", "twin.csv")
    before = Path("tags.csv").read_bytes()
    code, _, err = plures(*(word.format(name) for word in READ[case]))
    assert (code, err) == (2, f"plures: {name}: this command reads it, so it is not replaced; choose another name\n")
    assert Path("tags.csv").read_bytes() == before
    assert Path("link.csv").is_symlink()


@pytest.mark.parametrize("file", ["report.json", "thresholds.json", "log.csv"])
def test_the_files_of_a_run_are_not_replaced_by_force(place, plures, file):
    Path("run", file).write_bytes(MINE)
    code, _, err = plures("evaluate", "run", "--json", f"run/{file}", "--force")
    assert (code, err.split(";")[0]) == (2, f"plures: run/{file}: this command reads it, so it is not replaced")
    assert Path("run", file).read_bytes() == MINE
    assert file in FILES


def test_force_replaces(place, plures):
    add_model()
    Path("found.csv").write_bytes(MINE)
    assert plures("predict", "run", "photos", "--out", "found.csv", "--force")[0] == 0
    assert Path("found.csv").read_text().splitlines()[0] == '"image","tags","blue","red"'
    for name in ("t.md", "t.csv"):
        Path(name).write_bytes(MINE)
        assert plures("table", "--recipe", "cole2021", "--out", name, "--force")[0] == 0
        assert MINE not in Path(name).read_bytes()


def test_pages_of_plures_are_written_anew(place, plures):
    assert plures("table", "--recipe", "cole2021", "--out", "t.html")[0] == 0
    first = Path("t.html").read_text()
    Path("t.html").write_text(first + "<!-- older -->")
    assert plures("table", "--recipe", "cole2021", "--out", "t.html")[0] == 0
    assert Path("t.html").read_text() == first
    Path("own.csv").write_text(PAGE)
    with pytest.raises(PluresError, match="there already"):
        refuse_replacing("own.csv")  # no page


def test_the_table_in_a_folder_is_read_too(place):
    Path("data").mkdir()
    Path("data/tags.csv").write_bytes(MINE)
    with pytest.raises(PluresError, match="reads it"):
        refuse_replacing("data/tags.csv", force=True, inputs=["data"])
    Path("data/other.csv").write_bytes(MINE)  # now the folder is read as neither
    refuse_replacing("data/tags.csv", force=True, inputs=["data"])


def test_a_broken_link_and_a_folder_are_there(place):
    os.symlink("nowhere.csv", "link.csv")
    with pytest.raises(PluresError, match=r"link\.csv is there already"):
        refuse_replacing("link.csv")
    with pytest.raises(PluresError, match="photos is a folder"):
        refuse_replacing("photos", force=True)
    with pytest.raises(PluresError, match=r"tags.csv is a file; give the name of a folder"):
        refuse_folder("tags.csv", "check")


def test_only_the_command_that_made_a_folder_writes_there_again(place, plures):
    assert plures("check", "tags.csv", "--out", "look")[0] == 0
    assert plures("check", "tags.csv", "--out", "look")[0] == 0
    assert {file.name for file in Path("look").iterdir()} == {".plures", "co_occurrence.png", "examples.png"}
    code, _, err = plures("sweep", "tags.csv", "--grid", "lr=1,2", "--out", "look")
    assert (code, "other origin" in err) == (2, True)
    assert plures("train", "tags.csv", "--out", "look")[0] == 2


def test_hidden_files_do_not_count(place):
    Path("new").mkdir()
    Path("new/.DS_Store").touch()
    refuse_folder("new")
    Path("new/notes.txt").touch()
    with pytest.raises(PluresError, match=r"other origin \(notes.txt\); choose"):
        refuse_folder("new")
    mark_folder("new", "check")
    refuse_folder("new", "check")
    for other in ("", "sweep"):
        with pytest.raises(PluresError, match="other origin"):
            refuse_folder("new", other)


def test_heat_maps_and_parts_come_again(place):
    add_model()
    for force in (False, True):
        predict("run", "photos", "found.csv", heatmaps="maps", threshold=0.01, force=force)
    assert len(list(Path("maps").glob("*.png"))) == 6
    predict("run", "photos", "parts")
    predict("run", "photos", "parts", resume=True)
    Path("parts/prediction.json").unlink()  # then nothing says whose they are
    with pytest.raises(PluresError, match="other origin"):
        predict("run", "photos", "parts", resume=True)


def test_a_run_keeps_its_own_message(place, plures):
    code, _, err = plures("train", "tags.csv", "--out", "run")
    assert (code, "run already holds a run; " in err, "--resume run" in err) == (2, True, True)


def test_sweep_in_python_refuses_too(place):
    Path("mine").mkdir()
    Path("mine/sweep.csv").write_bytes(MINE)
    with pytest.raises(PluresError, match="other origin"):
        sweep({"data": "tags.csv"}, "mine", {"lr": ["1", "2"]})
    assert Path("mine/sweep.csv").read_bytes() == MINE


# ---------------------------------------------------------------------------------------------- init beside a table


def test_init_adds_what_is_new_and_keeps_the_rest(place, plures):
    """The table was replaced: tags were lost, exit 0."""
    Path("tags.csv").unlink()
    assert plures("init", "photos")[1] == "tags.csv: 3 images, 0 classes\n"
    text = Path("tags.csv").read_text().replace('"photos/1.png",""', '"photos/1.png","desert;camel"')
    Path("tags.csv").write_text(text)
    Image.new("RGB", (8, 8), "white").save("photos/new.png")
    code, out, _ = plures("init", "photos/")
    assert (code, out) == (0, "tags.csv: 1 images added; 3 existing rows unchanged\n")
    assert Path("tags.csv").read_text() == text + "photos/new.png,\n"
    at = os.stat("tags.csv").st_mtime_ns
    assert plures("init", "photos")[1] == "tags.csv: 0 images added; 4 existing rows unchanged\n"
    assert os.stat("tags.csv").st_mtime_ns == at
    assert plures("init", "photos", "--force")[1] == "tags.csv: 4 images, 0 classes\n"
    assert "camel" not in Path("tags.csv").read_text()


TABLES = {
    "as it is": (b"image,tags\nphotos/0.png,cat\n", b"photos/1.png,\nphotos/2.png,\n"),
    "no last line end": (b"image,tags\nphotos/0.png,cat", b"\nphotos/1.png,\nphotos/2.png,"),
    "CRLF and BOM": (b"\xef\xbb\xbfimage,tags\r\nphotos/0.png,cat\r\n", b"photos/1.png,\r\nphotos/2.png,\r\n"),
    "CRLF, no last": (b"image,tags\r\nphotos/0.png,cat", b"\r\nphotos/1.png,\r\nphotos/2.png,"),
    "quoted": (b'"tags","image"\n"a, b","photos/0.png"\n', b",photos/1.png\n,photos/2.png\n"),
    "semicolon": (b"tags;note;image\ncat|dog;mine;photos/0.png\n", b";;photos/1.png\n;;photos/2.png\n"),
    "one column per class": (b"image,cat,dog\nphotos/0.png,1,0\n", b"photos/1.png,,\nphotos/2.png,,\n"),
    "split": (b"split,image,tags\nval,photos/0.png,cat\n", b",photos/1.png,\n,photos/2.png,\n"),
    "spaces and ./": (b"image , tags\n ./photos/0.png , cat\n\n", b"photos/1.png,\nphotos/2.png,\n"),
    "backslash": (b"image,tags\nphotos\\0.png,cat\n", b"photos/1.png,\nphotos/2.png,\n"),
    "other case and %": (b"image,tags\nPhotos/%30.PNG,cat\n", b"photos/1.png,\nphotos/2.png,\n"),
    "line end in a cell": (b'image,tags,note\nphotos/0.png,cat,"a\nb"\n', b"photos/1.png,,\nphotos/2.png,,\n"),
    "from photos/": (b"image,tags\n0.png,cat\n", b"1.png,\n2.png,\n"),
    "from photos/, %": (b"image,tags\n%30.png,cat\n", b"1.png,\n2.png,\n"),
    "of another machine": (b"image,tags\nC:\\own\\photos\\0.png,cat\n", b"photos/1.png,\nphotos/2.png,\n"),
    "a photo that is gone": (b"image,tags\nphotos/0.png,cat\nphotos/gone.png,\n", b"photos/1.png,\nphotos/2.png,\n"),
    "empty but for its header": (b"image,tags\n", b"photos/0.png,\nphotos/1.png,\nphotos/2.png,\n"),
}


@pytest.mark.parametrize("case", TABLES)
def test_init_keeps_every_byte(place, case):
    before, added = TABLES[case]
    Path("real.csv").write_bytes(before)
    os.chmod("real.csv", 0o640)
    Path("tags.csv").unlink()
    os.symlink("real.csv", "tags.csv")
    done = init_table("photos", "tags.csv")
    assert Path("real.csv").read_bytes() == before + added
    assert done.added == added.count(b".png")
    assert Path("tags.csv").is_symlink()
    assert os.stat("real.csv").st_mode & 0o777 == 0o640
    assert init_table("photos", "tags.csv").added == 0
    assert Path("real.csv").read_bytes() == before + added


REFUSED = {
    "tags.csv": {
        b"colour,tags\nred,cat\n": "no column 'image'",
        b"": "the table is empty",
        "image,tags\na.png,cat\n".encode("utf-16"): "not a table of UTF-8 text",
        b"image,tags\n\xff.png,cat\n": "not a table of UTF-8 text",
        b'image,tags\na.png,"never closed\n': "not a table of UTF-8 text",
    },
    "tags.parquet": {b"PAR1": "rows can be added to .csv and .tsv only"},
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, cs in REFUSED.items() for c in cs])
def test_init_refuses_what_it_cannot_add_to(place, plures, name, content):
    Path(name).write_bytes(content)
    code, _, err = plures("init", "photos", "--out", name)
    assert code == 2
    assert err.startswith(f"plures: {name} is there already, and ")
    assert REFUSED[name][content] in err
    assert err.endswith("choose another --out, or replace it with --force\n")
    assert err.count("\n") == 1
    assert Path(name).read_bytes() == content


def test_init_in_the_folder_of_the_photos(place):
    for n in range(3):
        os.rename(f"photos/{n}.png", f"photos/{n}x.png")
    init_table("photos", "photos/tags.csv")
    text = Path("photos/tags.csv").read_text().replace('"0x.png",""', '"0x.png","mine"')
    Path("photos/tags.csv").write_text(text)
    Image.new("RGB", (8, 8), "white").save("photos/new.png")
    assert init_table("photos", "photos/tags.csv").added == 1  # the folder is not read as this table
    assert Path("photos/tags.csv").read_text() == text + "new.png,\n"


def test_init_adds_tags_where_the_table_can_hold_them(place, plures):
    for name, tag in (("0", "red"), ("1", "red"), ("2", "blue")):
        Path("by_class", tag).mkdir(parents=True, exist_ok=True)
        os.rename(f"photos/{name}.png", f"by_class/{tag}/{name}.png")
    Path("tags.csv").write_text("image,tags\nby_class/red/0.png,mine\n")
    init_table("by_class", "tags.csv")
    assert Path("tags.csv").read_text().splitlines()[1:] == [
        "by_class/red/0.png,mine", "by_class/blue/2.png,blue", "by_class/red/1.png,red"
    ]  # fmt: skip
    Path("tags.csv").write_text("image,red\nby_class/red/0.png,1\n")
    code, _, err = plures("init", "by_class")
    assert (code, err) == (
        2,
        "plures: tags.csv has no column 'tags' for what is known of the new images; add it, or choose another --out\n",
    )
    assert Path("tags.csv").read_text() == "image,red\nby_class/red/0.png,1\n"


@pytest.mark.parametrize("folder", ["", "deep/er/", "link/"])
def test_tables_find_their_images_from_any_folder(place, plures, folder):
    Path("far/away/from/here").mkdir(parents=True)
    os.symlink("far/away/from/here", "link")
    Path("other.csv").write_text("image,tags,absent\nphotos/0.png,blue,red\n")
    for command in (("init", "photos"), ("merge", "tags.csv", "other.csv")):
        out = f"{folder}{command[0]}.csv"
        assert plures(*command, "--out", out)[0] == 0
        images = Table().read(out)[0].images
        assert [os.path.realpath(image) for image in images] == [str(place / f"photos/{n}.png") for n in range(3)]
    cells = pq.read_table(f"{folder}merge.cells.parquet")["image"].to_pylist()
    conflicts = list(csv.DictReader(Path(f"{folder}merge.conflicts.csv").read_text().splitlines()))
    assert [row["class"] for row in conflicts] == ["red"]
    listed = pd.read_csv(f"{folder}merge.csv")["image"]
    assert {*cells, conflicts[0]["image"]} == {*listed}  # the same names, so that the files can be joined
