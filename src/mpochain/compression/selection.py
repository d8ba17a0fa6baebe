"""Selection of the layers of a model by name, pattern or class."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from mpochain.compression.obstacles import reason_against, why_not
from mpochain.compression.sharing import no_head_of, shared_modules
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError, DTypeError
from mpochain.nn import SeparateExperts
from mpochain.nn.attachments import require_nothing_attached
from mpochain.nn.dense import dense_shape, require_plain
from mpochain.surgery.experts import class_name
from mpochain.surgery.finding import compressed_layers, parts_of_layers
from mpochain.surgery.tying import tied_linears
from mpochain.surgery.wrappers import adapter_parts, require_replaceable_in
from mpochain.wording import article, kind_of

__all__ = ["Opened", "as_patterns", "dense_layers", "names_of", "open_targets", "select", "why_none"]

_NEAREST = 5


class _Able(Protocol):
    """Kinds of layers that a method compresses; the part of :class:`mpochain.compression.Method` used here."""

    linear: bool
    embeddings: bool


@dataclass(frozen=True, eq=False)
class Opened:
    """Layers to compress.

    Attributes:
        targets: dense layers by name, in the order of the model.
        heads: the embedding of each linear head that shares its table. These heads are replaced together with their
            embedding, so they are not among the targets.
        left_out: names of layers that stay dense because they share a parameter, or because their forward, weight or
            state was altered, with the reason.
    """

    targets: dict[str, Target]
    heads: dict[nn.Linear, nn.Embedding]
    left_out: dict[str, str]


def open_targets(
    model: nn.Module, method: _Able, targets: Iterable[str] | None = None, ignore: Iterable[str] = ()
) -> Opened:
    """Select and open the layers to compress, and find the heads that are tied to them.

    A layer that shares a parameter with another module stays dense: replaced alone, it would no longer share it. Heads
    tied to an embedding that is compressed are replaced with it.

    Args:
        model: not changed.
        method: determines whether linear layers and embeddings can be compressed.
        targets: patterns, see :func:`select`; by default all linear layers, or all embeddings for a method that
            compresses only embeddings.
        ignore: patterns of layers to leave out.

    Raises:
        ArgumentError: no layer is left to compress, a pattern is invalid (see :func:`select`), a layer has hooks, or
            ``targets`` names a layer that shares a parameter.
        NonFiniteError: a weight is NaN or infinite; the message names the layer.

    Example:
        >>> from mpochain.compression.methods import METHODS
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
        >>> [list(open_targets(model, METHODS[name]).targets) for name in ("svd", "word2ket")]
        [['1'], ['0']]
    """
    named = set() if targets is None else set(as_patterns(targets, "targets"))
    patterns = _every(model, method) if targets is None else as_patterns(targets, "targets")
    modules = select(model, patterns, ignore, embeddings=method.embeddings, linear=method.linear) if patterns else {}
    shared = shared_modules(model)
    tables = []
    for module in modules.values():
        if isinstance(module, nn.Embedding) and module in shared:
            other = no_head_of(model, module)
            if other is None:
                tables.append(module)
            else:
                shared[module] = other
    heads = tied_linears(model, tables)
    left_out: dict[str, str] = {}
    for name, module in list(modules.items()):
        if module in shared and module not in tables and module not in heads:
            reason = f"it shares a parameter with {shared[module] or 'the model itself'}"
            if named & names_of(model, module):
                raise ArgumentError(
                    f"{name} is named in targets=, but {reason}, and replaced alone would no longer share it; name "
                    "the embedding that a head is tied to, or give the layer a parameter of its own first"
                )
            left_out[name] = reason
            del modules[name]
    if not modules:
        raise ArgumentError(f"there is no layer left to compress{why_none(model)}; see targets= and ignore=")
    require_replaceable_in(model, set(modules.values()))
    opened = {name: Target.open(name, module) for name, module in modules.items() if module not in heads}
    for target in opened.values():
        target.require_replaceable()
    for head in heads:
        require_nothing_attached(head, min(names_of(model, head)))
    if targets is None:
        left_out |= _altered(model, method, ignore)
    return Opened(opened, heads, left_out)


def names_of(model: nn.Module, module: nn.Module) -> set[str]:
    """All names by which a model holds a module."""
    return {name for name, other in model.named_modules(remove_duplicate=False) if other is module}


def _every(model: nn.Module, method: _Able) -> list[str]:
    """Names of the layers that a method compresses by default."""
    inside = adapter_parts(model) | parts_of_layers(model)
    return [
        name
        for name, module in model.named_modules()
        if name and module not in inside and _is_dense(module, embeddings=not method.linear, linear=method.linear)
    ]


def _altered(model: nn.Module, method: _Able, ignore: Iterable[str]) -> dict[str, str]:
    """Layers that stay dense because their forward, weight or state was altered, with the reason."""
    left_out = {}
    ignored = _ignored(model, ignore) | parts_of_layers(model)
    for name, module in model.named_modules():
        kind = dense_shape(module) is not None if method.linear else isinstance(module, nn.Embedding)
        if name and kind and module not in ignored and (reason := reason_against(module)):
            left_out[name] = reason
    return left_out


def select(
    model: nn.Module,
    targets: Iterable[str],
    ignore: Iterable[str] = (),
    *,
    embeddings: bool = False,
    linear: bool = True,
) -> dict[str, nn.Module]:
    r"""Select the layers that ``targets`` matches and ``ignore`` does not, in the order of the model.

    A pattern is the full name of a layer (``"model.layers.0.mlp.up_proj"``), ``"re:"`` followed by a regular expression
    for the full name (``r"re:.*\.mlp\..*"``), or the name of a class (``"Linear"``, ``"Conv1D"``), tried in this
    order. That of the experts of a mixture selects all their layers. A module with several names is listed once.

    Args:
        model: not changed.
        targets: patterns; class names select only layers that can be compressed.
        ignore: patterns of layers to leave out; overrides ``targets``.
        embeddings: whether embeddings can be selected.
        linear: whether linear layers can be selected.

    Raises:
        ArgumentError: a pattern matches nothing, a regular expression is invalid, or a named module cannot be
            compressed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> list(select(model, ["Linear"], ignore=["2"]))
        ['0']
    """
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    chosen: set[nn.Module] = set()
    parts = parts_of_layers(model)
    for pattern in as_patterns(targets, "targets"):
        names, by_class = _matches(pattern, modules, "targets")
        for name in names:
            if modules[name] in parts:
                if not by_class and not pattern.startswith("re:"):
                    raise ArgumentError(f"targets: {name!r} is part of a compressed layer, so it is compressed already")
            elif _is_dense(modules[name], embeddings=embeddings, linear=linear):
                chosen.add(modules[name])
            elif isinstance(modules[name], SeparateExperts):
                chosen |= {layer for layer in modules[name].modules() if _is_dense(layer, linear=linear)}
            elif not by_class and not pattern.startswith("re:"):
                kinds = ["torch.nn.Embedding"] * embeddings + ["torch.nn.Linear", "Hugging Face Conv1D"] * linear
                raise ArgumentError(
                    f"targets: {name!r} is {kind_of(modules[name])}, which cannot be compressed this way"
                    f"{why_not(modules[name], name)}; name {article(' or '.join(kinds))}"
                )
    chosen -= _ignored(model, ignore)
    return {name: module for name, module in model.named_modules() if name and module in chosen}


def _ignored(model: nn.Module, ignore: Iterable[str]) -> set[nn.Module]:
    """The modules that patterns match, with the modules inside them."""
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    names = [name for pattern in as_patterns(ignore, "ignore") for name in _matches(pattern, modules, "ignore")[0]]
    return {part for name in names for part in modules[name].modules()}


def dense_layers(model: nn.Module, ignore: Iterable[str] = ()) -> dict[str, nn.Module]:
    """All dense linear layers whose weight is not shared with another module, such as an embedding.

    Args:
        model: not changed.
        ignore: patterns of layers to leave out, see :func:`select`.

    Raises:
        ArgumentError: a pattern matches nothing.

    Example:
        >>> model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "up": nn.Linear(4, 8), "head": nn.Linear(4, 9)})
        >>> model["head"].weight = model["embedding"].weight
        >>> list(dense_layers(model))
        ['up']
    """
    left_out = shared_modules(model).keys() | adapter_parts(model) | parts_of_layers(model)
    own = [name for name, module in model.named_modules() if name and _is_dense(module) and module not in left_out]
    return select(model, own, ignore) if own else {}


def why_none(model: nn.Module) -> str:
    """Likely reason why nothing in a model can be compressed, to end an error message; empty if unknown."""
    if _is_dense(model, embeddings=True):
        return f": the model is itself {kind_of(model)}, so it cannot be replaced; wrap it in nn.Sequential"
    if compressed_layers(model):
        return ": its layers are already compressed"
    for name, module in model.named_modules():
        if reason := why_not(module, name):
            return reason
    if any(_is_dense(module) for module in model.modules()):
        return ": layers that are ignored or share their weight with another module are left unchanged"
    return ""


def as_patterns(patterns: Iterable[str], field: str = "") -> list[str]:
    """List the patterns of an argument, checked as far as no model is needed; a single string is one pattern.

    Args:
        patterns: see :func:`select`.
        field: argument that holds them, for errors.

    Raises:
        ArgumentError: a pattern is empty or no string, or its regular expression is invalid.

    Example:
        >>> as_patterns("Linear"), as_patterns(["re:.*mlp"])
        (['Linear'], ['re:.*mlp'])
    """
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in listed:
        if not isinstance(pattern, str) or not pattern:
            place = f"{field} must hold" if field else "expected"
            raise ArgumentError(f"{place} names, re: patterns or names of classes, got {pattern!r}")
        if pattern.startswith("re:"):
            _expression(pattern, field)
    return listed


def _expression(pattern: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix("re:"))
    except (re.error, OverflowError, RecursionError) as error:
        place = f"{field}: " if field else ""
        raise ArgumentError(f"{place}{pattern!r} is not a regular expression: {error}") from error


def _matches(pattern: str, modules: Mapping[str, nn.Module], field: str) -> tuple[list[str], bool]:
    """Names of the modules that a pattern matches, and whether the pattern is a class name."""
    if pattern in modules:
        return [pattern], False
    if pattern.startswith("re:"):
        expression = _expression(pattern, field)
        names = [name for name in modules if expression.fullmatch(name)]
        by_class = False
    else:
        names = [name for name, module in modules.items() if class_name(module) == pattern]
        by_class = True
    if not names:
        known = sorted({*modules, *map(class_name, modules.values())})
        nearest = difflib.get_close_matches(pattern.removeprefix("re:"), known, n=_NEAREST, cutoff=0.0)
        raise ArgumentError(f"{field}: {pattern!r} matches no layer; the nearest names are {', '.join(nearest)}")
    return names, by_class


def _is_dense(module: nn.Module, *, embeddings: bool = False, linear: bool = True) -> bool:
    if not (embeddings if isinstance(module, nn.Embedding) else linear):
        return False
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta:
        # Patterns can be checked against a model without values; opening its layers is refused.
        return isinstance(module, nn.Embedding) or dense_shape(module) is not None
    try:
        require_plain(module)
    except DTypeError:
        return False
    return True
