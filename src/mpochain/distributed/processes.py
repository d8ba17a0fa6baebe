"""Processes that train one model together: what the first of them does for all, and errors that all of them raise."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mpochain.distributed.sharding import is_sharded
from mpochain.errors import MPOError

__all__ = ["agreed", "done_by_first", "is_first", "sendable", "trains_together"]


def trains_together(model: nn.Module) -> bool:
    """Whether several processes train a model: it is sharded, or within ``DistributedDataParallel``.

    Processes of one group of which each trains a model of its own do not count.

    Example:
        >>> trains_together(nn.Linear(2, 2))
        False
    """
    return is_sharded(model) or any(isinstance(module, DistributedDataParallel) for module in model.modules())


def is_first() -> bool:
    """Whether this process is the first of the default group, or there is no group.

    Example:
        >>> is_first()
        True
    """
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def agreed(error: BaseException | None) -> None:
    """Wait for the first process, and raise in every other process the error that it had.

    Args:
        error: the error of this process, which counts in the first one alone; it is not raised there.

    Raises:
        BaseException: the error of the first process; an :class:`mpochain.errors.MPOError` with its text if it cannot
            be sent.
    """
    sent: list[BaseException | None] = [sendable(error) if is_first() else None]
    dist.broadcast_object_list(sent, src=0)
    if sent[0] is not None and not is_first():
        raise sent[0]


@contextmanager
def done_by_first(*, together: bool) -> Iterator[bool]:
    """A block that only the first process does, while the others wait; all of them raise its error.

    Args:
        together: whether there are other processes; without them every process does the block.

    Yields:
        Whether this process does it.

    Example:
        >>> with done_by_first(together=False) as does:
        ...     print(does)
        True
    """
    if not together:
        yield True
        return
    error: BaseException | None = None
    try:
        yield is_first()
    except BaseException as raised:
        error = raised
        raise
    finally:
        agreed(error)


def sendable(error: BaseException | None) -> BaseException | None:
    """An error as it can be pickled for other processes; with its text alone if it cannot.

    Example:
        >>> sendable(ValueError("no"))
        ValueError('no')
    """
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickle raises whatever the methods of the error raise
        return MPOError(f"another process stopped with {type(error).__name__}: {error}")
    return error
