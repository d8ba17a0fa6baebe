"""Exclusion of implementations whose intermediate states may not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import opt_einsum

from mpochain import ChainSpec
from mpochain.planning.candidates import equation

# 1 GiB in float32; products need several copies.
LARGEST_STATE = 1 << 28


def _sweep(spec: ChainSpec, batch: int, *, leftward: bool) -> int:
    largest = state = batch * spec.in_features
    for left, out, in_, right in spec.core_shapes[::-1] if leftward else spec.core_shapes:
        came, goes = (right, left) if leftward else (left, right)
        state = state // (in_ * came) * out * goes
        largest = max(largest, state)
    return largest


def _leftward(spec: ChainSpec, batch: int) -> int:
    return _sweep(spec, batch, leftward=True)


def _rightward(spec: ChainSpec, batch: int) -> int:
    return _sweep(spec, batch, leftward=False)


def _searched(spec: ChainSpec, batch: int) -> int:
    operands = (batch, *spec.in_dims), *spec.core_shapes
    _, path = opt_einsum.contract_path(equation(spec.sites), *operands, shapes=True, optimize="optimal")
    return int(path.largest_intermediate)


# Implementations that are not listed rebuild the matrix or work in tiles.
_STATES: dict[str, Callable[[ChainSpec, int], int]] = {
    "plain chain": _leftward,
    "torchTT": _rightward,
    "tntorch": _rightward,
    "torch-mpo": _rightward,
    "tltorch factorized": _searched,
    "opt_einsum": _searched,
    "cotengra": _searched,
    "quimb": _searched,
}


def rejected(names: Iterable[str], spec: ChainSpec, batch: int, *, kept: int = 1) -> dict[str, str]:
    """Return the implementations to exclude, with the reason.

    Args:
        names: names of implementations.
        spec: spec of the chain.
        batch: number of rows.
        kept: number of the largest states alive at once; more in training.
    """
    reasons = {}
    for name in names:
        if name in _STATES and _STATES[name](spec, batch) * kept > LARGEST_STATE:
            reasons[name] = f"an intermediate state of over {LARGEST_STATE // kept:,} elements"
    return reasons
