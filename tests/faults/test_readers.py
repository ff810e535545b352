"""Hostile input: a few mutations for every reader (benchmarks/fuzz.py does thousands), and each defect it found."""

import importlib.util
import json
import os
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from plures.config import Experiment
from plures.data.merge_files import read_spec
from plures.data.read import read
from plures.errors import BadData, PluresError
from plures.files import parse_json, parse_yaml
from plures.losses.label_memory import load_table
from plures.metrics.report import Report
from plures.models.model import build_model, load, save
from plures.models.weights.checkpoint_file import read_state
from plures.runs.run import Run
from plures.scoring.sources import images_of

pytest.importorskip("fastapi", reason="the review's readers need the web packages")
from plures.web.decisions import Decisions

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = benchmark("fuzz")


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    return fuzz.doors(tmp_path_factory.mktemp("seeds"))


NAMES = ["table csv, tags", "table parquet, tags", "coco", "voc", "nuswide official", "nuswide npy", "cub", "shards",
         "parquet shards", "list to predict", "experiment", "merge spec", "thresholds", "report", "model", "checkpoint",
         "label studio", "label studio, min", "label studio, csv", "datumaro", "cvat", "fiftyone", "huggingface",
         "fiftyone, samples", "vaw", "mmpretrain", "table txt, a label a row",
         "celeba", "open images", "imagenet txt", "xmp", "weights of others", "run's log",
         "review journal", "suggestions", "parts of predictions"]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_file_is_read_or_refused_in_one_line(doors, name, tmp_path):
    door, rng = doors[name], random.Random(name)
    fuzz.prepare(door, tmp_path)
    assert fuzz.tried(door, tmp_path)[0] == "read"
    for _ in range(8):
        path = rng.choice(list(door.files))
        made = fuzz.mutated(door.files[path], fuzz.KINDS_OF.get(Path(path).suffix, "bytes"), rng)
        (tmp_path / path).write_bytes(made)
        outcome = fuzz.tried(door, tmp_path)
        assert outcome[0] in ("read", "refused"), outcome
        (tmp_path / path).write_bytes(door.files[path])


# ------------------------------------------------------------------------------------------------ what was found by it


def test_aliases_that_spell_billions_are_refused_at_once(tmp_path):
    (tmp_path / "e.yaml").write_text(fuzz.BOMB + "epochs: *a9\n")
    with pytest.raises(PluresError, match="aliases spell too much"):
        Experiment.load(tmp_path / "e.yaml")
    with pytest.raises(ValueError, match="aliases spell too much"):
        parse_yaml("a: &a [*a]")
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


@pytest.mark.parametrize("text", ["[" * 100_000, "a: !!timestamp x", "!!bool x", "2001-99-99", "!!int ''"])
def test_odd_yaml_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, b"\xff\xfe{", "{"])
def test_odd_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_a_long_message_is_clipped():
    text = str(PluresError("begin " + "x" * 10**6 + " end"))
    assert len(text) < 2100
    assert text.startswith("begin ")
    assert text.endswith(" end")


def coco(tmp_path, **changes):
    file = tmp_path / "instances_train.json"
    content = json.loads(fuzz._coco())
    for key, value in changes.items():
        section, _, name = key.partition("_")
        content[section][0][name] = value
    file.write_text(json.dumps(content))
    (tmp_path / "0.png").touch()
    return f"coco:{file}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_width": 0}, "width 0; expected pixels"),
        ({"images_height": None}, "height None; expected pixels"),
        ({"images_file_name": 3}, "file_name 3; expected a path"),
        ({"images_id": [1]}, r"id \[1\]; expected a number or a word"),
        ({"categories_name": "dog"}, "class 'dog' stands there more than once"),
        ({"annotations_image_id": []}, "neither a number nor a word"),
        ({"annotations_bbox": [1, 2, 3, 10**400]}, "bbox is not four numbers"),
    ],
)
def test_coco_values_of_another_kind(tmp_path, change, message):
    with pytest.raises(BadData) as raised:
        read(coco(tmp_path, **change))
    assert any(__import__("re").search(message, f"{p.what}; expected {p.expected}") for p in raised.value.problems)


def test_a_coco_file_name_that_no_disk_can_hold(tmp_path):
    with pytest.raises(BadData, match="image is missing"):
        read(coco(tmp_path, images_file_name="9" * 5000 + ".png"))


def test_a_damaged_page_of_a_parquet_table(tmp_path):
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": ["0.png"] * 50, "tags": ["cat"] * 50}), file)
    content = bytearray(file.read_bytes())
    content[4:40] = bytes(36)
    file.write_bytes(content)
    with pytest.raises(BadData, match="damaged Parquet"):
        read(str(file))
    with pytest.raises(BadData, match="damaged Parquet"):
        list(images_of(file)())


def test_a_column_of_tags_of_another_type(tmp_path):
    pq.write_table(pa.table({"image": ["0.png"], "tags": [[{"a": 1}]]}), tmp_path / "t.parquet")
    with pytest.raises(BadData, match="column of tags is of type list"):
        read(str(tmp_path / "t.parquet"))


def test_a_carriage_return_in_a_cell_and_a_name_of_any_length(tmp_path):
    file = tmp_path / "t.csv"
    file.write_bytes(b"image,tags\n0.png,a\rb,c\n1.png,b\n")
    with pytest.raises(BadData, match="line end or a carriage return"):
        read(str(file))
    file.write_bytes(b"image," + b"x" * 200_000 + b"\n0.png,1\n")
    with pytest.raises(BadData, match="not a table"):
        read(str(file))


@pytest.mark.parametrize("image", ["a\0b.png", "a\0b/c.png", "\0"])
def test_a_null_character_in_a_path(tmp_path, image):
    (tmp_path / "tags.csv").write_text(f"image,tags\n{image},cat\n")
    with pytest.raises(BadData) as caught:
        read(f"table:{tmp_path}/tags.csv")
    assert "\0" not in str(caught.value)


def test_a_list_may_hold_a_name_of_any_bytes(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", name)
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png\n")
    assert [os.fsencode(path) for _, path in images_of(tmp_path / "list.txt")()] == [name]


def test_a_spec_of_another_shape(tmp_path):
    (tmp_path / "s.yaml").write_text("sources: {a: x.csv}\nparents: cat\n")
    with pytest.raises(PluresError, match="parents requires `name: other`"):
        read_spec(tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_text("sources: {a: {data: x.csv, scope: {complete: 3}}}\n")
    with pytest.raises(PluresError, match="complete requires a class"):
        read_spec(tmp_path / "s.yaml")


def test_a_report_of_other_values(tmp_path):
    made = fuzz._report()
    (tmp_path / "r.json").write_text(json.dumps(made | {"interval": made["interval"] | {"level": "x"}}))
    with pytest.raises(PluresError, match=r"not a report \(interval.level='x'"):
        Report.load(tmp_path / "r.json")


def test_a_log_a_checkpoint_and_a_journal_that_are_none(tmp_path):
    Experiment().save(tmp_path / "experiment.yaml")
    run = Run(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"epoch": 0}\n[1]\n')
    with pytest.raises(PluresError, match=r"log.jsonl, line 2: not a record"):
        _ = run.log
    torch.save({"a": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(PluresError, match="damaged"):
        run.load_checkpoint()
    (tmp_path / "t.csv").write_text("image,tags\n0.png,cat\n")
    journal = tmp_path / "t.csv.journal.jsonl"
    for _ in range(2):  # the journal is let go of: the second says the same, not that another has it open
        journal.write_text('{"id": "a", "image": 3}\n')
        with pytest.raises(PluresError, match=r"line 1: not a decision"):
            Decisions(tmp_path / "t.csv")
    journal.write_text("no json\n")
    for _ in range(2):
        with pytest.raises(PluresError, match="not a journal entry"):
            Decisions(tmp_path / "t.csv")


# -------------------------------------------------------------------------------------------------------- hostile files


class Command:
    """Unpickled carelessly, this runs a command."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_no_file_can_run_code(tmp_path):
    canary = tmp_path / "ran"
    hostile = {"stage": 0, "epoch": 0, "best": {}, "net": {}, "state_dict": Command(canary)}
    Experiment().save(tmp_path / "experiment.yaml")
    save(build_model("small_conv", "linear", ("cat",), {"image_size": 16}), tmp_path)
    for write in (lambda file: torch.save(hostile, file), lambda file: file.write_bytes(pickle.dumps(hostile))):
        for name in ("checkpoint.pt", "w.pkl", "label_state.safetensors", "model.safetensors"):
            write(tmp_path / name)
        for open_it in (
            Run(tmp_path).load_checkpoint,
            lambda: read_state(tmp_path / "w.pkl"),
            lambda: load_table(tmp_path / "label_state.safetensors", torch.Size((1, 1))),
            lambda: load(tmp_path),
        ):
            with pytest.raises(PluresError):
                open_it()
    for text in (f"!!python/object/apply:os.system ['touch {canary}']", f"a: !!python/name:os.system ''\nb: {canary}"):
        (tmp_path / "e.yaml").write_text(text)
        for open_it in (Experiment.load, read_spec):
            with pytest.raises(PluresError, match="not a YAML file"):
                open_it(tmp_path / "e.yaml")
    np.save(tmp_path / "formatted_train_labels.npy", np.array([Command(canary)]), allow_pickle=True)
    np.save(tmp_path / "formatted_train_images.npy", np.array(["a.png"]))
    with pytest.raises(PluresError):
        read(f"nuswide:{tmp_path}")
    assert not canary.exists()
