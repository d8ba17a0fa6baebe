"""Models that several processes train together: shards of parameters, and what one process does for all."""

from mpochain.distributed.processes import agreed, done_by_first, is_first, trains_together
from mpochain.distributed.sharding import (
    filled,
    full,
    gathered,
    is_managed,
    is_shard,
    is_sharded,
    reshard,
    whole_on_first,
)
from mpochain.distributed.team import ALONE, Team, team_of_group

__all__ = [
    "ALONE",
    "Team",
    "agreed",
    "done_by_first",
    "filled",
    "full",
    "gathered",
    "is_first",
    "is_managed",
    "is_shard",
    "is_sharded",
    "reshard",
    "team_of_group",
    "trains_together",
    "whole_on_first",
]
