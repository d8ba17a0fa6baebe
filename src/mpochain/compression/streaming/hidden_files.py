"""Hidden states between the blocks of a model, and the gradients with respect to them, in files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mpochain.compression.state_files import part_of, read_part, read_sealed, write_part, write_sealed
from mpochain.errors import CheckpointError, OutputError
from mpochain.system.sizes import megabytes

__all__ = ["HiddenFiles", "Kind", "StatesMissingError"]

Kind = Literal["states", "gradients"]


class StatesMissingError(CheckpointError):
    """States or gradients that an interrupted run should have left."""


class HiddenFiles:
    """Hidden states of every batch in front of every block; level ``k`` is the input of block ``k``, from 0.

    A level is finished once all its batches are written, so that an interrupted run goes on from the last finished one.

    Args:
        folder: created when something is written.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     files = HiddenFiles(Path(folder))
        ...     files.write("states", 0, 1, torch.ones(2))
        ...     files.finish("states", 0, [1])
        ...     files.read("states", 0, 1), files.is_finished("states", 0), files.is_finished("states", 1)
        (tensor([1., 1.]), True, False)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, kind: Kind, level: int, number: int, tensor: Tensor) -> None:
        """Keep the states or gradients ``(..., features)`` of one batch.

        Raises:
            OutputError: the disk is full or the folder is not writable.
        """
        try:
            write_part(self._place(kind, level), str(number), {kind: tensor}, {})
        except (OSError, OutputError) as error:
            raise OutputError(
                f"cannot write the hidden states of batch {number} to {self._folder} ({error}); free some space"
            ) from error

    def read(self, kind: Kind, level: int, number: int) -> Tensor:
        """The states or gradients of one batch.

        Raises:
            StatesMissingError: the file is missing or damaged.
        """
        file = part_of(self._place(kind, level), str(number))
        part = None if file is None else read_part(file)
        if part is None:
            raise StatesMissingError(
                f"the {kind} of batch {number} in front of block {level} in {self._folder} are missing or damaged; "
                "remove the folder of the unfinished run to start again"
            )
        return part[0][kind]

    def finish(self, kind: Kind, level: int, numbers: list[int], **values: Any) -> None:
        """Note that the level is complete, with the numbers of its batches and further values, ready for JSON."""
        write_sealed(self._marker(kind, level), {"batches": sorted(numbers), **values})

    def is_finished(self, kind: Kind, level: int) -> bool:
        """Whether the level was completed; its tensors may be removed by now."""
        return read_sealed(self._marker(kind, level)) is not None

    def noted(self, kind: Kind, level: int) -> dict[str, Any]:
        """What was noted of a finished level.

        Raises:
            StatesMissingError: it is not finished, or the note is damaged.
        """
        values = read_sealed(self._marker(kind, level))
        if values is None:
            raise StatesMissingError(f"{self._marker(kind, level)} is damaged; remove the folder of the unfinished run")
        return values

    def remove(self, kind: Kind, level: int) -> None:
        """Remove the tensors of a level, which stays finished."""
        shutil.rmtree(self._place(kind, level), ignore_errors=True)

    def clear(self) -> None:
        """Remove everything, to start again."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def require_space(self, needed: int, what: str) -> None:
        """Refuse work whose files do not fit on the disk.

        Raises:
            OutputError: they do not; the message states both sizes.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise OutputError(
                f"{what} take {megabytes(needed)} in {self._folder}, where {megabytes(free)} are free; free some "
                "space, name a folder on another disk, or give fewer batches"
            )

    def _place(self, kind: Kind, level: int) -> Path:
        return self._folder / f"{kind}-{level}"

    def _marker(self, kind: Kind, level: int) -> Path:
        return self._folder / f"{kind}-{level}.json"
