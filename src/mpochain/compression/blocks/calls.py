"""Calls of the blocks of a model on calibration data."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as tree

from mpochain.compression.statistics.moments import run_batch
from mpochain.errors import ArgumentError
from mpochain.surgery.half_precision import as_float32
from mpochain.surgery.masks import Masks, arguments_of

__all__ = ["BlockCall", "block_calls"]


@dataclass(frozen=True, eq=False)
class BlockCall:
    """Arguments of one call of a block; hidden states are kept for the first block only.

    All tensors are copies, because a block or the code around it may change its arguments in place.

    Attributes:
        hidden: hidden states, the first argument of the first block; without rows for other blocks.
        arguments: further positional arguments.
        named: keyword arguments.
        masks: masks of the batch.
        option: option of :func:`mpochain.compress` that needs the call, for messages.
    """

    hidden: Tensor
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    masks: Masks
    option: str = "sequential=True"

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states that the block computes from others."""
        before = self._versions()
        output: Any = block(hidden.clone(), *self.arguments, **self.named)
        if self._versions() != before:
            raise ArgumentError(
                f"{self.option} needs blocks that leave their arguments as they are, but {type(block).__name__} "
                "changes one in place; leave it out"
            )
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states

    def in_float32(self) -> BlockCall:
        """The same call with bfloat16 and float16 arguments as float32."""
        arguments, named = tree.tree_map(as_float32, (self.arguments, self.named))
        return replace(self, arguments=arguments, named=named)

    def _versions(self) -> list[int]:
        leaves = tree.tree_leaves((self.arguments, self.named))
        return [leaf._version for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()]


class _EveryBlockCalledError(Exception):
    """Nothing after the call of the last block is of interest."""


def block_calls(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    batch: Any,
    *,
    option: str = "sequential=True",
    until_called: bool = False,
) -> list[BlockCall]:
    """Run a model on a batch and return the arguments of the call of each block.

    Args:
        model: the model.
        blocks: blocks of the model in the order of their calls.
        batch: see :func:`mpochain.compression.statistics.moments.run_batch`.
        option: option of :func:`mpochain.compress` that needs the calls, for messages.
        until_called: whether to stop where the last block is called, which then does not run.

    Returns:
        One call per block; none for a batch that is masked entirely.

    Raises:
        ArgumentError: the blocks are not called once each, in order, each on the output of the one before.
    """
    calls: list[BlockCall] = []
    outputs: list[Any] = []
    copies: dict[int, tuple[Tensor, int, Tensor]] = {}
    masks = Masks(model, arguments_of(model, batch))
    if masks.empty:
        return []

    def copied(value: Any) -> Any:
        # Blocks often share their arguments, which are then copied once. The original is kept, so that its id is.
        if not isinstance(value, Tensor):
            return value
        version = 0 if value.is_inference() else value._version
        known = copies.get(id(value))
        if known is None or known[1] != version:
            known = copies[id(value)] = value, version, value.clone()
        return known[2]

    def before(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        number = len(calls)
        if number >= len(blocks) or block is not blocks[number]:
            raise ArgumentError(f"{option} needs blocks that are called once each, in order; leave it out")
        if not arguments and named:
            first = next(iter(inspect.signature(block.forward).parameters))
            if first in named:
                arguments, named = (named[first],), {name: value for name, value in named.items() if name != first}
        if not arguments or not isinstance(arguments[0], Tensor):
            raise ArgumentError(f"{option} needs blocks whose first argument is the hidden states; leave it out")
        if outputs and outputs[-1] is not arguments[0]:
            raise ArgumentError(f"{option} needs blocks whose input is the output of the block before; leave it out")
        hidden = arguments[0] if calls else arguments[0].clone()
        rest, named = tree.tree_map(copied, (arguments[1:], named))
        calls.append(BlockCall(hidden[:0] if calls else hidden, rest, named, masks, option))
        if until_called and len(calls) == len(blocks):
            raise _EveryBlockCalledError

    def after(_: nn.Module, __: Any, output: Any) -> None:
        outputs[:] = [output[0] if isinstance(output, tuple) else output]

    hooks = []
    for block in blocks:
        hooks += [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]
    try:
        run_batch(model, batch)
    except _EveryBlockCalledError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) < len(blocks):
        raise ArgumentError(f"{option} needs blocks that are called once each, in order; leave it out")
    return [calls[0], *(replace(call, hidden=call.hidden.clone()) for call in calls[1:])]
