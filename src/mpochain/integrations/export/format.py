"""Base class of the formats of exported models: how a recorded model is written, read back and run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from mpochain.errors import MissingDependencyError
from mpochain.integrations.export.captured import Captured

__all__ = ["Format"]


class Format(ABC):
    """One format. The functions get a recorded model and the path of a file in a folder of its own.

    Attributes:
        name: name of the format.
        suffix: how names of its files end.
        packages: packages that it needs, of the extra ``export``.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    def require_available(self) -> None:
        """Check that what the format needs is installed.

        Raises:
            MissingDependencyError: naming what is missing.
        """
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise MissingDependencyError(
                f"format {self.name!r} needs {' and '.join(missing)}; install what it needs with: "
                "pip install 'mpochain[export]'"
            )

    @abstractmethod
    def write(self, captured: Captured, file: Path) -> None:
        """Write a recorded model; further files may be written beside the file."""

    @abstractmethod
    def tensors(self, captured: Captured, file: Path) -> dict[str, int]:
        """Number of elements of every tensor in the file, by name."""

    @abstractmethod
    def runner(self, file: Path) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """Read a file back: a function from inputs to outputs.

        Raises:
            ExportError: the file cannot be run here.
        """
