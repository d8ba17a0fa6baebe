"""Where a figure came from: versions, machine, threads and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mpochain.system.processor import processor

__all__ = ["provenance"]

_PACKAGES = ("mpochain", "torch", "numpy", "opt_einsum")


def _commit() -> str | None:
    """The commit of the source tree this package runs from, with ``+changes`` if it differs; None outside git."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=folder, capture_output=True, check=False, timeout=10
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    if tracked.returncode:
        return None  # installed into some other project's tree
    return head + ("+changes" if changes else "")


def provenance(*, threads: int) -> dict[str, Any]:
    """What a published figure must carry.

    Args:
        threads: threads the numeric library used.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        **versions,
    }
