"""Storage of the layers' moments in memory or in files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from mpochain.compression.state_files import part_name, part_of, read_part, read_sealed, write_part, write_sealed
from mpochain.compression.statistics.division import UNDIVIDED, Division
from mpochain.compression.statistics.moments import Moments
from mpochain.errors import CheckpointError, OutputError
from mpochain.system.temporary import TemporaryFolder

__all__ = ["MomentStore"]

# The field that holds moments itself, and the one that is not written.
_ASIDE, _CHOSEN = "held_out", "chosen"


class MomentStore:
    """Moments by layer name; a context manager that deletes those in temporary files when it exits.

    Args:
        on_disk: hold no moments in memory: write them to files and read them one layer at a time, which saves another
            pass over the calibration data.
        folder: keep the moments here, so that a later call can go on from them. None for the folder for temporary
            files (``TMPDIR``), and only if ``on_disk``.
        division: processes that keep the moments of their own layers, all in the same folder.

    Attributes:
        unreached: names of the layers without moments, with the reason.
        loss: the loss whose gradients were collected, as text; "" without gradients.

    Example:
        >>> import torch
        >>> with MomentStore(on_disk=True) as store:
        ...     store.keep({"up": Moments(torch.eye(2), None, 1.0, None, 9)})
        ...     store.get("up").rows, store.get("down")
        (9, None)
    """

    def __init__(self, *, on_disk: bool, folder: Path | None = None, division: Division = UNDIVIDED) -> None:
        self._division = division
        self._temporary = TemporaryFolder() if on_disk and folder is None else None
        self._kept = folder is not None
        self._folder = folder if self._temporary is None else self._temporary.path
        self.on_disk = on_disk
        self._held: dict[str, Moments] = {}
        self._names: set[str] = set()  # of the layers whose moments are in files
        self._chosen: dict[str, dict[str, float]] = {}
        self.unreached: dict[str, str] = {}
        self.loss = ""

    def __enter__(self) -> MomentStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held, self._names = {}, set()
        if self._temporary is not None:
            self._temporary.remove()

    @property
    def bytes_in_memory(self) -> int:
        """Memory of the moments held; tensors shared by layers with the same input count once."""
        tensors = {id(tensor): tensor for moments in self._held.values() for tensor in moments.tensors()}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def keep(self, moments: Mapping[str, Moments]) -> None:
        """Store moments by layer name.

        Raises:
            OutputError: the disk is full or the folder is not writable.
        """
        if self._folder is not None:
            try:
                self._write(moments, self._folder)
            except (OSError, OutputError) as error:
                advice = "free some space" if self._kept else "set TMPDIR to a folder"
                raise OutputError(
                    f"cannot write the moments of the layers to {self._folder} ({error}); {advice} "
                    "with at least as much free space as the size of the model"
                ) from error
        if not self.on_disk:
            self._held.update(moments)

    def resume(self, names: Iterable[str]) -> bool:
        """Go on from the moments that an earlier call kept of a pass over these layers; False if there are none."""
        names = list(names)
        with self._division.team.together():
            resumed = self._resumed(names)
        # What one process cannot read, all collect again.
        return all(self._division.team.gathered(resumed))

    def _resumed(self, names: list[str]) -> bool:
        index = read_sealed(self._index(names)) if self._folder is not None and self._kept else None
        if index is None or index.get("layers") != names:
            return False
        shared: dict[str, Tensor] = {}
        held: dict[str, Moments] = {}
        own = self._division.own(index["stored"])
        for name in own:
            moments = self._read(name, shared)
            if moments is None:
                return False
            if not self.on_disk:
                held[name] = moments
            else:
                shared.clear()
        self._held.update(held)
        self._names.update(own)
        self.unreached |= index["unreached"]
        self.loss = index["loss"]
        return True

    def finish(self, names: Iterable[str]) -> None:
        """Record that the pass over these layers is finished, for :meth:`resume`."""
        if self._folder is not None and self._kept:
            names = list(names)
            everywhere = frozenset[str]().union(*self._division.team.gathered(frozenset(self._names)))
            if not self._division.team.is_first:
                return
            stored = [name for name in names if name in everywhere]
            unreached = {name: self.unreached[name] for name in names if name in self.unreached}
            index = {"layers": names, "stored": stored, "unreached": unreached, "loss": self.loss}
            write_sealed(self._index(names), index)

    def get(self, name: str) -> Moments | None:
        """Return the moments of a layer, or None if none are stored.

        Raises:
            CheckpointError: the file with the moments is damaged.
        """
        if name in self._held or name not in self._names:
            return self._held.get(name)
        moments = self._read(name, {})
        if moments is None:
            raise CheckpointError(f"the moments of {name} in {self._folder} are damaged; remove the folder")
        return replace(moments, chosen=self._chosen.setdefault(name, moments.chosen))

    def _index(self, names: list[str]) -> Path:
        assert self._folder is not None
        return self._folder / f"pass-from-{part_name(names[0])}.json"

    def _write(self, moments: Mapping[str, Moments], folder: Path) -> None:
        # Layers with the same input share a tensor, which is written once.
        owners: dict[int, str] = {}
        for name, layer_moments in moments.items():
            tensors: dict[str, Tensor] = {}
            values: dict[str, Any] = {}
            for key, value in _fields(layer_moments).items():
                if not isinstance(value, Tensor):
                    values[key] = value
                elif id(value) in owners:
                    values[key] = {"shared": owners[id(value)]}
                else:
                    tensors[key] = value
                    owners[id(value)] = f"{name}:{key}"
            write_part(folder, name, tensors, values)
            self._names.add(name)

    def _read(self, name: str, tensors: dict[str, Tensor]) -> Moments | None:
        """Moments of a layer in files; ``tensors`` holds those that several layers share."""
        assert self._folder is not None
        file = part_of(self._folder, name)
        part = None if file is None else read_part(file)
        if part is None:
            return None
        own, values = part
        tensors |= {f"{name}:{field}": tensor for field, tensor in own.items()}
        for field, value in values.items():
            if isinstance(value, dict):
                owner, _, shared_field = value["shared"].rpartition(":")
                if value["shared"] not in tensors:
                    owner_file = part_of(self._folder, owner)
                    owner_part = None if owner_file is None else read_part(owner_file)
                    if owner_part is None:
                        return None
                    tensors[value["shared"]] = owner_part[0][shared_field]
                values[field] = tensors[value["shared"]]
        return _moments(values | own)


def _fields(moments: Moments) -> dict[str, Any]:
    """All fields by name; those of the moments set aside have their name before their own."""
    values = {
        field.name: getattr(moments, field.name) for field in fields(moments) if field.name not in (_ASIDE, _CHOSEN)
    }
    if moments.held_out is not None:
        values |= {f"{_ASIDE}.{name}": value for name, value in _fields(moments.held_out).items()}
    return values


def _moments(values: Mapping[str, Any]) -> Moments:
    """Moments from the values of :func:`_fields`."""
    own = {name: value for name, value in values.items() if "." not in name}
    aside = {name.partition(".")[2]: value for name, value in values.items() if "." in name}
    return Moments(**own, held_out=_moments(aside) if aside else None)
