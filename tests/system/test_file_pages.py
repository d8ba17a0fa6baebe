"""Pages of mapped weight files that are let go, and read again."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mpochain.system.file_pages import file_pages_limited, mapped_files, release_file_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process drop pages")


def of_files():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))


@pytest.fixture
def mapped(tmp_path):
    torch.manual_seed(0)
    # As on the hub: a link to a file whose name says nothing.
    save_file({"a": torch.randn(2000, 2000), "b": torch.randn(2000, 2000)}, tmp_path / "blob")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in ("a", "b")}


@pytest.fixture
def places(mapped):
    """The file, by the addresses of what it holds."""
    files = mapped_files([mapped["a"].data_ptr()])
    assert [file.name for file in files] == ["blob"]
    return files


def test_pages_that_were_read_are_released_and_read_again(mapped, places):
    sums = {name: value.sum() for name, value in mapped.items()}
    held = of_files()
    assert release_file_pages([Path("/nowhere")]) == 0
    assert release_file_pages(places) >= 2 * 16_000_000
    assert of_files() < held - 25_000_000
    assert {name: value.sum() for name, value in mapped.items()} == sums


def test_a_changed_page_keeps_its_change(mapped, places):
    mapped["a"][7, 7] = 41.0
    release_file_pages(places)
    assert mapped["a"][7, 7] == 41.0


def test_pages_stay_below_a_limit(mapped, places):
    with file_pages_limited(1 << 40, list), file_pages_limited(1 << 20, lambda: places):
        before = of_files()
        mapped["a"].sum()
        for _ in range(200):
            time.sleep(0.01)
            if of_files() < before + 4_000_000:
                return
    pytest.fail("nothing was released")
