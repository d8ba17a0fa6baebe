"""Progress of long runs on stderr: bars on a terminal, otherwise a line every half minute."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Counter", "Counters", "TimeLeft", "TrainingProgress", "counting", "hide_progress", "uncounted"]

# Called with the number of items done and the total number.
Counter = Callable[[int, int], None]
# Creates a counter with a label.
Counters = Callable[[str], Counter]

# Seconds between two lines if stderr is no terminal.
_LINE_SECONDS = 30.0

# Whether a program shows no progress at all.
_hidden = False


def hide_progress(hidden: bool = True) -> None:
    """Show no progress from now on, or show it again; for programs, such as a command line that is to be quiet."""
    global _hidden
    _hidden = hidden


class TrainingProgress:
    """Loss, tokens per second and time left of a training run.

    Args:
        label: name of the run.
        steps: total number of steps.
        start: number of steps done in an earlier session.
        tokens_per_step: number of tokens per step, for the rate.
        line_seconds: seconds between two lines if stderr is no terminal.
    """

    def __init__(
        self, label: str, steps: int, *, start: int = 0, tokens_per_step: int, line_seconds: float = _LINE_SECONDS
    ) -> None:
        self._label, self._steps, self._start = label, steps, start
        self._tokens_per_step, self._line_seconds = tokens_per_step, line_seconds
        console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        if console.is_terminal and not _hidden:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> TrainingProgress:
        self._began = time.monotonic()
        self._printed = -math.inf  # so that the first step is printed at once: the run has started
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                self._label, total=self._steps, completed=self._start, loss=float("nan"), rate=0.0
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float) -> None:
        """Show that ``step`` steps are done, with the loss of the last step in nats per token."""
        now = time.monotonic()
        rate = (step - self._start) * self._tokens_per_step / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss, rate=rate)
        elif now - self._printed >= self._line_seconds and not _hidden:
            self._printed = now
            left = (self._steps - step) * self._tokens_per_step / rate
            print(
                f"{self._label}: step {step}/{self._steps}, loss {loss:.3f}, {rate:,.0f} tokens/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def counting() -> Iterator[Counters]:
    """Show the progress of the steps of a workflow on stderr within this context.

    Yields:
        A function that creates a counter from the label of a step.
    """
    if _hidden:
        yield uncounted
        return
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _line_counter
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:

        def bar_counter(label: str) -> Counter:
            task = progress.add_task(label, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield bar_counter


def uncounted(label: str) -> Counter:  # noqa: ARG001  # has the type Counters
    """Create a counter that shows nothing."""
    return lambda done, total: None  # noqa: ARG005


def _line_counter(label: str) -> Counter:
    """Create a counter that prints a line every half minute, with the time left, and one at the end."""
    began = printed = time.monotonic()

    def count(done: int, total: int) -> None:
        nonlocal printed
        if time.monotonic() - printed > _LINE_SECONDS or done == total:
            printed = time.monotonic()
            left = f", about {_left(printed - began, done, total)} left" if done < total else ""
            print(f"{label}: {done}/{total}{left}", file=sys.stderr, flush=True)

    return count


class TimeLeft:
    """Items done of a long step as text, with the time that the rest will take at the same pace.

    Args:
        total: number of items; None if it is unknown.
        clock: seconds, monotonic.

    Example:
        >>> now = iter([0.0, 30.0])
        >>> TimeLeft(24, clock=lambda: next(now)).after(9)
        '9 of 24, about 50 s left'
    """

    def __init__(self, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._began = clock()

    def after(self, done: int) -> str:
        """Text after so many items."""
        if self._total is None:
            return str(done)
        return f"{done} of {self._total}, about {_left(self._clock() - self._began, done, self._total)} left"


def _left(elapsed: float, done: int, total: int) -> str:
    """Time that the rest will take at the same pace, in words."""
    seconds = elapsed * (total - done) / max(done, 1)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
