"""Fitting of all layers of a model, once each, or twice if memory is short."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpochain.compression.allocation import (
    Curve,
    allocate,
    cheapest_within,
    frontier,
    largest_error,
    same_choice,
    uniform,
)
from mpochain.compression.choices import Choices
from mpochain.compression.limit import Limit
from mpochain.compression.methods import Method
from mpochain.compression.statistics.division import UNDIVIDED, Division
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.store import MomentStore
from mpochain.compression.target import Target
from mpochain.compression.two_limits import allocate_within
from mpochain.errors import ArgumentError
from mpochain.linalg import named
from mpochain.system.extensions import errors_named
from mpochain.system.progress import TimeLeft
from mpochain.wording import counted, kind_of

__all__ = ["Preparation", "allocated", "choices_of", "chosen_within", "method_errors", "reason_to_stay_dense"]

_logger = logging.getLogger(__name__)

# Seconds between two progress messages.
_INTERVAL = 20.0


@contextmanager
def method_errors(method: Method, name: str) -> Iterator[None]:
    """Context whose errors name the method and the layer that it works on."""
    with errors_named(f"method {method.name!r}, layer {name}"), named(name):
        yield


def choices_of(method: Method, target: Target, moments: Moments | None) -> Choices:
    """The choices that a method gives for a layer.

    Raises:
        ArgumentError: the method gave something else.
        FactorizationError: a factorisation failed with every routine; the message names the layer.
    """
    with method_errors(method, target.name):
        choices: object = method.prepare(target, moments)
    if not isinstance(choices, Choices):
        raise ArgumentError(
            f"prepare of method {method.name!r} returned {kind_of(choices)} for {target.name}; expected "
            "mpochain.compression.Choices, such as Choices.of(target, costs, errors, build)"
        )
    return choices


def reason_to_stay_dense(choices: Choices, target: Target, method: Method) -> str | None:
    """Why a layer can only stay dense; None if it has smaller choices, so that the budget decided."""
    if len(choices) > 1:
        return None
    if choices.reason is not None:
        return choices.reason
    return f"no choice of {method.name} is smaller than the {target.shape[0]}x{target.shape[1]} weight"


class Preparation:
    """Fits of all layers, kept until the layers are built.

    A low-rank fit takes about as much memory as its layer. Fits are kept in the order of the layers as long as they and
    the moments in memory fit into ``room``; the remaining layers are fitted again when they are built, with the same
    result. Layers are prepared after the last pass over the data, when the activations are freed, and a fit is freed as
    soon as its layer is built. So fits reuse the memory of activations first and leave theirs to compressed layers
    later. They raise the peak memory of a compression by at most ``room``, and only if the activations took less: for a
    model of 63 MiB and a room of 25 MiB, from 461 MiB to between 461 and 476 MiB.

    Args:
        method: compression method.
        targets: dense layers by name.
        moments: statistics of all layers.
        room: bytes for fits and moments in memory, see
            :func:`mpochain.compression.statistics.passes.memory_for_statistics`.
        division: processes that fit layers of their own.

    Attributes:
        without_choice: layers that cannot become smaller, with the reason; filled by :meth:`curves`.
    """

    def __init__(
        self,
        method: Method,
        targets: Mapping[str, Target],
        moments: MomentStore,
        room: int,
        *,
        division: Division = UNDIVIDED,
    ) -> None:
        self._method, self._targets, self._moments, self._division = method, targets, moments, division
        self._room = room - moments.bytes_in_memory
        self._held: dict[str, Choices] = {}
        self._counts: dict[str, int] = {}
        self.without_choice: dict[str, str] = {}

    def curves(self) -> dict[str, Curve]:
        """Costs and errors of the choices of every layer; each process fits its own.

        Raises:
            FactorizationError: a fit failed; the message names the layer.
        """
        _logger.info("fitting %s", counted(len(self._targets), "layer"))
        with self._division.team.together():
            own = self._own_curves()
        every: dict[str, Curve] = {}
        for curves, without_choice in self._division.team.gathered((own, self.without_choice)):
            every |= curves
            self.without_choice = self.without_choice | without_choice
        return {name: every[name] for name in self._targets}

    def _own_curves(self) -> dict[str, Curve]:
        curves = {}
        targets = {name: self._targets[name] for name in self._division.own(self._targets)}
        last, left = time.monotonic(), TimeLeft(len(targets))
        for number, (name, target) in enumerate(targets.items()):
            if time.monotonic() - last > _INTERVAL:
                last = time.monotonic()
                _logger.info("layers fitted: %s", left.after(number))
            if name in self._moments.unreached:  # stays dense, and its parameters count
                curves[name] = Curve(np.array([target.bytes]), np.array([0.0]), 0.0, np.array([target.macs]))
                self.without_choice[name] = self._moments.unreached[name]
                continue
            moments = self._moments.get(name)
            choices = choices_of(self._method, target, moments)
            with method_errors(self._method, name):
                curves[name] = choices.curve()  # computes errors that the method has put off
            self._counts[name] = len(choices)
            reason = reason_to_stay_dense(choices, target, self._method)
            if reason is not None:
                self.without_choice[name] = reason
            size = choices.held_bytes + (moments.bytes if self._moments.on_disk and moments is not None else 0)
            if size <= self._room:
                self._held[name] = choices
                self._room -= size
        return curves

    def require_choice(self, limit: Limit) -> None:
        """Refuse a limit that asks for less than the dense layers if none of them has a smaller choice.

        Raises:
            ArgumentError: see above; the message gives the reason of one layer.
        """
        reasons, targets = self.without_choice, self._targets
        if len(reasons) == len(targets) and limit.allowed < sum(target.bytes for target in targets.values()):
            name = next(iter(targets))
            raise ArgumentError(
                f"method {self._method.name!r} cannot make any of the {counted(len(targets), 'layer')} smaller "
                f"({name}: {reasons[name]}); choose another method or other layers"
            )

    def release_if_dense(self, name: str, choice: int) -> bool:
        """Release the choices of a layer that was fitted here if it stays dense, the last one; whether it does."""
        if choice + 1 != self._counts.get(name):
            return False
        self._held.pop(name, None)
        return True

    def take(self, name: str) -> Choices:
        """Return the choices of a layer, fitting again if needed, and release them from this object."""
        choices = self._held.pop(name, None)
        return choices_of(self._method, self._targets[name], self._moments.get(name)) if choices is None else choices


def allocated(
    method: Method, targets: Mapping[str, Target], preparation: Preparation, limit: Limit, error: float | None
) -> dict[str, Any]:
    """Choice of each layer, predicted results at other budgets, and the largest relative error, ready for JSON."""
    if method.settled:
        return {"chosen": dict.fromkeys(targets, 0), "frontier": [], "largest_error": None}
    curves = preparation.curves()
    if error is None:
        preparation.require_choice(limit)
    limit.require_reached(curves)
    chosen = chosen_within(curves, limit) if error is None else cheapest_within(curves, error)
    return {
        "chosen": chosen,
        "frontier": [] if method.uniform or method.same_choice else frontier(curves),
        "largest_error": None if error is None else largest_error(curves, chosen),
    }


def chosen_within(curves: Mapping[str, Curve], limit: Limit) -> dict[str, int]:
    """Choice of each layer: the best that fits the limits."""
    if limit.macs is not None:
        return allocate_within(curves, limit.allowed, limit.macs)
    if limit.method.same_choice:
        return same_choice(curves, limit.allowed)
    return (uniform if limit.method.uniform else allocate)(curves, limit.allowed)
