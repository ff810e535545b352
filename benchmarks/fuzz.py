"""Hostile input at every door: valid files are mutated and read; anything but a clear line is a defect.

    python benchmarks/fuzz.py --inputs 3000 [--only coco ...] [--seed 1]

Each door reads in a process of its own, with a time limit a file and a limit of memory, so that a crash of a library
below Python or a hang is seen, too. A defect is an error that is no PluresError, a hang, or a crash; each kind is
printed once with its input. Counts go to results/fuzz.csv.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from plures.config import Experiment
from plures.data.formats.voc import CLASSES
from plures.data.merge_files import read_spec
from plures.data.photos import open_image
from plures.data.read import read
from plures.errors import PluresError
from plures.metrics.report import Report
from plures.metrics.thresholds import Thresholds
from plures.models.model import build_model, load, save
from plures.models.weights.checkpoint_file import read_state
from plures.models.weights.released import read_config
from plures.prediction.files import Parts, Rows
from plures.runs.run import Run
from plures.scoring.sources import images_of
from plures.web.decisions import Decision, Decisions
from plures.web.questions import read_suggestions

LONGEST = 20_000  # characters of a message
SECONDS = 10  # for one input; all of them are of a few kilobytes
MEMORY = 2 * 2**30  # bytes of address space beyond what the process has when it begins
KINDS = ("cat", "dog", "sofa")


@dataclass
class Door:
    """A reader. files: what is mutated, by path from the folder; read: called with the folder after each mutation."""

    files: dict[str, bytes]
    read: Callable[[Path], Any]


class Hang(BaseException):
    """An input took longer than SECONDS."""


# ---------------------------------------------------------------------------------------------------------- valid files


def photo(shade: int = 0, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(shade).integers(0, 256, (9, 12, 3), np.uint8)).save(buffer, form)
    return buffer.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _parquet(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _coco() -> bytes:
    images = [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 9} for i in range(3)]
    cells = [{"id": i, "image_id": i % 3, "category_id": 1 + i % 3, "bbox": [1, 2, 3.5, 4]} for i in range(5)]
    names = [{"id": i, "name": name} for i, name in enumerate(KINDS, 1)]
    return json.dumps({"images": images, "annotations": cells, "categories": names}).encode()


def _exports() -> dict[str, bytes]:
    """A small export of each tool, by its name in the table of doors."""
    choice = {"from_name": "c", "to_name": "i", "type": "choices", "value": {"choices": ["cat", "dog"]}}
    tasks = [
        {"id": i, "data": {"image": f"/data/upload/1/{i}.png"}, "annotations": [{"result": [choice]}]} for i in (0, 1)
    ]
    flat = [{"image": f"{i}.png", "id": i, "c": c, "annotator": 1, "annotation_id": i}
            for i, c in enumerate(["cat", {"choices": ["cat", "dog"]}])]  # fmt: skip
    label = {"id": 0, "type": "label", "label_id": 1}
    items = [{"id": str(i), "annotations": [label], "image": {"path": f"{i}.png"}} for i in (0, 1)]
    names = {"label": {"labels": [{"name": name, "parent": ""} for name in KINDS]}}
    xml = "".join(f'<image id="{i}" name="{i}.png"><tag label="cat" source="manual"></tag></image>' for i in (0, 1))
    labels = {"0": 0, "1.png": [0, 2], "2": {"label": "dog", "confidence": 0.5}}
    several = {"_cls": "Classifications", "classifications": [{"label": "cat"}, {"label": "dog"}]}
    samples = [{"filepath": f"{i}.png", "tags": ["train"], "ground_truth": several} for i in (0, 1)]
    return {
        "labelstudio.json": json.dumps(tasks).encode(),
        "min.json": json.dumps(flat).encode(),
        "labelstudio.csv": b"annotation_id,annotator,c,id,image\n1,a,cat,1,0.png\n"
        b'2,a,"{""choices"": [""a"", ""b""]}",2,1.png\n',
        "datumaro.json": json.dumps({"info": {}, "categories": names, "items": items}).encode(),
        "cvat.xml": f"<annotations><version>1.1</version><meta><job><labels><label><name>bird</name></label></labels>"
        f"</job></meta>{xml}</annotations>".encode(),
        "labels.json": json.dumps({"classes": KINDS, "labels": labels}).encode(),
        "metadata.jsonl": b'{"file_name": "0.png", "labels": ["cat", "dog"]}\n{"file_name": "1.png", "labels": []}\n',
        "celeba.txt": b"2\ncat dog\n0.png 1 -1\n1.png -1 1\n",
        "openimages.csv": b"ImageID,Source,LabelName,Confidence\n0,verification,/m/1,1\n1,verification,/m/2,0\n"
        b"1,machine,/m/1,0.7\n",
        "samples.json": json.dumps({"samples": samples}).encode(),
        "vaw.json": json.dumps(
            [
                {
                    "image_id": "0.png",
                    "instance_id": 1,
                    "positive_attributes": ["red", "wet"],
                    "negative_attributes": ["blue"],
                }
            ]
        ).encode(),
        "mmpretrain.json": json.dumps(
            {
                "metainfo": {"classes": KINDS},
                "data_list": [{"img_path": "0.png", "gt_label": [0, 2]}, {"img_path": "1.png", "gt_label": 1}],
            }
        ).encode(),
        "labels.txt": b"image_id\tlabel\tconfidence\n0.png\tcat\t1\n0.png\tdog\t0\n1\t('cat', 'dog')\t1\n",
        "synsets.txt": b"cat\ndog\n",
        "train.txt": b"0.png 0 1\n1.png\n",
        "photos/0.xmp": XMP,
    }


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/">'
    b"<dc:subject><rdf:Bag><rdf:li>bird</rdf:li></rdf:Bag></dc:subject><lr:hierarchicalSubject><rdf:Bag><rdf:li>animal|"
    b"bird</rdf:li></rdf:Bag></lr:hierarchicalSubject></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def _keywords() -> bytes:
    """A JPEG with XMP, and EXIF keywords."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x9C9E] = "cat;dog".encode("utf-16-le")
    Image.new("RGB", (12, 9)).save(buffer, "JPEG", exif=exif, xmp=XMP)
    return buffer.getvalue()


def _voc() -> dict[str, bytes]:
    files = {}
    for name in CLASSES:
        files[f"ImageSets/Main/{name}_train.txt"] = b"2008_000001 1\n2008_000002 -1\n"
        files[f"ImageSets/Main/{name}_val.txt"] = b"2008_000003 0\n"
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>8</xmax><ymax>9</ymax></bndbox>"
    xml = f"<annotation><size><width>12</width><height>9</height></size><object><name>bird</name>{box}</object>"
    return files | {f"Annotations/2008_00000{i}.xml": f"{xml}</annotation>".encode() for i in (1, 2, 3)}


def _nuswide() -> dict[str, bytes]:
    files = {"Concepts81.txt": b"sky\ndog\n"}
    for subset in ("Train", "Test"):
        files[f"ImageList/{subset}Imagelist.txt"] = b"a\\0.png\r\nb\\1.png\r\n"
        for concept in ("sky", "dog"):
            files[f"Groundtruth/TrainTestLabels/Labels_{concept}_{subset}.txt"] = b"0\n1\n"
    return files


def _cub() -> dict[str, bytes]:
    answers = "".join(f"{i} {k} {(i + k) % 2} {1 + (i * k) % 4} 1.5\n" for i in (1, 2, 3) for k in (1, 2))
    return {
        "CUB_200_2011/images.txt": b"1 a/0.png\n2 a/1.png\n3 b/2.png\n",
        "CUB_200_2011/train_test_split.txt": b"1 1\n2 0\n3 1\n",
        "CUB_200_2011/attributes/image_attribute_labels.txt": answers.encode(),
        "attributes.txt": b"1 has_bill::long\n2 has_wing::blue\n",
    }


def _mlspl() -> dict[str, bytes]:
    cells, names = np.array([[0, 1], [1, 0]]), np.array(["0.png", "1.png"])
    return {
        f"formatted_{s}_{what}.npy": _npy(array)
        for s in ("train", "val")
        for what, array in (("labels", cells), ("images", names))
    }


TAGS = "image,tags,absent,split\n0.png,cat;dog,sofa,train\n1.png,sofa,,val\n2.png,,,train\n"
CELLS = "image,cat,dog,sofa\n0.png,1,0,\n1.png,,1,0\n2.png,0,0,1\n"
SUGGESTIONS = (
    "image,tag,kind,score,rank,method,heatmap\n0.png,sofa,missing,0.9,1,model,\n1.png,cat,wrong,0.2,1,m,h.png\n"
)
SPEC = """
sources:
  ours: {data: tags.csv, scope: {complete: [dog, cat], positive: rest}}
  theirs: {data: other.csv, scope: positive, rename: {Cat: cat}}
synonyms: {sofa: [couch, settee]}
parents: {cat: animal, dog: [animal]}
match: path
"""


def _journal(folder: Path) -> bytes:
    (folder / "tags.csv").write_text(TAGS)
    kept = Decisions(folder / "tags.csv")
    kept.keep([Decision("a", "0.png", {"sofa": "yes"}, {"sofa": 0}, split="val")], "tab")
    kept.undo("tab", "b")
    kept.keep([Decision("c", "1.png", {"cat": "no", "dog": "unsure"}, {"cat": 0, "dog": 0})], "tab")
    kept.close()
    return kept.journal.path.read_bytes()


def _open_journal(folder: Path) -> None:
    (folder / "tags.csv").write_text(TAGS)
    kept = Decisions(folder / "tags.csv")
    try:
        dataset = read(f"table:{folder / 'tags.csv'}", labelled=False)
        kept.know(dataset, list(range(len(dataset))), [list(dataset.classes)] * len(dataset))
        [kept.cell("0.png", name) for name in dataset.classes]
        kept.undo("tab", "z")
    finally:
        kept.close()


def _checkpoint(run: Path) -> bytes:
    state = {"stage": 0, "epoch": 1, "best": {"score": 0.5, "epoch": 1}, "net": {"a": torch.ones(3)}, "memory": None}
    torch.save(state, run / "checkpoint.pt")
    return (run / "checkpoint.pt").read_bytes()


def _weights(run: Path) -> bytes:
    torch.save({"state_dict": {"module.a": torch.ones(3)}, "epoch": 3, "lr": np.float64(0.1)}, run / "w.pkl")
    return (run / "w.pkl").read_bytes()


def doors(folder: Path) -> dict[str, Door]:
    """Every reader, with valid files of its kind."""
    run = folder / "seeds"
    run.mkdir()
    torch.manual_seed(0)
    save(build_model("small_conv", "linear", KINDS, {"image_size": 16}), run)
    Thresholds.constant(KINDS).save(run)
    experiment = Experiment(data="tags.csv", loss={"name": "role", "expected_positives": 2})
    experiment.save(run / "experiment.yaml")
    weights, model, thresholds, setup = (
        (run / name).read_bytes() for name in ("model.safetensors", "model.json", "thresholds.json", "experiment.yaml")
    )
    run_files = {"model.json": model, "model.safetensors": weights}
    column = {"image": ["0.png", "1.png"], "cat": pa.array([1, 0], pa.int8()), "dog": pa.array([1.0, None])}
    lists = {"image": ["0.png", "1.png"], "tags": [["cat"], ["dog", "sofa"]], "split": ["train", "val"]}
    table = {"tags.csv": TAGS.encode()}

    def data(spec: str) -> Callable[[Path], Any]:
        def go(at: Path) -> None:
            for skip_bad in (True, False):
                read(spec.format(at), skip_bad=skip_bad)

        return go

    def photos_of_parquet(at: Path) -> None:
        for skip_bad in (True, False):
            read(f"shards:{at}/x.parquet", skip_bad=skip_bad, verify=True)

    def verified(at: Path) -> None:
        for file in at.glob("photos/*/*"):
            with suppress(PluresError):
                open_image(file, at_least=8)
        read(f"folder:{at}/photos", verify=True, skip_bad=True)

    def predict_list(name: str) -> Callable[[Path], Any]:
        return lambda at: list(images_of(at / name)())

    def suggestions(at: Path) -> None:
        whole = read(f"table:{at}/tags.csv")
        read_suggestions(at / "review.csv", whole, at / "tags.csv")

    forms = {"a.png": "PNG", "b.jpg": "JPEG", "c.gif": "GIF", "d.bmp": "BMP", "e.tif": "TIFF", "f.webp": "WEBP"}
    shard = {"a.png": photo(1), "a.json": b'{"tags": ["cat"], "absent": ["dog"], "split": "train"}'}
    shard |= {"b.txt": b"dog; cat\n", "b.png": photo(2)}
    bytes_of = {"image": [photo(1), photo(2)], "tags": ["cat", "dog;cat"], "absent": ["dog", None]}
    report = json.dumps(_report()).encode()
    exports = _exports()

    def export(form: str, *names: str) -> Door:
        return Door({name: exports[name] for name in names}, data(f"{form}:{{}}/{names[-1]}"))

    return {
        "label studio": export("label_studio", "labelstudio.json"),
        "label studio, min": export("label_studio", "min.json"),
        "label studio, csv": export("label_studio", "labelstudio.csv"),
        "datumaro": export("datumaro", "datumaro.json"),
        "cvat": export("cvat", "cvat.xml"),
        "fiftyone": export("fiftyone", "labels.json"),
        "fiftyone, samples": export("fiftyone", "samples.json"),
        "vaw": export("vaw", "vaw.json"),
        "mmpretrain": export("mmpretrain", "mmpretrain.json"),
        "table txt, a label a row": export("table", "labels.txt"),
        "huggingface": export("huggingface", "metadata.jsonl"),
        "celeba": export("celeba", "celeba.txt"),
        "open images": export("open_images", "openimages.csv"),
        "imagenet txt": export("imagenet_txt", "synsets.txt", "train.txt"),
        "xmp": Door({"photos/0.jpg": _keywords(), "photos/0.xmp": XMP}, data("xmp:{}/photos")),
        "table csv, tags": Door(table, data("table:{}/tags.csv")),
        "table csv, columns": Door({"tags.csv": CELLS.encode()}, data("table:{}/tags.csv")),
        "table tsv": Door({"tags.tsv": CELLS.replace(",", "\t").encode()}, data("table:{}/tags.tsv")),
        "table parquet, columns": Door({"t.parquet": _parquet(column)}, data("table:{}/t.parquet")),
        "table parquet, tags": Door({"t.parquet": _parquet(lists)}, data("table:{}/t.parquet")),
        "folder and photos": Door(
            {f"photos/{KINDS[i % 3]}/{n}": photo(i, f) for i, (n, f) in enumerate(forms.items())}, verified
        ),
        "coco": Door({"at/instances_train.json": _coco()}, data("coco:{}/at/instances_train.json")),
        "voc": Door(_voc(), data("voc:{}")),
        "nuswide official": Door(_nuswide(), data("nuswide:{}")),
        "nuswide csv": Door({"nus_wid_data.csv": b"filepath,label,split_name\n0.png,\"['sky', 'sun']\",train\n"
                             b"1.png,\"['sun']\",val\n"}, data("nuswide:{}")),
        "nuswide npy": Door(_mlspl(), data("nuswide:{}")),
        "cub": Door(_cub(), data("cub:{}")),
        "shards": Door({"x.tar": _tar(shard)}, data("shards:{}/x.tar")),
        "parquet shards": Door({"x.parquet": _parquet(bytes_of)}, photos_of_parquet),
        "list to predict": Door({"list.txt": b"0.png\n1.png\n"}, predict_list("list.txt")),
        "table to predict": Door(table, predict_list("tags.csv")),
        "parquet to predict": Door({"t.parquet": _parquet(lists)}, predict_list("t.parquet")),
        "experiment": Door({"experiment.yaml": setup}, lambda at: Run(at).experiment.to_settings()),
        "merge spec": Door({"spec.yaml": SPEC.encode()}, lambda at: read_spec(at / "spec.yaml")),
        "thresholds": Door({"thresholds.json": thresholds}, lambda at: Thresholds.load(at, KINDS)),
        "report": Door({"report.json": report}, lambda at: Report.load(at / "report.json").render()),
        "model": Door(run_files, load),
        "checkpoint": Door({"checkpoint.pt": _checkpoint(run), "experiment.yaml": setup},
                           lambda at: Run(at).load_checkpoint()),
        "weights of others": Door({"w.pkl": _weights(run)}, lambda at: read_state(at / "w.pkl")),
        "weights, safetensors": Door({"w.safetensors": weights}, lambda at: read_state(at / "w.safetensors")),
        "their configuration": Door({"w.json": b'{"num_class": 3, "backbone": "resnet18"}'},
                                    lambda at: read_config(at / "w.json")),
        "run's log": Door({"experiment.yaml": setup, "log.jsonl": b'{"stage": "probe", "epoch": 0, "loss": 1}\n'},
                          lambda at: Run(at).log),
        "review journal": Door({"tags.csv.journal.jsonl": _journal(folder / "seeds")}, _open_journal),
        "suggestions": Door({"review.csv": SUGGESTIONS.encode()}, suggestions),
        "parts of predictions": Door({"prediction.json": b'{"model_sha256": "a", "classes": ["cat"]}',
                                      "part-00000.parquet": _part(run)}, _parts),
    }  # fmt: skip


def _part(run: Path) -> bytes:
    rows = Rows(["0.png", "1.png"], np.full((2, 3), 0.5), np.ones((2, 3), np.bool_))
    Parts(run / "parts", KINDS).write(0, ["0.png", "1.png"], [rows], [])
    return (run / "parts" / "part-00000.parquet").read_bytes()


def _parts(at: Path) -> None:
    parts = Parts(at, KINDS)
    parts.begin({"model_sha256": "a", "classes": ["cat"]}, resume=True)
    [parts.record(number) for number in parts.numbers()]


def _report() -> dict[str, Any]:
    from plures.labels import Labels
    from plures.metrics.report import evaluate_scores

    cells = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]], np.int8)
    return evaluate_scores(np.random.default_rng(0).normal(size=(4, 3)), Labels(cells), KINDS).to_dict()


# ----------------------------------------------------------------------------------------------------------- mutations

# which mutations make sense
KINDS_OF = {
    ".txt": "text",
    ".csv": "text",
    ".tsv": "text",
    ".json": "json",
    ".jsonl": "json",
    ".yaml": "yaml",
    ".xml": "xml",
    ".xmp": "xml",
}
DEEP = 100_000
LAUGHS = (
    '<!DOCTYPE l [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(12))
    + "]>"
)
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
WORDS = [
    b"", b"null", b"[]", b"{}", b"true", b'""', b"-1", b"0", b"1e999", b"NaN", b"9" * 5000, b"-0.5", b"1_000",
         b"\x00", b"\xff\xfe", b'"', b"'", b",", b"\n", b"\r", b"\t", b";", b"..", b"/", b"../../x", b"~", b"\xe2\x80\xae",  # noqa: E501
         b"18446744073709551616", b"0x1F", b"2001-99-99", b"!!python/object/apply:os.system ['echo']", b"*a", b"&a ",
         b"<<: ", b"%s", b"{0}", b"\\", b"&a;", b"<x>", b"]]>", b"nan", b"inf", b"image", b"tags", b"a" * 300]  # fmt: skip  # noqa: E501
VALUES: list[Any] = [None, True, False, 0, -1, 1, 2**63, -(2**70), 1.5, float("nan"), float("inf"), "", "x", "\x00", "\ud800",  # noqa: E501
                     "a" * 5000, [], {}, [1], [[]], {"a": 1}, [None] * 4, "cat", "../..", "9" * 5000]  # fmt: skip


def mutated(content: bytes, kind: str, rng: random.Random) -> bytes:
    """A broken version of a valid file."""
    if kind == "json" and rng.random() < 0.6:
        return _other_json(content, rng)
    if kind == "yaml" and rng.random() < 0.5:
        return _other_yaml(content, rng)
    made = content
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        made = rng.choice(TEXT if kind != "bytes" else BYTES)(made, rng)
    if kind == "xml" and rng.random() < 0.05:
        made = (LAUGHS + made.decode("utf-8", "replace").replace("bird", "&k;").replace(">12<", ">&k;<")).encode()
    return made


def _flip(c: bytes, rng: random.Random) -> bytes:
    made = bytearray(c)
    for _ in range(rng.choice((1, 2, 8, 50))):
        if made:
            made[rng.randrange(len(made))] = rng.randrange(256)
    return bytes(made)


def _cut(c: bytes, rng: random.Random) -> bytes:
    return c[: rng.randrange(len(c) + 1)]


def _drop(c: bytes, rng: random.Random) -> bytes:
    a = rng.randrange(len(c) + 1)
    return c[:a] + c[a + rng.randrange(40) :]


def _repeat(c: bytes, rng: random.Random) -> bytes:
    a = rng.randrange(len(c) + 1)
    b = a + rng.randrange(200)
    return c[:b] + c[a:b] * rng.choice((1, 3, 100)) + c[b:]


def _insert(c: bytes, rng: random.Random) -> bytes:
    a = rng.randrange(len(c) + 1)
    return c[:a] + rng.choice(WORDS) + c[a + rng.choice((0, 0, 1, 3)) :]


def _number(c: bytes, rng: random.Random) -> bytes:
    places = [i for i, byte in enumerate(c) if 48 <= byte <= 57]
    if not places:
        return _insert(c, rng)
    at = rng.choice(places)
    return c[:at] + rng.choice(WORDS) + c[at + 1 :]


def _encode(c: bytes, rng: random.Random) -> bytes:
    text = c.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "cp500", "utf-7")), "replace")


def _nest(c: bytes, rng: random.Random) -> bytes:
    a = rng.randrange(len(c) + 1)
    return c[:a] + rng.choice((b"[", b'{"a":', b"<a>", b"(", b'"', b"- ", b"[{")) * rng.choice((50, DEEP)) + c[a:]


def _shuffle(c: bytes, rng: random.Random) -> bytes:
    lines = c.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join([*lines[: rng.randrange(len(lines) + 1)], rng.choice(lines)])


TEXT = (_flip, _cut, _drop, _repeat, _insert, _insert, _number, _number, _encode, _nest, _shuffle)
BYTES = (_flip, _flip, _flip, _cut, _drop, _repeat, _insert)


def _replaced(value: Any, rng: random.Random) -> Any:
    """The same tree with one node changed, taken away or doubled."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        made = dict(value) if isinstance(value, dict) else list(value)
        deed = rng.random()
        if deed < 0.08:
            del made[key]
        elif deed < 0.14 and isinstance(made, dict):
            made[rng.choice(("x", "", "self", "name", "image", "undo", "written"))] = made.pop(key)
        elif deed < 0.2 and isinstance(made, list):
            made.append(made[key])
        else:
            made[key] = _replaced(made[key], rng)
        return made
    return rng.choice(VALUES)


def _other_json(content: bytes, rng: random.Random) -> bytes:
    """One or more changes in the tree; files of lines keep being files of lines."""
    try:
        lines = [json.loads(line) for line in content.splitlines()] if content.count(b"\n{") else None
        tree = lines if lines is not None else json.loads(content)
    except ValueError:
        return _insert(content, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        tree = _replaced(tree, rng)
    if lines is not None and isinstance(tree, list):
        return b"".join(json.dumps(line).encode() + b"\n" for line in tree)
    return json.dumps(tree).encode()


def _other_yaml(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.05:
        key = rng.choice((b"epochs", b"loss", b"data", b"sources", b"parents", b"synonyms", b"match", b"start"))
        return BOMB.encode() + key + b": *a9\n"
    tree = yaml.safe_load(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        tree = _replaced(tree, rng)
    try:
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return _insert(content, rng)


# ------------------------------------------------------------------------------------------------------------ the loop


def tried(door: Door, folder: Path) -> tuple[str, str]:
    """What reading did: "read", "refused", or the kind of defect; and the message."""

    def hang(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        door.read(folder)
        return "read", ""
    except PluresError as error:
        line = str(error)
        return ("refused" if line.strip() and len(line) < LONGEST else f"a line of {len(line)} characters"), line
    except BaseException as error:
        return f"{type(error).__name__} in {_where(error)}", str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if f"{os.sep}plures{os.sep}" in f.filename]
    return ours[-1] if ours else "?"


def prepare(door: Door, folder: Path) -> None:
    """Lay the door's files out, with the photos that they name."""
    for i in range(3):
        for place in ("", "a", "b", "CUB_200_2011/images/a", "CUB_200_2011/images/b"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            (folder / place / f"{i}.png").write_bytes(photo(i))
        (folder / "JPEGImages").mkdir(exist_ok=True)
        (folder / f"JPEGImages/2008_00000{i + 1}.jpg").write_bytes(photo(i, "JPEG"))
    (folder / "tags.csv").write_text(TAGS)
    for path, content in door.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def attack(name: str, inputs: int, seed: int, found: Any) -> None:
    """Mutate and read, in this process; `found` gets the outcomes with their numbers, and an example of each."""
    os.environ["NO_COLOR"] = "1"
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    rng = random.Random(f"{seed} {name}")
    door = doors(root)[name]
    folder = root / "at"
    prepare(door, folder)
    assert tried(door, folder)[0] == "read", f"{name}: {tried(door, folder)}"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    counts: dict[str, int] = {}
    for _ in range(inputs):
        path = rng.choice(list(door.files))
        made = mutated(door.files[path], KINDS_OF.get(Path(path).suffix, "bytes"), rng)
        found["now"] = (path, made[:200])
        (folder / path).write_bytes(made)
        outcome, message = tried(door, folder)
        if outcome not in ("read", "refused") and outcome not in counts:
            found[f"example {outcome}"] = f"{message[:150]}\n    {path}: {made[:200]!r}"
        counts[outcome] = counts.get(outcome, 0) + 1
        (folder / path).write_bytes(door.files[path])
    found["counts"], found["peak"] = counts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    shutil.rmtree(root)


def campaign(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """Attack a door in a process of its own; a row for the table."""
    torch.set_num_threads(1)
    started = time.monotonic()
    found: dict[str, Any] = {}
    with multiprocessing.Manager() as manager:
        shared = manager.dict()
        process = multiprocessing.get_context("fork").Process(target=attack, args=(name, inputs, seed, shared))
        process.start()
        process.join()
        found = dict(shared)
        counts = found.get("counts", {})
        defects = {k: n for k, n in counts.items() if k not in ("read", "refused")}
        if process.exitcode:
            defects[f"the process ended with {process.exitcode} on {found.get('now')}"] = 1
        for kind, times in defects.items():
            print(f"  {name}: {times} x {kind}\n    {found.get(f'example {kind}')}", flush=True)
    row = {"door": name, "inputs": sum(counts.values()), "read": counts.get("read", 0)}
    row |= {"refused": counts.get("refused", 0), "defects": sum(defects.values()), "kinds_of_defect": len(defects)}
    return row | {"peak_mb": found.get("peak"), "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in doors(Path(folder)) if not asked.only or any(word in name for word in asked.only)]
    rows = []
    for name in names:
        rows.append(campaign(name, asked.inputs, asked.seed))
        print(rows[-1], flush=True)
    if not asked.only:
        from environment import write

        print(write("fuzz", rows))


if __name__ == "__main__":
    main()
