"""Errors of the operating system as errors of this library, with what to do about them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpochain.errors import MPOError, OutputError

__all__ = ["output_error", "output_errors"]

_ADVICE = {
    errno.ENOSPC: "free some space on this disk, or name a folder on another one, and run the command again",
    errno.EDQUOT: "remove files to get below the quota, or name a folder on another disk, and run the command again",
    errno.EFBIG: "this disk or the limit of the process does not allow such large files; name a folder on another disk",
    errno.EIO: "the disk reports a failure; check it, or name a folder on another one",
    errno.EROFS: "this disk can only be read; name a folder on another one",
    errno.EACCES: "you may not write there; change its permissions, or name another folder",
    errno.EPERM: "you may not write there; change its permissions, or name another folder",
    errno.ENOTDIR: "a part of this path is a file; name another folder",
    errno.ENAMETOOLONG: "name a folder with a shorter path",
    errno.EMFILE: "too many files are open; close some, or raise the limit (ulimit -n)",
}
# A folder in which new files wait for their place, which says nothing to a reader.
_STAGING = re.compile(r"/\.mpochain\.tmp-[0-9a-f]+")
# How libraries written in Rust (safetensors, tokenizers) name an error of the operating system.
_NUMBER = re.compile(r"\(os error (\d+)\)")


def output_error(path: Path, error: OSError) -> OutputError:
    """Say what could not be written, why, and what to do.

    Example:
        >>> str(output_error(Path("out"), OSError(errno.ENOSPC, "No space left on device")))[:45]
        'cannot write out: No space left on device; fr'
    """
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    place = str(path) if named.is_relative_to(path) or path.is_relative_to(named) else f"{path} ({named})"
    place = _STAGING.sub("", place)
    reason = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    return OutputError(f"cannot write {place}: {reason}" + (f"; {advice}" if advice else ""))


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise errors of the operating system as OutputError that names ``path``, also those of libraries in Rust."""
    try:
        yield
    except MPOError:
        raise
    except OSError as error:
        raise output_error(path, error) from error
    except Exception as error:
        match = _NUMBER.search(str(error))
        if match is None:
            raise
        number = int(match[1])
        raise output_error(path, OSError(number, os.strerror(number))) from error
