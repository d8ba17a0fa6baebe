"""What a streamed compression opens: one block at a time, and a state that keeps built layers in files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from mpochain.compression.state import CompressionState
from mpochain.compression.streaming.blocks_in_turn import BlocksInTurn
from mpochain.compression.target import Target
from mpochain.compression.together import in_turn
from mpochain.distributed import Team
from mpochain.errors import ArgumentError
from mpochain.system.file_pages import file_pages_limited
from mpochain.system.temporary import TemporaryFolder

__all__ = ["require_streamable", "streamed"]

_HIDDEN = "hidden"
# Bytes of mapped files beside the largest block: rows of embeddings, norms, layers that are built.
_SPARE = 64 << 20


def require_streamable(*, sequential: bool, refine: bool, stages: bool) -> None:
    """Refuse what needs several blocks at a time.

    Raises:
        ArgumentError: naming the option to leave out.
    """
    for name, wanted in (("sequential", sequential), ("refine", refine), ("stages", stages)):
        if wanted:
            raise ArgumentError(
                f"stream=True holds one block of the model at a time, and {name} needs all of them; leave out one"
            )


@contextmanager
def streamed(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Iterable[Any],
    state: CompressionState | None,
    team: Team,
    *,
    stream: bool,
) -> Iterator[tuple[BlocksInTurn | None, CompressionState | None]]:
    """The blocks of a model one at a time, and the state that keeps built layers in files.

    Args:
        model: the model.
        targets: layers by name.
        batches: calibration batches.
        state: state of the run; None to keep the files in the folder for temporary files (``TMPDIR``).
        team: processes that share the work.
        stream: False to compress the model as it is, and yield None and the state as it is given.
    """
    if not stream:
        yield None, state
        return
    temporary = None
    if state is None:
        with team.together():
            temporary = TemporaryFolder() if team.is_first else None
        folder = team.from_first("" if temporary is None else str(temporary.path))
        state = in_turn(team, lambda: CompressionState(Path(folder), {}))
        assert state is not None
    state.mapped = True
    try:
        turn = BlocksInTurn(model, targets, batches, state.folder / _HIDDEN)
        with file_pages_limited(turn.largest_block + _SPARE):
            yield turn, state
    finally:
        if temporary is not None:
            temporary.remove()
