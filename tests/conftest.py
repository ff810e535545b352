"""For every test: one thread, so that results do not depend on the machine and parallel workers do not fight for
cores; signals as a terminal has them, whatever began the tests (nohup, a script's background); and the command line as
a function."""

import signal
import sys

import pytest
import torch

from plures import cli

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def plures(monkeypatch, capsys):
    """Run a command line; gives exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["plures", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call
