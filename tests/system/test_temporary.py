"""Temporary folders: removed with their object, and those of killed processes by the next one."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from mpochain.system.temporary import TemporaryFolder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked and killed")
def test_the_folder_of_a_killed_process_is_removed_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "mpochain-temporary-notes").mkdir()  # not of eight characters
    (tmp_path / "mpochain-mine").mkdir()
    living = TemporaryFolder()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        dying = TemporaryFolder()
        (dying.path / "moments").write_bytes(b"1")
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    for descriptor in (read, write):
        os.close(descriptor)
    long_ago = time.time() - 1000
    for folder in tmp_path.iterdir():
        os.utime(folder, (long_ago, long_ago))
    last = TemporaryFolder()
    assert {folder.name for folder in tmp_path.iterdir()} == {
        "mpochain-temporary-notes",
        "mpochain-mine",
        living.path.name,
        last.path.name,
    }
    last.remove()
    path = living.path
    del living
    assert not path.exists()
    assert not Path(last.path).exists()
