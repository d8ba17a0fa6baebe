"""Runs every snippet of README.md, CONTRIBUTING.md and docs/: Python is executed, commands must exist."""

from __future__ import annotations

import shlex
import subprocess

from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser


def _check_command(example) -> None:
    for line in example.parsed.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        # A target that runs the tests cannot be run by them; that make knows it, and what it would do, can be asked.
        assert words[0] == "make", f"no rule to check {line!r}"
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="sh", evaluator=_check_command)],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
).pytest()
