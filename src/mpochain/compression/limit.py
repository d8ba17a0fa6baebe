"""Storage limit that a budget sets to the layers of a model, and whether a method can meet it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mpochain.compression.allocation import Curve
from mpochain.compression.budget import bits_budget, byte_budget, error_budget, size_budget, speed_share
from mpochain.compression.methods import Method
from mpochain.compression.target import Target
from mpochain.compression.two_limits import fewest_macs
from mpochain.errors import ArgumentError
from mpochain.surgery.tying import address_of, ties_of
from mpochain.system.sizes import megabytes

__all__ = ["Limit"]

_logger = logging.getLogger(__name__)

# Bytes that the header of a file takes for a tensor besides its name.
_HEADER = 100
# Layers that an error names.
_NAMED = 3


@dataclass(frozen=True, eq=False)
class Limit:
    """Storage limit of the layers to compress.

    Attributes:
        budget: budget as the user gave it; None for a method that takes none.
        method: the compression method.
        targets: dense layers by name.
        outside: bytes of the saved model outside of these layers.
        allowed: limit in bytes; negative if the rest of the model exceeds the budget.
        speed: second budget as the user gave it; None without one.
        macs: limit of the multiply-adds per row of all layers together; None without one.
    """

    budget: float | str | None
    method: Method
    targets: Mapping[str, Target]
    outside: int
    allowed: int
    speed: float | str | None = None
    macs: int | None = None

    @classmethod
    def of(
        cls,
        budget: float | str | None,
        model: nn.Module,
        method: Method,
        targets: Mapping[str, Target],
        speed: float | str | None = None,
    ) -> Limit:
        """The limit of a budget, and of a second one of multiply-adds.

        Raises:
            ArgumentError: the budget cannot be parsed.
        """
        outside = _bytes_outside(model, targets, method.tensors)
        unlimited = budget is None or error_budget(budget) is not None
        allowed = byte_budget(1.0 if unlimited or budget is None else budget, targets, outside=outside)
        macs = None
        if speed is not None:
            share, total = speed_share(speed), sum(target.macs for target in targets.values())
            if not total:
                raise ArgumentError(
                    f"speed {speed!r} limits multiply-adds, and these layers have none: their rows are looked up; "
                    "leave it out, or compress linear layers"
                )
            macs = int(share * total)
        return cls(budget, method, targets, outside, allowed, speed, macs)

    @property
    def of_layers(self) -> float | str | None:
        """The budget without the rest of the model, for :meth:`mpochain.compression.Method.check`."""
        size = None if self.budget is None else size_budget(self.budget)
        return self.budget if size is None else f"{max(self.allowed, 0)}B of layers"

    def check(self) -> None:
        """Refuse a budget that cannot be met, as far as that is known without data.

        Raises:
            ArgumentError: the budget is out of reach; the message says how small the method can make the model.
        """
        if self.budget is None or error_budget(self.budget) is not None:
            return
        smallest = {name: self.method.smallest(target) for name, target in self.targets.items()}
        known = {name: size for name, size in smallest.items() if size is not None}
        self._require({name: known.get(name, 0) for name in self.targets}, exact=len(known) == len(smallest))

    def warn_if_loose(self) -> None:
        """Warn about a budget that allows all layers as they are."""
        total = sum(target.bytes for target in self.targets.values())
        if self.budget is not None and error_budget(self.budget) is None and self.allowed >= total:
            _logger.warning(
                "budget %s does not bind: it allows %s, and the model has %s as it is; give less to compress it",
                *(self.budget, self._shown(self.allowed), self._shown(total)),
            )

    def require_reached(self, curves: Mapping[str, Curve]) -> None:
        """Refuse a budget that is below the cheapest choices of all layers.

        Raises:
            ArgumentError: see :meth:`check`.
        """
        if self.budget is not None and error_budget(self.budget) is None:
            self._require({name: int(curve.costs.min()) for name, curve in curves.items()}, exact=True)
        if self.macs is not None:
            least = fewest_macs(curves, self.allowed)
            if least > self.macs:
                total = sum(target.macs for target in self.targets.values())
                within = "" if self.budget is None else f" within budget {self.budget!r}"
                raise ArgumentError(
                    f"speed {self.speed!r} is out of reach{within}: method {self.method.name!r} can bring the "
                    f"multiply-adds of these {len(self.targets)} layers to {math.ceil(least / total * 1000) / 10:.1f}%"
                    f"{within}; give at least that, or another budget or method"
                )

    def _require(self, smallest: Mapping[str, int], *, exact: bool) -> None:
        least = sum(smallest.values())
        if self.allowed >= least:
            return
        stuck = [name for name, target in self.targets.items() if smallest[name] >= target.bytes]
        if len(stuck) == len(self.targets):
            out, in_ = self.targets[stuck[0]].shape
            raise ArgumentError(
                f"method {self.method.name!r} cannot make any of the {len(stuck)} layers smaller ({stuck[0]}: no form "
                f"of it is smaller than the {out}x{in_} weight); choose another method or other layers"
            )
        size = size_budget(self.budget) if self.budget is not None else None
        rest = ""
        if size is not None and not size.of_layers:
            rest = f", of which {megabytes(self.outside)} are outside of the layers to compress"
        reached = "the smallest reachable is" if exact else "the smallest reachable is more than"
        advice = ", or compress further layers, such as embeddings, or use bfloat16" if rest else ""
        if stuck:
            more = " and others" if len(stuck) > _NAMED else ""
            names = ", ".join(stuck[:_NAMED])
            advice += (
                f"; {len(stuck)} of {len(self.targets)} layers cannot become smaller: {names}{more}; leave them out"
            )
        raise ArgumentError(
            f"budget {self.budget!r} is out of reach: these {len(self.targets)} layers cannot be made as small as that "
            f"by method {self.method.name!r}; {reached} {self._shown(least, up=True)}{rest}. Give at least that{advice}"
        )

    def _shown(self, size: int, *, up: bool = False) -> str:
        """Bytes of the layers in the unit of the budget, rounded up if wanted."""
        stated = None if self.budget is None else size_budget(self.budget)
        if self.budget is not None and bits_budget(self.budget) is not None:
            bits = 8 * size / sum(target.parameters for target in self.targets.values())
            return f"{math.ceil(bits * 1000) / 1000 if up else bits:.3f} bits"
        if stated is None:
            share = size / sum(target.bytes for target in self.targets.values())
            return f"{math.ceil(share * 1000) / 10 if up else share * 100:.1f}%"
        total = size + (0 if stated.of_layers else self.outside)
        kilobytes = math.ceil(total / 1000) if up else total / 1000
        text = f"{kilobytes:,.0f}kB" if kilobytes < 10_000 else f"{math.ceil(kilobytes / 100) / 10:,.1f}MB"
        return f"{text} of layers" if stated.of_layers else text


def _bytes_outside(model: nn.Module, targets: Mapping[str, Target], tensors: int) -> int:
    """Bytes of the file of a saved model without these layers' weights; a layer then has ``tensors`` tensors."""
    weights = {address_of(target.weight) for target in targets.values()}
    tied = ties_of(model)
    size = 0
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue  # extra state, which no checkpoint stores
        if name in tied:
            continue  # stored once
        size += _HEADER + len(name)
        if address_of(tensor) not in weights:
            size += tensor.numel() * tensor.element_size()
    return size + sum(tensors * (_HEADER + len(name)) for name in targets)
