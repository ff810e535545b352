import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from plures.errors import PluresError, WorkFailed
from plures.labels import ABSENT, PRESENT, UNKNOWN, Labels, mask_to_single_positive
from plures.metrics.average_precision import average_precision
from plures.metrics.ranking import ranking
from plures.metrics.report import Estimates, Report, evaluate_scores, kind_of, too_many_or_few

CLASSES = ("cat", "dog", "sofa", "tv")


@pytest.fixture
def judged():
    """100 images; tv never occurs."""
    random = np.random.default_rng(0)
    values = (random.random((100, 4)) < 0.3).astype(np.int8)
    values[:, 3] = 0
    return random.random((100, 4)) * 0.6 + 0.4 * values, Labels(values)


def test_the_numbers(judged):
    scores, labels = judged
    report = evaluate_scores(scores, labels, CLASSES, threshold=[0.5, 0.5, 0.5, 0.55], bootstrap=50)
    per_class = average_precision(scores, labels)
    assert report.map == pytest.approx(per_class[:3].mean(), rel=1e-12)
    assert (report.images, report.labels, report.classes_scored) == (100, "complete", 3)
    assert report.left_out == {"tv": "no known positive"}
    assert report.interval.value == pytest.approx(report.map)
    assert report.interval.low < report.map < report.interval.high
    tags = scores >= [0.5, 0.5, 0.5, 0.55]
    assert report.tags_predicted == pytest.approx(tags.sum() / 100)
    assert report.tags_true == pytest.approx(labels.present.sum() / 100)
    cat = report.per_class[0]
    assert (cat.name, cat.positives, cat.known) == ("cat", int(labels.present[:, 0].sum()), 100)
    assert cat.precision == pytest.approx((tags & labels.present)[:, 0].sum() / tags[:, 0].sum())
    assert report.averages["OP"] == pytest.approx((tags & labels.present).sum() / tags.sum())
    assert report.per_class[3].threshold == 0.55


def test_zero_counting_definitions_keep_every_class(judged):
    report = evaluate_scores(*judged, CLASSES, definition="mlspl", bootstrap=0)
    assert report.interval is None
    assert report.left_out == {}
    assert report.map == pytest.approx(np.mean([c.average_precision for c in report.per_class]))
    assert report.per_class[3].average_precision == 0


def test_single_positive_labels_score_nothing_and_say_why(judged):
    scores, labels = judged
    report = evaluate_scores(scores, mask_to_single_positive(labels), CLASSES)
    assert report.labels == "single-positive"
    assert report.classes_scored == 0
    assert np.isnan(report.map)
    assert report.left_out["cat"] == "nothing known to be absent"
    assert report.left_out["tv"] == "no known positive"
    assert report.interval is None


def test_partial_labels_leave_out_only_the_classes_that_cannot_be_judged(judged):
    scores, labels = judged
    values = labels.values.copy()
    values[values[:, 1] == ABSENT, 1] = UNKNOWN
    report = evaluate_scores(scores, Labels(values), CLASSES, bootstrap=10)
    assert report.labels == "partial"
    assert report.left_out == {"dog": "nothing known to be absent", "tv": "no known positive"}
    assert report.map == pytest.approx(average_precision(scores, labels)[[0, 2]].mean())
    assert report.interval.value == pytest.approx(report.map)


def test_a_class_that_every_image_has_cannot_fail_and_is_not_scored(judged):
    scores, labels = judged
    values = labels.values.copy()
    values[:, 1] = PRESENT
    report = evaluate_scores(scores, Labels(values), CLASSES, threshold=0.0, bootstrap=20)
    assert report.left_out == {"dog": "every image has it", "tv": "no known positive"}
    assert report.map == report.interval.value == pytest.approx(average_precision(scores, labels)[[0, 2]].mean())
    dog = report.per_class[1]
    assert np.isnan([dog.average_precision, dog.precision, dog.f1]).all()
    assert dog.recall == 1
    others = values[:, [0, 2, 3]]
    assert report.averages["OP"] == pytest.approx((others == PRESENT).mean())  # threshold 0 calls everything
    published = evaluate_scores(scores, Labels(values), CLASSES, definition="mlgcn", bootstrap=0)
    assert published.per_class[1].average_precision == 1  # as that code has it


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_where_nothing_is_known_to_be_absent_only_recall_is_left(judged, threshold):
    scores, labels = judged
    observed = mask_to_single_positive(labels)
    report = evaluate_scores(scores, observed, CLASSES, threshold=threshold)
    undefined = {name: value for name, value in report.averages.items() if np.isnan(value)}
    assert set(undefined) == {"CP", "CF1", "OP", "OF1", "macro_f1"}
    called = scores >= threshold
    assert report.averages["OR"] == pytest.approx(called[observed.present].mean())
    assert all(np.isnan([c.precision, c.f1, c.average_precision]).all() for c in report.per_class)
    assert json.loads(report.to_json())["averages"]["OP"] is None
    assert "100.0" not in shown(report) or threshold == 0.0


def test_one_known_absence_makes_one_class_count():
    """cat: called on both photos, of which it has one; dog: nothing is known to be absent."""
    report = evaluate_scores(np.ones((2, 2)), Labels(np.array([[1, 1], [0, UNKNOWN]], np.int8)), ("cat", "dog"))
    assert report.averages["CP"] == report.averages["OP"] == 0.5
    assert report.averages["OF1"] == report.averages["macro_f1"] == pytest.approx(2 / 3)
    assert report.left_out == {"dog": "nothing known to be absent"}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[1, 0]], "complete"),
        ([[1, UNKNOWN], [UNKNOWN, UNKNOWN]], "single-positive"),
        ([[1, UNKNOWN], [0, UNKNOWN]], "partial"),
        ([[1, 1, UNKNOWN]], "partial"),
    ],
)
def test_kind_of_labels(values, kind):
    assert kind_of(Labels(np.array(values, np.int8))) == kind


def test_json_has_no_nan_and_reads_back(judged, tmp_path):
    report = evaluate_scores(*judged, CLASSES, bootstrap=10)
    path = tmp_path / "new" / "report.json"
    report.save(path)
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read["map"] == report.map
    assert read["unit"] == "fraction in [0, 1]"
    assert read["interval"]["resamples"] == 10
    assert read["per_class"][3]["average_precision"] is None
    assert [c["name"] for c in read["per_class"]] == list(CLASSES)
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_a_failed_save_keeps_the_old_file(judged, tmp_path, monkeypatch):
    report = evaluate_scores(*judged, CLASSES, bootstrap=0)
    path = tmp_path / "report.json"
    path.write_text("old")
    monkeypatch.setattr(type(report), "to_json", lambda self: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(WorkFailed, match="cannot be written"):
        report.save(path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def shown(report, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(report.render())
    return console.file.getvalue()


def test_render_shows_percent(judged):
    report = evaluate_scores(*judged, CLASSES, bootstrap=10)
    text = shown(report)
    assert f"{100 * report.map:.1f}  [" in text
    assert "3 of 4" in text
    assert "1 class (tv): no known positive" in text
    assert f"{100 * report.per_class[0].average_precision:.1f}" in text


def test_undefined_numbers_have_no_place_on_the_screen_and_equal_reasons_are_said_once(judged):
    scores, labels = judged
    text = shown(evaluate_scores(scores, mask_to_single_positive(labels), CLASSES), width=200)
    assert "mAP" not in text
    assert "precision" not in text
    assert "CF1" not in text
    assert text.count("nothing known to be absent") == 1
    assert "3 classes (cat, dog, sofa): nothing known to be absent; 1 class (tv): no known positive" in text


def test_a_model_that_calls_far_too_many_tags_is_said_once():
    six = too_many_or_few(6.6, 1.0, 1.4, complete=False)
    assert six == (
        "it calls 6.60 tags per image where about 1.40 are estimated to be there; thresholds that fit: plures"
        " thresholds RUN"
    )
    assert too_many_or_few(2.0, 1.0, 1.4, complete=False) == ""
    assert too_many_or_few(0.7, 1.0, 2.1, complete=False) == ""  # an estimate alone says nothing of too few
    assert "where 1.00 are labelled" in too_many_or_few(0.5, 1.0, 2.1, complete=False)
    assert too_many_or_few(6.6, 1.4, None, complete=True).endswith(
        "where 1.40 are there; thresholds that fit: plures thresholds RUN --from clean"
    )
    assert too_many_or_few(6.6, 0.0, None, complete=False) == ""


def test_estimates_and_warning_are_kept_and_reports_of_the_first_version_are_read(judged, tmp_path):
    report = evaluate_scores(*judged, CLASSES, bootstrap=0)
    told = replace(report, estimates=Estimates(0.5, float("nan"), 0.3, 2.0, 1.5, 1.9, 100, "so"), warning="too many")
    told.save(tmp_path / "report.json")
    back = Report.load(tmp_path / "report.json")
    assert back.warning == "too many"
    assert (back.estimates.f1, back.estimates.assumes) == (0.3, "so")
    assert np.isnan(back.estimates.precision)
    assert "about 1.50 estimated there (at most 1.90)" in shown(back)
    assert "Warning: too many" in shown(back)
    old = {key: value for key, value in report.to_dict().items() if key not in ("estimates", "warning")}
    assert Report.from_dict(old).estimates is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_and_codes_are_taken_as_arrays_are(judged, dtype):
    tensor = torch.from_numpy(judged[0]).to(dtype).requires_grad_()
    codes = judged[1].values
    scores = tensor.detach().double().numpy()
    expected = evaluate_scores(scores, judged[1], CLASSES, bootstrap=10)
    assert repr(evaluate_scores(tensor, torch.from_numpy(codes), CLASSES, bootstrap=10)) == repr(expected)
    np.testing.assert_equal(average_precision(tensor, codes), average_precision(scores, judged[1]))
    np.testing.assert_equal(average_precision(tensor, codes == 1), average_precision(scores, judged[1]))
    assert ranking(tensor, codes) == ranking(scores, judged[1])
    with pytest.raises(PluresError, match="differ in shape"):
        average_precision(tensor, codes[:3])


def test_names_must_fit(judged):
    with pytest.raises(PluresError, match="2 class names for 4 columns"):
        evaluate_scores(*judged, ("cat", "dog"))
