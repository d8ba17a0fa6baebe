"""Pytest configuration: one thread per worker, and the snippets of README.md, CONTRIBUTING.md and docs/ as tests.

Python snippets are executed, and so are benchmarks. For other shell commands, the test checks that the command and its
options exist.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

_ROOT = str(Path(__file__).parent)
_BENCHMARK = f"{_ROOT}/benchmarks/bench_planning.py"
_KEPT_RUNS = ("--benchmark-json", "--benchmark-compare")

# Processes that a test starts must not inherit this variable, or pytest would take them for workers.
if os.environ.pop("PYTEST_XDIST_WORKER", None):
    # Set before torch is imported, and inherited by processes that tests start. Several processes with as many threads
    # as cores would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _check_command(example) -> None:
    """Check that a command exists without running it, since it may run the tests themselves or take minutes.

    tests/cli/test_readme.py runs the commands of README.md, and the benchmarks here are run as they stand.
    """
    for line in example.parsed.splitlines():
        words = shlex.split(line, comments=True)
        environment = {}
        while words and "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if not words:
            continue
        if words[0] == "make":
            _output("make", "--dry-run", *words[1:])
        elif words[0] == "pytest" and not any(word.startswith(_KEPT_RUNS) for word in words):
            shown = _output(sys.executable, "-m", "pytest", "--help", "-c", f"{_ROOT}/pyproject.toml")
            unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in shown]
            missing = [word for word in words if "/" in word and not word.startswith("-") and not Path(word).exists()]
            assert not unknown + missing, f"{line!r}: no option or file {unknown + missing}"
        elif words[0] == "pytest":
            # Runs that are kept and compared: one benchmark of the smallest grid, in a folder for its files.
            options = [_BENCHMARK if word == "benchmarks" else word for word in words[1:]]
            environment |= {"MPOCHAIN_BENCH_GRID": "tiny"}
            _output(sys.executable, "-m", "pytest", "--quiet", "-c", f"{_ROOT}/pyproject.toml", *options, **environment)
        elif words[0] == "torchrun":
            _, _, command = (part.split() for part in line.partition(" -m mpochain "))
            missing = [word for word in command if word.startswith("--") and word not in _help(command[0])]
            assert not missing, f"{line!r}: no option {missing}"
        else:
            command = words[:2] if words[0] == "mpochain" else words[1:4]
            if words[0] != "mpochain" and words[:2] != ["python", "-m"]:
                raise AssertionError(f"no rule to check {line!r}")
            if words[0] == "mpochain":
                shown = _help(*command[1:])
            else:
                shown = _output(sys.executable, "-m", *[word for word in command if word != "-m"], "--help")
            missing = [word for word in words if word.startswith("--") and word not in shown]
            assert not missing, f"{line!r}: no option {missing}"


@functools.cache
def _folder() -> str:
    return tempfile.mkdtemp(prefix="mpochain-commands-")


# Pages name the same commands again and again.
@functools.cache
def _help(*command: str) -> str:
    """The help of ``mpochain``, in this process, which has imported most of it already."""
    from typer.testing import CliRunner

    from mpochain.cli.app import app

    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.output


@functools.cache
def _output(*command: str, **environment: str) -> str:
    folder = _folder() if _BENCHMARK in command else _ROOT
    options = {"capture_output": True, "env": {**os.environ, **environment}, "text": True, "cwd": folder}
    run = subprocess.run(command, check=False, **options)
    assert run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"
    return run.stdout


def _name_missing(namespace: dict) -> None:
    """Give pages ``missing(package)``, by which they skip snippets that need a package which is not installed."""
    namespace["missing"] = lambda package: importlib.util.find_spec(package) is None


# The settings of the documentation site import Sphinx, which only `make docs` installs; a former name warns.
collect_ignore = ["docs/conf.py", "src/mpochain/jobs"]
if importlib.util.find_spec("vllm") is None:  # it has an environment of its own, see docs/guides/serving.md
    collect_ignore += [f"src/mpochain/integrations/vllm/{name}.py" for name in ("config", "methods", "products")]
if importlib.util.find_spec("triton") is None:
    # The one module that imports Triton, and a script that compiles it.
    collect_ignore += ["src/mpochain/execution/kernels/triton_functions.py", "tests/execution/compile_for_gpus.py"]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="sh", evaluator=_check_command), SkipParser()],
    setup=_name_missing,
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/**/*.md"],
).pytest()
