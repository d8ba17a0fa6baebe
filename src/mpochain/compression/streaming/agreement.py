"""Agreement of a model whose blocks run one at a time with the model as it is, on one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from mpochain.compression.streaming.blocks_in_turn import OPTION, BlocksInTurn, WholeRun, called_more_than_once
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError

__all__ = ["layers_before", "require_agreement"]

# Largest difference of an output from that of the whole model, of its largest entry.
_TOLERANCE = 1e-3


def require_agreement(turn: BlocksInTurn, batch: Any, targets: Mapping[str, Target]) -> WholeRun:
    """Compare the parts of a model with the model as it is on a batch.

    A model may read more than the states that one block hands to the next: skip connections, a sum over all blocks,
    states that code between blocks changes. Nothing of that would show but in the results.

    Args:
        turn: the model.
        batch: a batch that is not masked entirely.
        targets: the layers.

    Raises:
        ArgumentError: they differ; the message says where.
    """
    run = turn.run_whole(batch)
    modules = {target.module: name for name, target in targets.items()}
    twice = called_more_than_once(run, list(modules))
    if twice:
        raise ArgumentError(
            f"{OPTION} runs one part of the model after another, but {modules[twice[0]]} is called in several; leave "
            "it out by ignore="
        )
    with torch.no_grad():
        for number in range(len(turn.blocks)):
            if not _same(turn.call(number, batch), run.calls[number]):
                raise ArgumentError(
                    f"{OPTION} needs blocks whose other arguments do not depend on earlier blocks, but those of "
                    f"{turn.names[number]} do; leave it out"
                )
        try:
            assert run.last is not None
            output = turn.output(batch, run.last)
        except ArgumentError as error:
            raise _more_is_read() from error
    if not _close(output, run.output):
        raise _more_is_read()
    _require_one_way(turn, batch, run, targets)
    run.output = None
    return run


def layers_before(run: WholeRun, targets: Mapping[str, Target]) -> dict[str, Target]:
    """The layers that run before the blocks."""
    return {name: target for name, target in targets.items() if run.places.get(target.module) == {-1}}


def _more_is_read() -> ArgumentError:
    return ArgumentError(
        f"{OPTION} needs a model that reads nothing of its blocks but the states after the last one; this one gives "
        "another output then, for example since it also gives or reads states in between; leave it out"
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two calls have the same arguments beside the hidden states."""
    first, second = ((call.arguments, call.named) for call in (one, other))
    values, others = (tree.tree_flatten(arguments) for arguments in (first, second))
    if values[1] != others[1]:
        return False
    return all(map(_equal, values[0], others[0]))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return torch.allclose(one, other, equal_nan=True) if one.is_floating_point() else torch.equal(one, other)
    if isinstance(one, bool | int | float | str | None):
        return bool(one == other)
    return type(one) is type(other)  # such as an empty cache


def _close(one: Any, other: Any) -> bool:
    """Whether two outputs have the same numbers, to rounding."""
    values, others = (
        [leaf for leaf in tree.tree_leaves(_plain(output)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        for output in (one, other)
    )
    if [value.shape for value in values] != [value.shape for value in others]:
        return False
    for value, expected in zip(values, others, strict=True):
        if not value.numel():
            continue
        size = float(expected.nan_to_num().abs().max())
        if not torch.allclose(value.float(), expected.float(), rtol=0, atol=_TOLERANCE * size, equal_nan=True):
            return False
    return True


def _plain(output: Any) -> Any:
    """Outputs of transformers as mappings, which they are, and other objects by their attributes."""
    if isinstance(output, Tensor | tuple | list | Mapping):
        return dict(output) if isinstance(output, Mapping) else output
    return vars(output) if hasattr(output, "__dict__") else output


def _require_one_way(turn: BlocksInTurn, batch: Any, run: WholeRun, targets: Mapping[str, Target]) -> None:
    """Refuse gradients that reach layers before the blocks by another way than the first hidden states."""
    before = [target.module for target in layers_before(run, targets).values() if not target.is_embedding]
    if not before or run.last is None:
        return
    with torch.enable_grad(), _with_gradients(before):
        leaves = tree.tree_leaves(turn.output(batch, run.last))
        for number in range(len(turn.blocks)):
            call = turn.call(number, batch)
            leaves += tree.tree_leaves((call.arguments, call.named))
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
        raise ArgumentError(
            f"{OPTION} takes gradients of what precedes the blocks from the first hidden states, but blocks or the "
            "output read it as well; leave out those layers by ignore="
        )


@contextmanager
def _with_gradients(modules: list[nn.Module]) -> Iterator[None]:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
