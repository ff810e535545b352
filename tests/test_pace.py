"""How far long work is: plain lines through the log, a bar on a terminal, nothing left on the screen after it."""

import io
import logging
import subprocess
import sys
from types import ModuleType

import pytest
from PIL import Image
from rich.console import Console
from rich.errors import LiveError
from rich.progress import Progress

import plures
from plures import pace
from plures.pace import Bar, Pace


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute(clock, caplog):
    caplog.set_level(logging.INFO, "plures")
    with Pace("computing features", 1000) as going:
        for _ in range(9):
            clock[0] += 10
            going.step(50)
    assert [record.getMessage() for record in caplog.records] == [
        "computing features: 150 of 1,000 images, 5 images/s, 170 s left",
        "computing features: 300 of 1,000 images, 5 images/s, 140 s left",
        "computing features: 450 of 1,000 images, 5 images/s, 110 s left",
    ]


def test_short_work_says_nothing(clock, caplog):
    caplog.set_level(logging.INFO, "plures")
    with Pace("scoring") as going:
        clock[0] += 29
        going.step(50)
    assert caplog.records == []
    assert str(going) == "scoring: 50 images, 2 images/s"


def test_a_bar_on_a_terminal_and_no_line(monkeypatch, caplog):
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(Pace, "shown", bar)
    with pytest.raises(ValueError), Pace("scoring", 100) as going:  # noqa: PT012
        going.step(40)
        assert bar._bar is not None
        assert (bar._bar.tasks[0].completed, bar._bar.tasks[0].total) == (40, 100)
        raise ValueError
    assert bar._bar is None  # also after a failure
    assert "scoring" in screen.getvalue()
    assert caplog.records == []


def test_within_another_bar_nothing_breaks(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(Pace, "shown", Bar(console))
    with Progress(console=console) as training, Pace("scoring", 100) as going:
        going.step(40)
        assert training.live.is_started

    def refused(bar):
        raise LiveError("one at a time")  # as rich did before its version 14.1

    monkeypatch.setattr(pace.Progress, "start", refused)
    with Pace("scoring", 100) as going:
        going.step(40)
        going.step(40)


class Shown:
    """What a notebook would show, in the order of the updates."""

    def __init__(self):
        self.said = []

    def display(self, shown, display_id):
        assert display_id is True
        self.said.append(shown)
        return self

    def update(self, shown):
        self.said.append(shown)


def test_a_bar_in_a_notebook_without_being_asked(clock, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "plures")
    notebook, shell = Shown(), type("ZMQInteractiveShell", (), {})()
    package, display = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: shell
    display.HTML, display.display = str, notebook.display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with Pace("<scoring>", 100) as going:
        for _ in range(4):
            clock[0] += 0.3
            going.step(25)
        clock[0] += 60
    assert notebook.said == [
        '<progress max="100" value="25"></progress> &lt;scoring&gt;: 25 of 100 images, 83 images/s, 1 s left',
        '<progress max="100" value="75"></progress> &lt;scoring&gt;: 75 of 100 images, 83 images/s, 0 s left',
        "",
    ]
    assert caplog.records == []
    package.get_ipython = lambda: None  # IPython imported by a script
    assert not pace.in_notebook()


WORK = """
import sys
from plures import cli, pace
from plures.cli.app import app
pace.LINE_EVERY = 0.0
sys.argv = ["plures", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pace")
    experiment = plures.Experiment(
        data={"name": "scenes", "train": 24, "val": 12, "test": 4}, stages="finetune", epochs=1, image_size=32,
        backbone={"name": "small_conv", "width": 16}, supervision="single_positive", device="cpu", workers=0,
    )  # fmt: skip
    plures.train(experiment, folder / "run", progress=False)
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["suggest", "run", "--out", "review.csv"], "scoring: 40 of 40 images"),
        (["predict", "run", "a.png", "--out", "found.csv"], "scoring: 1 of 1 images"),
        (
            ["export", "run", "--to", "onnx", "--out", "m.onnx", "--int8", "static"],
            "measuring ranges for 8 bits: 24 of 24 images",
        ),
    ],
)
def test_commands_say_how_far_they_are_on_stderr(run, command, line):
    if command[0] == "export":
        pytest.importorskip("onnxscript", reason='needs pip install "plures[export]"')
    done = subprocess.run([sys.executable, "-c", WORK, *command], cwd=run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert line in done.stderr
    assert line not in done.stdout
    if command[0] == "export":
        assert "measuring what 8 bits cost: 12 of 12 images" in done.stderr
