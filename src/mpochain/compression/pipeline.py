"""A whole model made smaller, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.allocation import Curve, allocate, cheapest_within, frontier, largest_error, uniform
from mpochain.compression.budget import error_budget, parameter_budget
from mpochain.compression.building import Maker
from mpochain.compression.methods import METHODS, Method
from mpochain.compression.records import CompressionReport
from mpochain.compression.sequential import in_sequence
from mpochain.compression.statistics.passes import batches_for, chunks, moments_for
from mpochain.compression.statistics.store import MomentStore
from mpochain.compression.targets import dense_layers, select, why_none
from mpochain.errors import NonFiniteError, SpecError
from mpochain.nn.dense import weight_and_bias
from mpochain.report import provenance
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.tying import tied_linears

__all__ = ["compress"]

# Seconds between two lines about the layers that are made.
_BETWEEN = 20.0

# A layer that was not looked at is worth a line from this share of the model's parameters on.
_LARGE = 0.01


def compress(
    model: nn.Module,
    budget: float | str | None,
    *,
    calibration: Iterable[Any] | None = None,
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    method: str | Method = "interpolative",
    sequential: bool = False,
    loss: Callable[[Any], Tensor] | None = None,
    dry_run: bool = False,
    seed: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> CompressionReport:
    """Make the linear layers of a model smaller, in place, so that together they fit a budget.

    Layers are low rank in interpolative form by default, with the rank of each where its parameters matter most: the
    error is measured on the inputs the layer really sees, and weighted by the gradient of the loss by its outputs. A
    layer that would gain nothing stays dense.

    Args:
        model: changed in place; norms, biases and, unless ``targets`` name them, embeddings stay as they are.
        budget: share of the layers' parameters that may be left, such as ``0.6`` or ``"60%"``; bytes, ``"200MB"``; or
            ``"5% error"``, the relative error that each layer may have, as the method weighs it (the weight's for
            methods without data and Kronecker products, that of the outputs for others, by their gradients too for the
            first two). None for a
            method that leaves no choice.
        calibration: batches the model can be called with: tensors, tuples of arguments or mappings of named ones. They
            are gone through several times, so give a list or a data loader, not a generator.
        targets: layers to compress, see :func:`mpochain.compression.select`; by default all linear layers whose weight
            is not shared with another module, or all embeddings for the methods that are for these alone. Methods
            without data take embeddings too; a head that is tied to one stays so.
        ignore: layers to leave out, which wins over ``targets``.
        method: ``"interpolative"``; ``"search"``, which for layers with more inputs than outputs also tries low rank
            beside a chain and takes longer; or a published one, every layer at the same share: ``"svd_llm"`` (whitened
            low rank); without data ``"svd"``, ``"tt_svd"``, ``"kronecker"`` and, rows and columns in a better order
            first, ``"permuted_kronecker"``; the last two fitted to the data, ``"calibrated_kronecker"`` and
            ``"calibrated_permuted_kronecker"``. For embeddings alone ``"word2ket"``, ``"word2ketxs"`` and
            ``"token_train"``. Or a method with settings of its own: :class:`mpochain.compression.Kronecker`,
            :class:`mpochain.compression.Entangled`, :class:`mpochain.compression.TokenTrain`.
        sequential: whether layers are made block by block, each fitted to the dense model's outputs on what the smaller
            model before it gives it, so that later ones correct the errors of earlier ones; for models of blocks, one
            after the other, see :func:`mpochain.compression.sequential.in_sequence`. Helps small stacks of layers; it
            made a language model worse (docs/decisions.md), so measure before you use it.
        loss: from the model's output to a scalar summed over tokens, whose gradients weigh the outputs; by default
            cross-entropy to labels that the model draws itself.
        dry_run: whether to report what would be done, and change nothing.
        seed: of the labels that are drawn.
        log: told now and then what is being done.

    Returns:
        A record for each layer; ``print(report.table())``.

    Raises:
        SpecError: a budget that cannot be met, patterns that match nothing, an unknown method, data that it needs, or a
            layer with hooks, which would be lost with it.
        NonFiniteError: NaN or infinite activations or weights, naming the layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> report = compress(model, 0.5, calibration=[torch.randn(100, 32)])
        >>> report.parameters_after <= 0.5 * report.parameters_before, model[0]
        (True, InterpolativeLinear(32 -> 64, rank ..., bias=True))
    """
    began = time.perf_counter()
    way, label = _way(method)
    if targets is not None:
        layers = select(model, targets, ignore, embeddings=way.embeddings, linear=way.linear)
    elif way.linear:
        layers = dense_layers(model, ignore)
    else:
        layers = select(model, ["Embedding"], ignore, embeddings=True, linear=False)
    if not layers:
        raise SpecError(f"there is no layer left to compress{why_none(model)}; see targets= and ignore=")
    if sequential and way.needs == "nothing":
        raise SpecError(f"sequential=True corrects by calibration data, which method {label!r} does not use")
    if (budget is None) is not way.settled:
        given = "no budget" if budget is None else f"budget {budget!r}"
        raise SpecError(f"method {label!r} {'leaves no choice' if way.settled else 'needs a budget'}, got {given}")
    heads = tied_linears(model, layers.values())
    # A head that is tied to one of them is made smaller with it.
    layers = {name: layer for name, layer in layers.items() if layer not in heads}
    for name, layer in layers.items():
        _require_no_hooks(layer, name)
        if not weight_and_bias(layer, name)[0].isfinite().all():
            raise NonFiniteError(f"{name}: the weight has NaN or infinite entries; nothing can be fitted to it")
    error = None if budget is None else error_budget(budget)
    allowed = parameter_budget(1.0 if budget is None or error is not None else budget, layers)
    batches = batches_for(calibration, way, label, log)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    untouched = _untouched(model, layers, parameters)
    curves: dict[str, Curve] = {}
    parts = list(chunks(model, layers, way))
    with MomentStore(on_disk=len(parts) > 1) as moments:
        for chunk in parts:
            if way.needs != "nothing":
                log(f"{way.needs} of {len(chunk)} layers, {next(iter(chunk))} and on")
            moments.keep(moments_for(model, chunk, batches, way, loss, seed))
            for name, layer in chunk.items():
                if not way.settled:
                    curves[name] = way.curve(weight_and_bias(layer)[0].detach(), moments.get(name))
        if way.settled:
            chosen = dict.fromkeys(layers, 0)
        elif error is not None:
            chosen = cheapest_within(curves, error)
        else:
            chosen = uniform(curves, allowed) if way.uniform else allocate(curves, allowed)
        others = () if way.uniform or way.settled else frontier(curves)
        log(f"making {len(layers)} layers, {next(iter(layers))} and on")
        maker = Maker(way, layers, chosen, moments)
        if sequential:
            in_sequence(model, layers, batches, maker, log=log)
            try:
                maker.verify(allowed)
            finally:
                if dry_run or not maker.verified:
                    replace_layers(model, {made: layer for layer, made in maker.built.items()})
        else:
            said = time.monotonic()
            for number, name in enumerate(layers, 1):
                maker(name, None)
                if time.monotonic() - said > _BETWEEN:
                    said = time.monotonic()
                    log(f"{number} of {len(layers)} layers are made")
            maker.verify(allowed)
            if not dry_run:
                maker.tie(heads)
                replace_layers(model, maker.built)
    return CompressionReport(
        layers=tuple(maker.records[name] for name in layers),
        method=label,
        budget=budget,
        allowed=allowed,
        model_parameters=parameters,
        untouched=untouched,
        frontier=others,
        seconds=time.perf_counter() - began,
        provenance=provenance(threads=torch.get_num_threads()),
        largest_error=None if error is None else largest_error(curves, chosen),
    )


def _require_no_hooks(layer: nn.Module, name: str) -> None:
    """Refuse a layer that does more than its weight says, which the one in its place would not."""
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        raise SpecError(
            f"{name} has hooks, which would be lost with it; remove them and register them again afterwards, or leave "
            "the layer out with ignore="
        )


def _way(method: str | Method) -> tuple[Method, str]:
    """A method and what to call it."""
    if isinstance(method, str):
        if method not in METHODS:
            raise SpecError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
        return METHODS[method], method
    if not hasattr(method, "curve"):
        raise SpecError(f"method must be a name or a Method, got {type(method).__name__}")
    return method, type(method).__name__.lower()


def _untouched(model: nn.Module, layers: Mapping[str, nn.Module], parameters: int) -> tuple[tuple[str, int], ...]:
    """Modules with large parameters of their own that are not among the layers, tied ones once."""
    seen = {id(each) for layer in layers.values() for each in layer.parameters(recurse=False)}
    found = []
    for name, module in model.named_modules():
        own = [each for each in module.parameters(recurse=False) if id(each) not in seen]
        seen.update(map(id, own))
        count = sum(each.numel() for each in own)
        if count >= _LARGE * parameters:
            found.append((name, count))
    return tuple(sorted(found, key=lambda each: -each[1]))
