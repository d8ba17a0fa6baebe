"""Limits on building a model from an untrusted configuration: modules, parameters, time and memory.

A short configuration can describe a model of any size. A model is therefore first built on the meta device, and
stopped once it has many more modules than the file has tensors, or takes more time or memory than a model of that many
tensors needs. No field of the configuration is interpreted.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch.nn.modules import module as torch_module

from mpochain.errors import CheckpointError
from mpochain.system.memory import anonymous_resident, limited_growth

__all__ = ["bounded_building"]

# Modules, parameters and buffers: layers without tensors, such as dropout and activations, are several times as many
# as tensors.
_REGISTERED, _REGISTERED_PER_TENSOR = 2_000, 50
# Seconds of processor time, with the import of the model's modules.
_SECONDS, _SECONDS_PER_TENSOR = 5.0, 0.02
# Seconds after which the error is raised again if the build still goes on.
_AGAIN = 1.0
# Bytes of memory.
_BYTES, _BYTES_PER_TENSOR = 1 << 29, 1 << 18
_INTERVAL = 0.02
# Bytes of address space beyond that, for threads and for other users of the process.
_SPARE = 2 << 30


Model = TypeVar("Model")


class _TooLargeError(BaseException):
    """Raised within the building thread; not an Exception, so that no code in between handles it."""


def bounded_building(build: Callable[[], Model], tensors: int, where: str) -> Model:
    """Build a model, and stop when it is much larger than its file.

    Args:
        build: builds the model on the meta device. It is a function instead of a context, because an error from
            another thread can arrive in any line, also in those that leave a context.
        tensors: number of tensors in the file.
        where: name of the configuration in errors.

    Raises:
        CheckpointError: a limit was exceeded.

    Example:
        >>> from torch import nn
        >>> bounded_building(lambda: nn.Linear(2, 2, device="meta"), 2, "config")
        Linear(in_features=2, out_features=2, bias=True)
    """
    limits = _Limits(tensors)
    hooks: list[Any] = [
        register(limits.count)
        for register in (
            torch_module.register_module_module_registration_hook,
            torch_module.register_module_parameter_registration_hook,
            torch_module.register_module_buffer_registration_hook,
        )
    ]
    watcher = threading.Thread(target=limits.watch, daemon=True)
    watcher.start()
    try:
        # Left after limits.end(), when no error from the other thread can arrive.
        with limited_growth(_BYTES + _BYTES_PER_TENSOR * tensors + _SPARE):
            try:
                try:
                    return build()
                finally:
                    limits.end()
                    watcher.join()
            except (_TooLargeError, MemoryError):
                reason = limits.reason or "building the model takes more memory than it may"
                raise CheckpointError(
                    f"{where}: {reason}; the configuration does not belong to these tensors"
                ) from None
    finally:
        for hook in hooks:
            hook.remove()


class _Limits:
    def __init__(self, tensors: int) -> None:
        self.reason = ""
        self._thread = threading.get_ident()
        self._tensors = tensors
        self._registered = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._started = _thread_seconds(self._thread)
        self._resident = anonymous_resident()

    def count(self, module: Any, name: str, value: Any) -> None:  # noqa: ARG002  # the signature of torch's hooks
        """Count what is registered in a module, by the building thread only."""
        if threading.get_ident() != self._thread:
            return
        self._registered += 1
        if self._registered > _REGISTERED + _REGISTERED_PER_TENSOR * self._tensors:
            self.reason = f"the model has over {self._registered - 1:,} modules, the file {self._tensors:,} tensors"
            raise _TooLargeError

    def watch(self) -> None:
        """Raise an error in the building thread once it has used too much time or memory."""
        seconds = _SECONDS + _SECONDS_PER_TENSOR * self._tensors
        size = _BYTES + _BYTES_PER_TENSOR * self._tensors
        pause = _INTERVAL
        while not self._ended.wait(pause):
            if _thread_seconds(self._thread) - self._started > seconds:
                reason = f"the model is not built after {seconds:.0f} s"
            elif anonymous_resident() - self._resident > size:
                reason = f"building the model takes over {size >> 20:,} MiB"
            else:
                continue
            with self._lock:
                if not self._ended.is_set():
                    self.reason = reason
                    _raise_in(self._thread, _TooLargeError)
            # Python drops an error that arrives within a callback of the garbage collector, so it is raised again.
            pause = _AGAIN

    def end(self) -> None:
        """Stop watching; an error that was raised but has not yet arrived is withdrawn."""
        with self._lock:
            self._ended.set()
        _raise_in(self._thread, None)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    value = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), value)


def _thread_seconds(thread: int) -> float:
    """Processor time of a thread; where it is not available, that of the process."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    except (AttributeError, OSError):
        return time.process_time()
