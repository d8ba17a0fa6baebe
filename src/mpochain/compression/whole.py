"""A whole model made smaller, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.allocation import Curve, allocate, cheapest_within, frontier, largest_error, uniform
from mpochain.compression.budget import error_budget, parameter_budget
from mpochain.compression.calibration import batches_for, chunks, moments_for
from mpochain.compression.fit import Errors
from mpochain.compression.methods import METHODS, Built, Method
from mpochain.compression.moment_store import MomentStore
from mpochain.compression.moments import Moments
from mpochain.compression.records import CompressionReport, LayerRecord
from mpochain.compression.sequential import Pair, corrected, in_sequence
from mpochain.compression.targets import dense_layers, select, why_none
from mpochain.errors import MPOError, NonFiniteError, SpecError
from mpochain.nn.compressed import form_of
from mpochain.nn.dense import weight_and_bias
from mpochain.nn.embeddings import MPOEmbedding, RowEmbedding
from mpochain.nn.replacement import replace_layers
from mpochain.nn.tying import tied_head, tied_linears
from mpochain.report import provenance

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
        maker = _Maker(way, layers, chosen, moments)
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


class _Maker:
    """Makes layers by what was chosen for each, and keeps a record of every one."""

    def __init__(
        self, way: Method, layers: Mapping[str, nn.Module], chosen: Mapping[str, int], moments: MomentStore
    ) -> None:
        self._way, self._layers, self._chosen, self._moments = way, layers, chosen, moments
        self.records: dict[str, LayerRecord] = {}
        self.built: dict[nn.Module, nn.Module] = {}
        self.verified = False

    def __call__(self, name: str, pair: Pair | None) -> nn.Module | None:
        """The layer that takes the place of another, corrected by what both models give it; None for none."""
        layer, moments = self._layers[name], self._moments.get(name)
        weight, bias = (None if each is None else each.detach() for each in weight_and_bias(layer, name))
        assert weight is not None
        correction = corrected(weight, moments, pair) if pair is not None and moments is not None else None
        if correction is None:
            made = self._way.build(weight, bias, moments, self._chosen[name])
        else:
            made = self._way.build(correction.weight, bias, correction.moments, self._chosen[name])
            if made is not None and made.errors is not None:
                made = Built(made.layer, Errors(correction.output_error(made.errors.output), made.errors.loss))
        if made is not None and isinstance(layer, nn.Embedding):
            table: Any = made.layer
            rows = table if isinstance(table, RowEmbedding) else MPOEmbedding.of(table)
            rows.padding_idx = layer.padding_idx
            made = Built(rows, made.errors)
        self.records[name] = replace(_record(layer, name, weight, made, moments), padding=_padding(layer, made))
        if made is None:
            return None
        for parameter in made.layer.parameters():
            parameter.requires_grad_(weight_and_bias(layer)[0].requires_grad)
        self.built[layer] = made.layer.train(layer.training)
        return self.built[layer]

    def tie(self, heads: Mapping[nn.Linear, nn.Embedding]) -> None:
        """Make a head for each one that is tied to an embedding that was made smaller."""
        for head, embedding in heads.items():
            made = self.built.get(embedding)
            if isinstance(made, RowEmbedding):
                self.built[head] = tied_head(made).train(head.training)

    def verify(self, allowed: int) -> None:
        """Count what came out: no layer larger than it was, all of them within what is allowed."""
        larger = [record.name for record in self.records.values() if record.bytes_after > record.bytes_before]
        total = sum(record.parameters_after for record in self.records.values())
        if larger or total > allowed:
            raise MPOError(
                f"{total:,} parameters were made where {allowed:,} are allowed, or layers grew ({larger[:3]}); this is "
                "a defect of the method, please report it"
            )
        self.verified = True


def _record(layer: nn.Module, name: str, weight: Tensor, made: Built | None, moments: Moments | None) -> LayerRecord:
    out, in_ = (int(size) for size in weight.shape)
    dense = weight.numel() * weight.element_size()
    # A row that is looked up is not computed.
    macs = 0 if isinstance(layer, nn.Embedding) else out * in_
    record: dict[str, Any] = {
        "name": name,
        "shape": (out, in_),
        "form": "dense",
        "parameters_before": out * in_,
        "parameters_after": out * in_,
        "bytes_before": dense,
        "bytes_after": dense,
        "macs_before": macs,
        "macs_after": macs,
        "weight_error": 0.0,
        "output_error": 0.0 if moments is not None else None,
        "loss_increase": 0.0 if moments is not None and moments.gradients is not None else None,
    }
    if made is None:
        return LayerRecord(**record)
    smaller: Any = made.layer
    held = [each for key, each in smaller.state_dict().items() if key.rpartition(".")[2] != "bias"]
    wide = weight.double()
    record |= {
        "form": form_of(smaller),
        "parameters_after": sum(each.numel() for each in held if each.is_floating_point()),
        "bytes_after": sum(each.numel() * each.element_size() for each in held),
        "macs_after": smaller.macs(),
        "weight_error": float((wide - smaller.weight.detach().double()).norm() / wide.norm()) if wide.any() else 0.0,
        "output_error": made.errors.output if made.errors is not None else None,
        "loss_increase": made.errors.loss if made.errors is not None else None,
    }
    return LayerRecord(**record)


def _padding(layer: nn.Module, made: Built | None) -> float | None:
    """The norm of a row of padding that was zero, unless it still is."""
    if made is None or not isinstance(layer, nn.Embedding) or layer.padding_idx is None:
        return None
    with torch.no_grad():
        row = made.layer(torch.tensor([layer.padding_idx], device=layer.weight.device))
        norm = float(row.double().norm())
    return norm if norm and not layer.weight[layer.padding_idx].any() else None


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
