"""Later layers correct the errors of earlier ones: each is fitted on what the smaller model before it gives it.

A layer ``W`` of the dense model reads ``x``; in the smaller model it will read ``x'``. Of all matrices, the one whose
outputs for ``x'`` come nearest to those of ``W`` for ``x`` is ``W T`` with ``T = E[x x'^T] E[x' x'^T]^-1``, under any
weights of the outputs, and what ``W'`` leaves out beyond it is ``E|(W T - W') x'|^2``. So ``W T`` under the moments of
``x'`` is made smaller in place of ``W`` under those of ``x``, by whichever method. A share of the mean power is added
to the diagonals of both moments, which draws ``T`` to the identity where the data say little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.statistics.moments import Moments, frozen, run_batch
from mpochain.errors import MPOError, SpecError
from mpochain.surgery.calls import without_cache
from mpochain.surgery.replacement import replace_layers

__all__ = ["Corrected", "Pair", "corrected", "in_sequence"]

# Share of the mean power of the inputs that is added to the diagonals of both moments.
_DAMPING = 0.02


@dataclass(frozen=True, eq=False)
class Pair:
    """Means over the rows that a layer reads in both models.

    Attributes:
        across: ``E[x x'^T] (in, in)``, float32.
        own: ``E[x' x'^T]``, of the smaller model.
    """

    across: Tensor
    own: Tensor


@dataclass(frozen=True, eq=False)
class Corrected:
    """What is to be made smaller in place of a layer's own weight.

    Attributes:
        weight: ``W T (out, in)``.
        moments: of it, on the inputs in the smaller model.
        power: ``E|W x|^2``, of the dense model's outputs.
        kept: ``E|W T x'|^2``.
        rest: ``E|W x - W T x'|^2``, what hardly any matrix could mend.
    """

    weight: Tensor
    moments: Moments
    power: float
    kept: float
    rest: float

    def output_error(self, relative: float) -> float:
        """Of the dense model's outputs, from the relative error of what was made of ``W T``."""
        return math.sqrt((relative**2 * self.kept + self.rest) / max(self.power, 1e-300))


def corrected(weight: Tensor, moments: Moments, pair: Pair) -> Corrected:
    """The weight and moments that take the place of a layer's own.

    Args:
        weight: ``W (out, in)``.
        moments: of the dense model.
        pair: what the layer reads in both models.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> moments = Moments(x.T @ x / 50, None, 1.0, None, 50)
        >>> found = corrected(torch.eye(3), moments, Pair(x.T @ (2 * x) / 50, 4 * x.T @ x / 50))
        >>> round(found.weight[0, 0].item(), 1), round(found.rest / found.power, 1)  # half of what came twice as large
        (0.5, 0.0)
    """
    wide = weight.detach().double()
    C, H = pair.across.double(), pair.own.double()
    out, in_ = weight.shape
    whole = torch.eye(len(H), dtype=torch.float64, device=H.device)
    ridge = _DAMPING * float(H.trace()) / len(H)
    T = torch.linalg.solve(H + ridge * whole, (C + ridge * whole).T).T
    made = wide @ T
    seen = made @ H
    seen_before = moments.activations.double()
    # E[y y^T] of a wide layer, E[x x^T] of a tall one.
    power = float(seen_before.trace() if out <= in_ else ((wide.T @ wide) * seen_before).sum())
    kept = float((seen * made).sum())
    rest = max(power - 2 * float(((wide @ C) * made).sum()) + kept, 0.0)
    if out <= in_:
        activations, gradients = seen @ made.T, moments.gradients
    else:
        activations = H
        gradients = None if moments.gradients is None else (T.T @ moments.gradients.double() @ T).float()
    found = replace(
        moments,
        activations=activations.float(),
        gradients=gradients,
        input_power=float(H.trace()) / len(H),
        inputs=pair.own if moments.inputs is not None else None,
    )
    return Corrected(made.to(weight.dtype), found, power, kept, rest)


def in_sequence(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    make: Callable[[str, Pair | None], nn.Module | None],
    *,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Make layers smaller block by block, in place, each on what the smaller model before it gives it.

    Args:
        model: whose blocks are the items of one ``nn.ModuleList`` or ``nn.Sequential``, each given the first output of
            the one before it.
        layers: by name; those of no block are made first, without correction.
        batches: see :func:`mpochain.compression.statistics.moments.run_batch`; gone through once. Kept are what goes
            into the next block, in both models, and the other arguments of the blocks.
        make: from the name of a layer, and what both models give it, to what takes its place; None for nothing.
        log: told which block it is at.

    Raises:
        SpecError: a model without such blocks. It is left as it was, whatever is raised.
    """
    names = {layer: name for name, layer in layers.items()}
    container, first, last = _blocks(model, layers)
    within = {each for block in list(container)[first:last] for each in block.modules()}
    replaced: dict[nn.Module, nn.Module] = {}

    def put(layer: nn.Module, pair: Pair | None) -> None:
        made = make(names[layer], pair)
        if made is not None:
            replace_layers(model, {layer: made})
            replaced[made] = layer

    try:
        with frozen(model), without_cache(model), torch.no_grad():
            calls = [_calls(model, container, first, last, batch) for batch in batches]
            dense = [each[0].hidden for each in calls]
            small = list(dense)
            for layer in names:
                if layer not in within:
                    put(layer, None)
            for number in range(last - first):
                log(f"block {number + 1} of {last - first}")
                block = container[first + number]
                sums = _Sums([each for each in block.modules() if each in names])
                for k, each in enumerate(calls):
                    before, dense[k] = sums.read(block, each[number], dense[k])
                    after, _ = sums.read(block, each[number], small[k])
                    sums.add(before, after)
                for layer, pair in sums.means():
                    put(layer, pair)
                block = container[first + number]  # it may have been a layer itself
                small = [each[number].run(block, hidden) for each, hidden in zip(calls, small, strict=True)]
    except BaseException:
        replace_layers(model, replaced)
        raise


@dataclass(frozen=True, eq=False)
class _Call:
    """What a block is called with; its hidden states are kept for the first block only."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        output: Any = block(hidden, *self.arguments, **self.named)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found


class _Sums:
    """Sums over the rows that the layers of one block read in both models; layers with one input share theirs."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self._layers = layers
        self._owners: dict[nn.Module, nn.Module] = {}
        self._pairs: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._rows: dict[nn.Module, int] = {}

    def read(self, block: nn.Module, call: _Call, hidden: Tensor) -> tuple[dict[nn.Module, Tensor], Tensor]:
        """What each layer is given, and what the block gives."""
        given: dict[nn.Module, Tensor] = {}

        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            if layer in given:
                raise SpecError("sequential=True needs layers that are called once in each block; leave it out")
            given[layer] = arguments[0]

        hooks = [layer.register_forward_pre_hook(hook) for layer in self._layers]
        try:
            return given, call.run(block, hidden)
        finally:
            for each in hooks:
                each.remove()

    def add(self, dense: Mapping[nn.Module, Tensor], small: Mapping[nn.Module, Tensor]) -> None:
        owners: dict[int, nn.Module] = {}
        for layer in self._layers:
            if layer not in dense:
                raise MPOError("a block did not call one of its layers; leave that out with ignore=")
            owner = owners.setdefault(id(dense[layer]), layer)
            self._owners[layer] = owner
            if owner is layer:
                x, own = (each[layer].reshape(-1, each[layer].shape[-1]).float() for each in (dense, small))
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
    """What each block is called with in the dense model."""
    calls: list[_Call] = []
    outputs: list[Any] = []

    def before(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        number = len(calls)
        if number >= last - first or block is not container[first + number]:
            raise SpecError("sequential=True needs blocks that are called once each, in their order")
        if not arguments or not isinstance(arguments[0], Tensor):
            raise SpecError("sequential=True needs blocks whose first argument are the hidden states; leave it out")
        if outputs and outputs[-1] is not arguments[0]:
            raise SpecError("sequential=True needs blocks that are given what the block before them gave; leave it out")
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
        raise SpecError("sequential=True needs blocks that are called once each, in their order")
    return [calls[0], *(replace(call, hidden=calls[0].hidden[:0]) for call in calls[1:])]


def _blocks(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[Any, int, int]:
    """What holds the blocks, the first of them and the one after the last."""
    wanted = set(layers.values())
    best: tuple[int, Any, int, int] | None = None
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            counts = [sum(each in wanted for each in item.modules()) for item in module]
            held = [k for k, count in enumerate(counts) if count]
            if held and (best is None or sum(counts) > best[0]):
                best = sum(counts), module, held[0], held[-1] + 1
    if best is None:
        raise SpecError("sequential=True needs a model with its blocks in one nn.ModuleList or nn.Sequential")
    _, container, first, last = best
    blocks = list(container)[first:last]
    if len(set(blocks)) < len(blocks):
        raise SpecError("sequential=True needs blocks that are each in one place; leave it out")
    return container, first, last
