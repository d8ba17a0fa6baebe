"""Provenance of results: versions, machine, threads and, on request, the git commit."""

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
    """Commit of this package's source tree, with ``+changes`` if files are modified; None outside git."""
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
        return None  # installed inside another project's tree
    return head + ("+changes" if changes else "")


def provenance(*, threads: int, commit: bool = False) -> dict[str, Any]:
    """Versions, machine and threads behind a result, ready for JSON.

    Args:
        threads: number of threads that the numeric library used.
        commit: whether to run git and record the commit of this package's source tree, which published results need.
            If False, no process is started and the record has no key ``commit``.

    Example:
        >>> record = provenance(threads=2)
        >>> record["threads"], "commit" in record
        (2, False)
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        **({"commit": _commit()} if commit else {}),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        **versions,
    }
