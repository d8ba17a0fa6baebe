"""Fair timing on a noisy machine: all implementations of a cell in turn, round after round, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds of one implementation.

    Attributes:
        median: over the rounds.
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


def interleave(
    functions: Mapping[str, Callable[[int], Any]],
    *,
    rounds: int = 9,
    round_seconds: float = 2e-3,
    most_seconds: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Time functions against each other.

    Args:
        functions: called with the number of the call, so that they can rotate their inputs.
        rounds: how often each is timed; the order is reversed every other round, so that none always follows another.
        round_seconds: how long a round of one function should last; short calls are repeated within it.
        most_seconds: a function whose rounds would take longer in all gets fewer of them, at least 3.
    """
    calls, turns = {}, {}
    for name, function in functions.items():
        function(0)  # plans, caches, threads
        began = time.perf_counter()
        function(1)
        once = max(time.perf_counter() - began, 1e-9)
        calls[name] = max(1, min(1000, round(round_seconds / once)))
        turns[name] = max(min(rounds, 3), min(rounds, int(most_seconds / (once * calls[name]))))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds):
        names = list(functions) if turn % 2 == 0 else list(functions)[::-1]
        for name in names:
            if turn >= turns[name]:
                continue
            function, count = functions[name], calls[name]
            began = time.perf_counter()
            for k in range(count):
                function(k)
            seconds[name].append((time.perf_counter() - began) / count)
    result = {}
    for name, values in seconds.items():
        if len(values) > 1:
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        else:
            low = middle = high = values[0]
        result[name] = asdict(Timing(middle, low, high, turns[name], calls[name]))
    return result
