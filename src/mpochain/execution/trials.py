"""Trials: plans that correct themselves, by the times of calls that are made anyway.

All plans of a chain compute the same product, so calls can follow different ones while their times are taken. A trial
has a few calls for each of the plans that are predicted to be the best, and then stays with the fastest. Their results
differ by rounding, so nothing is tried where equal calls must have equal results: see :func:`may_try` and
:func:`predicted_plans`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Protocol
from weakref import WeakSet

import torch
import torch.distributed
from torch import Tensor

from mpochain.execution.kernels import KERNELS, Kernel
from mpochain.execution.plan_records import conditions_of, measured_before, remember
from mpochain.planning import Considered, ContractionPlan, Memory, Setting, Variant, plan
from mpochain.planning.kernel_models import kernel_errors, runs
from mpochain.planning.store import STORE
from mpochain.spec import ChainSpec

__all__ = ["Trial", "may_try", "only_predicted", "predicted_plans", "trial_of", "unbind_with_plans"]

# Plans that are tried. In the grid of the benchmarks the best one is nearly always among the first three predictions.
_TRIED = 4

# Plans predicted to take more than this multiple of the best time are not tried.
_HOPELESS = 2.0

# Predicted seconds of a call below which nothing is tried: plans of short calls differ by their number of calls to
# torch, which is predicted well, and calls that are not bound to one shape take microseconds more.
_WORTHWHILE = 5e-5

# Each plan has one call; then those have another whose shortest call took at most this multiple of the best time. The
# first multiple is generous, since first calls may wait for sleeping threads and cold caches.
_RIVALS = (2.5, 1.25, 1.25)

# Timed calls of all plans together.
_MOST_CALLS = 10

# The predicted plan stays if it takes at most this multiple of the best time and so many seconds more, since times of
# real calls scatter, most of all those of short ones.
_EQUAL, _EQUAL_SECONDS = 1.03, 1.5e-5

# Kind of the records in the user's cache folder.
_BY = "calls"

_ONLY_PREDICTED: ContextVar[bool] = ContextVar("mpochain_only_predicted_plans", default=False)


class _Binding(Protocol):
    def unbind(self) -> None: ...


_BINDING: WeakSet[_Binding] = WeakSet()
_BINDING_LOCK = threading.Lock()  # layers may be built in other threads meanwhile


@contextmanager
def predicted_plans() -> Iterator[None]:
    """Within this context, plans are predicted, and equal calls have equal results: for runs that can be resumed.

    A layer that has settled on another plan follows the predicted one within it, and returns to its own afterwards.

    Example:
        >>> with predicted_plans():
        ...     may_try("cpu")
        False
    """
    if _ONLY_PREDICTED.get():
        yield
        return
    token = _ONLY_PREDICTED.set(True)
    try:
        _unbind()
        yield
    finally:
        _ONLY_PREDICTED.reset(token)
        _unbind()


def unbind_with_plans(binding: _Binding) -> None:
    """Have ``binding``, which binds calls to plans, drop them where :func:`predicted_plans` begins or ends."""
    with _BINDING_LOCK:
        _BINDING.add(binding)


def _unbind() -> None:
    with _BINDING_LOCK:
        bindings = list(_BINDING)
    for binding in bindings:
        binding.unbind()


def only_predicted() -> bool:
    """Whether this code runs within :func:`predicted_plans`."""
    return _ONLY_PREDICTED.get()


def may_try(device: str) -> bool:
    """Whether calls on a device of this type may alternate among plans.

    They may not under ``torch.use_deterministic_algorithms`` and :func:`predicted_plans`, nor where several processes
    work together, since each would choose for itself.
    """
    if device not in ("cpu", "cuda") or _ONLY_PREDICTED.get() or torch.are_deterministic_algorithms_enabled():
        return False
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not group or torch.distributed.get_world_size() == 1


def trial_of(spec: ChainSpec, batch: int, *, memory: Memory, setting: Setting) -> Trial | None:
    """The trial of a chain for a batch size, shared by all layers of its spec; None if there is nothing to try.

    A trial that an earlier process settled is settled from the start.

    Args:
        spec: spec of the chain.
        batch: number of input rows.
        memory: ``"compact"`` or ``"fast"``.
        setting: element type, device and threads.
    """
    return _trial_of(
        spec.with_bonds(bonds=spec.bonds), batch, memory, setting, tuple(KERNELS.values()), str(STORE.path)
    )


@lru_cache(maxsize=4096)
def _trial_of(
    spec: ChainSpec, batch: int, memory: Memory, setting: Setting, kernels: tuple[Kernel, ...], _cache: str
) -> Trial | None:
    predicted = plan(spec, batch, memory=memory, setting=setting, machine=STORE.machine(setting), kernels=kernels)
    if predicted.predicted_seconds < _WORTHWHILE:
        return None
    entries = _entries(predicted, kernels)
    if len(entries) < 2:
        return None
    settled = measured_before(predicted, kernels) or measured_before(predicted, kernels, by=_BY)
    return Trial(predicted, entries, settled, lambda timed: remember(timed, kernels, by=_BY, warns=False))


def _entries(predicted: ContractionPlan, kernels: tuple[Kernel, ...]) -> list[Considered]:
    """The variants to try: the best candidates, and the rebuild by every kernel, as one product and in panels."""
    conditions, most = conditions_of(predicted), _HOPELESS * predicted.predicted_seconds
    entries = [entry for entry in predicted.considered if entry.predicted <= most][:_TRIED]
    for variant in [entry.variant for entry in entries if entry.variant.rebuilds]:
        for kernel in kernels:
            with kernel_errors(kernel, predicted.spec):
                if runs(kernel, variant.schedule, conditions):
                    rivals = kernel.variants(variant.candidate, conditions)
                    entries += [Considered(rival, kernel.seconds(rival, conditions)) for rival in rivals]
    # The predicted plan comes first, and is not added again.
    distinct = {entry.variant: entry for entry in reversed(entries)}
    first, *others = sorted(distinct.values(), key=lambda entry: (entry.variant != predicted.chosen, entry.predicted))
    return [first, *(entry for entry in others if entry.predicted <= most)]


class Trial:
    """Alternates among variants of a plan, and settles on the one whose calls were the fastest.

    Args:
        predicted: the predicted plan.
        entries: the variants to try, the predicted one first.
        settled: the measured plan, if it is known already.
        settle: called once with the measured plan.

    Attributes:
        predicted: the predicted plan.
        settled: the measured plan; None as long as the trial goes on.

    Example:
        >>> from mpochain.planning import plan
        >>> from mpochain.spec import ChainSpec
        >>> predicted = plan(ChainSpec((48, 64), (24, 32), max_bond=4), batch=512)
        >>> trial = Trial(predicted, predicted.considered[:2])
        >>> while (variant := trial.turn(512)) is not None:
        ...     trial.add(variant, 1e-3 if variant == predicted.chosen else 5e-4)
        >>> trial.settled.chosen is predicted.considered[1].variant
        True
    """

    def __init__(
        self,
        predicted: ContractionPlan,
        entries: tuple[Considered, ...] | list[Considered],
        settled: ContractionPlan | None = None,
        settle: Callable[[ContractionPlan], object] | None = None,
    ) -> None:
        self.predicted, self.settled = predicted, settled
        self._entries, self._settle = tuple(entries), settle
        self._seconds: dict[Variant, list[float]] = {entry.variant: [] for entry in entries}
        # Variants that wait for a call in this round, and the number of calls under way.
        self._queue, self._under_way, self._rounds = list(self._seconds), 0, 1
        self._rows: int | None = None
        # Calls on an accelerator that have begun, with their events.
        self._running: list[tuple[Variant, Any, Any]] = []
        self._lock = threading.Lock()

    def turn(self, rows: int) -> Variant | None:
        """The variant to follow and to time in a call with this number of rows; None to follow the predicted plan.

        Only calls with the rows of the first one are timed, since others are not comparable.
        """
        with self._lock:
            ended = [call for call in self._running if call[2].query()]
            self._running = [call for call in self._running if call not in ended]
        for variant, first, last in ended:
            self.add(variant, first.elapsed_time(last) / 1e3)
        with self._lock:
            if self.settled is not None:
                return None
            self._rows = rows if self._rows is None else self._rows
            if rows != self._rows or not self._queue:
                return None
            self._under_way += 1
            return self._queue.pop(0)

    def add(self, variant: Variant, seconds: float) -> None:
        """Add the time of a call, and settle if it was the last one that was waited for."""
        with self._lock:
            self._seconds[variant].append(seconds)
            self._under_way -= 1
            if self._queue or self._under_way:
                return
            self._queue = self._next_round()
            if self._queue:
                return
            self.settled = timed = self._ranked()
        if self._settle is not None:
            self._settle(timed)

    def timed(self, variant: Variant, device: torch.device, call: Callable[[], Tensor]) -> Tensor:
        """The result of ``call``, which follows the variant; its time is added as soon as it is known.

        On an accelerator it is taken by events, so that nothing waits for the device.
        """
        try:
            if device.type == "cpu":
                began = time.perf_counter()
                result = call()
                self.add(variant, time.perf_counter() - began)
                return result
            module = torch.get_device_module(device)
            # Not those of the current device, which may be another one.
            stream = module.current_stream(device)
            with module.device(device):
                first, last = module.Event(enable_timing=True), module.Event(enable_timing=True)
                first.record(stream)
                result = call()
                last.record(stream)
            with self._lock:
                self._running.append((variant, first, last))
            return result
        except BaseException:
            with self._lock:
                self._under_way -= 1
                self._queue.insert(0, variant)
            raise

    def _next_round(self) -> list[Variant]:
        """The variants that have another call; empty at the end of the trial."""
        if self._rounds > len(_RIVALS):
            return []
        least = _RIVALS[self._rounds - 1] * min(min(seconds) for seconds in self._seconds.values())
        rivals = [variant for variant, seconds in self._seconds.items() if min(seconds) <= least]
        calls = sum(len(seconds) for seconds in self._seconds.values())
        self._rounds += 1
        return rivals if len(rivals) > 1 and calls + len(rivals) <= _MOST_CALLS else []

    def _ranked(self) -> ContractionPlan:
        measured = [entry._replace(measured=min(self._seconds[entry.variant])) for entry in self._entries]
        ranked = sorted(measured, key=lambda entry: entry.measured or 0.0)
        first, fastest = measured[0], ranked[0]
        assert first.measured is not None
        assert fastest.measured is not None
        if first.measured <= _EQUAL * fastest.measured + _EQUAL_SECONDS:
            ranked = [first, *(entry for entry in ranked if entry is not first)]
        return self.predicted.timed(tuple(ranked), None)
