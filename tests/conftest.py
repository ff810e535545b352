"""For every test: one thread, so that results do not depend on the machine and parallel workers do not fight for
cores; and the command line as a function."""

import sys

import pytest
import torch

from plures import cli

torch.set_num_threads(1)


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
