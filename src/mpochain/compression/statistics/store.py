"""The moments of all layers until these are made: in memory, or in a temporary file for each where they are many."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from mpochain.compression.statistics.moments import Moments
from mpochain.errors import OutputError

__all__ = ["MomentStore"]


class MomentStore:
    """Moments by the names of their layers; a context, after which nothing is left of them.

    Args:
        on_disk: whether they are written to the folder for temporary files (``TMPDIR``) and read again one by one, in
            place of another pass over the calibration data.

    Example:
        >>> with MomentStore(on_disk=True) as store:
        ...     store.keep({"up": Moments(torch.eye(2), None, 1.0, None, 9)})
        ...     store.get("up").rows, store.get("down")
        (9, None)
    """

    def __init__(self, *, on_disk: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mpochain-") if on_disk else None
        self._held: dict[str, Moments] = {}
        self._files: dict[str, Path] = {}

    def __enter__(self) -> MomentStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held, self._files = {}, {}
        if self._folder is not None:
            self._folder.cleanup()

    def keep(self, found: Mapping[str, Moments]) -> None:
        """Take the moments of some layers.

        Raises:
            OutputError: no room on the disk.
        """
        if self._folder is None:
            self._held.update(found)
            return
        for name, moments in found.items():
            # A number and not the name, which a file system may not take.
            file = Path(self._folder.name) / str(len(self._files))
            # Copies, for a tensor is saved with all the memory that it is a view of.
            values = {each.name: _alone(getattr(moments, each.name)) for each in fields(moments)}
            try:
                torch.save(values, file)
            except (OSError, RuntimeError) as error:
                raise OutputError(
                    f"cannot keep the moments of the layers in {self._folder.name} ({error}); let TMPDIR name a "
                    "folder with room for as much as the model takes"
                ) from error
            self._files[name] = file

    def get(self, name: str) -> Moments | None:
        """Those of a layer; None if there are none."""
        if name in self._files:
            return Moments(**torch.load(self._files[name], weights_only=True))
        return self._held.get(name)


def _alone(value: Tensor | float | None) -> Tensor | float | None:
    return value.clone() if isinstance(value, Tensor) else value
