"""Interleaved timing for noisy machines: all implementations of a cell in turn, round after round, in one run."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# A peer is timed only once if its call takes longer than this and longer than this multiple of the fastest peer's.
_SLOW_SECONDS = 0.1
_SLOW_RATIO = 3.0

# A call longer than this is timed at least twice instead of three times: its spread is small, and it saves time.
_LONG_SECONDS = 0.2

_MANY = 10


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds of one implementation.

    Attributes:
        median: median over the rounds.
        low: first quartile.
        high: third quartile.
        rounds: number of rounds.
        calls: calls in each round.
    """

    median: float
    low: float
    high: float
    rounds: int
    calls: int


def _timed(function: Callable[[int], Any], calls: int, first: int) -> float:
    began = time.perf_counter()
    for k in range(first, first + calls):
        function(k)
    return max((time.perf_counter() - began) / calls, 1e-9)


def interleave(
    functions: Mapping[str, Callable[[int], Any]],
    *,
    peers: Collection[str] = (),
    rounds: int = 9,
    round_seconds: float = 2e-3,
    most_seconds: float = 0.06,
) -> dict[str, dict[str, float]]:
    """Time several functions in interleaved rounds.

    Args:
        functions: called with the number of the call, so that they can rotate their inputs. Each must have been called
            once before, so that plans, caches and threads exist.
        peers: names of functions that are timed only once if they are far slower than the fastest of them.
        rounds: number of rounds. Each round has a new random order, so that no function always finds the caches as the
            same predecessor left them.
        round_seconds: target duration of one function's round; short calls are repeated within it.
        most_seconds: limit of a function's total time. A function that would exceed it gets fewer rounds, but at least
            three, or two if its calls are long.
    """
    once = {name: _timed(function, 1, 1) for name, function in functions.items()}
    for name, function in functions.items():
        # A single short call runs with cold caches and overestimates the time, which would make its rounds too short.
        if _MANY * once[name] < round_seconds:
            once[name] = _timed(function, _MANY, 1)
    calls = {name: max(1, min(1000, round(round_seconds / seconds))) for name, seconds in once.items()}
    turns = {}
    for name, seconds in once.items():
        least = 2 if seconds > _LONG_SECONDS else 3
        turns[name] = min(rounds, max(least, int(most_seconds / (seconds * calls[name]))))
    fastest = min((once[name] for name in functions if name in peers), default=0.0)
    for name in peers:
        if name in functions and once[name] > max(_SLOW_SECONDS, _SLOW_RATIO * fastest):
            turns[name] = 1
    # A call that fills a round on its own counts as the first round.
    seconds = {name: [once[name]] if calls[name] == 1 else [] for name in functions}
    order = random.Random(0)
    for turn in range(max(turns.values())):
        for name in order.sample(list(functions), len(functions)):
            if len(seconds[name]) < turns[name]:
                seconds[name].append(_timed(functions[name], calls[name], 2 + turn))
    return {name: asdict(_timing(values, calls[name])) for name, values in seconds.items()}


def _timing(values: list[float], calls: int) -> Timing:
    if len(values) == 1:
        return Timing(values[0], values[0], values[0], 1, calls)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(middle, low, high, len(values), calls)
