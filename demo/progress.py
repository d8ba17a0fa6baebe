"""Progress of the whole demo on stderr, with the time left: one bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mpochain.system.log_lines import log_lines
from mpochain.system.progress import Counter, Counters

__all__ = ["Timeline", "showing"]

# Seconds between two lines where stderr is no terminal.
_LINE_SECONDS = 20.0


class Timeline:
    """How far a sequence of steps has come, and how long the rest will take at the same pace.

    Args:
        steps: in their order, by label, with the seconds that each took where it was measured. Only their ratios
            count: the pace is that of this run.
        clock: seconds, monotonic.

    Example:
        >>> now = iter([0.0, 30.0])
        >>> timeline = Timeline({"read": 10, "compress": 90}, clock=lambda: next(now))
        >>> timeline.reach("compress", 1, 3)
        >>> timeline.share, timeline.seconds_left()  # 40 of 100 took 30 seconds
        (0.4, 45.0)
    """

    def __init__(self, steps: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._clock = dict(steps), clock
        self._total = sum(self._steps.values())
        self._began = clock()
        self.share, self.step = 0.0, next(iter(self._steps))

    def reach(self, step: str, done: int, total: int) -> None:
        """Note that a step is ``done / total`` done, and those before it completely; other labels count nothing."""
        if step not in self._steps:
            return
        labels = list(self._steps)
        before = sum(self._steps[label] for label in labels[: labels.index(step)])
        share = (before + self._steps[step] * done / max(total, 1)) / self._total
        if share >= self.share:
            self.share, self.step = share, step

    def seconds_left(self) -> float | None:
        """Seconds until all is done; None before anything is."""
        if not self.share:
            return None
        return (self._clock() - self._began) * (1 - self.share) / self.share

    def __str__(self) -> str:
        left = self.seconds_left()
        return "" if left is None else f"about {_duration(left)} left"


@contextmanager
def showing(steps: Mapping[str, float]) -> Iterator[Counters]:
    """Show the progress of these steps, and what the library logs, for the time of the context.

    Yields:
        Makes the counter of a step, from its label.
    """
    timeline = Timeline(steps)
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        with log_lines():
            yield lambda label: _line_counter(timeline, label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %  {task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress, log_lines(progress.console.print):
        task = progress.add_task(timeline.step, total=1.0, left="")

        def bar_counter(label: str) -> Counter:
            def count(done: int, total: int) -> None:
                timeline.reach(label, done, total)
                progress.update(task, completed=timeline.share, description=timeline.step, left=str(timeline))

            return count

        yield bar_counter


def _line_counter(timeline: Timeline, label: str) -> Counter:
    printed = time.monotonic()

    def count(done: int, total: int) -> None:
        nonlocal printed
        timeline.reach(label, done, total)
        if time.monotonic() - printed > _LINE_SECONDS:
            printed = time.monotonic()
            print(f"{timeline.share:.0%} done, {timeline}: {label}, {done} of {total}", file=sys.stderr, flush=True)

    return count


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
