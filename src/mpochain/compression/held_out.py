"""Outputs of the dense and the compressed model compared, on calibration data and on data that were set aside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.statistics.moments import frozen, run_batch
from mpochain.compression.statistics.outputs import ModelOutput, model_outputs
from mpochain.compression.sufficiency import HeldOut
from mpochain.distributed import ALONE, Team
from mpochain.surgery.calls import without_cache
from mpochain.surgery.masks import Masks, arguments_of
from mpochain.surgery.replacement import replace_layers, with_values

__all__ = ["compared"]

_ROWS = 64  # rows of classes compared at a time


def compared(
    model: nn.Module,
    built: Mapping[nn.Module, nn.Module],
    calibration: Iterable[Any],
    held_out: Iterable[Any],
    *,
    originals: Mapping[nn.Parameter, Tensor] | None = None,
    team: Team = ALONE,
) -> HeldOut | None:
    """Compare the outputs of a compressed model with those of the dense one.

    Predictions of classes are compared by their divergence, all other outputs by their relative error.

    Args:
        model: the compressed model; its layers are exchanged for the dense ones and back.
        built: the compressed layer of each dense one.
        calibration: batches of the calibration data, of which as many are compared as were set aside.
        held_out: batches that were set aside.
        originals: values of further parameters in the dense model, such as norms, which the compressed one changed.
        team: processes that share the batches; all of them must call this.

    Returns:
        Both differences; None without a row that counts.
    """
    aside = list(held_out)
    sums: list[_Difference] = []
    with team.together(), torch.inference_mode(False), torch.no_grad(), frozen(model), without_cache(model):
        for batches in (_first(calibration, len(aside)), aside):
            shared = [batch for number, batch in enumerate(batches, 1) if team.works_on(number)]
            sums.append(_difference(model, built, originals or {}, shared))
    own, other = (_together(parts) for parts in zip(*team.gathered(sums), strict=True))
    if not own.rows or not other.rows:
        return None
    return HeldOut(other.measure, own.value, other.value, other.rows)


def _first(batches: Any, count: int) -> Iterable[Any]:
    """The first batches of a list, a data loader or another iterable."""
    if isinstance(batches, Sized) and hasattr(batches, "__getitem__"):
        return [batches[k] for k in range(min(count, len(batches)))]
    return itertools.islice(batches, count)


@dataclass
class _Difference:
    """Sums over rows: of the difference, and of what it is relative to."""

    measure: str = ""
    lost: float = 0.0
    power: float = 0.0
    rows: int = 0
    relative: bool = False

    @property
    def value(self) -> float:
        return math.sqrt(self.lost / max(self.power, 1e-300)) if self.relative else self.lost / self.rows

    def add(self, dense: ModelOutput, compressed: ModelOutput, kept: Tensor | None) -> None:
        """Add the rows of one batch that count."""
        before, after = (part.values.reshape(-1, part.values.shape[-1]) for part in (dense, compressed))
        if kept is not None:
            before, after = before[kept.to(before.device)], after[kept.to(after.device)]
        self.rows += len(before)
        self.relative = dense.meaning != "classes"
        if self.relative:
            self.measure = f"relative error of {dense}"
            self.lost += float((before.double() - after.double()).square().sum())
            self.power += float(before.double().square().sum())
            return
        self.measure = "divergence from the dense model's predictions, in nats per row"
        for old, new in zip(before.split(_ROWS), after.split(_ROWS), strict=True):
            log_p, log_q = old.float().log_softmax(-1), new.float().log_softmax(-1)
            self.lost += float((log_p.exp() * (log_p - log_q)).sum())


def _together(parts: Iterable[_Difference]) -> _Difference:
    """The sums over the rows of all parts."""
    result = _Difference()
    for part in parts:
        result.measure, result.relative = result.measure or part.measure, result.relative or part.relative
        result.lost += part.lost
        result.power += part.power
        result.rows += part.rows
    return result


def _difference(
    model: nn.Module,
    built: Mapping[nn.Module, nn.Module],
    originals: Mapping[nn.Parameter, Tensor],
    batches: Iterable[Any],
) -> _Difference:
    difference = _Difference()
    for batch in batches:
        arguments = arguments_of(model, batch)
        masks = Masks(model, arguments)
        if masks.empty:
            continue
        after = model_outputs(model, run_batch(model, batch), arguments)[0]
        replace_layers(model, {layer: dense for dense, layer in built.items()})
        try:
            with with_values(originals):
                before = model_outputs(model, run_batch(model, batch), arguments)[0]
        finally:
            replace_layers(model, built)
        if before.values.ndim > 1:
            difference.add(before, after, masks.predictions(before.values.shape, next_token=False))
    return difference
