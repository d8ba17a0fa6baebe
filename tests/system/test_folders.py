"""Folders whose files change together: what stays, what goes, who may write, and what is left after an error."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

import mpochain.system.commit as commit
from mpochain.errors import OutputError
from mpochain.system.files import write_bytes
from mpochain.system.folders import folder_lock, read_unchanged, replaced_together, settle
from mpochain.system.locks import locked


@pytest.fixture(params=["exchanged", "moved"])
def way(request, monkeypatch):
    """Both ways in which new files take the places of older ones."""
    if request.param == "moved":
        monkeypatch.setattr(commit, "exchange", lambda first, second: False)
    return request.param


def everything(folder: Path) -> dict[str, str]:
    """All files below a folder, as text, and its empty subfolders."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*")}
    return {name: file.read_text() if file.is_file() else "a folder" for name, file in files.items()}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def save(folder: Path, files: dict[str, str], outdated: str = "") -> None:
    with replaced_together(folder, outdated=lambda name: name == outdated) as new:
        fill(new, files)


OLD = {"a": "1", "b": "2", "sub/c": "3", "sub/d": "4"}
NEW = {"a": "5", "sub/e": "6", "f": "7"}
AFTER = {"a": "5", "sub": "a folder", "sub/e": "6", "f": "7"}


def test_new_files_replace_old_ones_and_subfolders_as_a_whole(tmp_path, way):
    save(tmp_path / "out", OLD)
    save(tmp_path / "out", NEW, outdated="b")
    assert everything(tmp_path) == {"out": "a folder", **{f"out/{name}": text for name, text in AFTER.items()}}


def test_files_of_the_user_stay(tmp_path, way):
    out = tmp_path / "out"
    mine = {"notes.txt": "mine", ".config.json.bak": "mine too", ".model.20240101": "also mine"}
    fill(out, OLD | mine)
    (out / "link").symlink_to("notes.txt")
    save(out, NEW, outdated="b")
    assert everything(out) == AFTER | mine | {"link": "mine"}
    assert (out / "link").is_symlink()
    fill(out, {"runs/1": "a subfolder of the user"})
    save(out, {"a": "8"})
    mine |= {"link": "mine", "runs": "a folder", "runs/1": "a subfolder of the user"}
    assert everything(out) == AFTER | mine | {"a": "8"}


def test_permissions(tmp_path, way):
    out = tmp_path / "out"
    before = os.umask(0o027)
    try:
        save(out, OLD)
        out.chmod(0o2751)
        with replaced_together(out) as new:
            fill(new, NEW)
            (new / "a").chmod(0o600)  # as libraries do that write to a temporary file
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o7777 == 0o2751
    assert {(out / name).stat().st_mode & 0o777 for name in NEW} == {0o640}


def test_an_error_leaves_the_folder_as_it_was(tmp_path, way):
    out = tmp_path / "out"

    def fail(folder: Path, error: Exception) -> None:
        with replaced_together(folder) as new:
            fill(new, NEW)
            raise error

    with pytest.raises(OutputError, match=r"cannot write .*deeper: No space left on device; free some space"):
        fail(out / "deeper", OSError(errno.ENOSPC, "No space left on device"))
    assert everything(tmp_path) == {}
    save(out, OLD)
    before = everything(tmp_path)
    for number in (errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES):
        with pytest.raises(OutputError, match=r"cannot write .*out.*; .*folder"):
            fail(out, OSError(number, os.strerror(number)))
    with pytest.raises(OutputError, match="No space left on device; free"):
        fail(out, Exception("I/O error: No space left on device (os error 28)"))
    with pytest.raises(ZeroDivisionError):
        fail(out, ZeroDivisionError())
    assert everything(tmp_path) == before


def test_a_second_writer_is_refused_or_waits(tmp_path):
    out = tmp_path / "out"
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with replaced_together(out) as new:
            fill(new, OLD)
            entered.set()
            assert leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(OutputError, match=r"another process is writing to .*out; wait"), folder_lock(out):
        pass
    threading.Timer(0.1, leave.set).start()
    save(out, {"a": "9"})
    thread.join()
    assert everything(out)["a"] == "9"


def test_one_thread_may_save_within_a_save(tmp_path, way):
    out = tmp_path / "out"
    with replaced_together(out) as new:
        fill(new, {"a": "outer"})
        save(out, {"a": "inner", "b": "inner"})
        assert everything(out)["a"] == "inner"
    assert everything(tmp_path) == {"out": "a folder", "out/a": "outer", "out/b": "inner"}


def test_a_lock_ends_with_its_process(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "lock", "it"):
            os.write(write, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    with pytest.raises(OutputError, match="another process is writing to it"), locked(tmp_path / "lock", "it"):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    with locked(tmp_path / "lock", "it") as real:
        assert real
    assert everything(tmp_path) == {}


def test_without_locks_a_folder_is_written_all_the_same(tmp_path, monkeypatch, way):
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder_lock(tmp_path / "out") as real:
        assert not real
        save(tmp_path / "out", OLD)
    save(tmp_path / "out", NEW, outdated="b")
    assert everything(tmp_path / "out") == AFTER


def test_strays_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    out = tmp_path / "out"
    save(out, OLD)
    fill(out, {".mpochain.tmp-1/a": "dead", ".a.0123456789abcdef.mpochain-partial": "dead"})
    fill(tmp_path, {".out.mpochain.tmp-2/a": "dead", ".outer.mpochain.tmp-2/a": "of another folder"})
    living = out / ".b.fedcba9876543210.mpochain-partial"
    with living.open("w") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        save(out, NEW, outdated="b")
        assert [file.name for file in out.iterdir() if file.name[0] == "."] == [living.name]
        assert {file.name for file in tmp_path.iterdir()} == {".outer.mpochain.tmp-2", "out"}
    write_bytes(out / "b", b"8")
    assert everything(out) == AFTER | {"b": "8"}


def test_a_listing_cannot_name_files_outside(tmp_path):
    fill(tmp_path, {"precious": "1", "out/a": "1"})
    fill(tmp_path / "out" / ".mpochain.committed", {".mpochain.outdated": '["../precious", "..", "a"]', "b": "2"})
    settle(tmp_path / "out")
    assert everything(tmp_path) == {"precious": "1", "out": "a folder", "out/b": "2"}
    for listing in ("[1, null]", "{", "7"):
        fill(tmp_path / "out" / ".mpochain.committed", {".mpochain.outdated": listing, "c": "3"})
        settle(tmp_path / "out")
        assert everything(tmp_path) == {"precious": "1", "out": "a folder", "out/b": "2", "out/c": "3"}


def test_a_folder_that_changes_while_it_is_read_is_read_again(tmp_path):
    save(tmp_path / "out", {"config.json": "1", "a": "1"})
    texts = iter(["2", "3"])

    def read() -> tuple[str, str]:
        first = (tmp_path / "out" / "config.json").read_text()
        for text in texts:
            save(tmp_path / "out", {"config.json": text, "a": text})
            break
        return first, (tmp_path / "out" / "a").read_text()

    assert read_unchanged(tmp_path / "out", read) == ("3", "3")
    texts = map(str, range(100))
    with pytest.raises(OutputError, match="was replaced 5 times while it was read"):
        read_unchanged(tmp_path / "out", read)
