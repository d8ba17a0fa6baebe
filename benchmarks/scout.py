"""Child process that tries peers first, because torch's bfloat16 kernels can kill their process.

With torch 2.13 on an AMX machine, the backward pass of tltorch's factorized layer (768x3072, three sites, χ=8, 2,048
rows) ends in SIGFPE. One cell must not end the whole run.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable
from functools import cache
from multiprocessing.connection import Connection

import torch
from grid import Cell
from implementations import implementations
from training_step import layers, step


def _attempt(group: str, cell: Cell, name: str) -> None:
    dtype = getattr(torch, cell.dtype)
    training = group == "training"
    x = torch.randn(cell.batch, cell.spec.in_features, dtype=dtype, requires_grad=training)
    if training:
        built, _ = layers(cell.spec, cell.batch, dtype)
        step(built[name], [x], torch.randn(cell.batch, cell.spec.out_features, dtype=dtype))(0)
        return
    built, *_ = implementations(cell.spec, dtype)
    with torch.no_grad():
        built[name](x)


def _serve(connection: Connection) -> None:
    while True:
        task = connection.recv()
        try:
            _attempt(*task)
        except Exception:  # errors are recorded when the peer is timed; only a dead process matters here
            connection.send("raised")
        else:
            connection.send("ran")


class _Child:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def death(self, group: str, cell: Cell, name: str) -> str | None:
        """Run one attempt; return the signal or exit code that ended the child, or None if it is alive."""
        try:
            self._connection.send((group, cell, name))
            self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return None


_child = cache(_Child)


def fatal(group: str, cell: Cell, names: Iterable[str]) -> dict[str, str]:
    """Return the peers that kill the process in this cell, with the signal or exit code; float32 is not tried."""
    deaths = {}
    if cell.dtype != "float32":
        for name in names:
            death = _child().death(group, cell, name)
            if death is not None:
                _child.cache_clear()
                deaths[name] = f"one call ends the process with {death}"
    return deaths
