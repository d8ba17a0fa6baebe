"""Format ``aoti``: a model compiled to machine code by AOTInductor, which PyTorch in Python or C++ runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpochain.errors import MissingDependencyError
from mpochain.integrations.export.captured import Captured
from mpochain.integrations.export.format import Format

__all__ = ["AOTInductor"]


class AOTInductor(Format):
    """Package of ``torch._inductor.aoti_compile_and_package``, for one kind of processor and one version of torch."""

    name = "aoti"
    suffix = ".pt2"

    def require_available(self) -> None:
        """Check that there is a C++ compiler.

        Raises:
            MissingDependencyError: there is none.
        """
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise MissingDependencyError(
                "format 'aoti' compiles C++ and found no compiler; install g++ (apt install g++) or clang, name one in "
                "the environment variable CXX, or export to format 'torch', which needs none"
            ) from error

    def write(self, captured: Captured, file: Path) -> None:
        """See the base class."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own deprecated functions
            torch._inductor.aoti_compile_and_package(captured.program, package_path=str(file))

    def tensors(self, captured: Captured, file: Path) -> dict[str, int]:
        """See the base class."""
        stored = captured.program.state_dict | captured.program.constants
        constants: Any = _loaded(file).get_constant_fqns()
        # What is compiled in under another name was computed from parameters; its size is in no table.
        return {name: stored[name].numel() if name in stored else _UNKNOWN for name in constants}

    def runner(self, file: Path) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """See the base class."""
        package = _loaded(file)

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                outputs: Any = package(*inputs)
            return list(outputs) if isinstance(outputs, list | tuple) else [outputs]

        return run


# Counts as more than any constant that may be in a file.
_UNKNOWN = 1 << 62


def _loaded(file: Path) -> Any:
    return torch._inductor.aoti_load_package(str(file))
