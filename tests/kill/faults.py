"""A piece of work in a process of its own that is killed, or meets a full disk, at a chosen operation on files."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpochain.errors import MPOError

__all__ = ["ERRORS", "Fault", "Outcome", "run"]

# What the system may answer to an operation on a file, besides success.
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
# They need no space, and a disk that can only be read is not meant here.
_FREEING = {"os.remove", "os.rmdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Fault:
    """What happens to a process.

    Attributes:
        operation: number of the operation on a file at which it happens, from 0; None for none.
        error: number of the error that this and all later operations meet; 0 for a kill.
        seconds: time after which the process is killed instead, wherever it is; None for never.
        torn: whether a file that is about to be written has got its first bytes when the process is killed.
        exchange: whether the system can exchange two folders in one step.
    """

    operation: int | None = None
    error: int = 0
    seconds: float | None = None
    torn: bool = False
    exchange: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        how: ``"finished"``, ``"killed"``, ``"refused"`` (an MPOError) or ``"failed"`` (any other exception).
        operations: number of operations on files so far.
        message: of an exception.
    """

    how: str
    operations: int
    message: str = ""


class _Files:
    """Counts the operations on files below a folder, and lets the fault happen."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.folder, self.fault, self.count = os.fspath(folder.resolve()), fault, 0
        self.active = True

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active or (event != "open" and event not in _CHANGES):
            return
        places = [os.fsdecode(value) for value in arguments[:2] if isinstance(value, str | bytes | os.PathLike)]
        places = [place for place in places if place.startswith(self.folder)]
        if not places:
            return
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            if not writes and not (isinstance(flags, int) and flags & _WRITING):
                return
        self.happen(event, places[0])

    def happen(self, event: str, place: str = "") -> None:
        """Count an operation that is about to be done."""
        number, self.count = self.count, self.count + 1
        fault = self.fault
        if fault.operation is None or number < fault.operation:
            return
        if fault.error:
            if event not in _FREEING:
                raise OSError(fault.error, os.strerror(fault.error), place or None)
            return
        self.active = False
        if fault.torn and event == "open":
            Path(place).write_bytes(b"\x00{")
        os.kill(os.getpid(), signal.SIGKILL)


def run(work: Callable[[Path], None], folder: Path, fault: Fault, *, wait: bool = True) -> Outcome | int:
    """Do some work in a forked process.

    Args:
        work: called with ``folder``.
        folder: the operations below it count.
        fault: what happens to the process.
        wait: whether to wait for its end; otherwise its number is returned.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read)
        _work(work, folder, fault, write)
    os.close(write)
    if not wait:
        os.close(read)
        return child
    return _outcome(child, read, fault)


def _work(work: Callable[[Path], None], folder: Path, fault: Fault, report: int) -> None:
    """Never returns: a forked process must not go on with the tests."""
    code = 4
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        files = _Files(folder, fault)
        _watch(files)
        try:
            work(folder)
            code, message = 0, ""
        except MPOError as error:
            code, message = 3, str(error)
        except BaseException as error:
            message = "".join(traceback.format_exception(error)[-3:])
        files.active = False
        os.write(report, f"{files.count}\n{message}".encode()[:60_000])
    finally:
        os._exit(code)


def _watch(files: _Files) -> None:
    """Call ``files`` before each operation; what Python does not announce is wrapped."""
    import mpochain.system.commit as commit

    sys.addaudithook(files)
    fsync, exchange = os.fsync, commit.exchange

    def counted_fsync(descriptor: int) -> None:
        files.happen("fsync")
        fsync(descriptor)

    def counted_exchange(first: Path, second: Path) -> bool:
        files.happen("exchange")
        return files.fault.exchange and exchange(first, second)

    os.fsync = counted_fsync
    commit.exchange = counted_exchange


def _outcome(child: int, read: int, fault: Fault) -> Outcome:
    if fault.seconds is not None:
        time.sleep(fault.seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        count, _, message = pipe.read().decode().partition("\n")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    how = {0: "finished", 3: "refused", -signal.SIGKILL: "killed"}.get(code, "failed")
    return Outcome(how, int(count or 0), message)
