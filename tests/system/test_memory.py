"""Return of freed memory to the operating system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a separate process: memory freed by earlier tests would be reused here.
_ALTERNATING = """
from pathlib import Path
import torch
from mpochain.system.memory import freed_memory_returned

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

with freed_memory_returned():
    held = [torch.ones(1 << 18) for _ in range(200)]  # a megabyte each
    full = resident()
    kept = held[::2]
    held.clear()
    print((full - resident()) >> 20, len(kept))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is specific to glibc")
def test_freed_arrays_between_kept_ones_are_returned():
    finished = subprocess.run(
        [sys.executable, "-c", _ALTERNATING], capture_output=True, text=True, check=True, timeout=120
    )
    freed, kept = map(int, finished.stdout.split())
    assert freed > 80
    assert kept == 100
