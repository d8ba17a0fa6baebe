"""Measurements of an unfinished run, kept so that they are made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpochain.compression.state_files import read_sealed, write_sealed

__all__ = ["Measurements"]

_FILE = "measurements.json"


class Measurements:
    """Results by name, each with the setting that it was measured with.

    Args:
        folder: folder of the unfinished run; None to keep nothing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     first = Measurements(Path(folder)).remember("loss", {"windows": 2}, lambda: 3.5)
        ...     again = Measurements(Path(folder)).remember("loss", {"windows": 2}, lambda: 0.0)
        ...     other = Measurements(Path(folder)).remember("loss", {"windows": 4}, lambda: 3.25)
        >>> first, again, other
        (3.5, 3.5, 3.25)
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / _FILE
        self._results = None if self._file is None else read_sealed(self._file)

    def remember(self, name: str, setting: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """Return a result that was kept with the same setting, or measure and keep it.

        Args:
            name: name of the result.
            setting: everything that the result depends on, besides the run itself; JSON.
            measure: returns the result, JSON.

        Raises:
            OutputError: the result cannot be written.
        """
        kept = (self._results or {}).get(name)
        if kept is not None and kept["setting"] == setting:
            return kept["result"]
        result = measure()
        self._results = {**(self._results or {}), name: {"setting": dict(setting), "result": result}}
        if self._file is not None:
            write_sealed(self._file, self._results)
        return result
