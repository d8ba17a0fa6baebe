"""A model whose blocks run one at a time, each over all batches, on hidden states in files."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.calls import BlockCall, block_calls
from mpochain.compression.blocks.stacks import largest_stack, stacks
from mpochain.compression.statistics.moments import run_batch
from mpochain.compression.streaming.hidden_files import HiddenFiles
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError

__all__ = ["OPTION", "BlocksInTurn", "WholeRun", "called_more_than_once"]

OPTION = "stream=True"
"""The option of :func:`mpochain.compress`, for messages."""


class BlocksInTurn:
    """The parts of a model that run after one another: what is before the blocks, each block, and what follows them.

    To run one part, the blocks before it pass their input on, which costs nothing, and what follows it does not run.
    So all arguments of a block, such as masks and rotary angles, are made by the model itself for every batch.

    Args:
        model: the model.
        targets: dense layers by name, which tell the blocks.
        batches: calibration batches, which come in one order every time.
        folder: folder of the hidden states.

    Attributes:
        blocks: the blocks in their order.
        names: their names in the model.
        files: hidden states in front of every block, and after the last.
        number: number of the batch that was read last, from 1.

    Raises:
        ArgumentError: the blocks are not in one stack, two share a layer, or batches do not come in one order.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> targets = {name: Target.open(name, model[int(name)]) for name in ("0", "1")}
        >>> with TemporaryDirectory() as folder:
        ...     turn = BlocksInTurn(model, targets, [torch.ones(1, 2)], Path(folder))
        ...     batch = next(iter(turn))
        ...     states = turn.call(0, batch).run(turn.blocks[0], turn.first_states(batch))
        >>> torch.equal(states, model[0](torch.ones(1, 2)))
        True
    """

    def __init__(self, model: nn.Module, targets: Mapping[str, Target], batches: Iterable[Any], folder: Path) -> None:
        modules = [target.module for target in targets.values()]
        held = stacks(model, modules)
        stack = largest_stack(model, modules, OPTION)
        if len(held) > 1:
            raise ArgumentError(
                f"{OPTION} needs all blocks in one row, but layers are in {' and '.join(one.name for one in held)}; "
                "leave out stream, or the layers of all but one by ignore="
            )
        if isinstance(stack.container, nn.ModuleList):
            # Those without layers to compress stream as well.
            stack = replace(stack, first=0, last=len(stack.container))
        source = getattr(batches, "uncounted", batches)
        if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
            raise ArgumentError(
                f"{OPTION} reads batches in one order several times, got {type(source).__name__}; give a list"
            )
        self.model = model
        self.batches: Any = source
        self.blocks = stack.blocks
        self.names = [stack.name_of(number) for number in range(len(self.blocks))]
        self.files = HiddenFiles(folder)
        self.number = 0
        # What each block returns beside its states; None for nothing.
        self._others: list[tuple[None, ...] | None] = [None] * len(self.blocks)
        self._owners: dict[nn.Module, int] = {}
        for number, block in enumerate(self.blocks):
            for module in block.modules():
                if self._owners.setdefault(module, number) != number and module in modules:
                    raise ArgumentError(f"{OPTION} needs blocks of their own layers, but two share one; leave it out")

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches, 1):
            self.number = number
            yield batch

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def groups(self, targets: Mapping[str, Target]) -> list[dict[str, Target]]:
        """The layers within each block, and last those outside of all blocks."""
        parts: list[dict[str, Target]] = [{} for _ in range(len(self.blocks) + 1)]
        for name, target in targets.items():
            parts[self._owners.get(target.module, -1)][name] = target
        return parts

    def first_states(self, batch: Any) -> Tensor | None:
        """The hidden states that the first block reads; None for a batch that is masked entirely."""
        calls = block_calls(self.model, self.blocks[:1], batch, option=OPTION, until_called=True)
        return calls[0].hidden if calls else None

    def call(self, number: int, batch: Any) -> BlockCall:
        """The call of a block in the model, by its number from 0, without the hidden states that it reads."""
        with self._passing_on(None):
            blocks = self.blocks[: number + 1]
            return block_calls(self.model, blocks, batch, option=OPTION, until_called=True)[number]

    def output(self, batch: Any, states: Tensor) -> Any:
        """The output of the model for the hidden states after the last block."""
        # Not a leaf, since the model may change it in place.
        with self._passing_on(states.clone()):
            return run_batch(self.model, batch)

    def run_whole(self, batch: Any) -> WholeRun:
        """Run the model as it is on a batch, and learn what its blocks return.

        Raises:
            ArgumentError: blocks hand on more than hidden states, or states change between two of them.
        """
        run = WholeRun(self)
        with torch.no_grad(), run.observed():
            run.calls = block_calls(self.model, self.blocks, batch, option=OPTION)
        self._others = run.others
        return run

    @contextmanager
    def _passing_on(self, states: Tensor | None) -> Iterator[None]:
        """Let blocks return the hidden states that they read; the last one ``states``, unless that is None."""

        def passing(block: nn.Module, others: tuple[None, ...] | None) -> Any:
            first = next(iter(inspect.signature(block.forward).parameters))

            @functools.wraps(block.forward)
            def forward(*arguments: Any, **named: Any) -> Any:
                hidden = arguments[0] if arguments else named[first]
                if states is not None and block is self.blocks[-1]:
                    hidden = states
                return hidden if others is None else (hidden, *others)

            return forward

        before = {block: vars(block).get("forward") for block in self.blocks}
        for block, others in zip(self.blocks, self._others, strict=True):
            object.__setattr__(block, "forward", passing(block, others))
        try:
            yield
        finally:
            for block, own in before.items():
                if own is None:
                    object.__delattr__(block, "forward")
                else:
                    object.__setattr__(block, "forward", own)


class WholeRun:
    """What happens when a model runs as it is on one batch.

    Attributes:
        calls: call of each block.
        others: what each block returns beside its states.
        output: output of the model.
        last: hidden states after the last block.
        places: where each module is called: -1 before the blocks, the number of the block, or the number of blocks.
    """

    def __init__(self, turn: BlocksInTurn) -> None:
        self._turn = turn
        self.calls: list[BlockCall] = []
        self.others: list[tuple[None, ...] | None] = []
        self.output: Any = None
        self.last: Tensor | None = None
        self.places: dict[nn.Module, set[int]] = {}
        self._present = -1
        self._version = 0

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Context in which calls are noted."""
        model, blocks = self._turn.model, self._turn.blocks
        hooks = [model.register_forward_hook(self._note_output)]
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(self._note_place))
        for block in blocks:
            hooks.append(block.register_forward_pre_hook(self._note_call, with_kwargs=True))
            hooks.append(block.register_forward_hook(self._note_states))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note_place(self, module: nn.Module, _: Any) -> None:
        self.places.setdefault(module, set()).add(self._present)

    def _note_call(self, _: nn.Module, __: Any, ___: Any) -> None:
        self._present = len(self.others)
        if self.last is not None and self.last._version != self._version:
            raise ArgumentError(
                f"{OPTION} needs blocks that read what the block before gives, but the model changes the hidden states "
                f"in front of block {self._present} in place; leave it out"
            )

    def _note_states(self, block: nn.Module, _: Any, output: Any) -> None:
        self.last = output[0] if isinstance(output, tuple) else output
        others = output[1:] if isinstance(output, tuple) else None
        if others is not None and any(value is not None for value in others):
            raise ArgumentError(
                f"{OPTION} needs blocks that give hidden states alone, but {type(block).__name__} gives more; leave "
                "it out"
            )
        self.others.append(others)
        self._version = self.last._version if isinstance(self.last, Tensor) else 0
        if len(self.others) == len(self._turn.blocks):
            self._present = len(self.others)
            # The model may change it in place from here on.
            self.last = self.last.clone() if isinstance(self.last, Tensor) else self.last

    def _note_output(self, _: nn.Module, __: Any, output: Any) -> None:
        self.output = output


def called_more_than_once(run: WholeRun, modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those of the modules that the model calls in several of its parts."""
    return [module for module in modules if len(run.places.get(module, ())) > 1]
