"""Moments of all layers, block after block, of a model whose blocks run one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.methods import Method
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.division import Division
from mpochain.compression.statistics.given_gradients import GivenGradients
from mpochain.compression.statistics.moments import frozen, moment_bytes
from mpochain.compression.statistics.passes import gather_moments, sides_needed
from mpochain.compression.statistics.store import MomentStore
from mpochain.compression.streaming.agreement import layers_before, require_agreement
from mpochain.compression.streaming.blocks_in_turn import BlocksInTurn
from mpochain.compression.streaming.hidden_files import Kind, StatesMissingError
from mpochain.compression.target import Target
from mpochain.compression.together import in_turn
from mpochain.errors import ArgumentError
from mpochain.surgery.calls import without_cache
from mpochain.system.progress import TimeLeft
from mpochain.wording import counted

__all__ = ["gather_in_turn"]

_logger = logging.getLogger(__name__)

_Run = Callable[[nn.Module, Any], Any]


def gather_in_turn(
    turn: BlocksInTurn,
    targets: Mapping[str, Target],
    method: Method,
    store: MomentStore,
    *,
    loss: Callable[[Any], Tensor] | DefaultLoss,
    division: Division,
) -> None:
    """Collect the moments that the store does not hold yet; memory holds one block, its moments and one batch.

    The hidden states are computed from the first block to the last. For methods with gradients these follow from the
    last block to the first, where each block is run again and its moments are collected. An interrupted run goes on
    from the block that it was at.

    Args:
        turn: the model and its batches.
        targets: layers by name.
        method: method that needs the moments.
        store: receives the moments, the reasons why layers have none, and the description of the loss.
        loss: see :func:`mpochain.compress`.
        division: processes that share the batches; their files are in the same folder.

    Raises:
        ArgumentError: all batches are masked entirely, or the model reads more than the states between its blocks.
        OutputError: the files of the hidden states do not fit on the disk.
        CheckpointError: files are damaged while they are used.
    """
    with torch.inference_mode(False), frozen(turn.model), without_cache(turn.model):
        try:
            _Gathering(turn, targets, method, store, division).run(loss)
        except StatesMissingError as error:
            _logger.warning("%s; the blocks run again from the first one", error)
            in_turn(division.team, turn.files.clear)
            if isinstance(loss, DefaultLoss):
                loss.restart()
            _Gathering(turn, targets, method, store, division).run(loss)


class _Gathering:
    def __init__(
        self,
        turn: BlocksInTurn,
        targets: Mapping[str, Target],
        method: Method,
        store: MomentStore,
        division: Division,
    ) -> None:
        self._turn, self._targets, self._method, self._store = turn, targets, method, store
        self._division, self._files = division, turn.files
        *self._blocks, self._outside = turn.groups(targets)
        self._count = len(self._blocks)
        self._numbers: list[int] = []  # of the batches that are not masked entirely
        self._reached: list[int] = []  # of those whose gradients this process wrote since the last level was finished
        self._before: dict[str, Target] = {}  # layers outside of the blocks that run before them

    def run(self, loss: Callable[[Any], Tensor] | DefaultLoss) -> None:
        """Collect what is missing."""
        self.read_first_states()
        if self._method.needs == "gradients":
            self.run_forward()
            self.run_backward(loss)
        else:
            self.run_forward_collecting()

    def read_first_states(self) -> None:
        """Write the hidden states that the first block reads, after the check that all files fit on the disk."""
        turn, team = self._turn, self._division.team
        size = 0
        with team.together(), torch.no_grad():
            for batch in turn:
                states = turn.first_states(batch)
                if states is None:
                    continue
                if not self._numbers:
                    self._before = layers_before(require_agreement(turn, batch, self._targets), self._outside)
                size += states.nbytes
                self._numbers.append(turn.number)
                if team.works_on(turn.number) and not self._files.is_finished("states", 0):
                    self._files.write("states", 0, turn.number, states)
        if not self._numbers:
            raise ArgumentError(f"the masks of all {len(turn)} calibration batches leave no position; give others")
        with team.together():
            if team.is_first and not self._files.is_finished("states", 1):
                self._require_space(size)
        self._finish("states", 0)

    def _require_space(self, states: int) -> None:
        # States in front of every block, or of two at a time, and gradients of two.
        levels = self._count + 2 if self._method.needs == "gradients" else 1
        inputs, outputs = sides_needed(self._targets, self._method)
        modules = {name: target.module for name, target in self._targets.items()}
        sets = 2 if self._method.sets_aside else 1
        moments = sets * moment_bytes(
            modules, gradients=self._method.needs == "gradients", inputs=inputs, outputs=outputs
        )
        layers = sum(target.bytes for target in self._targets.values())
        self._files.require_space(
            levels * states + moments + layers,
            f"hidden states in front of {counted(self._count, 'block')}, moments and layers",
        )

    def run_forward(self) -> None:
        """Write the hidden states in front of every block and after the last."""
        left = TimeLeft(self._count)
        for number in range(self._count):
            if not self._files.is_finished("states", number + 1):
                with self._division.team.together(), torch.no_grad():
                    for batch in self._turn:
                        if self._turn.number in self._numbers and self._division.team.works_on(self._turn.number):
                            self._forward(number)(self._turn.model, batch)
                self._finish("states", number + 1)
                _logger.info("blocks run: %s", left.after(number + 1))

    def run_forward_collecting(self) -> None:
        """Collect moments without gradients along the way."""
        left = TimeLeft(self._count)
        self._gather(self._before, lambda _, batch: self._turn.first_states(batch), None)
        for number, group in enumerate(self._blocks):
            if self._files.is_finished("states", number + 1) and self._resumed(group):
                continue
            self._gather(group, self._forward(number), None)
            self._finish("states", number + 1)
            self._files.remove("states", number)
            _logger.info("blocks run: %s", left.after(number + 1))
        self._gather(self._others(), self._output, None)

    def run_backward(self, loss: Callable[[Any], Tensor] | DefaultLoss) -> None:
        """Collect the moments of what follows the blocks, of each block from the last on, and of what is before."""
        left, files, last = TimeLeft(self._count), self._files, self._count
        if not (files.is_finished("gradients", last) and self._resumed(self._others())):
            self._gather(self._others(), self._output_with_gradients, loss)
            self._finish("gradients", last, loss=self._store.loss)
        self._store.loss = files.noted("gradients", last)["loss"]
        for number in reversed(range(self._count)):
            group = self._blocks[number]
            if not (files.is_finished("gradients", number) and self._resumed(group)):
                self._gather(group, self._backward(number), self._gradients_at(number + 1))
                self._finish("gradients", number)
                _logger.info("%s of blocks: %s", self._method.needs, left.after(self._count - number))
            files.remove("gradients", number + 1)
            files.remove("states", number + 1)
        if not self._resumed(self._before):
            self._gather(self._before, self._first_with_gradients, self._gradients_at(0))
        files.remove("gradients", 0)
        files.remove("states", 0)

    def _others(self) -> dict[str, Target]:
        return {name: target for name, target in self._outside.items() if name not in self._before}

    def _resumed(self, group: Mapping[str, Target]) -> bool:
        return not group or self._store.resume(group)

    def _gather(self, group: Mapping[str, Target], run: _Run, loss: Any) -> None:
        """Run a part of the model over all batches, and keep the moments of its layers."""
        described = self._store.loss
        gather_moments(
            self._turn.model,
            group,
            self._turn,
            self._method,
            self._store,
            loss=loss,
            division=self._division,
            run=run,
            in_parts=True,
        )
        if described:
            self._store.loss = described
        if group:
            self._store.finish(group)

    # What is done with a batch in each part of the model.

    def _forward(self, number: int) -> _Run:
        def run(_: nn.Module, batch: Any) -> Tensor:
            turn = self._turn
            states = self._states(number)
            after = turn.call(number, batch).run(turn.blocks[number], states)
            self._files.write("states", number + 1, turn.number, after)
            return after

        return run

    def _backward(self, number: int) -> _Run:
        def run(_: nn.Module, batch: Any) -> Tensor:
            turn = self._turn
            call = turn.call(number, batch)
            return call.run(turn.blocks[number], self._states_with_gradients(number))

        return run

    def _output(self, _: nn.Module, batch: Any) -> Any:
        return self._turn.output(batch, self._states(self._count))

    def _output_with_gradients(self, _: nn.Module, batch: Any) -> Any:
        return self._turn.output(batch, self._states_with_gradients(self._count))

    def _first_with_gradients(self, _: nn.Module, batch: Any) -> Any:
        return self._turn.first_states(batch)

    def _states_with_gradients(self, level: int) -> Tensor:
        """The states of this batch, whose gradients are written once they are known."""
        number = self._turn.number

        def keep(gradient: Tensor) -> None:
            self._files.write("gradients", level, number, gradient)
            self._reached.append(number)

        states = self._states(level).requires_grad_()
        states.register_hook(keep)
        return states

    def _states(self, level: int) -> Tensor:
        return self._files.read("states", level, self._turn.number).to(self._turn.device)

    def _gradients_at(self, level: int) -> GivenGradients:
        """The gradients of the loss with respect to the states of a level, in place of a loss."""
        reached = set(self._files.noted("gradients", level)["batches"])

        def gradients() -> Tensor | None:
            number = self._turn.number
            return self._files.read("gradients", level, number) if number in reached else None

        return GivenGradients(gradients)

    def _finish(self, kind: Kind, level: int, **values: Any) -> None:
        team = self._division.team
        numbers = self._numbers if kind == "states" else list(chain(*team.gathered(self._reached)))
        self._reached = []
        with team.together():
            if team.is_first:
                self._files.finish(kind, level, numbers, **values)
