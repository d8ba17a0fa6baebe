"""Passes over the calibration data, as many as memory requires to collect the moments of all layers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import length_hint
from typing import Any, Protocol

from torch import Tensor, nn

from mpochain.compression.statistics.collected import Collected
from mpochain.compression.statistics.collection import NothingCountedError, collect
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.division import UNDIVIDED, Division
from mpochain.compression.statistics.given_gradients import GivenGradients
from mpochain.compression.statistics.moments import moment_bytes, run_batch
from mpochain.compression.statistics.set_aside import Part, sets_aside
from mpochain.compression.statistics.store import MomentStore
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError
from mpochain.system.extensions import errors_named
from mpochain.system.progress import TimeLeft
from mpochain.wording import counted

__all__ = [
    "batches_for",
    "gather_every",
    "gather_moments",
    "kept_on_disk",
    "memory_for_statistics",
    "parts",
    "require_batches",
    "sides_needed",
]

_logger = logging.getLogger(__name__)

# Memory for the moments of one pass over the data: a share of the model's bytes, and at least the second number of
# bytes. Layers whose moments do not fit take another pass. All moments of a transformer take 0.77 of its bytes if no
# two layers share their inputs, and 1.36 for "search", which also needs the larger inputs.
_SHARE, _LEAST_BYTES = 0.4, 1 << 27
# Share of the parameters in float32 for methods that also need the gradients of all outputs: 2.4 times the parameters
# for a transformer, which at the share above would take seven passes.
_SHARE_OF_BOTH_SIDES = 1.25

# Seconds between two progress messages of a pass.
_INTERVAL = 20.0


class _Needing(Protocol):
    """Statistics that a method needs; the part of :class:`mpochain.compression.Method` used here."""

    name: str
    needs: Any
    sets_aside: bool

    def needs_inputs(self, shape: tuple[int, int]) -> bool: ...
    def needs_outputs(self, shape: tuple[int, int]) -> bool: ...


def batches_for(calibration: Iterable[Any] | None, method: _Needing) -> Iterable[Any]:
    """Check the calibration data and return batches that log progress while they are read.

    Args:
        calibration: batches, see :func:`mpochain.compression.statistics.moments.run_batch`; None for no data.
        method: method that uses the data.

    Raises:
        ArgumentError: required data are missing, can be read only once, or are a single batch.
    """
    if calibration is None:
        if method.needs != "nothing":
            raise ArgumentError(
                f"method {method.name!r} needs calibration= batches; give some thousand tokens of text typical of the "
                'model\'s use, or choose method="svd", which needs none'
            )
        return ()
    require_batches(calibration, "calibration")
    # Data that show how far they were read need no log beside it.
    return calibration if getattr(calibration, "shows_progress", False) else _Logged(calibration)


def require_batches(batches: Iterable[Any], argument: str) -> Iterable[Any]:
    """Return batches that can be read several times.

    Raises:
        ArgumentError: they can be read only once, or are a single batch; the message names the argument.
    """
    if isinstance(batches, Iterator):
        raise ArgumentError(f"{argument} is read several times, but got an iterator; give a list of batches")
    if isinstance(batches, Tensor | Mapping | str):
        raise ArgumentError(
            f"{argument} must be a list of batches, got one {type(batches).__name__}; put it into a list"
        )
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise ArgumentError(f"{argument} is a list of batches, got one {type(batches).__name__}")
    return batches


class _Logged:
    """Batches that log how many of them were read, with the time left, every ``_INTERVAL`` seconds.

    Attributes:
        uncounted: the batches themselves, to read without a log.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.uncounted = batches
        self._count = length_hint(batches) or None

    def __iter__(self) -> Iterator[Any]:
        left = TimeLeft(self._count)
        last, number = time.monotonic(), 0
        for number, batch in enumerate(self.uncounted, 1):
            yield batch
            if time.monotonic() - last > _INTERVAL:
                last = time.monotonic()
                _logger.info("calibration batch %s", left.after(number))
        self._count = number  # known from the second pass on, also of data without a length


def _divisible(batches: Iterable[Any]) -> bool:
    """Whether some of the batches can be set aside: there are enough, and they come in one order each time.

    A data loader may shuffle, and give in one pass to the fit what it gives to others in the next.
    """
    source = batches.uncounted if isinstance(batches, _Logged) else batches
    return hasattr(source, "__getitem__") and sets_aside(length_hint(source))


def memory_for_statistics(model: nn.Module) -> int:
    """Memory limit in bytes for statistics during a pass and for fits afterwards: a share of the model's bytes."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return max(int(size * _SHARE), _LEAST_BYTES)


def parts(model: nn.Module, targets: Mapping[str, Target], method: _Needing) -> Iterator[dict[str, Target]]:
    """Split the layers into groups of one or more whose moments fit into :func:`memory_for_statistics`.

    Methods that need the moments of both sides in full get 1.25 times the parameters in float32.
    """
    room = memory_for_statistics(model)
    if sides_needed(targets, method)[1]:
        room = max(room, int(_SHARE_OF_BOTH_SIDES * 4 * sum(parameter.numel() for parameter in model.parameters())))
    part: dict[str, Target] = {}
    taken = 0
    for name, target in targets.items():
        size = _moment_bytes({name: target}, method)
        if part and taken + size > room:
            yield part
            part, taken = {}, 0
        part[name] = target
        taken += size
    yield part


def kept_on_disk(model: nn.Module, groups: Sequence[Mapping[str, Target]], method: _Needing) -> bool:
    """Whether moments go to files: they take several passes, or data are set aside and those of both are too large."""
    if len(groups) > 1 or not method.sets_aside:
        return len(groups) > 1
    return 2 * _moment_bytes(groups[0], method) > memory_for_statistics(model)


def _moment_bytes(targets: Mapping[str, Target], method: _Needing) -> int:
    if method.needs == "nothing":
        return 0
    inputs, outputs = sides_needed(targets, method)
    modules = {name: target.module for name, target in targets.items()}
    return moment_bytes(modules, gradients=method.needs == "gradients", inputs=inputs, outputs=outputs)


def gather_every(
    model: nn.Module,
    groups: Sequence[Mapping[str, Target]],
    batches: Iterable[Any],
    method: _Needing,
    store: MomentStore,
    *,
    loss: Callable[[Any], Tensor] | DefaultLoss,
    standing: Mapping[nn.Module, nn.Module] | None = None,
    division: Division = UNDIVIDED,
) -> None:
    """Read the data once for each group of layers whose moments the store does not hold yet.

    Args:
        model: model to run over the batches.
        groups: layers of each pass, see :func:`parts`.
        batches: see :func:`mpochain.compression.statistics.moments.run_batch`.
        method: method that needs the moments.
        store: receives the moments; those that an earlier call kept in its folder are not collected again.
        loss: see :func:`mpochain.compression.compress`.
        standing: what stands in the model for some of the layers, see
            :func:`mpochain.compression.statistics.collection.collect`.
        division: processes that share the data, and the layers whose moments they keep.
    """
    for number, group in enumerate(groups, 1):
        if not store.resume(group):
            part = (number, len(groups))
            gather_moments(
                model, group, batches, method, store, loss=loss, part=part, standing=standing, division=division
            )
            store.finish(group)


def gather_moments(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Iterable[Any],
    method: _Needing,
    store: MomentStore,
    *,
    loss: Callable[[Any], Tensor] | DefaultLoss | GivenGradients | None,
    part: tuple[int, int] = (1, 1),
    standing: Mapping[nn.Module, nn.Module] | None = None,
    division: Division = UNDIVIDED,
    run: Callable[[nn.Module, Any], Any] = run_batch,
    in_parts: bool = False,
) -> None:
    """Read the data once and store the moments that a method needs, if any.

    Args:
        model: model to run over the batches.
        targets: dense layers of the model, by name.
        batches: see :func:`mpochain.compression.statistics.moments.run_batch`.
        method: method that needs the moments.
        store: receives the moments, the reasons why layers have none, and the description of the loss.
        loss: see :func:`mpochain.compression.statistics.collection.collect`.
        part: number of this pass over the data and of all passes, for the log.
        standing: see :func:`gather_every`.
        division: see :func:`gather_every`.
        run: see :func:`mpochain.compression.statistics.collection.collect`.
        in_parts: see there.
    """
    if method.needs == "nothing":
        return
    which = f", pass {part[0]} of {part[1]} over the data" if part[1] > 1 else ""
    first = next(iter(targets), None)
    if first is not None and not in_parts:
        _logger.info("%s of %s, from %s on%s", method.needs, counted(len(targets), "layer"), first, which)
    if isinstance(loss, DefaultLoss):
        loss.restart()
    modules = {name: target.module for name, target in targets.items()}
    inputs, outputs = sides_needed(targets, method)
    weighted = method.needs == "gradients"

    def collected(data: Iterable[Any]) -> Collected:
        return collect(
            model,
            modules,
            data,
            loss=loss if weighted else None,
            inputs=inputs,
            outputs=outputs,
            standing=standing,
            division=division,
            run=run,
            in_parts=in_parts,
        )

    aside, rest = Collected(), batches
    if method.sets_aside and _divisible(batches):
        # After one another, so that there is one set of sums in memory at a time.
        try:
            aside, rest = collected(Part(batches, aside=True)), Part(batches, aside=False)
        except NothingCountedError:
            _logger.warning("the masks leave no position of the batches to set aside, so none are")
    own = collected(rest)
    store.keep({name: replace(moments, held_out=aside.moments.get(name)) for name, moments in own.moments.items()})
    store.unreached |= own.unreached
    if weighted:
        store.loss = loss.description if isinstance(loss, DefaultLoss) else "the given one"


def sides_needed(targets: Mapping[str, Target], method: _Needing) -> tuple[set[str], set[str]]:
    """Names of the layers whose moments of the inputs, and of those whose moments of the outputs, a method asks for."""
    inputs, outputs = set(), set()
    for name, target in targets.items():
        with errors_named(f"method {method.name!r}, layer {name}"):
            if method.needs_inputs(target.shape):
                inputs.add(name)
            if method.needs_outputs(target.shape):
                outputs.add(name)
    return inputs, outputs
