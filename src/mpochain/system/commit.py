"""How the new files of a folder take the places of older ones: by an exchange of folders, or one file after another."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mpochain.system.exchange import exchange
from mpochain.system.files import sync_folder
from mpochain.system.locks import lock_descriptor, take_over

__all__ = [
    "COMMITTED",
    "LOCK",
    "STAGING",
    "exchanged",
    "finish",
    "is_folder",
    "is_internal",
    "move",
    "remove",
]

# The lock file of a folder, a folder of new files, such a folder that is valid, and its list of outdated files.
LOCK = ".mpochain.lock"
STAGING = ".mpochain.tmp-"
COMMITTED = ".mpochain.committed"
_OUTDATED = ".mpochain.outdated"
# With more files than this beside those that change, they are not linked into another folder.
_MOST_KEPT = 10_000


def is_internal(name: str) -> bool:
    """Whether a name in a folder is one of those that this module uses for a short time.

    Example:
        >>> is_internal(".mpochain.lock"), is_internal("config.json")
        (True, False)
    """
    return name in (LOCK, COMMITTED, _OUTDATED) or name.startswith(STAGING)


def exchanged(staging: Path, folder: Path, outdated: Callable[[str], bool], *, real: bool, active: set[str]) -> bool:
    """Exchange the folder with one of the new files and those that stay; False if that is impossible here.

    Args:
        staging: folder of the new files, within ``folder``.
        folder: the folder.
        outdated: whether a file of this name is removed.
        real: whether the folder is locked.
        active: names of staging folders that are in use, which stay.
    """
    if _is_in_use(folder):
        return False
    new = _names_in(staging)
    kept = [name for name in _names_in(folder) - new if not (is_internal(name) or outdated(name))]
    outside = folder.with_name(f".{folder.name}{staging.name}")
    lock = None
    try:
        left = _MOST_KEPT
        for name in kept:
            left = _link(folder / name, staging / name, left)
        shutil.copystat(folder, staging)
        before, after = folder.stat(), staging.stat()
        if (before.st_uid, before.st_gid) != (after.st_uid, after.st_gid):
            os.chown(staging, before.st_uid, before.st_gid)
        if real:
            # The lock file of the new folder is locked before anyone can see it.
            lock = os.open(staging / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            lock_descriptor(lock)
        sync_folder(staging)
        staging.rename(outside)
        if not exchange(outside, folder):
            outside.rename(staging)
            raise OSError("folders cannot be exchanged here")
    except OSError:
        if lock is not None:
            os.close(lock)
        for name in _names_in(staging) - new:
            remove(staging / name)
        return False
    if lock is not None:
        take_over(folder / LOCK, lock)
    sync_folder(folder)
    sync_folder(folder.parent)
    for name in _names_in(outside):
        if name in active and name != staging.name:  # of a save that this one is a part of
            (outside / name).rename(folder / name)
        elif not is_internal(name) and not outdated(name) and name not in new:
            _keep_late(outside / name, folder / name)
    shutil.rmtree(outside, ignore_errors=True)  # what stays is removed by the next save
    return True


def _link(old: Path, new: Path, left: int) -> int:
    """Give files a second name, in a second tree of folders.

    Args:
        old: a file, a symbolic link, or a folder.
        new: its second name.
        left: largest number of files and folders.

    Returns:
        How many more there may be.

    Raises:
        OSError: there are more, or some have no second name.
    """
    if left <= 0:
        raise OSError("too many files")
    left -= 1
    if not is_folder(old):
        os.link(old, new, follow_symlinks=False)
        return left
    new.mkdir()
    for entry in old.iterdir():
        left = _link(entry, new / entry.name, left)
    shutil.copystat(old, new)
    return left


def _keep_late(old: Path, new: Path) -> None:
    """Move what another process wrote while the folders were exchanged."""
    if is_folder(old) and is_folder(new):
        for entry in old.iterdir():
            _keep_late(entry, new / entry.name)
    elif not new.exists() and not new.is_symlink():
        old.rename(new)


def _is_in_use(folder: Path) -> bool:
    """Whether the folder itself matters to others, and not only its files: a mount point, a place of this process."""
    try:
        return folder.is_mount() or Path.cwd().is_relative_to(folder)
    except OSError:
        return True


def move(staging: Path, folder: Path, outdated: Callable[[str], bool]) -> None:
    """Move the new files to their places; from a certain moment on, :func:`finish` would move what is left."""
    new = _names_in(staging)
    gone = [name for name in _names_in(folder) if not is_internal(name) and name not in new and outdated(name)]
    with (staging / _OUTDATED).open("x", encoding="utf-8") as file:
        json.dump(gone, file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(staging)
    staging.rename(folder / COMMITTED)
    sync_folder(folder)
    finish(folder)


def finish(folder: Path) -> None:
    """Move the files of a valid staging folder that a killed process left to their places."""
    committed = folder / COMMITTED
    if not is_folder(committed):
        return
    listing = committed / _OUTDATED
    try:
        gone = list(json.loads(listing.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # a folder that came from elsewhere
        gone = []
    aside = []
    for name in sorted(_names_in(committed)):
        if name != _OUTDATED:
            place = folder / name
            if is_folder(place) or is_folder(committed / name):
                # A folder can only be replaced by a rename if its place is free.
                aside.append(folder / f"{STAGING}{secrets.token_hex(8)}")
                with suppress(FileNotFoundError):
                    place.rename(aside[-1])
            (committed / name).replace(place)
    sync_folder(folder)
    for name in gone:
        if isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name:
            remove(folder / name)
    listing.unlink(missing_ok=True)
    committed.rmdir()
    sync_folder(folder)
    for place in aside:
        remove(place)


def _names_in(folder: Path) -> set[str]:
    """Names of the files and folders in a folder."""
    return {entry.name for entry in folder.iterdir()}


def remove(place: Path) -> None:
    """Remove a file, or a folder with everything in it."""
    if is_folder(place):
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def is_folder(place: Path) -> bool:
    """Whether there is a folder, and not a link to one."""
    return place.is_dir() and not place.is_symlink()
