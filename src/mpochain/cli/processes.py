"""Commands that several processes run together, as ``torchrun`` starts them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from pathlib import Path

from mpochain.errors import ArgumentError, MPOError, RecipeError
from mpochain.system.progress import hide_progress

__all__ = ["after_others", "joined"]

# Commands that share their work; others would do it once in every process.
_TOGETHER = {"compress", "distill", "finetune"}

# A process waits so long for others: the first one may evaluate a model or refine its blocks meanwhile. torchrun itself
# notices at once if one dies.
_LONGEST_WAIT = timedelta(days=1)

# Seconds that a process other than the first waits with its error. What all of them find wrong the first one tells, and
# torchrun ends the others then.
_GRACE = 3.0


# In errors of connections.
_OF_GLOO = "gloo/transport"


def _join(backend: str) -> None:
    """Join the group that the environment of torchrun describes."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=_LONGEST_WAIT))
    # torchrun keeps its store when it starts processes again, with the addresses of those that have ended.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONGEST_WAIT)


def _rank() -> int:
    """The number of this process among those that torchrun started; 0 without it."""
    number = os.environ.get("RANK", "0")
    return int(number) if number.isdecimal() else 0


@contextmanager
def joined(command: str, device: str | None = None) -> Iterator[None]:
    """Join the processes that torchrun started, if there are several; all but the first are silent.

    Args:
        command: name of the command.
        device: where models are put, as the user named it.

    Raises:
        RecipeError: the command is for a single process.
        ArgumentError: the environment of torchrun is incomplete.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1" or "RANK" not in os.environ:
        yield
        return
    if command not in _TOGETHER:
        raise RecipeError(
            f"this command ({command}) runs in one process, and torchrun started {size}; run it without torchrun"
        )
    import torch
    import torch.distributed as dist

    if device is not None and ":" in device:
        raise RecipeError(f"{size} processes cannot share --device {device}; give --device {device.partition(':')[0]}")
    # Whatever the options or a recipe say of the device: "cuda" is the GPU of the process then.
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        _join("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ArgumentError(f"the {size} processes of torchrun do not find each other: {error}") from error
    with _silence() if dist.get_rank() else nullcontext():
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistBackendError) and _OF_GLOO not in str(error):
                raise
            raise MPOError(
                "another of the processes has ended; what is finished is kept, and the same command goes on from it"
            ) from error
        finally:
            dist.destroy_process_group()


@contextmanager
def _silence() -> Iterator[None]:
    """Print nothing but errors: the first process tells what all of them do."""
    logger = logging.getLogger("mpochain")
    before = logger.level
    logger.setLevel(logging.ERROR)
    hide_progress()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            yield
        finally:
            logger.setLevel(before)


def after_others(message: str) -> str:
    """The error message of this process, once the first one has had time to tell the same.

    Example:
        >>> after_others("no such file")
        'no such file'
    """
    number = _rank()
    if not number:
        return message
    time.sleep(_GRACE)
    return f"process {number}: {message}"
