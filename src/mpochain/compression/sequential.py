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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.block_calls import BlockSums, Pair, block_calls
from mpochain.compression.blocks import largest_stack
from mpochain.compression.statistics.moments import Moments, frozen
from mpochain.compression.statistics.square_sum import compact
from mpochain.compression.target import Target
from mpochain.linalg import solve
from mpochain.nn.experts import Expert
from mpochain.surgery.calls import without_cache
from mpochain.surgery.replacement import replace_layers
from mpochain.system.progress import TimeLeft

__all__ = ["Corrected", "Pair", "corrected", "in_sequence"]

_logger = logging.getLogger(__name__)

# This share of the inputs' mean power is added to the diagonals of both moments.
_DAMPING = 0.02


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
        gradients = None if moments.gradients is None else compact(T.T @ moments.gradients.double() @ T, 0)
    own = replace(
        moments,
        activations=compact(activations, 0),
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
        targets: layers by name; those outside the blocks are compressed first, without correction, and those of
            experts of a mixture after the other layers of their block, without correction either.
        batches: see :func:`mpochain.compression.statistics.moments.run_batch`; read once. Memory holds the inputs of
            the next block in both models, and the other arguments of all blocks.
        build: function of a layer's name and the moments of its inputs in both models (None without correction). It
            returns the compressed layer, or None to leave the layer dense.

    Raises:
        ArgumentError: the model has no such blocks.
    """
    names = {target.module: name for name, target in targets.items()}
    stack = largest_stack(model, names, "sequential=True")
    container, first, last = stack.container, stack.first, stack.last
    inside = {module for block in list(container)[first:last] for module in block.modules()}
    # The compressed model sends other tokens to an expert than the dense one, so that no pairs of inputs exist.
    uncorrected = {layer for part in inside if isinstance(part, Expert) for layer in part.children()}
    replaced: dict[nn.Module, nn.Module] = {}

    def put(dense: nn.Module, pair: Pair | None) -> None:
        layer = build(names[dense], pair)
        if layer is not None:
            replace_layers(model, {dense: layer})
            replaced[layer] = dense

    try:
        with frozen(model), without_cache(model), torch.no_grad():
            blocks = list(container)[first:last]
            calls = [batch_calls for batch in batches if (batch_calls := block_calls(model, blocks, batch))]
            dense_states = [batch_calls[0].hidden for batch_calls in calls]
            states = list(dense_states)
            for module in names:
                if module not in inside:
                    put(module, None)
            left = TimeLeft(last - first)
            for number in range(last - first):
                _logger.info("block %s", left.after(number) if number else f"1 of {last - first}")
                block = container[first + number]
                layers = [module for module in block.modules() if module in names]
                sums = BlockSums({module: names[module] for module in layers if module not in uncorrected})
                for k, batch_calls in enumerate(calls):
                    before, dense_states[k] = sums.read(block, batch_calls[number], dense_states[k])
                    after, _ = sums.read(block, batch_calls[number], states[k])
                    sums.add(before, after, batch_calls[number].masks)
                for module, pair in sums.means():
                    put(module, pair)
                for module in layers:
                    if module in uncorrected:
                        put(module, None)
                block = container[first + number]  # the block itself may have been replaced
                states = [
                    batch_calls[number].run(block, hidden) for batch_calls, hidden in zip(calls, states, strict=True)
                ]
    except BaseException:
        replace_layers(model, replaced)
        raise
