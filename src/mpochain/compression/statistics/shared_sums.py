"""Sums that several processes took of their shares of the data, added up in the processes that own the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mpochain.compression.statistics.division import Division
from mpochain.compression.statistics.sums import Sums

__all__ = ["add_up"]


@dataclass(frozen=True)
class _Described:
    """What a process tells of its sums of one layer.

    Attributes:
        rows: see :class:`Sums`.
        tokens: see :class:`Sums`.
        powers: sums of the squares of inputs and gradients.
        filled: whether there are sums of inputs, outputs and gradients.
        leader: first layer that read the same inputs.
    """

    rows: int
    tokens: int
    powers: tuple[float, float]
    filled: tuple[bool, bool, bool]
    leader: str


def add_up(sums: Mapping[str, Sums], division: Division) -> None:
    """Add up the sums of all processes in float64, in the owner of each layer.

    Counts and powers are known to all processes afterwards, sums of products to the owner alone. Layers that read the
    same inputs in every process share one sum.

    Args:
        sums: sums of every layer over the data of this process; changed in place.
        division: the processes, and the layers of each.
    """
    team = division.team
    if team.is_alone:
        return
    leaders: dict[int, str] = {}
    described = {
        name: _Described(
            own.rows,
            own.tokens,
            (own.input_power, own.gradient_power),
            (not own.input_sum.is_empty, not own.output_sum.is_empty, not own.gradient_sum.is_empty),
            leaders.setdefault(own.history, name) if own.keeps_inputs else "",
        )
        for name, own in sums.items()
    }
    of_all = team.gathered(described)
    inputs: set[tuple[str, ...]] = set()
    for name, own in sums.items():
        owner = division.owner(name)
        told = [process[name] for process in of_all]
        own.rows = sum(report.rows for report in told)
        own.tokens = sum(report.tokens for report in told)
        own.input_power = sum(report.powers[0] for report in told)
        own.gradient_power = sum(report.powers[1] for report in told)
        own.has_gradients = any(report.filled[2] for report in told)
        key = (str(owner), *(report.leader for report in told))
        own.history = hash(key)
        out, in_ = own.weight.shape
        for place, (total, size) in enumerate(
            (
                (own.input_sum, in_),
                (own.output_sum, out),
                (own.gradient_sum, out if own.keeps_outputs else in_),
            )
        ):
            if not any(report.filled[place] for report in told):
                continue
            if place == 0:
                if key in inputs:
                    continue  # added up for another layer, whose mean this one shares
                inputs.add(key)
            total_of_all = team.summed(total.doubled(size, own.weight.device), owner)
            total.become(total_of_all if team.rank == owner else None)
