"""Sequential compression, in which later layers correct the errors of earlier ones.

A layer ``W`` reads ``x`` in the dense model and ``x'`` in the compressed model. For any weighting of the outputs, the
matrix whose outputs on ``x'`` are closest to ``W x`` is ``W T`` with ``T = E[x x'^T] E[x' x'^T]^-1``, and a matrix
``W'`` adds the error ``E|(W T - W') x'|^2``. Any method can therefore compress ``W T`` with the moments of ``x'``
instead of ``W`` with the moments of ``x``. A share of the mean power is added to the diagonals of both moments, which
pulls ``T`` towards the identity in directions with little data.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.statistics.moments import Moments, frozen, run_batch
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError, MPOError
from mpochain.linalg import solve
from mpochain.surgery.calls import without_cache
from mpochain.surgery.replacement import replace_layers

__all__ = ["Corrected", "Pair", "corrected", "in_sequence"]

_logger = logging.getLogger(__name__)

# This share of the inputs' mean power is added to the diagonals of both moments.
_DAMPING = 0.02


@dataclass(frozen=True, eq=False)
class Pair:
    """Second moments of a layer's inputs, ``x`` in the dense model and ``x'`` in the compressed model.

    Attributes:
        across: ``E[x x'^T]``, ``(in, in)``, float32.
        own: ``E[x' x'^T]``, ``(in, in)``, float32.
    """

    across: Tensor
    own: Tensor


@dataclass(frozen=True, eq=False)
class Corrected:
    """Corrected weight of a layer, which is compressed instead of the layer's own weight.

    Attributes:
        weight: ``W T``, ``(out, in)``.
        moments: moments of a layer with this weight, on its inputs in the compressed model.
        power: ``E|W x|^2``, power of the dense model's outputs.
        kept: ``E|W T x'|^2``.
        rest: ``E|W x - W T x'|^2``, the error that no matrix can correct, up to the damping.
    """

    weight: Tensor
    moments: Moments
    power: float
    kept: float
    rest: float

    def output_error(self, relative: float) -> float:
        """Relative error with respect to the dense model's outputs, from the relative error with respect to ``W T``."""
        return math.sqrt((relative**2 * self.kept + self.rest) / max(self.power, 1e-300))


def corrected(weight: Tensor, moments: Moments, pair: Pair) -> Corrected:
    """Compute the corrected weight and moments of a layer.

    Args:
        weight: ``W``, ``(out, in)``.
        moments: moments of the layer in the dense model.
        pair: moments of the inputs in both models.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> moments = Moments(x.T @ x / 50, None, 1.0, None, 50)
        >>> correction = corrected(torch.eye(3), moments, Pair(x.T @ (2 * x) / 50, 4 * x.T @ x / 50))
        >>> round(correction.weight[0, 0].item(), 1), round(correction.rest / correction.power, 1)  # of 2 x
        (0.5, 0.0)
    """
    weight64 = weight.detach().double()
    C, H = pair.across.double(), pair.own.double()
    out, in_ = weight.shape
    identity = torch.eye(len(H), dtype=torch.float64, device=H.device)
    ridge = _DAMPING * float(H.trace()) / len(H)
    # Without any power in the inputs there is nothing to correct.
    T = solve(H + ridge * identity, (C + ridge * identity).T).T if ridge > 0 else identity
    weight_T = weight64 @ T
    weight_T_H = weight_T @ H
    dense = moments.activations.double()
    # The activations are E[y y^T] if out <= in, and E[x x^T] otherwise.
    power = float(dense.trace() if out <= in_ else ((weight64.T @ weight64) * dense).sum())
    kept = float((weight_T_H * weight_T).sum())
    rest = max(power - 2 * float(((weight64 @ C) * weight_T).sum()) + kept, 0.0)
    if out <= in_:
        activations, gradients = weight_T_H @ weight_T.T, moments.gradients
    else:
        activations = H
        gradients = None if moments.gradients is None else (T.T @ moments.gradients.double() @ T).float()
    own = replace(
        moments,
        activations=activations.float(),
        gradients=gradients,
        input_power=float(H.trace()) / len(H),
        inputs=pair.own if moments.inputs is not None else None,
    )
    return Corrected(weight_T.to(weight.dtype), own, power, kept, rest)


def in_sequence(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Iterable[Any],
    build: Callable[[str, Pair | None], nn.Module | None],
) -> None:
    """Compress layers block by block, in place, each for its inputs in the compressed model.

    Any exception leaves the model as it was.

    Args:
        model: model whose blocks are the items of one ``nn.ModuleList`` or ``nn.Sequential``; the first argument of
            each block is the first output of the previous one.
        targets: layers by name; those outside the blocks are compressed first, without correction.
        batches: see :func:`mpochain.compression.statistics.moments.run_batch`; read once. Memory holds the inputs of
            the next block in both models, and the other arguments of all blocks.
        build: function of a layer's name and the moments of its inputs in both models (None without correction). It
            returns the compressed layer, or None to leave the layer dense.

    Raises:
        ArgumentError: the model has no such blocks.
    """
    names = {target.module: name for name, target in targets.items()}
    container, first, last = _blocks(model, names)
    inside = {module for block in list(container)[first:last] for module in block.modules()}
    replaced: dict[nn.Module, nn.Module] = {}

    def put(dense: nn.Module, pair: Pair | None) -> None:
        layer = build(names[dense], pair)
        if layer is not None:
            replace_layers(model, {dense: layer})
            replaced[layer] = dense

    try:
        with frozen(model), without_cache(model), torch.no_grad():
            calls = [_calls(model, container, first, last, batch) for batch in batches]
            dense_states = [batch_calls[0].hidden for batch_calls in calls]
            states = list(dense_states)
            for module in names:
                if module not in inside:
                    put(module, None)
            for number in range(last - first):
                _logger.info("block %d of %d", number + 1, last - first)
                block = container[first + number]
                sums = _Sums([module for module in block.modules() if module in names])
                for k, batch_calls in enumerate(calls):
                    before, dense_states[k] = sums.read(block, batch_calls[number], dense_states[k])
                    after, _ = sums.read(block, batch_calls[number], states[k])
                    sums.add(before, after)
                for module, pair in sums.means():
                    put(module, pair)
                block = container[first + number]  # the block itself may have been replaced
                states = [
                    batch_calls[number].run(block, hidden) for batch_calls, hidden in zip(calls, states, strict=True)
                ]
    except BaseException:
        replace_layers(model, replaced)
        raise


@dataclass(frozen=True, eq=False)
class _Call:
    """Arguments of one call of a block; hidden states are kept for the first block only."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        output: Any = block(hidden, *self.arguments, **self.named)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states


class _Sums:
    """Running sums of input moments for the layers of one block; layers with the same input share their sums."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self._layers = layers
        self._owners: dict[nn.Module, nn.Module] = {}
        self._pairs: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._rows: dict[nn.Module, int] = {}

    def read(self, block: nn.Module, call: _Call, hidden: Tensor) -> tuple[dict[nn.Module, Tensor], Tensor]:
        """Run the block and return the input of each layer and the block's output."""
        inputs: dict[nn.Module, Tensor] = {}

        def record(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            if layer in inputs:
                raise ArgumentError("sequential=True needs layers that are called once in each block; leave it out")
            inputs[layer] = arguments[0]

        hooks = [layer.register_forward_pre_hook(record) for layer in self._layers]
        try:
            return inputs, call.run(block, hidden)
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, dense: Mapping[nn.Module, Tensor], compressed: Mapping[nn.Module, Tensor]) -> None:
        owners: dict[int, nn.Module] = {}
        for layer in self._layers:
            if layer not in dense:
                raise MPOError("a block did not call one of its layers; leave that layer out with ignore=")
            owner = owners.setdefault(id(dense[layer]), layer)
            self._owners[layer] = owner
            if owner is layer:
                x, own = (inputs[layer].reshape(-1, inputs[layer].shape[-1]).float() for inputs in (dense, compressed))
                if layer in self._pairs:
                    across, square = self._pairs[layer]
                    across.addmm_(x.T, own)
                    square.addmm_(own.T, own)
                else:
                    self._pairs[layer] = x.T @ own, own.T @ own
                self._rows[layer] = self._rows.get(layer, 0) + len(x)

    def means(self) -> Iterator[tuple[nn.Module, Pair]]:
        for layer in self._layers:
            owner = self._owners[layer]
            yield layer, Pair(*(total / self._rows[owner] for total in self._pairs[owner]))


def _calls(model: nn.Module, container: Any, first: int, last: int, batch: Any) -> list[_Call]:
    """Run the dense model on a batch and return the arguments of the call of each block."""
    calls: list[_Call] = []
    outputs: list[Any] = []

    def before(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        number = len(calls)
        if number >= last - first or block is not container[first + number]:
            raise ArgumentError("sequential=True needs blocks that are called once each, in order; leave it out")
        if not arguments or not isinstance(arguments[0], Tensor):
            raise ArgumentError("sequential=True needs blocks whose first argument is the hidden states; leave it out")
        if outputs and outputs[-1] is not arguments[0]:
            raise ArgumentError(
                "sequential=True needs blocks whose input is the output of the block before; leave it out"
            )
        calls.append(_Call(arguments[0], arguments[1:], named))

    def after(_: nn.Module, __: Any, output: Any) -> None:
        outputs[:] = [output[0] if isinstance(output, tuple) else output]

    hooks = []
    for block in list(container)[first:last]:
        hooks += [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]
    try:
        run_batch(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) < last - first:
        raise ArgumentError("sequential=True needs blocks that are called once each, in order; leave it out")
    return [calls[0], *(replace(call, hidden=calls[0].hidden[:0]) for call in calls[1:])]


def _blocks(model: nn.Module, layers: Collection[nn.Module]) -> tuple[Any, int, int]:
    """Container whose items hold the most layers, with the first and past-the-end index of the items that do."""
    best: tuple[int, Any, int, int] | None = None
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            counts = [sum(part in layers for part in item.modules()) for item in module]
            holding = [k for k, count in enumerate(counts) if count]
            if holding and (best is None or sum(counts) > best[0]):
                best = sum(counts), module, holding[0], holding[-1] + 1
    if best is None:
        raise ArgumentError(
            "sequential=True needs a model with its blocks in one nn.ModuleList or nn.Sequential; leave it out"
        )
    _, container, first, last = best
    blocks = list(container)[first:last]
    if len(set(blocks)) < len(blocks):
        raise ArgumentError("sequential=True needs a separate module for each block; leave it out")
    return container, first, last
