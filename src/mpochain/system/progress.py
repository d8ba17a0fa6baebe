"""Progress of long runs on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TrainingProgress", "counting", "say"]

# Seconds between two lines where there is no terminal.
_LINE_SECONDS = 30.0


class TrainingProgress:
    """Loss, tokens per second and time left of a training run.

    Args:
        label: what is trained.
        steps: total number of steps.
        start: steps done in an earlier session.
        tokens_per_step: for the rate.
        line_seconds: without a terminal, a plain line this often.
    """

    def __init__(
        self, label: str, steps: int, *, start: int = 0, tokens_per_step: int, line_seconds: float = _LINE_SECONDS
    ) -> None:
        self._label, self._steps, self._start = label, steps, start
        self._tokens_per_step, self._line_seconds = tokens_per_step, line_seconds
        console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> TrainingProgress:
        self._began = time.monotonic()
        self._spoke = -math.inf  # the first step is told at once: it says that work has begun
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                self._label, total=self._steps, completed=self._start, loss=float("nan"), rate=0.0
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float) -> None:
        """Report that ``step`` steps are done."""
        now = time.monotonic()
        rate = (step - self._start) * self._tokens_per_step / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss, rate=rate)
        elif now - self._spoke >= self._line_seconds:
            self._spoke = now
            left = (self._steps - step) * self._tokens_per_step / rate
            print(
                f"{self._label}: step {step}/{self._steps}, loss {loss:.3f}, {rate:,.0f} tokens/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def say(line: str) -> None:
    """A line about what is being done."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def counting() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """What makes counters from labels, for the time of a job."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:

        def line(label: str) -> Callable[[int, int], None]:
            said = time.monotonic()

            def count(done: int, total: int) -> None:
                nonlocal said
                if time.monotonic() - said > _LINE_SECONDS or done == total:
                    said = time.monotonic()
                    say(f"{label}: {done}/{total}")

            return count

        yield line
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as shown:

        def bar(label: str) -> Callable[[int, int], None]:
            task = shown.add_task(label, total=None)
            return lambda done, total: shown.update(task, completed=done, total=total)

        yield bar
