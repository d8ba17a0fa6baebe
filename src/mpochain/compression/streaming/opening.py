"""What a streamed compression opens: one block at a time, and a state that keeps built layers in files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mpochain.compression.blocks.stacks import largest_stack
from mpochain.compression.methods import Method
from mpochain.compression.selection import dense_layers
from mpochain.compression.state import CompressionState
from mpochain.compression.streaming.blocks_in_turn import OPTION, BlocksInTurn
from mpochain.compression.target import Target
from mpochain.compression.together import in_turn
from mpochain.distributed import Team
from mpochain.errors import ArgumentError
from mpochain.system.file_pages import file_pages_limited, mapped_files
from mpochain.system.sizes import megabytes
from mpochain.system.temporary import TemporaryFolder

__all__ = ["Streaming", "little_memory", "require_streamable", "streamed"]

_logger = logging.getLogger(__name__)

_HIDDEN = "hidden"
# Bytes of mapped files beside the largest block: rows of embeddings, norms, layers that are built.
_SPARE = 64 << 20
# A block with a larger share of the weights than this is told.
_LARGE = 0.5


@dataclass(frozen=True)
class Streaming:
    """What a streamed compression works with.

    Attributes:
        turn: the blocks one at a time; None for a method that reads no data.
        room: bytes for fits of layers.
    """

    turn: BlocksInTurn | None
    room: int


def require_streamable(*, sequential: bool, refine: bool, stages: bool) -> None:
    """Refuse what needs several blocks at a time.

    Raises:
        ArgumentError: naming the option to leave out.
    """
    for name, wanted in (("sequential", sequential), ("refine", refine), ("stages", stages)):
        if wanted:
            raise ArgumentError(
                f"{OPTION} holds one block of the model at a time, and {name} needs all of them; leave out one"
            )


def _largest_block(model: nn.Module) -> int:
    """Bytes of the largest block of a model; of the whole model if there are no blocks in a row."""
    try:
        blocks = largest_stack(model, list(dense_layers(model).values()), OPTION).blocks
    except ArgumentError:
        blocks = [model]
    return max(_bytes(block) for block in blocks)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


@contextmanager
def little_memory(model: nn.Module, *, stream: bool) -> Iterator[set[Path]]:
    """Keep the pages of a streamed model to about the largest block within this context.

    Args:
        model: the model.
        stream: False for no limit.

    Yields:
        The files that hold the model, to which folders of further mapped files can be added.
    """
    if not stream:
        yield set()
        return
    block, size = _largest_block(model), _bytes(model)
    if block > _LARGE * size:
        _logger.warning(
            "the largest block of the model holds %s of %s, so %s saves little memory",
            *(megabytes(block), megabytes(size), OPTION),
        )
    places = mapped_files({tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())})
    with file_pages_limited(block + _SPARE, lambda: list(places)):
        yield places


@contextmanager
def streamed(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Iterable[Any],
    method: Method,
    state: CompressionState | None,
    team: Team,
    places: set[Path],
    *,
    stream: bool,
) -> Iterator[tuple[Streaming | None, CompressionState | None]]:
    """The blocks of a model one at a time, and the state that keeps built layers in files.

    Args:
        model: the model.
        targets: layers by name.
        batches: calibration batches.
        method: compression method.
        state: state of the run; None to keep the files in the folder for temporary files (``TMPDIR``).
        team: processes that share the work.
        places: of :func:`little_memory`; the folder of the state is added.
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
    before, state.mapped = state.mapped, True
    places.add(state.folder)
    try:
        reads = method.needs != "nothing"
        turn = BlocksInTurn(model, targets, batches, state.folder / _HIDDEN) if reads else None
        yield Streaming(turn, _largest_block(model)), state
    finally:
        state.mapped = before
        if temporary is not None:
            temporary.remove()
