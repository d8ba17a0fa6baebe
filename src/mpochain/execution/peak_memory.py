"""Peak memory of a function call, from the allocations that torch reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes"]


def peak_bytes(function: Callable[[], Any]) -> int:
    """Most bytes on the CPU that were allocated since the call began and not yet freed, at any one time in it.

    Memory allocated before and freed in the call is subtracted, so free it first. Scratch memory that kernels do not
    take from torch's allocator is not counted.

    Example:
        >>> import torch
        >>> peak_bytes(lambda: torch.ones(1000).sum()) >= 4000
        True
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()  # alive until the profiler has stopped
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = current = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    del result
    return peak
