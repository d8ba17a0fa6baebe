"""The command line in this process, in the folder of a test module."""

from __future__ import annotations

import sys

import pytest

from mpochain.cli import main


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run a command in the fixture ``folder`` of the module; returns what it printed, after a check of its status."""

    def call(*arguments, code=0):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["mpochain", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert (exit_.value.code or 0) == code, captured.err
        return captured

    return call
