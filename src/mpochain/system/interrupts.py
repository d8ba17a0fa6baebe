"""Ctrl-C handling for the command line: the current training step is finished before the program stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["interrupts_between_steps", "run_of_steps"]


@dataclass
class _Handler:
    """SIGINT handler installed by a command line.

    Attributes:
        runs: number of runs of steps that are open.
        pending: whether Ctrl-C was pressed in one of them and waits for the end of the step.
    """

    runs: int = 0
    pending: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.runs or self.pending:
            signal.default_int_handler(number, frame)
        self.pending = True


_installed: _Handler | None = None


@contextmanager
def interrupts_between_steps() -> Iterator[None]:
    """Defer the first Ctrl-C within a run of steps to the end of the current step; a second one stops at once.

    Outside of :func:`run_of_steps`, Ctrl-C raises KeyboardInterrupt at once, as without this context. The context
    replaces the SIGINT handler, so it is for programs, such as a command line, and not for libraries. It has no effect
    in threads other than the main one, which receive no signals, or if SIGINT is ignored.

    Example:
        >>> with interrupts_between_steps():
        ...     try:
        ...         with run_of_steps() as interrupted:
        ...             signal.raise_signal(signal.SIGINT)
        ...             print(interrupted())
        ...     except KeyboardInterrupt:
        ...         print("stopped after the step")
        True
        stopped after the step
    """
    global _installed
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    outer, _installed = _installed, _Handler()
    before = signal.signal(signal.SIGINT, _installed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _installed = outer


@contextmanager
def run_of_steps() -> Iterator[Callable[[], bool]]:
    """Mark a loop whose steps Ctrl-C should not interrupt, and yield a function that returns True if it should stop.

    The loop calls the function after every step; if it returns True, the loop saves its state and raises
    KeyboardInterrupt. If the loop ends without such a call after Ctrl-C, leaving the context raises it. In a program
    without :func:`interrupts_between_steps` the function always returns False, and Ctrl-C raises KeyboardInterrupt in
    the middle of a step. This context installs no signal handler.

    Example:
        >>> with run_of_steps() as interrupted:
        ...     print(interrupted())
        False
    """
    handler = _installed
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handler.runs += 1
    try:
        yield lambda: handler.pending
    except BaseException:
        handler.runs -= 1
        handler.pending = False
        raise
    handler.runs -= 1
    if handler.pending:
        handler.pending = False
        raise KeyboardInterrupt
