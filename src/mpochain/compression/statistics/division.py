"""Division of a compression among processes: who reads which batches, and who fits which layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mpochain.compression.target import Target
from mpochain.distributed import ALONE, Team
from mpochain.errors import ArgumentError

__all__ = ["UNDIVIDED", "Division", "divided"]


@dataclass(frozen=True)
class Division:
    """Processes that compress one model together, and the layers of each.

    Attributes:
        team: the processes.
        owners: process that fits and builds each layer; empty for a single process, which owns all.
    """

    team: Team
    owners: Mapping[str, int] = field(default_factory=dict)

    def owner(self, name: str) -> int:
        """The process of a layer."""
        return self.owners.get(name, 0)

    def owns(self, name: str) -> bool:
        """Whether a layer is this process's."""
        return self.owner(name) == self.team.rank

    def own(self, names: Iterable[str]) -> list[str]:
        """The layers among these that are this process's."""
        return [name for name in names if self.owns(name)]


UNDIVIDED = Division(ALONE)


def divided(targets: Mapping[str, Target], team: Team) -> Division:
    """Deal the layers among processes by the time of their fits.

    Layers of one module, such as the query, key and value projections of a block, stay together, since they read the
    same inputs, whose moments are then kept once.

    Raises:
        ArgumentError: there are more processes than modules with layers to deal.
    """
    if team.is_alone:
        return UNDIVIDED
    costs: dict[str, float] = {}
    for name, target in targets.items():
        out, in_ = target.shape
        module = name.rpartition(".")[0]
        costs[module] = costs.get(module, 0.0) + float(out) * in_ * min(out, in_)
    if len(costs) < team.size:
        raise ArgumentError(
            f"{team.size} processes cannot share the {len(targets)} layers of {len(costs)} modules; start at most "
            f"{len(costs)} processes"
        )
    owners = team.dealt(costs)
    return Division(team, {name: owners[name.rpartition(".")[0]] for name in targets})
