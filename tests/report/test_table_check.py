"""`plures table RECIPE --check DATA` on a made-up COCO of three and two images."""

import json
import sys

import pytest
from PIL import Image

from plures import cli
from plures.errors import PluresError
from plures.recipes import load_recipe, recipe_names
from plures.report import table_check
from plures.report.table_check import PUBLISHED, Count, check_data


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """3 training images, one without an annotation, and 2 of val; as the "paper" has it for variant mlspl."""
    for split, ids in (("train2014", (1, 2, 3)), ("val2014", (4, 5))):
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 4, "height": 4} for i in ids],
            "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
            "annotations": [{"image_id": i, "category_id": 1, "bbox": [0, 0, 2, 2]} for i in ids if i != 3],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (tmp_path / split).mkdir()
        for i in ids:
            Image.new("RGB", (4, 4)).save(tmp_path / split / f"{i}.png")
    counts = {("coco", "mlspl"): (2, 2, 2), ("coco", "query2label"): (3, 2, 2), ("voc", "mlspl"): (2, 2, 20)}
    monkeypatch.setattr(table_check, "PUBLISHED", counts)
    return tmp_path


def test_data_are_read_as_the_recipe_reads_them(coco):
    for recipe, train in (("cole2021", 2), ("jouanneau2022", 2), ("liu2021", 3)):  # variants mlspl, query2label
        counts, _ = check_data(recipe, f"coco:{coco}")
        assert counts == [Count("train", train, train), Count("test", 2, 2), Count("classes", 2, 2)]
        assert all(count.ok for count in counts)


def test_lines_and_exit_codes(coco, capsys, monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["plures", "table", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    said = "train: expected 3, found 3, ok\ntest: expected 2, found 2, ok\nclasses: expected 2, found 2, ok\n"
    assert run("liu2021", "--check", str(coco))[:2] == (0, said)
    (coco / "train2014" / "2.png").unlink()
    code, out, err = run("--recipe", "liu2021", "--check", f"coco:{coco}")
    assert (code, out.splitlines()[0]) == (1, "train: expected 3, found 2, 1 missing")
    assert "left out 1 unusable rows, the first: " in err
    assert "image is missing" in err
    (coco / "annotations" / "instances_val2014.json").unlink()
    code, out, _ = run("liu2021", "--check", f"coco:{coco}")
    assert (code, out.splitlines()[1]) == (1, "test: expected 2, found 0, 2 missing")
    code, _, err = run("--check", f"coco:{coco}")
    assert code == 2
    assert "name its recipe" in err


def test_no_photograph_at_all_is_an_answer(coco):
    for file in coco.rglob("*.png"):
        file.unlink()
    counts, problems = check_data("liu2021", f"coco:{coco}")
    assert [count.found for count in counts[:2]] == [0, 0]
    assert any("missing" in problem.what for problem in problems)


def test_more_than_published_is_wrong_as_well():
    assert str(Count("train", 2, 1003)) == "train: expected 2, found 1,003, 1,001 too many"
    assert not Count("train", 2, 3).ok


def test_what_cannot_be_checked_is_one_line():
    with pytest.raises(PluresError, match="recipe 'liu2021' is of coco; 'scenes' is read as scenes"):
        check_data("liu2021", "scenes")
    with pytest.raises(PluresError, match="no published counts"):
        check_data("photos", "scenes")


def test_every_data_set_of_a_published_number_has_counts():
    counted = {"voc12", "coco14", "cub", "nuswide_mlspl", "nuswide_official", "nuswide_asl"}
    for name in recipe_names():
        published = load_recipe(name).published.values()
        assert {data for row in published for data in row} <= counted
    assert PUBLISHED["voc", "mlspl"] == (5717, 5823, 20)
    assert PUBLISHED["coco", "mlspl"] == (82081, 40137, 80)
