"""Matrices of a chain's programs, cached between calls and computed again when a core has changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from mpochain.execution.kept import STEPS, ParameterState, same, same_memory, state_of
from mpochain.execution.program import Program
from mpochain.planning import Schedule

__all__ = ["KeptMatrices"]


class KeptMatrices:
    """Cached matrices of the programs of one chain.

    Views of the cores have no memory of their own, and reflect in-place changes. Other matrices are copies (fast
    execution only). Changes are detected by the tensor's version, which counts in-place changes (``load_state_dict``,
    edits), and by the number of steps of all optimisers. A replaced core is another object, and ``.to`` changes its
    address and dtype.

    Args:
        changed: called when the cores have changed, so that nobody else keeps their former memory alive.
    """

    def __init__(self, changed: Callable[[], object]) -> None:
        # Programs with the same schedule and dtype share their matrices; each such pair has a number.
        self._numbers: dict[tuple[Schedule, torch.dtype], int] = {}
        self._entries: dict[int, tuple[int, list[ParameterState], list[Tensor]]] = {}
        self._changed = changed

    def number(self, program: Program, dtype: torch.dtype) -> int:
        """The number under which the matrices of a program are kept."""
        return self._numbers.setdefault((program.schedule, dtype), len(self._numbers))

    def holds(self, number: int, matrices: Sequence[Tensor]) -> bool:
        """True if these matrices are cached under the number."""
        return number in self._entries and self._entries[number][2] is matrices

    def drop_others(self, numbers: Collection[int]) -> None:
        """Drop all matrices but those of these numbers."""
        self._entries = {number: entry for number, entry in self._entries.items() if number in numbers}

    def all(self) -> list[list[Tensor]]:
        """The cached matrices of each number."""
        return [matrices for _, _, matrices in self._entries.values()]

    def of(self, program: Program, number: int, cores: Sequence[Tensor]) -> list[Tensor]:
        """The matrices of a program's sweep, cached if a change of the cores will be noticed."""
        views = program.only_views
        if views and not all(core.is_contiguous() for core in cores):
            return program.matrices(cores)  # copies, which would not reflect the next change
        if not views and any(core.is_inference() for core in cores):
            return program.matrices(cores)  # they have no version counter, so a change would not be noticed
        state = state_of(cores, versions=not views)
        steps = 0 if views else STEPS.count
        kept = self._entries.get(number)
        if kept is not None and kept[0] == steps and same(kept[1], state):
            return kept[2]
        matrices = [matrix.detach() if views else matrix.contiguous() for matrix in program.matrices(cores)]
        if any(not same_memory(old, state) for _, old, _ in self._entries.values()) or kept is not None:
            # Matrices of the old cores would keep their memory alive, also in other programs and bound calls.
            self._entries.clear()
            self._changed()
        self._entries[number] = steps, state, matrices
        return matrices
