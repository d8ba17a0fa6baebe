"""Fused experts of a mixture as separate linear layers, and back.

transformers holds the matrices of all experts of a mixture in parameters with three axes. Every part of this library
works on layers, so experts that are to be compressed become :class:`mpochain.nn.SeparateExperts` first, with one
``nn.Linear`` per expert and matrix.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from mpochain.architectures import FusedExperts, fused_experts
from mpochain.errors import ArgumentError
from mpochain.nn import SeparateExperts
from mpochain.nn.attachments import require_nothing_attached
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.wrappers import adapted, adapter_parts, require_replaceable_in
from mpochain.wording import counted, kind_of

__all__ = ["class_name", "fuse_experts", "separate_experts", "separated_experts"]

_logger = logging.getLogger(__name__)


def separate_experts(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, SeparateExperts]:
    """Replace fused experts by modules with one ``nn.Linear`` per expert and matrix; outputs do not change.

    :func:`mpochain.compress` does this itself. Do it before to select single layers of experts, see
    :func:`mpochain.compression.select`, or to collect their moments.

    Args:
        model: changed in place. Parameters are replaced, so create the optimiser afterwards.
        names: names of the modules to replace; by default all that can be.

    Returns:
        The new modules by name.

    Raises:
        ArgumentError: a module that is named holds no fused experts of a known layout, or cannot be replaced.

    Example:
        >>> separate_experts(nn.Sequential(nn.Linear(2, 2)))
        {}
    """
    separable, reasons = _fused_modules(model)
    if names is not None:
        names = list(names)
        for name in names:
            if name in reasons:
                raise ArgumentError(f"the experts of {name} cannot become separate layers: {reasons[name]}")
            if name not in separable:
                raise ArgumentError(f"the model has no fused experts named {name!r}{_known(separable)}")
        separable = {name: separable[name] for name in names}
    separate = {name: SeparateExperts(module, layout) for name, (module, layout) in separable.items()}
    replace_layers(model, {separable[name][0]: module for name, module in separate.items()})
    for module in separate.values():
        _own(module)
    return separate


def fuse_experts(model: nn.Module) -> int:
    """Make fused experts of all separate ones whose layers are ``nn.Linear``, the reverse of :func:`separate_experts`.

    Experts with a layer of another kind, such as a compressed one or an adapter, stay separate.

    Args:
        model: changed in place.

    Returns:
        The number of modules that were fused.

    Example:
        >>> fuse_experts(nn.Sequential(nn.Linear(2, 2)))
        0
    """
    count = 0
    for name, module in list(model.named_modules()):
        if not isinstance(module, SeparateExperts):
            continue
        other = next((layer for layer in module.linears.values() if type(layer) is not nn.Linear), None)
        if other is None:
            replace_layers(model, {module: module.fused()})
            count += 1
        else:
            _logger.info("%s stays separate, as it holds %s", name, kind_of(other))
    return count


@contextmanager
def separated_experts(model: nn.Module) -> Iterator[dict[str, str]]:
    """The model with separate experts. On exit, those of which no layer was replaced are fused again.

    Within the context, the weights of the layers are views of the fused parameters, so that it takes no memory and the
    model has the same parameters afterwards.

    Args:
        model: changed in place until the context ends.

    Yields:
        Names of fused experts that cannot be separated, with the reason.

    Example:
        >>> with separated_experts(nn.Sequential(nn.Linear(2, 2))) as reasons:
        ...     print(reasons)
        {}
    """
    separable, reasons = _fused_modules(model)
    parameters = {module: dict(module._parameters) for module, _ in separable.values()}
    separate: dict[nn.Module, SeparateExperts] = {}
    dense: dict[nn.Module, dict[str, nn.Module]] = {}
    places: dict[nn.Module, list[int]] = {}
    try:
        for module, layout in separable.values():
            separate[module] = SeparateExperts(module, layout)
            dense[module], places[module] = separate[module].linears, _places(separate[module])
        replace_layers(model, separate)
        yield reasons
    finally:
        restored: dict[nn.Module, nn.Module] = {}
        for module, experts in separate.items():
            if experts.linears == dense[module]:
                # Views no more if other code gave a layer a new tensor.
                moved = _places(experts) != places[module]
                restored[experts] = experts.fused(None if moved else parameters[module])
            else:
                _own(experts)
        replace_layers(model, restored)


def class_name(module: nn.Module) -> str:
    """The name of a module's class; for separate experts that of the fused ones, which the user knows.

    Example:
        >>> class_name(nn.Linear(2, 2))
        'Linear'
    """
    return (module.fused_class if isinstance(module, SeparateExperts) else type(module)).__name__


def _fused_modules(model: nn.Module) -> tuple[dict[str, tuple[nn.Module, FusedExperts]], dict[str, str]]:
    """Fused experts that can be separated, by name, with their layout, and the reasons why others cannot."""
    separable: dict[str, tuple[nn.Module, FusedExperts]] = {}
    reasons: dict[str, str] = {}
    layouts = {name: layout for name, module in model.named_modules() if (layout := fused_experts(module))}
    if not layouts:
        return separable, reasons
    holders = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    adapters = adapter_parts(model) | adapted(model)
    for name, layout in layouts.items():
        module = model.get_submodule(name)
        reason = _layout_obstacle(module, layout)
        if reason is None and module is model:
            reason = "it is the model itself, so it cannot be replaced; wrap it in nn.Sequential"
        if reason is None and module in adapters:
            reason = "an adapter reads its parameters; merge the adapters first (merge_and_unload())"
        if reason is None and any(holders[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
            reason = "it shares a parameter with another module"
        if reason is None:
            try:
                require_nothing_attached(module, f"the {type(module).__name__}")
                require_replaceable_in(model, {module})
            except ArgumentError as error:
                reason = str(error)
        if reason is None:
            separable[name] = module, layout
        else:
            reasons[name] = reason
    return separable, reasons


def _layout_obstacle(module: nn.Module, layout: FusedExperts) -> str | None:
    """Why the parameters of experts are not those of their layout; None if they are."""
    expected = {name for matrix in (layout.up, layout.down) for name in (matrix, f"{matrix}_bias")}
    tensors = {**module._parameters, **module._buffers}
    other = sorted(set(tensors) - expected)
    if other:
        return f"it holds {', '.join(other)} besides the matrices of its experts"
    held = {name: value for name, value in tensors.items() if value is not None}
    for name in (layout.up, layout.down):
        for key, axes in ((name, 3), (f"{name}_bias", 2)):
            value = held.get(key)
            if value is None and axes == 2:  # no biases
                continue
            if type(value) is not nn.Parameter or value.ndim != axes or not value.is_floating_point():
                return f"{key} is no plain parameter with {axes} axes; dequantise or gather it first"
    experts = {len(value) for value in held.values()}
    if len(experts) != 1 or 0 in experts:
        return f"its parameters are for {' and '.join(map(str, sorted(experts)))} experts"
    if getattr(module, "_is_expert_parallel", False):
        return "its experts are spread over processes; gather them first"
    return None


def _places(separate: SeparateExperts) -> list[int]:
    """Where the parameters of the layers lie in memory."""
    return [parameter.data_ptr() for layer in separate.linears.values() for parameter in layer.parameters()]


@torch.no_grad()
def _own(separate: SeparateExperts) -> None:
    """Give the layers memory of their own, so that a compressed one frees its part of the fused parameters."""
    for layer in separate.linears.values():
        if type(layer) is nn.Linear:
            for parameter in layer.parameters():
                parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)


def _known(separable: Mapping[str, object]) -> str:
    return f"; it has {counted(len(separable), 'such module')}" + (
        f", such as {next(iter(separable))}" if separable else ""
    )
