"""The table of measured beside published: which runs make up a row, what is missing, and its three spellings."""

import csv
import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from plures import Experiment, cli
from plures.config import recipe_settings
from plures.errors import PluresError
from plures.labels import Labels
from plures.metrics.report import evaluate_scores
from plures.report.table import COLUMNS, as_csv, as_html, as_markdown, render_table, table_rows, write_table
from plures.runs.run import IMPORTED, Run


@pytest.fixture
def make(tmp_path):
    """A run folder with a report of this mAP in percent (the shape of a finished run, without training one)."""

    def call(name, value, labels="a" * 64, imported=False, **settings):
        run = Run.create(tmp_path / name, Experiment(**settings))
        report = evaluate_scores(np.eye(2), Labels(np.eye(2, dtype=np.int8)), ("cat", "dog"), bootstrap=0)
        stored = report.to_dict() | {"map": value / 100, "split": "test", "selected": {"by": "val_map", "epoch": 1}}
        run.write_json("report.json", stored)
        run.write_json("environment.json", {"train_labels_sha256": labels})
        if imported:
            run.write_json(IMPORTED, {})
        return run.path

    return call


def test_runs_that_differ_in_seeds_only_are_one_row(make):
    single = {"name": "single_positive", "seed": 1}
    runs = [make(str(s), v, seed=s, supervision=single, device="cpu") for s, v in enumerate((80, 82, 84))]
    (row,) = table_rows(runs)
    assert (row["measured"], row["sd"], row["n"], row["seeds"]) == ("82.00", "2.00", "3", "0 1 2")
    assert (row["definition"], row["images"], row["classes"]) == ("plain", "2", "2 of 2")
    assert (row["labels"], row["selected"], row["split"]) == ("aaaaaaaa", "val_map", "test")
    assert row["supervision"] == "single_positive"
    again = make("other draw", 90, seed=3, supervision={"name": "single_positive", "seed": 2}, labels="b" * 64)
    (row,) = table_rows([*runs, again, again])
    assert (row["n"], row["labels"]) == ("4", "2 draws")


@pytest.mark.parametrize("change", [{"lr": 0.5}, {"loss": "wan"}, {"head": "linear"}, {"supervision": "full"}])
def test_runs_that_differ_otherwise_are_rows_of_their_own(make, change):
    rows = table_rows([make("a", 80), make("b", 82, **change)])
    assert [row["measured"] for row in rows] == ["80.00", "82.00"]
    assert [row["sd"] for row in rows] == ["", ""]
    if "lr" in change:
        assert [row["settings"] for row in rows] == ["lr=0.001", "lr=0.5"]


def test_a_recipes_rows_come_in_its_order_with_the_missing_ones(make):
    values = recipe_settings("liu2021:swinl_384")
    swin = make("swin", 90, **{**values, "data": "coco:elsewhere", "epochs": 3, "device": "cpu"})
    own = make("own", 70)
    rows = table_rows([own, swin], recipe="liu2021")
    names = ["r101_448", "r101_576", "tresnetl_448", "tresnetl_22k_448", "swinl_384", "cvt_384"]
    assert [row["recipe"] for row in rows] == [*(f"liu2021:{name}" for name in names), ""]
    assert [row["measured"] for row in rows] == ["missing"] * 4 + ["90.00", "missing", "70.00"]
    assert [row["published"] for row in rows[:2]] == ["84.9 (coco14)", "86.5 (coco14)"]
    assert rows[4]["settings"] == "epochs=3"
    assert rows[4]["backbone"] == "swin_large_patch4_window12_384.ms_in22k 384"
    assert all(set(row) == set(COLUMNS) for row in rows)


def test_imported_weights_stand_beside_their_published_number(make):
    run = make("released", 84.9, imported=True, recipe="liu2021:r101_448", head="query2label", loss="q2l_asl")
    (row,) = table_rows([run])
    assert (row["published"], row["supervision"]) == ("84.9 (coco14)", "weights imported")
    assert (row["settings"], row["seeds"]) == ("", "")


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows = []

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.rows and data.strip():
            self.rows[-1].append(data)


def test_three_spellings_say_the_same(make, tmp_path):
    rows = table_rows([make("a", 80, loss={"name": "epr", "expected_positives": 1.5}), make("b", 81, seed=1)])
    for suffix in ("md", "csv", "html"):
        write_table(rows, tmp_path / f"t.{suffix}")
    table = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert table == rows
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == list(rows[0].values())
    assert "epr expected_positives=1.5" in lines[2]
    parser = Cells()
    parser.feed((tmp_path / "t.html").read_text())
    assert parser.rows[0] == list(COLUMNS.values())
    assert parser.rows[1] == [value for value in rows[0].values() if value]
    assert render_table(rows).row_count == 2
    with pytest.raises(PluresError, match=r"use \.md, \.csv, \.html"):
        write_table(rows, tmp_path / "t.xls")


def test_cells_are_escaped(make):
    rows = [dict.fromkeys(COLUMNS, "a|b <i>,")]
    assert "<i>" not in as_html(rows)
    assert as_markdown(rows).splitlines()[2].count(" | ") == len(COLUMNS) - 1
    assert next(csv.reader(as_csv(rows).splitlines()[1:])) == ["a|b <i>,"] * len(COLUMNS)


def test_runs_without_reports_and_unknown_recipes_are_one_line(make):
    path = make("a", 80)
    (path / "report.json").unlink()
    with pytest.raises(PluresError, match=r"no report yet; `plures evaluate .* --json .*report\.json` writes one"):
        table_rows([path])
    with pytest.raises(PluresError, match="unknown recipe 'liu2012'; did you mean 'liu2021'"):
        table_rows([], recipe="liu2012")
    with pytest.raises(PluresError, match="no run to show"):
        table_rows([])


def test_a_run_of_a_recipe_is_known_as_such(tmp_path, monkeypatch, capsys):
    """From the command line: train with a recipe, then table."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["plures", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert not end.value.code, err
        return out

    data = ("scenes", "data.train=40", "data.test=20", "data.val=20", "split=stratified", "val_share=0.2")
    small = ("backbone=small_conv", "head.code_width=16", "epochs=1", "device=cpu", "workers=0")
    call("train", *data, *small, "--recipe", "jouanneau2022:wn", "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["images"] == 20
    out = call("table", tmp_path / "run", "--recipe", "jouanneau2022", "--out", tmp_path / "t.csv")
    assert "missing" in out
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    names = ["bce", "an", "epr", "role", "wn"]
    assert [row["recipe"].split(":")[1] for row in rows] == names + [f"coco_{name}" for name in names]
    assert [rows[i]["published"] for i in (4, 9)] == ["60.4 (voc12)", "63.2 (coco14)"]
    assert call("table", "jouanneau2022", tmp_path / "run") == call(
        "table", tmp_path / "run", "--recipe", "jouanneau2022"
    )
    assert [bool(row["command"]) for row in rows] == [row["measured"] == "missing" for row in rows]
    command = "plures train coco:DIR --recipe jouanneau2022:coco_bce --out runs/jouanneau2022-coco_bce"
    assert rows[5]["command"] == command
    assert f"the first: {rows[0]['command']}" in out
    assert "epochs=1" in rows[4]["settings"]
    assert "backbone=small_conv" in rows[4]["settings"]
    assert len(rows[4]["labels"]) == 8


def test_a_row_without_a_published_number_says_so():
    published = {row["recipe"]: row["published"] for row in table_rows([], recipe="cole2021")}
    assert published["cole2021:pr"] == "none recorded"
    assert published["cole2021:role"] == "87.9 (voc12)"
