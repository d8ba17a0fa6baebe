"""What was measured on this machine, kept in the user's cache: constants of the machine, and the plans that won.

One JSON file per processor and set of versions, so that times of another machine or version are never believed. A file
that is damaged, or written by a later version, is read as empty and replaced when something new is measured. Two
processes that measure at once lose at most each other's last entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs

from mpochain.errors import OutputError
from mpochain.planning.machine import Machine, Setting, default_machine
from mpochain.system.files import write_bytes
from mpochain.system.processor import processor

__all__ = ["STORE", "Store"]

_FORMAT = 1


def _environment() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in ("torch", "mpochain"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"format": _FORMAT, "processor": processor(), "cpus": os.cpu_count(), **versions}


class Store:
    """Measured constants and decisions; read once per process and file."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._environment: dict[str, Any] = {}
        self._machines: dict[str, Any] = {}
        self._plans: dict[str, Any] = {}

    @property
    def path(self) -> Path:
        """The file of this machine and these versions."""
        self._environment = self._environment or _environment()
        digest = hashlib.sha256(json.dumps(self._environment, sort_keys=True).encode()).hexdigest()[:16]
        return Path(platformdirs.user_cache_dir("mpochain")) / "plans" / f"{digest}.json"

    def machine(self, setting: Setting) -> Machine:
        """The measured constants of a setting, or the defaults."""
        self._open()
        found = self._machines.get(str(setting))
        if found is not None and not isinstance(found, Machine):
            try:
                found = Machine.from_dict(found)
            except ValueError:
                found = None
            self._machines[str(setting)] = found
        return found or default_machine(setting)

    def add_machine(self, setting: Setting, machine: Machine) -> None:
        """Keep the constants of a setting."""
        self._reread()
        self._machines[str(setting)] = machine
        self._write()

    def decision(self, key: str) -> Any:
        """What was kept under ``key``, or None; to be checked by whoever asks, since a file can say anything."""
        self._open()
        return self._plans.get(key)

    def add_decision(self, key: str, record: dict[str, Any]) -> None:
        """Keep a decision."""
        self._reread()
        self._plans[key] = record
        self._write()

    def _open(self) -> None:
        # The hot path never comes here: plans are looked up by their own cache first.
        if self._path is None or self._path != self.path:
            self._machines, self._plans = {}, {}
            self._reread()

    def _reread(self) -> None:
        """Take in what other processes wrote; what this one knows wins."""
        if self._path != self.path:
            self._machines, self._plans, self._path = {}, {}, self.path
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["environment"] != self._environment:
                return
            machines, plans = dict(content["machines"]), dict(content["plans"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return
        self._machines = {**machines, **self._machines}
        self._plans = {**plans, **self._plans}

    def _write(self) -> None:
        machines = {
            key: machine.as_dict() if isinstance(machine, Machine) else machine
            for key, machine in self._machines.items()
            if machine is not None
        }
        content = {"environment": self._environment, "machines": machines, "plans": self._plans}
        assert self._path is not None
        try:
            write_bytes(self._path, json.dumps(content, indent=1).encode())
        except OutputError as error:
            warnings.warn(f"what was measured is used but not kept: {error}", stacklevel=2)


STORE = Store()
