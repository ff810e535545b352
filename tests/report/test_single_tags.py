"""A run on one tag per photo: train, evaluate, report, compare and the model card tell what is known and what is
estimated, and show no number that any model would reach."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from plures.report.compare import compare
from plures.report.scored import score_run


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A folder with 60 photos, one of three tags each, and what `plures train` printed for its run."""
    from click.testing import Result
    from typer.testing import CliRunner

    from plures.cli.app import app

    folder = tmp_path_factory.mktemp("single")
    random = np.random.default_rng(0)
    lines = ["image,tags"]
    for i in range(60):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{('cat', 'dog', 'sofa')[i % 3]}")
    (folder / "tags.csv").write_text("\n".join(lines))
    settings = ["epochs=2", "batch_size=8", "image_size=24", "device=cpu", "workers=0", "threshold=0.01"]
    made: Result = CliRunner().invoke(
        app, ["train", str(folder / "tags.csv"), "--out", str(folder / "run"), *settings], env={"COLUMNS": "160"}
    )
    assert made.exit_code == 0, made.output
    return folder, made.output


def test_the_screen_of_training(single):
    _, text = single
    assert "nan" not in text
    epochs = [line for line in text.splitlines() if re.match(r"\S+ +\d/2 ", line)]
    assert len(epochs) == 2
    assert all("val mAP (observed)" in line for line in epochs)
    assert text.count("nothing known to be absent") == 1
    assert "estimated precision / F1" in text
    assert "the tag of an image was picked evenly among its labels" in text
    assert len(re.findall(r"Warning: it calls 3.00 tags per image where about \d\.\d+ are estimated", text)) == 1
    assert "plures thresholds RUN" in text
    assert not re.search(r"CP|CF1|OP|OF1|mAP \(plain\)", text)


def test_report_json_and_card(single):
    run = single[0] / "run"
    stored = json.loads((run / "report.json").read_text())
    assert stored["map"] is None
    assert stored["averages"]["OP"] is None
    assert stored["estimates"]["tags_called"] == 3
    assert 1 <= stored["estimates"]["tags_present"] <= 3
    # three tags are called on every image, so that as many of them are right as are there
    assert stored["estimates"]["precision"] == pytest.approx(stored["estimates"]["tags_present"] / 3)
    card = (run / "model_card.md").read_text()
    assert "mAP is undefined" in card
    assert "OF1" not in card
    assert "about" in card
    assert "This assumes that the tag of an image was picked evenly" in card


def test_the_page_and_the_comparison(single, plures):
    folder, _ = single
    shutil.copytree(folder / "run", folder / "other", dirs_exist_ok=True)
    scored = score_run(folder / "run", resamples=20)
    shown = {m.name: m for m in scored.measures if not np.isnan(m.value)}
    estimated = {"precision, estimated", "F1, estimated", "tags there, estimated"}
    assert set(shown) == {"CR", "OR", "tags per image"} | estimated
    precision = shown["precision, estimated"]
    assert precision.value == scored.report.estimates.precision
    assert precision.interval.low <= precision.value <= precision.interval.high
    assert np.std(precision.samples) > 0
    code, _, err = plures("report", folder / "run", "--resamples", "10")
    assert code == 0, err
    page = (folder / "run" / "report.html").read_text()
    assert "precision, estimated" in page
    assert "Warning:" in page
    assert "Which tags come together" not in page
    assert "3 classes (cat, dog, sofa): nothing known to be absent" in page
    assert "(nothing known to be absent)" not in page  # not beside each class again
    code, out, err = plures("compare", folder / "run", folder / "other", "--resamples", "10")
    assert code == 0, err
    assert "F1, estimated" in " ".join(out.split())
    assert "P@1" not in out
    gaps = compare([folder / "run", folder / "other"], resamples=5).differences(1)
    assert {g.value for g in gaps if not np.isnan(g.value)} == {0.0}
