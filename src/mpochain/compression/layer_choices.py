"""The choice of each layer under a limit, from statistics of the model as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mpochain.compression.budget import error_budget
from mpochain.compression.limit import Limit
from mpochain.compression.methods import Method
from mpochain.compression.preparation import Preparation, allocated
from mpochain.compression.reached import require_reached
from mpochain.compression.selection import Opened
from mpochain.compression.state import CompressionState
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.division import UNDIVIDED, Division
from mpochain.compression.statistics.passes import gather_every, kept_on_disk, memory_for_statistics
from mpochain.compression.statistics.store import MomentStore
from mpochain.compression.streaming.gathering import gather_in_turn
from mpochain.compression.streaming.opening import Streaming
from mpochain.compression.target import Target
from mpochain.surgery.replacement import with_layers

__all__ = ["Setup"]


@dataclass(frozen=True, eq=False)
class Setup:
    """What all stages of a compression share.

    Attributes:
        model: the dense model.
        method: compression method.
        selected: the layers.
        patterns: targets as the user gave them; None for all layers.
        batches: calibration batches.
        loss: loss whose gradients weight the outputs.
        groups: layers of each pass over the data.
        division: processes that share the work.
        streaming: the model with its blocks run one at a time; None to run it as it is.
    """

    model: nn.Module
    method: Method
    selected: Opened
    patterns: Collection[str] | None
    batches: Iterable[Any]
    loss: Callable[[Any], Tensor] | DefaultLoss
    groups: Sequence[Mapping[str, Target]]
    division: Division = UNDIVIDED
    streaming: Streaming | None = None

    @property
    def room(self) -> int:
        """Bytes for fits of layers, beside what a pass over the data takes."""
        return memory_for_statistics(self.model) if self.streaming is None else self.streaming.room

    def store(self, state: CompressionState | None) -> MomentStore:
        """Storage for the moments of all layers, a context manager."""
        on_disk = self.streaming is not None or kept_on_disk(self.model, self.groups, self.method)
        folder = None if state is None else state.moments
        return MomentStore(on_disk=on_disk, folder=folder, division=self.division)

    def choose(
        self,
        limit: Limit,
        moments: MomentStore,
        state: CompressionState | None,
        standing: Mapping[nn.Module, nn.Module],
    ) -> tuple[Preparation, dict[str, Any]]:
        """Collect the moments that are missing, and choose the form of each layer unless the state has it.

        Args:
            limit: limit of all layers together.
            moments: receives the moments.
            state: keeps the choices, or has them; None to keep none.
            standing: compressed layer of each dense one in the model that the moments are collected in.

        Returns:
            Fits of the layers, and the choices with other results, ready for JSON.
        """
        targets, team = self.selected.targets, self.division.team
        if not team.from_first(state is not None and state.has_layers(targets)):
            turn = None if self.streaming is None else self.streaming.turn
            if turn is not None:
                gather_in_turn(turn, targets, self.method, moments, loss=self.loss, division=self.division)
            elif self.streaming is None:
                self._gather(moments, standing)
            require_reached(self.model, targets, moments.unreached, self.patterns)
        preparation = Preparation(self.method, targets, moments, self.room, division=self.division)
        choice = team.from_first(None if state is None else state.choices())
        if choice is None:
            error = None if limit.budget is None else error_budget(limit.budget)
            # The curves are alike in all processes, but the last digits of a search need not be.
            choice = team.from_first(
                {
                    **allocated(self.method, targets, preparation, limit, error),
                    "loss": moments.loss,
                    "unreached": list(moments.unreached),
                }
            )
            if state is not None and team.is_first:
                state.keep_choices(choice)
        return preparation, choice

    def _gather(self, moments: MomentStore, standing: Mapping[nn.Module, nn.Module]) -> None:
        with with_layers(self.model, standing):
            gather_every(
                self.model,
                self.groups,
                self.batches,
                self.method,
                moments,
                loss=self.loss,
                standing=standing,
                division=self.division,
            )
