"""Models that several processes train together: shards of parameters, and what one process does for all."""

from mpochain.distributed.blocks import shard_blocks
from mpochain.distributed.processes import agreed, done_by_first, is_first, trains_together
from mpochain.distributed.sharding import (
    filled,
    full,
    gathered,
    is_managed,
    is_shard,
    is_sharded,
    local_part,
    reshard,
    whole_on_first,
    without_gradients,
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
    "local_part",
    "reshard",
    "shard_blocks",
    "team_of_group",
    "trains_together",
    "whole_on_first",
    "without_gradients",
]
