"""One model compressed to several budgets, one after the other, from one calibration."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.refinement import Refined, refine_blocks, require_data_to_refine
from mpochain.compression.blocks.refinement_settings import Refinement
from mpochain.compression.budget import bytes_in_memory, error_budget
from mpochain.compression.building import Builder, build_at_once
from mpochain.compression.checks import checked, untouched_modules
from mpochain.compression.methods import Method, method_of
from mpochain.compression.preparation import Preparation, chosen_within
from mpochain.compression.reached import require_reached
from mpochain.compression.records import CompressionReport
from mpochain.compression.selection import as_patterns
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.passes import (
    batches_for,
    gather_every,
    kept_on_disk,
    memory_for_statistics,
    parts,
    require_batches,
    sides_needed,
)
from mpochain.compression.statistics.store import MomentStore
from mpochain.errors import ArgumentError
from mpochain.report import provenance
from mpochain.surgery.experts import separated_experts
from mpochain.surgery.finding import require_module
from mpochain.surgery.fingerprint import fingerprint, fingerprint_of_data
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.wrappers import without_wrappers

__all__ = ["compressed_to_each"]


def compressed_to_each(
    model: nn.Module,
    budgets: Sequence[float | str],
    *,
    calibration: Iterable[Any] | None = None,
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    method: str | Method | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
    refine: Collection[float | str] = (),
    held_out: Iterable[Any] | None = None,
    moments: Path | None = None,
) -> Iterator[CompressionReport]:
    """Compress a model to several budgets, one after the other, and return it to its dense form after each.

    The data are read and the layers are fitted once for all budgets, so that a curve of quality against size takes
    little more than its evaluations. While the caller holds a report, the model is compressed to its budget.

    Args:
        model: dense model; it is dense again before the next budget, and after the last.
        budgets: budgets of one kind or several, see :func:`mpochain.compress`, without limits of an error.
        calibration: see :func:`mpochain.compress`, as all other arguments.
        targets: layers to compress.
        ignore: layers to leave out.
        method: compression method; by default that of the first budget.
        loss: function from the model's output to a scalar.
        seed: seed of the sampled labels.
        refine: those of the budgets at which the blocks are refined as well: after the report of such a budget follows
            a second one, of the refined model.
        held_out: batches that decide which state of a refined block is kept, see :func:`mpochain.compress`.
        moments: folder where the statistics are kept, for another call. Those of other weights, data or needs are kept
            apart from them.

    Yields:
        The report of each budget, in order; that of a refined model has ``refined`` blocks.

    Raises:
        ArgumentError: see :func:`mpochain.compress`; or there is no budget, a budget limits an error, ``refine`` names
            no budget of the list, or the settings of the method leave no choice.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> data = [torch.randn(200, 32)]
        >>> for report in compressed_to_each(model, [0.75, 0.5], calibration=data):
        ...     print(report.budget, report.bytes_after <= report.budget * report.bytes_before, type(model[0]).__name__)
        0.75 True InterpolativeLinear
        0.5 True InterpolativeLinear
        >>> model[0]
        Linear(in_features=32, out_features=64, bias=True)
    """
    require_module(model)
    if not budgets:
        raise ArgumentError("budgets is empty; give one or more, such as ['4 bits', '3 bits']")
    for budget in budgets:
        if error_budget(budget) is not None:
            raise ArgumentError(f"budget {budget!r} limits an error; give shares, sizes or bits per weight")
    for budget in refine:
        if budget not in budgets:
            raise ArgumentError(
                f"refine names {budget!r}, which is none of the budgets {list(budgets)}; name one of them"
            )
    way = method_of(method, budgets[0])
    if way.settled:
        raise ArgumentError(
            f"the settings of method {way.name!r} leave no choice, so it has one result; use compress()"
        )
    with (
        torch.inference_mode(False),
        without_wrappers(model, editing=True) as model,
        separated_experts(model),
    ):
        patterns = None if targets is None else as_patterns(targets, "targets")
        left_out = as_patterns(ignore, "ignore")
        limits = []
        for budget in budgets:
            opened, limits_of_it = checked(
                model, budget, way, patterns, left_out, sequential=False, refine=bool(refine)
            )
            limits += limits_of_it
        layers = opened.targets
        batches = batches_for(calibration, way)
        aside = None if held_out is None or not refine else require_batches(held_out, "held_out")
        if refine:
            require_data_to_refine(model, layers, calibration, aside)
        parameters, size = sum(parameter.numel() for parameter in model.parameters()), bytes_in_memory(model)
        untouched = untouched_modules(model, layers, parameters)
        weighting = DefaultLoss(model, seed) if loss is None else loss
        groups = list(parts(model, layers, way))
        folder = None
        if moments is not None:
            needed = [
                way.needs,
                way.sets_aside,
                *map(sorted, sides_needed(layers, way)),
                seed,
                repr(loss),
                [list(group) for group in groups],
            ]
            identity = json.dumps([fingerprint(model), fingerprint_of_data(calibration or ()), needed])
            folder = moments / hashlib.sha256(identity.encode()).hexdigest()[:16]
        with MomentStore(on_disk=kept_on_disk(model, groups, way), folder=folder) as store:
            gather_every(model, groups, batches, way, store, loss=weighting)
            require_reached(model, layers, store.unreached, patterns)
            preparation = Preparation(way, layers, store, memory_for_statistics(model))
            curves = preparation.curves()
            for budget, limit in zip(budgets, limits, strict=True):
                began = time.perf_counter()
                preparation.require_choice(limit)
                limit.require_reached(curves)
                builder = Builder(way, layers, chosen_within(curves, limit), store, preparation)
                build_at_once(model, layers, opened.heads, builder, limit, dry_run=False)
                report = CompressionReport(
                    layers=tuple(builder.records[name] for name in layers),
                    method=way.name,
                    budget=budget,
                    allowed_bytes=limit.allowed,
                    speed=None,
                    model_parameters=parameters,
                    untouched=untouched,
                    frontier=(),
                    seconds=time.perf_counter() - began,
                    provenance=provenance(threads=torch.get_num_threads()),
                    model_bytes=size,
                    loss=store.loss or None,
                    shared=tuple(opened.left_out.items()),
                )
                refined = Refined([], {})
                try:
                    yield report
                    if budget in refine:
                        began = time.perf_counter()
                        refined = refine_blocks(
                            model,
                            builder.built,
                            calibration or (),
                            aside,
                            Refinement(),
                            loss=weighting,
                            seed=seed,
                            room=memory_for_statistics(model),
                        )
                        seconds = report.seconds + time.perf_counter() - began
                        yield replace(report, refined=tuple(refined.blocks), seconds=seconds)
                finally:
                    with torch.no_grad():
                        for parameter, value in refined.originals.items():
                            parameter.copy_(value)
                    replace_layers(model, {layer: dense for dense, layer in builder.built.items()})
