"""A model whose blocks run one at a time, each over all batches, on hidden states in files."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from mpochain.compression.blocks.calls import BlockCall, block_calls
from mpochain.compression.blocks.stacks import largest_stack, stacks
from mpochain.compression.statistics.moments import run_batch
from mpochain.compression.streaming.hidden_files import HiddenFiles
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError

__all__ = ["BlocksInTurn"]

_OPTION = "stream=True"


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
        ArgumentError: the blocks are not in one stack, or batches do not come in one order.

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
        stack = largest_stack(model, modules, _OPTION)
        if len(held) > 1:
            raise ArgumentError(
                f"{_OPTION} needs all blocks in one row, but layers are in {' and '.join(one.name for one in held)}; "
                "leave out stream, or the layers of all but one by ignore="
            )
        source = getattr(batches, "uncounted", batches)
        if not hasattr(source, "__getitem__"):
            raise ArgumentError(
                f"{_OPTION} reads batches in one order several times, got {type(source).__name__}; give a list"
            )
        self.model = model
        self.batches: Any = source
        self.blocks = stack.blocks
        self.names = [stack.name_of(number) for number in range(len(self.blocks))]
        self.files = HiddenFiles(folder)
        self.number = 0
        self._others: tuple[Any, ...] | None = None  # what blocks return beside their states; None if nothing

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches, 1):
            self.number = number
            yield batch

    @property
    def largest_block(self) -> int:
        """Bytes of the parameters of the largest block."""
        return max(sum(one.numel() * one.element_size() for one in block.parameters()) for block in self.blocks)

    def groups(self, targets: Mapping[str, Target]) -> list[dict[str, Target]]:
        """The layers within each block, and last those outside of all blocks."""
        owners = {module: number for number, block in enumerate(self.blocks) for module in block.modules()}
        parts: list[dict[str, Target]] = [{} for _ in range(len(self.blocks) + 1)]
        for name, target in targets.items():
            parts[owners.get(target.module, -1)][name] = target
        return parts

    def first_states(self, batch: Any) -> Tensor | None:
        """The hidden states that the first block reads; None for a batch that is masked entirely."""
        calls = block_calls(self.model, self.blocks[:1], batch, option=_OPTION, until_called=True)
        return calls[0].hidden if calls else None

    def call(self, number: int, batch: Any) -> BlockCall:
        """The call of a block in the model, by its number from 0, without the hidden states that it reads."""
        with self._passing_on(None):
            blocks = self.blocks[: number + 1]
            return block_calls(self.model, blocks, batch, option=_OPTION, until_called=True)[number]

    def output(self, batch: Any, states: Tensor) -> Any:
        """The output of the model for the hidden states after the last block."""
        with self._passing_on(states):
            return run_batch(self.model, batch)

    def learn_outputs(self, batch: Any, states: Tensor) -> None:
        """Learn from a call of the first block what blocks return beside their hidden states.

        Raises:
            ArgumentError: tensors, which other blocks may read.
        """
        (call,) = block_calls(self.model, self.blocks[:1], batch, option=_OPTION, until_called=True)
        with torch.no_grad():
            output: Any = self.blocks[0](states.clone(), *call.arguments, **call.named)
        self._others = output[1:] if isinstance(output, tuple) else None
        if any(isinstance(leaf, Tensor) for leaf in tree.tree_leaves(self._others)):
            raise ArgumentError(
                f"{_OPTION} needs blocks that give hidden states alone, but {type(self.blocks[0]).__name__} gives "
                "further tensors; leave it out"
            )

    def called_before(self, batch: Any, modules: Sequence[nn.Module]) -> set[nn.Module]:
        """Those of the modules that the model calls before its first block."""
        called: set[nn.Module] = set()
        hooks = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in modules]
        try:
            with torch.no_grad():
                self.first_states(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return called

    @contextmanager
    def _passing_on(self, states: Tensor | None) -> Iterator[None]:
        """Let blocks return the hidden states that they read; the last one ``states``, unless that is None."""

        def passing(block: nn.Module) -> Any:
            first = next(iter(inspect.signature(block.forward).parameters))

            @functools.wraps(block.forward)
            def forward(*arguments: Any, **named: Any) -> Any:
                hidden = arguments[0] if arguments else named[first]
                if states is not None and block is self.blocks[-1]:
                    hidden = states
                return hidden if self._others is None else (hidden, *self._others)

            return forward

        before = {block: vars(block).get("forward") for block in self.blocks}
        for block in self.blocks:
            object.__setattr__(block, "forward", passing(block))
        try:
            yield
        finally:
            for block, own in before.items():
                if own is None:
                    object.__delattr__(block, "forward")
                else:
                    object.__setattr__(block, "forward", own)
