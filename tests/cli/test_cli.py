"""The command line as its users meet it: real processes, real files."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mpochain", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["eval", "--nonsense"], ["nonsense"], ["convert"]])
def test_wrong_usage(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""


def test_help_and_version(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "compress" in done.stdout
    assert "study" not in done.stdout
    done = run("--version", cwd=tmp_path)
    assert done.stdout.startswith("mpochain 0.")


@pytest.mark.parametrize("name", ["demo", "study", "train"])
@pytest.mark.parametrize("options", [[], ["--help"], ["--out", "folder"]])
def test_a_command_of_the_study_says_where_it_is(tmp_path, name, options):
    done = run(name, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: mpochain {name} has moved; ")
    assert f"python -m studies.picogpt {name}" in done.stderr
