"""Memory that is freed and asked for again: whether the process still has it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Three activations of 40 MB, freed and asked for again four times, and the pages that had to be given anew.
_SCRIPT = """
import resource, sys, torch
from mpochain.system.allocator import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else None
def step():
    return [torch.ones(10_000_000) for _ in range(3)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

_GLIBC = platform.libc_ver()[0] == "glibc"


def _faults(how: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _SCRIPT, how]
    done, faults = subprocess.check_output(command, env=clean | environment, text=True).split()
    return done, int(faults)


@pytest.mark.skipif(not _GLIBC, reason="mallopt is glibc's")
def test_steps_that_are_alike_take_no_new_pages() -> None:
    done, kept = _faults("keep")
    _, given_back = _faults("default")
    assert done == "True"
    assert kept < given_back / 10


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "4096"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=4096"}],
    ids=["variable", "tunable"],
)
def test_what_the_environment_says_stays(environment: dict[str, str]) -> None:
    assert _faults("keep", **environment)[0] == "False"
