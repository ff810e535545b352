"""How far long work is: plain lines through the log, a bar on a terminal, nothing left on the screen after it."""

import io
import logging

import pytest
from rich.console import Console

from plures import pace
from plures.console import Bar
from plures.pace import Pace


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
