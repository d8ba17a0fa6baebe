"""Storage of the layers' moments in memory or in temporary files."""

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
    """Moments by layer name; a context manager that deletes them when it exits.

    Args:
        on_disk: write the moments to the folder for temporary files (``TMPDIR``) and read them one layer at a time,
            which saves another pass over the calibration data.

    Example:
        >>> with MomentStore(on_disk=True) as store:
        ...     store.keep({"up": Moments(torch.eye(2), None, 1.0, None, 9)})
        ...     store.get("up").rows, store.get("down")
        (9, None)
    """

    def __init__(self, *, on_disk: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mpochain-") if on_disk else None
        self.on_disk = on_disk
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

    @property
    def bytes_in_memory(self) -> int:
        """Memory of the moments held; tensors shared by layers with the same input count once."""
        tensors = {
            id(value): value
            for moments in self._held.values()
            for field in fields(moments)
            if isinstance(value := getattr(moments, field.name), Tensor)
        }
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def keep(self, moments: Mapping[str, Moments]) -> None:
        """Store moments by layer name.

        Raises:
            OutputError: the disk is full or the folder is not writable.
        """
        if self._folder is None:
            self._held.update(moments)
            return
        for name, layer_moments in moments.items():
            # Files are numbered because a layer's name may not be a valid file name.
            file = Path(self._folder.name) / str(len(self._files))
            # Tensors are copied because torch.save writes the whole storage that a view belongs to.
            values = {field.name: _copied(getattr(layer_moments, field.name)) for field in fields(layer_moments)}
            try:
                torch.save(values, file)
            except (OSError, RuntimeError) as error:
                raise OutputError(
                    f"cannot write the moments of the layers to {self._folder.name} ({error}); set TMPDIR to a folder "
                    "with at least as much free space as the size of the model"
                ) from error
            self._files[name] = file

    def get(self, name: str) -> Moments | None:
        """Return the moments of a layer, or None if none are stored."""
        if name in self._files:
            return Moments(**torch.load(self._files[name], weights_only=True))
        return self._held.get(name)


def _copied(value: Tensor | float | None) -> Tensor | float | None:
    return value.clone() if isinstance(value, Tensor) else value
