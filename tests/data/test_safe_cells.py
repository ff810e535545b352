"""Names that a spreadsheet would run as formulas: text in every CSV that plures writes, themselves when read again."""

import csv
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import plures
from plures.analysis.missing import rank_missing, write_suggestions
from plures.config import Experiment
from plures.data.convert import scores_of
from plures.data.dataset import Dataset
from plures.data.formats.safe_cells import bare, guarded
from plures.data.merge import Scope, merge
from plures.data.merge_files import open_source, write_merged
from plures.data.write import init_table, write_table
from plures.labels import Labels
from plures.models.model import build_model, save
from plures.prediction.predict import predict
from plures.runs.run import Run

DANGEROUS = ("=", "+", "-", "@", "\t", "\r")
CLASSES = ("'=quoted", "+size", "-old", "=cmd|' ;'!A0".replace(";", ","), "@home", "cat")
IMAGES = ("=1+1.png", "-a.png", "@b.png", "'=c.png", "d.png")


def words_of(file, delimiter=","):
    with file.open(newline="", encoding="utf-8") as lines:
        return [cell for row in csv.reader(lines, delimiter=delimiter) for cell in row]


def formulas(file, delimiter=","):
    """Cells, and the tags within them, that a spreadsheet would run; numbers are none."""
    found = [word for cell in words_of(file, delimiter) for word in cell.split(";")]
    return [word for word in found if guarded(word) != word and not word.startswith("'")]


@given(st.text(alphabet="'=+-@\t\r1.aＺ＝ ", max_size=6))
def test_every_text_comes_back(text):
    assert bare(guarded(text)) == text
    assert bare(guarded(text, formulas=False)) == text
    safe = guarded(text)
    try:
        float(safe)
    except ValueError:
        assert len(safe) < 2 or not safe.startswith(DANGEROUS)


def test_a_number_and_an_apostrophe_stay():
    for text in ("-0.5", "+1", "1e-5", "'s-Hertogenbosch", "-", "cat", ""):
        assert guarded(text) == text
        assert bare(text) == text


@pytest.fixture
def photos(tmp_path):
    for place, name in enumerate(IMAGES):
        Image.fromarray(np.full((20, 20, 3), 40 * place, np.uint8)).save(tmp_path / name)
    values = np.full((len(IMAGES), len(CLASSES)), -1, np.int8)
    for row in range(len(IMAGES)):
        values[row, row], values[row, row + 1] = 1, 0
    values[0, 5] = 1
    return Dataset([str(tmp_path / name) for name in IMAGES], Labels(values), CLASSES)


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    Run.create(tmp_path / "run", Experiment(backbone={"name": "small_conv", "image_size": 16}, device="cpu"))
    save(build_model("small_conv", "codebook", CLASSES, {"image_size": 16}), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("safe", [True, False])
def test_a_table_reads_back(tmp_path, photos, suffix, safe):
    out = tmp_path / f"tags{suffix}"
    write_table(photos, out, safe_csv=safe)
    back = plures.read(f"table:{out}")
    assert back.classes == photos.classes
    assert list(map(str, back.images)) == list(map(str, photos.images))
    np.testing.assert_array_equal(back.labels.values, photos.labels.values)
    assert (formulas(out, "\t" if suffix == ".tsv" else ",") == []) == safe


def test_init_writes_and_extends_a_safe_table_by_default(tmp_path, photos):
    folder = tmp_path / "photos"
    for image in map(str, photos.images):
        (folder / "=cmd").mkdir(parents=True, exist_ok=True)
        shutil.move(image, folder / "=cmd" / image.rpartition("/")[2])
    out = folder / "=cmd" / "tags.csv"
    init_table(str(folder / "=cmd"), out)
    assert formulas(out) == []
    Image.new("RGB", (8, 8)).save(folder / "=cmd" / "+new.png")
    assert init_table(str(folder / "=cmd"), out).added == 1
    assert formulas(out) == []
    assert len(plures.read(f"table:{out}", labelled=False)) == len(IMAGES) + 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_predictions_are_safe_and_read_back(tmp_path, photos, run, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    write_table(photos, "tags.csv", safe_csv=True)
    out, raw = tmp_path / f"found{suffix}", tmp_path / f"raw{suffix}"
    predict(run, "tags.csv", out, threshold=0.01)
    predict(run, "tags.csv", raw, threshold=0.01, safe_csv=False)
    delimiter = "\t" if suffix == ".tsv" else ","
    assert formulas(out, delimiter) == []
    assert formulas(raw, delimiter) != []
    for file in (out, raw):
        back = plures.read(f"table:{file}")
        assert back.classes == tuple(sorted(CLASSES))
        assert [str(image).rpartition("/")[2] for image in back.images] == list(IMAGES)
    assert scores_of(str(out), plures.read(f"table:{out}")).shape == (len(IMAGES), len(CLASSES))


def test_suggestions_are_safe_and_answered_into_the_table(tmp_path, photos):
    pytest.importorskip("fastapi", reason='the pages need the web packages: pip install "plures[web]"')
    from plures.web.review import Review, Told

    table, ask = tmp_path / "tags.csv", tmp_path / "ask.csv"
    write_table(photos, table, safe_csv=True)
    found = rank_missing(
        np.full(photos.labels.values.shape, 0.5), photos.labels, images=photos.images, classes=photos.classes
    )
    write_suggestions(found, ask, photos)
    assert formulas(ask) == []
    review = Review(table, ask)
    try:
        assert {(q.row, q.tag) for q in review.questions} == {(s.row, s.tag) for s in found}
        for question in review.questions:
            answer = {"id": f"a{question.number}", "question": question.number, "answers": {question.tag: "yes"}}
            told = Told(tab="t", decisions=[{**answer, "versions": {question.tag: 0}}])
            assert review.tell(told)[0].status == "kept"
    finally:
        review.close()
    back = plures.read(f"table:{table}")
    np.testing.assert_array_equal(back.labels.present, photos.labels.values != 0)
    assert formulas(table) == []


def test_merged_tables_and_their_conflicts_are_safe(tmp_path, photos):
    write_table(photos, tmp_path / "a.csv")
    flipped = photos.with_labels(Labels(np.where(photos.labels.values >= 0, 1 - photos.labels.values, -1)))
    write_table(flipped, tmp_path / "b.csv")
    sources = [open_source(name, str(tmp_path / f"{name}.csv"), Scope(), {}) for name in ("a", "b")]
    for path in write_merged(merge(sources), sources, tmp_path / "merged.csv"):
        if path.suffix == ".csv":
            assert formulas(path) == []
