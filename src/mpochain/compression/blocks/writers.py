"""Layers that write the hidden states of a block: those whose output the block adds to its hidden states.

They are found by what they do, not by their names: with the outputs of all later additions held fixed, a shift of the
output of such a layer shifts the output of the block by the same amount, up to a factor. Layers behind which something
else than an addition follows, such as a normalisation, are not found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.calls import BlockCall

__all__ = ["Writer", "states_after", "writers_of"]

# Largest part of the block's response that may differ from the shift; bfloat16 rounds .4 % of the hidden states away.
_TOLERANCE = 0.03


@dataclass(frozen=True, eq=False)
class Writer:
    """A layer whose output a block adds to its hidden states.

    Attributes:
        layer: the layer.
        factor: factor of its output in the sum.
        later: modules of the block whose outputs are added afterwards.
    """

    layer: nn.Module
    factor: float
    later: tuple[nn.Module, ...]


def writers_of(
    block: nn.Module, call: BlockCall, hidden: Tensor, layers: Collection[nn.Module], name: str = ""
) -> list[Writer]:
    """The layers that write the hidden states of a block, in the order of their calls.

    A block that is itself a layer writes its output.

    Args:
        block: the block, in evaluation mode.
        call: a call of it.
        hidden: hidden states that the call reads.
        layers: layers of the model that may be found.
        name: name of the block in the model, which tells the mask of its rows.
    """
    if block in layers:
        return [Writer(block, 1.0, ())]
    states, outputs = _outputs(block, call, hidden)
    if not outputs or not states.is_floating_point():
        return []
    kept = call.masks.rows(name, states.shape)
    generator = torch.Generator("cpu").manual_seed(0)
    # As large as the hidden states, so that it survives their rounding and nothing but an addition passes it on.
    size = states.float().square().mean().sqrt().cpu()
    shift = (size * torch.randn(states.shape, generator=generator, device="cpu")).to(states.device, states.dtype)

    def factor(module: nn.Module, fixed: Mapping[nn.Module, Tensor]) -> float:
        """Factor with which the block adds the output of a module; 0 if it does something else with it."""
        responses = []
        for value in (outputs[module], outputs[module] + shift):
            with _returning({**fixed, module: value}):
                responses.append(call.run(block, hidden))
        return _proportion(responses[1] - responses[0], shift, kept)

    # Everything that is added, whatever kind of module it is: with all outputs held fixed, only the outermost count.
    added = [module for module in outputs if factor(module, outputs)]
    order = {module: number for number, module in enumerate(outputs)}
    writers = []
    for layer in outputs:
        if layer in layers:
            # The first addition after the layer is its own.
            later = tuple(module for module in added if order[module] >= order[layer])[1:]
            size_of_it = factor(layer, {module: outputs[module] for module in later}) if added else 0.0
            if size_of_it:
                writers.append(Writer(layer, size_of_it, later))
    return writers


def states_after(block: nn.Module, call: BlockCall, hidden: Tensor, writer: Writer) -> Tensor:
    """The hidden states within a block just after a layer has written to them."""
    with _returning(dict.fromkeys(writer.later)):
        return call.run(block, hidden)


def _outputs(block: nn.Module, call: BlockCall, hidden: Tensor) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    """The block's output, and those of its modules of the same shape, in the order in which they are finished."""
    outputs: dict[nn.Module, Tensor] = {}
    calls: dict[nn.Module, int] = {}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        value = output[0] if isinstance(output, tuple) and output else output
        if isinstance(value, Tensor) and value.is_floating_point():
            outputs[module] = value.clone()

    hooks = [module.register_forward_hook(record) for module in block.modules() if module is not block]
    try:
        states = call.run(block, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    alike = {
        module: value
        for module, value in outputs.items()
        if calls[module] == 1 and (value.shape, value.dtype) == (states.shape, states.dtype)
    }
    return states, alike


@contextmanager
def _returning(values: Mapping[nn.Module, Tensor | None]) -> Iterator[None]:
    """Context in which modules return other tensors, or zeros in place of None."""

    def replaced(module: nn.Module, _: Any, output: Any) -> Any:
        own = output[0] if isinstance(output, tuple) else output
        value = values[module]
        value = torch.zeros_like(own) if value is None else value.clone()
        return (value, *output[1:]) if isinstance(output, tuple) else value

    hooks = [module.register_forward_hook(replaced) for module in values]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _proportion(change: Tensor, shift: Tensor, kept: Tensor | None) -> float:
    """The factor between two tensors of rows that are proportional; 0 if they are not."""
    rows, shifts = (value.reshape(-1, value.shape[-1]).double() for value in (change, shift))
    if kept is not None:
        rows, shifts = rows[kept.to(rows.device)], shifts[kept.to(shifts.device)]
    power = float(shifts.square().sum())
    factor = float((rows * shifts).sum()) / power if power else 0.0
    rest = float((rows - factor * shifts).norm())
    return factor if rest < _TOLERANCE * abs(factor) * power**0.5 else 0.0
