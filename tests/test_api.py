"""What Python is given: training on what is at hand, callbacks, progress, and a Run with the command line's verbs."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import plures
from plures.config import Experiment, recipe_settings
from plures.console import Show
from plures.data.pairs import from_pairs
from plures.data.read import read
from plures.errors import PluresError
from plures.runs.run import Run as RunFolder

SMALL = {"image_size": 16, "epochs": 1, "workers": 0, "backbone": {"name": "small_conv", "width": 8}, "head": "linear"}
COLOURS = np.array([[250, 0, 0], [0, 250, 0]], np.uint8)


class Pairs(torch.utils.data.Dataset):
    """Plain colours as a torch Dataset gives them, of two sizes, each with the tag of its colour alone."""

    classes = ("red", "green")

    def __len__(self):
        return 40

    def __getitem__(self, row):
        if row >= len(self):
            raise IndexError
        pixels = np.full((16 + 4 * (row % 3 == 0), 16, 3), COLOURS[row % 2])
        pixels[0, 0, 2] = row  # no two alike
        target = torch.tensor([1, 0] if row % 2 == 0 else [0, 1])
        return [Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1) / 255][row % 3], target


class Heard:
    """A callback with a part of the methods."""

    def __init__(self):
        self.records, self.stages = [], []

    def epoch(self, record):
        self.records.append(record)

    def stage(self, name, epochs, steps, first_epoch):
        self.stages.append(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    heard = Heard()
    out = tmp_path_factory.mktemp("api") / "run"
    run = plures.train(Pairs(), out=out, callbacks=[heard], progress=False, loss="bce", lr=1e-2, **SMALL)
    return run, heard


def test_a_torch_dataset_is_trained_on(made):
    run, heard = made
    assert isinstance(run, plures.Run)
    assert isinstance(run, RunFolder)
    assert run.experiment.loss.name == "bce"
    assert run.experiment.lr == 1e-2
    assert [record["epoch"] for record in heard.records] == [0]
    assert len(heard.stages) == 1
    assert run.load().classes == ("red", "green")
    assert run.model is run.model


def test_a_run_has_the_verbs_of_the_command_line(made, tmp_path):
    run, _ = made
    assert run.report.images == run.evaluate().images  # the data in hand are remembered
    assert run.evaluate(split="train").images > run.report.images
    assert run.thresholds(source="clean").thresholds.classes == ("red", "green")
    found = run.suggest(top=3, with_wrong=True)
    found.save(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().count("\n") == 1 + len(found)
    with pytest.raises(PluresError, match="Dataset in memory"):  # the page reads the run's data anew
        run.write_report(tmp_path / "page.html")
    with pytest.raises(PluresError, match="choose onnx, openvino or torch"):
        run.export("onyx", tmp_path / "m.onnx")
    with pytest.raises(PluresError, match="Dataset in memory"):
        plures.Run(run.path).evaluate()


def test_results_show_themselves_in_a_few_lines(made):
    run, _ = made
    dataset = from_pairs(Pairs())
    for thing, words in [
        (run, ["Run ", "linear on small_conv", "bce"]),
        (run.report, ["Report (percent)", "images", "mAP"]),
        (dataset, ["Dataset Pairs", "40, in memory", "2 (red, green)"]),
        (dataset.labels, ["Labels of 40 images for 2 classes", "present (1)", "40 (50.0%)"]),
    ]:
        text = repr(thing)
        assert all(word in text for word in words), text
        assert len(text.splitlines()) < 15
        assert thing._repr_html_().count("<table>") >= 1
    odd = plures.Dataset(["a.jpg"], plures.Labels(np.ones((1, 1), np.int8)), ("<b>",))
    assert "<b>" not in odd._repr_html_().replace("<b>Dataset", "")


def test_pairs_become_pixels_and_codes():
    dataset = from_pairs(Pairs())
    assert [image.shape for image in dataset.images[:2]] == [(20, 16, 3), (16, 16, 3)]
    for row in range(6):
        assert (dataset.images[row][1:] == COLOURS[row % 2]).all()
        assert dataset.images[row][0, 0, 2] == row
    assert dataset.labels.values[:2].tolist() == [[1, 0], [0, 1]]
    alike = from_pairs([(np.zeros((4, 5), np.uint8), [1, -1])] * 2)
    assert alike.images.shape == (2, 4, 5, 3)
    assert alike.classes == ("0", "1")


@pytest.mark.parametrize(
    ("pairs", "classes", "message"),
    [
        ([(np.zeros((4, 4, 3)) + 3, [1])], None, "image 0 is ndarray .* floats in"),
        ([(np.zeros((4, 4, 3), np.uint8), 3)], None, r"target 0 has shape \[\]"),
        ([(np.zeros((4, 4, 3), np.uint8), [2])], None, "target 0 holds 2"),
        ([(np.zeros((4, 4, 3), np.uint8), [1])] * 2, ["a", "b"], "targets have 1 columns, and classes= holds 2"),
        ([(np.zeros((4, 4, 3), np.uint8), [1]), (np.zeros((4, 4, 3), np.uint8), [1, 0])], None, "target 1 has shape"),
        ([3], None, "item 0 of the data is no pair"),
        ([], None, "hold no pair"),
    ],
)
def test_other_pairs_are_refused_in_one_line(pairs, classes, message):
    with pytest.raises(PluresError, match=message):
        from_pairs(pairs, classes)


def test_mistakes_leave_no_folder(tmp_path):
    out = tmp_path / "run"
    for call, message in [
        (lambda: plures.train("scenes"), "requires out="),
        (lambda: plures.train(out=out), "say what to train on"),
        (lambda: plures.train(3, out=out), "cannot train on int"),
        (lambda: plures.train("scenes", out=out, lrr=1), "no setting 'lrr'"),
        (lambda: plures.train("scenes", out=out, recipe="qick"), "unknown recipe 'qick'; did you mean 'quick'"),
        (lambda: plures.train(Experiment(), out, lr=1e-3), "says everything itself"),
        (lambda: plures.train("scenes", out=out, callbacks=[3]), "a callback is an object with some of"),
        (lambda: plures.train("scenes", out=out, callbacks=[Heard]), "got the class Heard"),
    ]:
        with pytest.raises(PluresError, match=message):
            call()
    assert not out.exists()


def test_a_recipe_in_an_experiment_is_the_recipe_of_the_command_line(tmp_path):
    told = Experiment(data="x.csv", recipe="quick", seed=3)
    assert told == Experiment(**{**recipe_settings("quick"), "data": "x.csv", "seed": 3})
    assert told.recipe == "quick"
    assert Experiment(recipe="quick", loss="an", stages="probe").loss.name == "an"
    told.save(tmp_path / "e.yaml")
    assert Experiment.load(tmp_path / "e.yaml") == told
    assert Experiment().change(told.to_settings()) == told
    plain = Experiment(**{**told.to_dict(), "loss": "auto"})  # a default that the recipe changes
    assert Experiment().change(plain.to_settings()) == plain
    (tmp_path / "own.yaml").write_text("title: a\npaper: none\ncommand: c\nhours: h\nexperiment: {lr: 0.5}\n")
    assert Experiment(recipe=tmp_path / "own.yaml").lr == 0.5


def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(tmp_path, capsys):
    record = {"epoch": 0, "loss": 1.0, "images_per_second": 1.0, "best_epoch": 0}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        show = Show(console)
        show.stage("probe", 2, 5, 0)
        assert (show._bar is not None) == terminal
        show.epoch(record)
        show.close()
        assert "probe" in console.file.getvalue()
    data = from_pairs([(np.full((16, 16, 3), COLOURS[n % 2]), [n % 2, 1 - n % 2]) for n in range(12)])
    for progress in (True, False):
        plures.train(data, tmp_path / f"run{progress}", progress=progress, loss="bce", **SMALL)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("1/1" in err) == progress


def test_paths_may_be_path_like(tmp_path):
    class Somewhere:
        def __fspath__(self):
            return str(tmp_path / "t.csv")

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Path(Somewhere()).write_text("image,tags\na.png,cat\n")
    assert len(read(Somewhere())) == 1
    assert Experiment(data=Somewhere()).data.name == str(tmp_path / "t.csv")


def test_the_whole_surface_is_listed_with_an_example_each():
    assert {"train", "load", "read", "Run", "losses"} <= set(dir(plures))
    for name in plures.__all__:
        assert (getattr(plures, name).__doc__ or "").strip(), name
