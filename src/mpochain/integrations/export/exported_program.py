"""Format ``torch``: a graph of ``torch.export``, which PyTorch alone runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mpochain.integrations.export.captured import Captured
from mpochain.integrations.export.format import Format

__all__ = ["ExportedProgram"]


class ExportedProgram(Format):
    """File of ``torch.export.save``; ``torch.export.load(file).module()`` runs it."""

    name = "torch"
    suffix = ".pt2"

    def write(self, captured: Captured, file: Path) -> None:
        """See the base class."""
        torch.export.save(captured.program, file)

    def tensors(self, captured: Captured, file: Path) -> dict[str, int]:  # noqa: ARG002  # see the base class
        """See the base class."""
        program = torch.export.load(file)
        values = {**program.state_dict, **program.constants}
        # By identity of the memory: tied parameters are stored once.
        stored = {
            (value.data_ptr(), value.numel(), name if not value.numel() else ""): name
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return {name: values[name].numel() for name in stored.values()}

    def runner(self, file: Path) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """See the base class."""
        module = torch.export.load(file).module()

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                return list(module(*inputs))

        return run
