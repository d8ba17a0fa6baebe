"""Pytest configuration: one thread per worker, and the snippets of README.md, CONTRIBUTING.md and docs/ as tests.

Python snippets are executed. For shell commands, the test checks that the command and its options exist.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

# Processes that a test starts must not inherit this variable, or pytest would take them for workers.
if os.environ.pop("PYTEST_XDIST_WORKER", None):
    # Set before torch is imported, and inherited by processes that tests start. Several processes with as many threads
    # as cores would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _check_command(example) -> None:
    """Check that a command exists without running it, since it may run the tests themselves or take minutes."""
    for line in example.parsed.splitlines():
        words = shlex.split(line, comments=True)
        environment = dict(os.environ)
        while words and "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if not words:
            continue
        if words[0] == "make":
            command = ["make", "--dry-run", *words[1:]]
        elif words[0] == "pytest":
            kept = [word for word in words[1:] if not word.startswith(("--benchmark-json", "--benchmark-compare"))]
            command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *kept]
        elif words[0] == "mpochain":
            command = [sys.executable, "-m", "mpochain", words[1], "--help"]
        elif words[:2] == ["python", "-m"]:
            command = [sys.executable, "-m", words[2], words[3], "--help"]
        else:
            raise AssertionError(f"no rule to check {line!r}")
        run = subprocess.run(command, check=True, capture_output=True, env=environment, text=True)
        if command[-1] == "--help":
            missing = [word for word in words if word.startswith("--") and word not in run.stdout]
            assert not missing, f"{line!r}: no option {missing}"


# The settings of the documentation site import Sphinx, which only `make docs` installs; a former name warns.
collect_ignore = ["docs/conf.py", "src/mpochain/jobs"]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="sh", evaluator=_check_command)],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/**/*.md"],
).pytest()
