"""Division of a compression among processes: who reads which batches, and who fits which layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mpochain.compression.statistics.damping import TRIED
from mpochain.compression.statistics.work import build_work, fit_work
from mpochain.compression.target import Target
from mpochain.distributed import ALONE, Team
from mpochain.errors import ArgumentError

__all__ = ["UNDIVIDED", "Division", "dealt_by_module", "divided"]


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
    costs = {name: fit_work(target.shape, TRIED) + build_work(target.shape) for name, target in targets.items()}
    return Division(team, dealt_by_module(costs, team))


def dealt_by_module(costs: Mapping[str, float], team: Team) -> dict[str, int]:
    """The process of each layer, so that all have about as much to do and the layers of a module stay together.

    Args:
        costs: cost of each layer, by its name in the model.
        team: the processes.

    Raises:
        ArgumentError: there are more processes than modules with layers to deal.

    Example:
        >>> dealt_by_module({"0.up": 1.0, "0.down": 1.0, "1.up": 1.5}, Team(0, 2))
        {'0.up': 0, '0.down': 0, '1.up': 1}
    """
    modules: dict[str, float] = {}
    for name, cost in costs.items():
        module = name.rpartition(".")[0]
        modules[module] = modules.get(module, 0.0) + cost
    if len(modules) < team.size:
        raise ArgumentError(
            f"{team.size} processes cannot share the {len(costs)} layers of {len(modules)} modules; start at most "
            f"{len(modules)} processes"
        )
    owners = team.dealt(modules)
    return {name: owners[name.rpartition(".")[0]] for name in costs}
