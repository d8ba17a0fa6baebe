"""What the process says about its memory."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from mpochain.hardware import freed_memory_returned


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have holes of their own")
def test_freed_arrays_between_kept_ones_are_returned():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with freed_memory_returned():
        held = [torch.ones(1 << 18) for _ in range(200)]  # a megabyte each
        full = resident()
        kept = held[::2]
        held.clear()
        assert resident() < full - (80 << 20)
    assert len(kept) == 100
