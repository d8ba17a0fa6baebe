"""Calls of the blocks of a model on calibration data, and the moments of the layers within a block."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as tree

from mpochain.compression.statistics.moments import run_batch
from mpochain.compression.statistics.square_sum import SquareSum, unit_rows
from mpochain.compression.statistics.sums import LatestInput, input_argument
from mpochain.errors import ArgumentError, MPOError
from mpochain.surgery.half_precision import as_float32
from mpochain.surgery.masks import Masks, arguments_of

__all__ = ["BlockCall", "BlockSums", "Pair", "block_calls"]

# Inputs of the layers of a block; layers that read the same input have the same tensor.
_Inputs = Mapping[nn.Module, Tensor]


@dataclass(frozen=True, eq=False)
class Pair:
    """Second moments of a layer's inputs, ``x`` in the dense model and ``x'`` in the compressed model.

    Attributes:
        across: ``E[x x'^T]``, ``(in, in)``, float32, or float64 where float32 cannot hold the numbers.
        own: ``E[x' x'^T]``, ``(in, in)``, likewise.
    """

    across: Tensor
    own: Tensor


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


def block_calls(
    model: nn.Module, blocks: Sequence[nn.Module], batch: Any, *, option: str = "sequential=True"
) -> list[BlockCall]:
    """Run a model on a batch and return the arguments of the call of each block.

    Args:
        model: the model.
        blocks: blocks of the model in the order of their calls.
        batch: see :func:`mpochain.compression.statistics.moments.run_batch`.
        option: option of :func:`mpochain.compress` that needs the calls, for messages.

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

    def after(_: nn.Module, __: Any, output: Any) -> None:
        outputs[:] = [output[0] if isinstance(output, tuple) else output]

    hooks = []
    for block in blocks:
        hooks += [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]
    try:
        run_batch(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) < len(blocks):
        raise ArgumentError(f"{option} needs blocks that are called once each, in order; leave it out")
    return [calls[0], *(replace(call, hidden=call.hidden.clone()) for call in calls[1:])]


class BlockSums:
    """Running sums of input moments for the layers of one block; layers with the same input share their sums.

    Args:
        layers: the layers, with their names in the model.
    """

    def __init__(self, layers: Mapping[nn.Module, str]) -> None:
        self._layers = layers
        self._owners: dict[nn.Module, nn.Module] = {}
        self._pairs: dict[nn.Module, tuple[SquareSum, SquareSum]] = {}
        self._rows: dict[nn.Module, int] = {}

    def read(self, block: nn.Module, call: BlockCall, hidden: Tensor) -> tuple[_Inputs, Tensor]:
        """Run the block and return copies of the inputs of its layers, and the block's output."""
        inputs: dict[nn.Module, Tensor] = {}
        latest = LatestInput()
        copies: list[Tensor] = []

        def record(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if layer in inputs:
                raise ArgumentError("sequential=True needs layers that are called once in each block; leave it out")
            _, x = input_argument(layer, arguments, named)
            if not latest.is_same(x.reshape(-1, x.shape[-1])):
                copies[:] = [x.clone()]
            inputs[layer] = copies[0]

        hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in self._layers]
        try:
            return inputs, call.run(block, hidden)
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, dense: _Inputs, compressed: _Inputs, masks: Masks) -> None:
        """Add the inputs of one batch in both models, without masked rows."""
        owners: dict[tuple[int, int], nn.Module] = {}
        for layer, name in self._layers.items():
            if layer not in dense:
                raise MPOError("a block did not call one of its layers; leave that layer out with ignore=")
            owner = owners.setdefault((id(dense[layer]), id(compressed[layer])), layer)
            if self._owners.setdefault(layer, owner) is not owner:
                raise MPOError(
                    f"{name} shares its input with another layer in some calibration batches but not in others; give "
                    "batches of one kind only"
                )
            if owner is layer:
                kept = masks.rows(name, dense[layer].shape)
                x, own = (inputs[layer].reshape(-1, inputs[layer].shape[-1]) for inputs in (dense, compressed))
                if kept is not None:
                    x, own = x[kept.to(x.device)], own[kept.to(own.device)]
                (x, power), (own, own_power) = unit_rows(x), unit_rows(own)
                across, square = self._pairs.setdefault(layer, (SquareSum(), SquareSum()))
                across.add_product(x, own, power + own_power)
                square.add_rows(own, own_power)
                self._rows[layer] = self._rows.get(layer, 0) + len(x)

    def means(self) -> Iterator[tuple[nn.Module, Pair]]:
        """The layers with the moments of their inputs in both models."""
        means = {
            owner: Pair(*(total.mean(max(self._rows[owner], 1)) for total in totals))
            for owner, totals in self._pairs.items()
        }
        for layer in self._layers:
            yield layer, means[self._owners[layer]]
