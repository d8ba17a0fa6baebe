"""Contraction plans: the candidate and the kernel chosen for a chain at a batch size, as a printable value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from mpochain.arrays import Array, namespace
from mpochain.errors import ArgumentError, ShapeError
from mpochain.planning.batches import check_batch
from mpochain.planning.candidates import Candidate, candidates
from mpochain.planning.conditions import Conditions, Graph, Memory, Mode
from mpochain.planning.cost import dense_time, low_rank_time
from mpochain.planning.kernel_models import MODELS, KernelModel, kernel_errors, predicted_seconds, require_kernels, runs
from mpochain.planning.machine import DEFAULT_SETTING, Machine, Setting, default_machine
from mpochain.planning.schedule import Schedule
from mpochain.planning.variants import Variant
from mpochain.spec import ChainSpec

__all__ = ["Considered", "ContractionPlan", "plan"]


class Considered(NamedTuple):
    """A variant with its times in seconds; ``measured`` is None if it was not timed."""

    variant: Variant
    predicted: float
    measured: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ContractionPlan:
    """Plan of the contraction of an input with a chain: merged sites, order of the sweep, and kernel.

    Call it with ``x (..., in_features)`` and the cores, of any array library. The result is correct for any number of
    rows; the plan is the best known one for about ``batch`` rows. Only torch uses the kernel
    (:mod:`mpochain.execution`).

    Attributes:
        spec: spec of the chain.
        batch: number of rows that the plan is for.
        mode: ``"inference"``, or ``"training"`` (forward and backward).
        memory: ``"compact"`` (cores are merged at every call) or ``"fast"`` (merged cores may be cached).
        setting: element type, device and threads that the plan is for.
        machine: machine constants of the predictions.
        chosen: the variant to run.
        considered: all candidates, fastest first, each as the variant of its fastest kernel; a candidate that was timed
            has an entry for every timed variant.
        dense_measured: measured seconds of the dense layer; None if it was not timed.
    """

    spec: ChainSpec
    batch: int
    mode: Mode
    memory: Memory
    setting: Setting
    machine: Machine
    chosen: Variant
    considered: tuple[Considered, ...]
    dense_measured: float | None = None

    @property
    def schedule(self) -> Schedule:
        """The lowered steps."""
        return self.chosen.schedule

    @property
    def kernel(self) -> str:
        """Name of the kernel that runs the plan in torch."""
        return self.chosen.kernel

    @property
    def equation(self) -> str:
        """Einsum equation after merging: ``input,merged cores->output``."""
        return self.chosen.candidate.equation

    @property
    def folds(self) -> tuple[tuple[int, ...], ...]:
        """Groups of sites; the sites of a group are merged into one core."""
        return self.chosen.candidate.groups

    @property
    def path(self) -> tuple[tuple[int, ...], ...]:
        """opt_einsum's path over the input and the merged cores."""
        return self.chosen.candidate.path

    @property
    def tile(self) -> int:
        """Number of rows that torch processes at a time, so that intermediate states stay in cache."""
        return self.chosen.tile

    @property
    def macs(self) -> int:
        """Multiply-adds of a forward call with ``batch`` rows, including merges unless they are cached."""
        return self.batch * self.schedule.sweep_macs + self._merge_macs

    @property
    def dense_macs(self) -> int:
        """Multiply-adds of the dense layer with ``batch`` rows."""
        return self.batch * self.spec.dense_parameters

    @property
    def peak_elements(self) -> int:
        """Largest number of elements alive in a forward step on one tile: its input, its output and the cores."""
        return self.schedule.peak_elements(self.tile)

    @property
    def predicted_seconds(self) -> float:
        """Predicted time of one call."""
        return self.considered[0].predicted

    @property
    def measured_seconds(self) -> float | None:
        """Measured time of one call, or None if the plan is a prediction."""
        return self.considered[0].measured

    def timed(self, considered: tuple[Considered, ...], dense: float | None) -> ContractionPlan:
        """This plan with measured times, choosing the first of ``considered``.

        Args:
            considered: variants with their times, starting with the variant to run.
            dense: measured seconds of the dense layer, if it was timed.
        """
        timed = {entry.variant.candidate for entry in considered}
        rest = tuple(entry for entry in self.considered if entry.variant.candidate not in timed)
        return replace(self, chosen=considered[0].variant, considered=considered + rest, dense_measured=dense)

    @property
    def _merge_macs(self) -> int:
        return 0 if self.memory == "fast" else self.schedule.merge_macs

    def merge(self, *cores: Array) -> tuple[Array, ...]:
        """The merged cores, for callers that cache them between calls of :meth:`sweep`."""
        return self.schedule.merge(cores, namespace(*cores))

    def sweep(self, x: Array, *merged: Array) -> Array:
        """``x (..., in_features)`` through merged cores to ``(..., out_features)``."""
        xp = namespace(x, *merged)
        if x.ndim == 0 or x.shape[-1] != self.spec.in_features:
            raise ShapeError(
                f"the plan is for {self.spec.in_features} input features; the last axis of x must be that, got shape "
                f"{tuple(x.shape)}"
            )
        # Not the -1 that schedules use, which is ambiguous for an array with an empty batch axis.
        lead = tuple(x.shape[:-1])
        rows = 1
        for size in lead:
            rows *= size
        y = self.schedule.sweep(xp.reshape(x, (rows, self.spec.in_features)), merged, xp)
        return xp.reshape(y, (*lead, self.spec.out_features))

    def __call__(self, x: Array, *cores: Array) -> Array:
        """``x (..., in_features)`` to ``(..., out_features)``.

        Raises:
            ShapeError: cores of other shapes than in the plan's spec, or another last axis of ``x``.
        """
        shapes = tuple(tuple(core.shape) for core in cores)
        if shapes != self.spec.core_shapes:
            raise ShapeError(f"the plan is for cores of shapes {self.spec.core_shapes}, got {shapes}")
        return self.sweep(x, *self.merge(*cores))

    def __repr__(self) -> str:
        return f"ContractionPlan({self.spec!r}, batch={self.batch}, mode={self.mode!r}, memory={self.memory!r})"

    def __str__(self) -> str:
        out_features, in_features = self.spec.shape
        training = self.mode == "training"
        dense = dense_time(out_features, in_features, self.batch, training=training, machine=self.machine)
        rank = max(self.spec.parameters // (out_features + in_features), 1)
        low_rank = low_rank_time(out_features, in_features, rank, self.batch, training=training, machine=self.machine)
        constants = "measured here" if self.machine.measured else "defaults"
        lines = [
            f"plan      {self.spec}",
            f"for       batch {self.batch}, {self.mode}, {self.memory}, {self.setting}",
            f"equation  {self.equation}",
            f"fold      {' '.join('{' + ','.join(map(str, group)) + '}' for group in self.folds)}",
            f"path      {' '.join(str(pair) for pair in self.path)} over (input, cores...): "
            + f"sites meet the input in the order {', '.join(map(str, self.chosen.candidate.order))}",
            f"kernel    {self.kernel}, {self.tile} rows at a time",
            f"MACs      {self.macs:,} (dense {self.dense_macs:,}, {self.macs / self.dense_macs:.2f}x)",
            f"peak      {self.peak_elements:,} elements",
            f"predicted {_micro(self.predicted_seconds)} (dense {_micro(dense)}, rank {rank} at equal parameters "
            f"{_micro(low_rank)}; machine constants: {constants})",
        ]
        if self.measured_seconds is not None:
            beside = "in real calls" if self.dense_measured is None else f"dense {_micro(self.dense_measured)}"
            lines.append(f"measured  {_micro(self.measured_seconds)} ({beside})")
        lines.append("considered, predicted" + ("" if self.measured_seconds is None else " and measured"))
        for variant, predicted, measured in self.considered:
            mark = "*" if variant is self.chosen else " "
            timed = "" if self.measured_seconds is None else "not timed" if measured is None else _micro(measured)
            lines.append(f"  {mark} {_micro(predicted):>13}  {timed and f'{timed:>13}  '}{variant}")
        return "\n".join(lines)


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs"


def plan(
    spec: ChainSpec,
    batch: int = 1,
    *,
    mode: Mode = "inference",
    cache: bool = False,
    memory: Memory | None = None,
    setting: Setting = DEFAULT_SETTING,
    machine: Machine | None = None,
    kernels: Sequence[KernelModel] = MODELS,
    graph: Graph = "eager",
) -> ContractionPlan:
    """Plan a chain for a batch size, from shapes and machine constants alone.

    The result depends only on the arguments, since nothing is timed and no file is read; it is cached in the process.
    Layers plan with constants measured on this machine, if there are any; for the same plan pass
    ``machine=mpochain.planning.measured_machine(setting)``.

    Args:
        spec: spec of the chain.
        batch: number of input rows (the product of all leading axes).
        mode: ``"inference"``, or ``"training"`` to count forward and backward.
        cache: whether merged cores are cached between calls, as by ``set_execution(cache=True)``; otherwise merges
            count at every call.
        memory: ``"fast"`` or ``"compact"``, the attribute of a plan that ``cache`` sets; give one of them.
        setting: element type, device and threads.
        machine: machine constants for predictions; by default the built-in ones of :class:`Machine`, with the element
            size of the setting.
        kernels: the kernels to choose among; the built-in ones by default. Layers choose among
            ``mpochain.execution.KERNELS``.
        graph: kind of graph that the kernel has to be part of: ``"eager"``, ``"compiled"`` by torch, or
            ``"portable"``, with only reshapes, permutes and products.

    Raises:
        ArgumentError: an argument of the wrong type or out of range, or no kernel can run the chain.

    Example:
        >>> print(plan(ChainSpec((48, 64), (24, 32), max_bond=4), batch=32))
        plan      3072x768 (48,64)|(24,32) bonds (4), 12,800 parameters
        for       batch 32, inference, compact, float32 on cpu
        equation  abc,debf,fgch->aeg
        fold      {0} {1}
        path      (0, 2) (0, 1) over (input, cores...): sites meet the input in the order 1, 0
        kernel    tiled, 32 rows at a time
        ...
    """
    if not isinstance(spec, ChainSpec):
        raise ArgumentError(f"plan needs a ChainSpec, got {type(spec).__name__}; for a chain, pass chain.spec")
    require_kernels(kernels)
    if cache and memory == "compact":
        raise ArgumentError("cache=True and memory='compact' contradict each other; give cache= alone")
    memory = ("fast" if cache else "compact") if memory is None else memory
    batch = check_batch(batch)
    machine = default_machine(setting) if machine is None else machine
    conditions = Conditions(batch, mode, memory, setting, machine, graph)
    # Equal specs share a plan; the bonds that one caller requested before clipping must not appear in another's plan.
    exact = _plan(spec.with_bonds(bonds=spec.bonds), conditions, tuple(kernels))
    return replace(exact, spec=spec) if spec.clipped else exact


@lru_cache(maxsize=256)
def _candidates(spec: ChainSpec, batch: int) -> tuple[Candidate, ...]:
    """The candidates, which do not depend on the other conditions."""
    return tuple(candidates(spec, batch))


@lru_cache(maxsize=4096)
def _plan(spec: ChainSpec, conditions: Conditions, kernels: tuple[KernelModel, ...]) -> ContractionPlan:
    considered = []
    for candidate in _candidates(spec, conditions.batch):
        schedule = candidate.schedule
        predictions = []
        for kernel in kernels:
            with kernel_errors(kernel, spec):
                if runs(kernel, schedule, conditions) and kernel.advised(schedule, conditions):
                    predictions += [
                        Considered(variant, predicted_seconds(kernel, variant, conditions))
                        for variant in kernel.variants(candidate, conditions)
                    ]
        if predictions:
            # min() returns the first of equal times, so the order of the kernels is their order of preference.
            considered.append(min(predictions, key=lambda entry: entry.predicted))
    if not considered:
        names = ", ".join(kernel.name for kernel in kernels) or "none"
        raise ArgumentError(f"no kernel can run {spec} with graph={conditions.graph!r}; got the kernels: {names}")
    considered.sort(key=lambda entry: entry.predicted)
    batch, mode, memory = conditions.batch, conditions.mode, conditions.memory
    setting, machine = conditions.setting, conditions.machine
    return ContractionPlan(spec, batch, mode, memory, setting, machine, considered[0].variant, tuple(considered))
