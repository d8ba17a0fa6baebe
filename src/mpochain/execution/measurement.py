"""Timing on this machine: interleaved timing of calls, and measurement of the machine constants."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mpochain.planning import Machine, Setting
from mpochain.planning.store import STORE

__all__ = ["dtype_of", "interleaved", "measure_machine", "setting_of", "trusted_machine"]

_ROUND_SECONDS = 1e-3
_SURE_SECONDS = 0.02
_LONG_SECONDS = 0.2

# Side of the large product whose rate is measured.
_SIDE = 1024
# Constants are doubtful if the rate scattered by more than this when it was measured, or is higher now by more.
_DOUBTFUL = 0.2


def setting_of(dtype: torch.dtype, device: torch.device | str) -> Setting:
    """The setting of products of this dtype on this device, with torch's current number of threads.

    Other element types are planned as float32; torch decides whether it can multiply them.
    """
    name = str(dtype).removeprefix("torch.")
    known = name if name in ("float64", "float32", "bfloat16", "float16") else "float32"
    return Setting(known, torch.device(device).type, torch.get_num_threads())


def dtype_of(setting: Setting) -> torch.dtype:
    """The torch dtype of a setting."""
    dtype = getattr(torch, setting.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _wait(device: str) -> None:
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def interleaved(
    calls: Sequence[Callable[[], object]], device: str, *, rounds: int = 7, budget: float = 1.0
) -> list[float]:
    """Median seconds of each call; calls are timed in turn, so that slow phases of the machine affect all of them.

    Calls more than twice as slow as the fastest are not timed in further rounds.

    Args:
        calls: functions to time.
        device: device on which they run.
        rounds: number of rounds.
        budget: seconds after which no further round starts.
    """
    began = time.perf_counter()
    values: list[list[float]] = []
    for call in calls:
        if device != "cpu":
            call()  # kernels in Triton are compiled at their first call, which takes seconds
        once = _once(call, 1, device)
        if once > _LONG_SECONDS:
            values.append([once])  # the extra cost of a first call is small in comparison
            continue
        once = _once(call, 1, device)
        if once < _SURE_SECONDS:
            # The call may have waited for a sleeping thread, a cold cache or the compilation of a kernel (a bfloat16
            # sweep of 1 ms took 4.4 ms the second time), and one such time would rule it out.
            once = min(once, *(_once(call, 1 if once > _ROUND_SECONDS else 3, device) for _ in range(2)))
        values.append([once])
    fastest = min(once for (once,) in values)
    turns = [index for index, (once,) in enumerate(values) if once <= 2 * fastest]
    counts = {index: max(1, min(200, round(_ROUND_SECONDS / values[index][0]))) for index in turns}
    for turn in range(rounds):
        if time.perf_counter() - began > budget:
            break
        for index in turns if turn % 2 else turns[::-1]:
            # A single short call is not comparable with rounds of many calls, so the first round replaces it.
            kept = values[index] if turn or counts[index] == 1 else []
            values[index] = [*kept, _once(calls[index], counts[index], device)]
    return [statistics.median(seconds) for seconds in values]


def _once(call: Callable[[], object], count: int, device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        call()
    _wait(device)
    return (time.perf_counter() - began) / count


def measure_machine(setting: Setting) -> Machine:
    """Measure the machine constants of the cost model in about a second, and store them in the user's cache folder.

    Constants that are not measured (see :class:`~mpochain.planning.Machine`) have their defaults.

    Args:
        setting: element type and device; the number of threads is torch's current one.

    Example:
        >>> measure_machine(Setting("float32")).gemm_rate > 1e8
        True
    """
    device, dtype = setting.device, dtype_of(setting)
    setting = Setting(setting.dtype, device, torch.get_num_threads())
    generator = torch.Generator(device).manual_seed(0)

    def filled(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    with torch.no_grad():

        def product(rows: int, summed: int, columns: int) -> float:
            a, b = filled(rows, summed), filled(columns, summed).t()
            (seconds,) = interleaved([lambda: torch.mm(a, b)], device, budget=0.3)
            return seconds

        a, b = filled(4, 4), filled(4, 4)
        (call,) = interleaved([lambda: torch.mm(a.view(2, 8).view(4, 4), b)], device)
        side = _SIDE
        large = _large_products(setting)
        rate = 2 * side**3 / statistics.median(large)
        halves = []
        for narrow in (8, 32):
            for shape in ((side, narrow, side), (side, side, narrow)):
                seconds = max(product(*shape) - call, 1e-9)
                efficiency = min(2 * narrow * side * side / seconds / rate, 0.99)
                halves.append(narrow * (1 / efficiency - 1))
        element = setting.element_bytes
        inside, outside = 512, 4096
        near = inside * inside * element / max(product(1, inside, inside) - call, 1e-9)
        far = outside * outside * element / max(product(1, outside, outside) - call, 1e-9)
        state = filled(256, 64, 32)
        (copying,) = interleaved([lambda: state.transpose(1, 2).contiguous()], device)
    machine = replace(
        Machine(),
        gemm_rate=rate,
        half_side=min(max(statistics.median(halves), 1.0), 512.0),
        cache_bandwidth=max(near, far),
        bandwidth=far,
        transpose_rate=state.numel() / copying,
        call_seconds=call,
        element_bytes=element,
        measured=True,
        scatter=max(max(large) / min(large) - 1, 1e-6),
    )
    STORE.add_machine(setting, machine)
    return machine


def _large_products(setting: Setting, count: int = 7) -> list[float]:
    """Seconds of each of several large products, after one that is not timed."""
    generator = torch.Generator(setting.device).manual_seed(0)  # the caller's random numbers are left alone
    a, b = torch.randn(2, _SIDE, _SIDE, generator=generator, device=setting.device).to(dtype_of(setting))
    torch.mm(a, b.t())
    return [_once(lambda: torch.mm(a, b.t()), 1, setting.device) for _ in range(count)]


def trusted_machine(setting: Setting) -> Machine:
    """The stored constants of the machine; measured now if there are none, or if they are doubtful.

    Constants from a moment when the machine had other work are doubtful: their rate scattered, or a large product is
    clearly faster now. Of two measurements that both scattered, that of the higher rate is stored.

    Args:
        setting: element type and device; the number of threads is torch's current one.

    Example:
        >>> trusted_machine(Setting("float32")).measured
        True
    """
    setting = Setting(setting.dtype, setting.device, torch.get_num_threads())
    stored = STORE.machine(setting)
    if stored.measured and stored.scatter <= _DOUBTFUL:
        with torch.no_grad():
            now = 2 * _SIDE**3 / min(_large_products(setting, 2))
        if now <= (1 + _DOUBTFUL) * stored.gemm_rate:
            return stored
    measured = measure_machine(setting)
    if stored.measured and measured.scatter > _DOUBTFUL and stored.gemm_rate > measured.gemm_rate:
        STORE.add_machine(setting, stored)
        return stored
    return measured
