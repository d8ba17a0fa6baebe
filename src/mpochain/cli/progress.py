"""How far a job has come, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["counting", "say"]

_LINE_SECONDS = 30.0


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
