"""Store of measurements in the user's cache folder: machine constants, and the fastest plans.

There is one JSON file per processor and set of versions, so that times of another machine or version are never used. A
file that is damaged, or written by a later version, is read as empty and replaced at the next measurement. Processes
that measure at the same time add to the file one after another, so no entry is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs

from mpochain.errors import OutputError
from mpochain.planning.machine import Machine, Setting, default_machine
from mpochain.system.files import write_bytes
from mpochain.system.locks import locked
from mpochain.system.processor import processor
from mpochain.system.reading import read_bytes

__all__ = ["STORE", "Store", "measured_machine"]

_FORMAT = 1
_LONGEST = 64 << 20
# Seconds to wait for other processes that add to the file.
_LONGEST_WAIT = 10.0


def _environment() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in ("torch", "mpochain"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"format": _FORMAT, "processor": processor(), "cpus": os.cpu_count(), **versions}


class Store:
    """Measured machine constants and plans; read once per process and file."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._environment: dict[str, Any] = {}
        self._machines: dict[str, Any] = {}
        self._plans: dict[str, Any] = {}
        # Layers are called by several threads.
        self._lock = threading.RLock()

    @property
    def path(self) -> Path:
        """The file for this machine and these versions."""
        self._environment = self._environment or _environment()
        digest = hashlib.sha256(json.dumps(self._environment, sort_keys=True).encode()).hexdigest()[:16]
        return Path(platformdirs.user_cache_dir("mpochain")) / "plans" / f"{digest}.json"

    def machine(self, setting: Setting) -> Machine:
        """The measured constants for a setting, or the defaults."""
        with self._lock:
            return self._machine(setting)

    def _machine(self, setting: Setting) -> Machine:
        self._open()
        machine = self._machines.get(str(setting))
        if machine is not None and not isinstance(machine, Machine):
            try:
                machine = Machine.from_dict(machine)
            except ValueError:
                machine = None
            self._machines[str(setting)] = machine
        return machine or default_machine(setting)

    def add_machine(self, setting: Setting, machine: Machine) -> None:
        """Store the constants for a setting."""
        with self._lock:
            self._open()
            self._machines[str(setting)] = machine
            self._write()

    def decision(self, key: str) -> Any:
        """The record stored under ``key``, or None; callers must validate it, since the file is not trusted."""
        with self._lock:
            self._open()
            return self._plans.get(key)

    def add_decision(self, key: str, record: dict[str, Any], *, warns: bool = True) -> None:
        """Store a record under ``key``; without ``warns``, a file that cannot be written is no matter."""
        with self._lock:
            self._open()
            self._plans[key] = record
            self._write(warns)

    def _open(self) -> None:
        # This is not on the hot path: layers look up their own programs first.
        if self._path is None or self._path != self.path:
            self._machines, self._plans = {}, {}
            self._reread()

    def _reread(self) -> None:
        """Add the entries that other processes wrote; those of this process win."""
        if self._path != self.path:
            self._machines, self._plans, self._path = {}, {}, self.path
        try:
            content = json.loads(read_bytes(self._path, _LONGEST).decode())
            if content["environment"] != self._environment:
                return
            machines, plans = dict(content["machines"]), dict(content["plans"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return
        self._machines = {**machines, **self._machines}
        self._plans = {**plans, **self._plans}

    def _write(self, warns: bool = True) -> None:
        path = self.path
        try:
            with locked(path.with_name(f".{path.name}.mpochain-lock"), path, wait=_LONGEST_WAIT if warns else 0.0):
                self._reread()
                machines = {
                    key: machine.as_dict() if isinstance(machine, Machine) else machine
                    for key, machine in self._machines.items()
                    if machine is not None
                }
                content = {"environment": self._environment, "machines": machines, "plans": self._plans}
                write_bytes(path, json.dumps(content, indent=1).encode())
        except OutputError as error:
            if not warns:
                return
            warnings.warn(f"measurements are used in this process but not stored: {error}", stacklevel=2)


STORE = Store()


def measured_machine(setting: Setting) -> Machine:
    """The constants measured on this machine for a setting, from the user's cache folder, or the built-in ones.

    Example:
        >>> measured_machine(Setting("float32")).gemm_rate > 0
        True
    """
    return STORE.machine(setting)
