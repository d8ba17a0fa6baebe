"""Peak memory of a function call, from torch's allocation events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes"]


def peak_bytes(function: Callable[[], Any]) -> int:
    """Peak of the CPU memory in bytes that a call allocates and has not yet freed.

    Memory allocated before the call and freed within it is subtracted, so free it first. Scratch memory of kernels that
    does not come from torch's allocator is not counted.

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
