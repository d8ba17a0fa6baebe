"""Which layers of a model are meant: by name, by pattern, by class."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from torch import nn

from mpochain.errors import DTypeError, SpecError
from mpochain.nn.dense import weight_and_bias
from mpochain.surgery.finding import compressed_layers

__all__ = ["dense_layers", "select", "why_none"]

_NEAREST = 5


def select(
    model: nn.Module,
    targets: Iterable[str],
    ignore: Iterable[str] = (),
    *,
    embeddings: bool = False,
    linear: bool = True,
) -> dict[str, nn.Module]:
    r"""The layers that are matched by ``targets`` and not by ``ignore``, in the order of the model.

    A pattern is the whole name of a layer (``"model.layers.0.mlp.up_proj"``), ``"re:"`` with a regular expression that
    matches the whole name (``r"re:.*\.mlp\..*"``), or the name of a class (``"Linear"``, ``"Conv1D"``), tried in this
    order. A module that is in the model under several names is given once, under the first.

    Args:
        model: is not changed.
        targets: patterns; those that are names of classes take no layers that cannot be compressed.
        ignore: patterns of layers to leave out, which win over targets.
        embeddings: whether embeddings are among what can be compressed.
        linear: whether linear layers are.

    Raises:
        SpecError: a pattern that matches nothing, a regular expression that is none, or a module that is named but is
            no layer that can be compressed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> list(select(model, ["Linear"], ignore=["2"]))
        ['0']
    """
    modules = {name: module for name, module in model.named_modules() if name}
    chosen: set[str] = set()
    for pattern in _patterns(targets, "targets"):
        names, by_class = _matches(pattern, modules, "targets")
        for name in names:
            if _is_dense(modules[name], embeddings=embeddings, linear=linear):
                chosen.add(name)
            elif not by_class and not pattern.startswith("re:"):
                able = ["torch.nn.Embedding"] * embeddings + ["torch.nn.Linear", "Hugging Face Conv1D"] * linear
                raise SpecError(
                    f"targets: {name!r} is a {type(modules[name]).__name__}, which cannot be compressed this way; name "
                    f"a {' or '.join(able)}"
                )
    left_out = {name for pattern in _patterns(ignore, "ignore") for name in _matches(pattern, modules, "ignore")[0]}
    return {
        name: module
        for name, module in modules.items()
        # What is within an ignored module is ignored with it.
        if name in chosen and not any(name == out or name.startswith(f"{out}.") for out in left_out)
    }


def dense_layers(model: nn.Module, ignore: Iterable[str] = ()) -> dict[str, nn.Module]:
    """Every layer that can be compressed and has its weight for itself; one that is tied to an embedding is left out.

    Args:
        model: is not changed.
        ignore: patterns of layers to leave out, see :func:`select`.

    Raises:
        SpecError: a pattern that matches nothing.

    Example:
        >>> model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "up": nn.Linear(4, 8), "head": nn.Linear(4, 9)})
        >>> model["head"].weight = model["embedding"].weight
        >>> list(dense_layers(model))
        ['up']
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    own = [
        name
        for name, module in model.named_modules()
        if name and _is_dense(module) and all(holders[id(p)] == 1 for p in module.parameters(recurse=False))
    ]
    return select(model, own, ignore) if own else {}


def why_none(model: nn.Module) -> str:
    """What may be the reason that nothing of a model can be compressed, to follow on that statement; often none."""
    if _is_dense(model, embeddings=True):
        return f": the model is itself a {type(model).__name__}, and has no place to put another one in; wrap it"
    if compressed_layers(model):
        return ": what could be is compressed already"
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.Linear) and not _is_dense(module, embeddings=True):
            try:
                weight_and_bias(module, name)
            except DTypeError as error:
                return f" ({error})"
    if any(_is_dense(module) for module in model.modules()):
        return ": what is shared between modules or ignored is left as it is"
    return ""


def _patterns(patterns: Iterable[str], field: str) -> list[str]:
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in listed:
        if not isinstance(pattern, str) or not pattern:
            raise SpecError(f"{field} must hold names, re: patterns or names of classes, got {pattern!r}")
    return listed


def _matches(pattern: str, modules: Mapping[str, nn.Module], field: str) -> tuple[list[str], bool]:
    """The names a pattern matches, and whether it did so as the name of a class."""
    if pattern in modules:
        return [pattern], False
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise SpecError(f"{field}: {pattern!r} is no regular expression: {error}") from error
        found = [name for name in modules if expression.fullmatch(name)]
        by_class = False
    else:
        found = [name for name, module in modules.items() if type(module).__name__ == pattern]
        by_class = True
    if not found:
        known = sorted({*modules, *(type(module).__name__ for module in modules.values())})
        nearest = difflib.get_close_matches(pattern.removeprefix("re:"), known, n=_NEAREST, cutoff=0.0)
        raise SpecError(f"{field}: {pattern!r} matches no layer; the nearest names are {', '.join(nearest)}")
    return found, by_class


def _is_dense(module: nn.Module, *, embeddings: bool = False, linear: bool = True) -> bool:
    if not (embeddings if isinstance(module, nn.Embedding) else linear):
        return False
    try:
        weight_and_bias(module)
    except DTypeError:
        return False
    return True
