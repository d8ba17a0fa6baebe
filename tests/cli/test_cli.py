"""The command line as its users meet it: real processes, real files."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpochain.cli import main
from mpochain.cli.command import BROKEN_PIPE
from mpochain.compression import METHODS
from mpochain.errors import ArgumentError, CheckpointError, OutputError, RecipeError
from mpochain.system.progress import counting


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


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process; the exit status and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mpochain", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return call


@pytest.mark.parametrize("name", ["demo", "study", "train"])
@pytest.mark.parametrize("options", [[], ["--help"], ["--out", "folder"]])
def test_a_command_of_the_study_says_where_it_is(call, name, options):
    status, out, err = call(name, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: mpochain {name} has moved; ")
    assert f"python -m studies.picogpt {name}" in err


COMMANDS = ["compress", "methods", "finetune", "distill", "eval", "compare", "inspect", "convert", "export", "recipe"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_same_options(call, name):
    status, short, _ = call(name, "-h")
    assert status == 0
    assert short == call(name, "--help")[1]
    for option in ("--quiet", "-q", "--verbose", "-v", "--import", "--json", "-h"):
        assert option in short.replace(",", " ").split(), option


def test_completion_is_offered(call):
    assert "--install-completion" in call("--help")[1]


def test_how_much_is_printed(call, tmp_path, monkeypatch):
    def speak(*_, **__):
        logger = logging.getLogger("mpochain.cli")
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logger.log(level, "level %d", level)
        with counting() as counters:
            counters("windows")(3, 3)
        return METHODS["svd"]

    monkeypatch.setattr("mpochain.compression.method_named", speak)
    lines = {option: call("methods", "svd", "--json", *option)[2].splitlines() for option in ((), ("-q",), ("-v",))}
    assert lines[()] == ["level 20", "warning: level 30", "windows: 3/3"]
    assert lines["-q",] == ["warning: level 30"]
    assert lines["-v",] == ["level 10", "level 20", "warning: level 30", "windows: 3/3"]
    assert call("methods", "-q", "-v")[0] == 2


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ArgumentError("a\x1b[31mb"), 2, "error: a\\u001b[31mb\n"),
        (RecipeError("a"), 2, "error: a\n"),
        (CheckpointError("a"), 1, "error: a\n"),
        (OutputError("a"), 1, "error: a\n"),
        (OSError(28, "No space left on device", "small/a"), 1, "error: small/a: No space left on device\n"),
        (MemoryError(), 1, "error: memory ran out; "),
        (KeyError("a"), 1, "error: internal error, KeyError: 'a'; please report it"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), BROKEN_PIPE, ""),
    ],
)
def test_errors_and_their_exit_status(call, monkeypatch, error, status, message):
    def fail(*_):
        raise error

    monkeypatch.setattr("mpochain.compression.method_named", fail)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
    ended, out, err = call("methods", "svd")
    assert (ended, out) == (status, "")
    assert err.startswith(message)
    assert bool(err) is bool(message)
    assert err.count("\n") <= 1


def test_a_closed_pipe_is_quiet(tmp_path):
    command = f"{shlex.quote(sys.executable)} -m mpochain methods | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{BROKEN_PIPE}\n", "")


def test_modules_of_your_own_are_imported_first(call, tmp_path, monkeypatch):
    (tmp_path / "own_methods.py").write_text(
        "from mpochain.compression import METHODS, LowRank\nMETHODS['mine'] = LowRank(weighted=False)\n"
    )
    (tmp_path / "own_fault.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("mpochain.system.extensions._imported", [])
    try:
        assert list(json.loads(call("methods", "mine", "--json", "--import", "own_methods")[1])) == ["mine"]
    finally:
        METHODS.pop("mine", None)
    status, _, err = call("methods", "--import", "own_fault")
    assert (status, err) == (
        2,
        "error: cannot import 'own_fault' (ZeroDivisionError: division by zero); install its package, or add its "
        "folder to PYTHONPATH\n",
    )


def test_the_guide_names_every_command_with_a_result():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "command-line.md").read_text(encoding="utf-8")
    for name in set(COMMANDS) - {"recipe"}:
        assert f"\n| `{name}` | " in guide, name
