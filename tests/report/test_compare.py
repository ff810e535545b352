"""Runs side by side: paired intervals, and only where the numbers measure the same."""

import numpy as np
import pytest

from plures.config import Experiment
from plures.errors import PluresError
from plures.metrics.intervals import bootstrap_difference
from plures.report.compare import compare
from plures.training.train import train

SCENES = {
    "data": {"name": "scenes", "train": 60, "val": 20, "test": 30},
    "supervision": "single_positive",
    "epochs": 2,
    "device": "cpu",
    "workers": 0,
    "backbone": {"name": "small_conv", "width": 16},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [train(Experiment(**SCENES, loss=loss), folder / loss).path for loss in ("an", "gr")]


def test_differences_are_the_paired_bootstrap(runs):
    found = compare(runs, resamples=50)
    assert found.names == ("an", "gr")
    first, second = found.runs
    expected = bootstrap_difference(first.logits, second.logits, first.labels, resamples=50)
    gap = found.differences(1)[0]
    assert (gap.value, gap.low, gap.high) == pytest.approx((expected.value, expected.low, expected.high))
    alone = [r.measures[0].interval for r in found.runs]
    assert gap.high - gap.low < sum(i.high - i.low for i in alone)


def test_the_page_and_the_table(plures, runs, tmp_path):
    code, out, err = plures("compare", *runs, "--out", tmp_path / "c.html", "--resamples", "20")
    assert code == 0, err
    assert "mAP" in out
    text = (tmp_path / "c.html").read_text()
    assert "an: an" in text  # a figure of the hidden positives for each run
    assert "gr: gr" in text
    assert text.count("<svg") == 2
    assert "src=" not in text


def test_runs_on_other_photographs_are_refused(plures, runs, tmp_path):
    other = train(
        Experiment(**{**SCENES, "data": {"name": "scenes", "train": 60, "val": 20, "test": 31}}), tmp_path / "o"
    )
    with pytest.raises(PluresError, match="an and o have no photograph in common that none of them was trained on"):
        compare([runs[0], other.path], resamples=2)
    code, _, err = plures("compare", runs[0], runs[0])
    assert code == 2
    assert "needs two runs or more, got 1" in err
    assert np.isfinite(compare(runs, resamples=2).differences(1)[0].value)
