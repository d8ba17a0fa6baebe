"""Result of a compression as text for the terminal: size, quality, speed and memory first, then the layers by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpochain.report.table import Column, text_within
from mpochain.system.sizes import megabytes, millions

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpochain.language import Perplexity
    from mpochain.workflows import Compressed

__all__ = ["outcome"]

_COLUMNS = (
    Column("what", ""),
    Column("dense", "dense"),
    Column("compressed", "compressed"),
    Column("ratio", "ratio", ".2f"),
)


def outcome(result: Compressed, width: int) -> str:
    """The result in lines of at most ``width`` characters where they are part of a table."""
    from mpochain.compression.summary import wrapped

    rows: list[dict[str, Any]] = []

    def row(what: str, dense: str, compressed: str, ratio: float | None) -> None:
        rows.append({"what": what, "dense": dense, "compressed": compressed, "ratio": ratio})

    before, after = result.file_bytes
    if after is not None:
        row(
            "file of weights",
            "-" if before is None else megabytes(before),
            megabytes(after),
            after / before if before else None,
        )
    before, after = result.model_bytes
    row("in memory", megabytes(before), megabytes(after), after / before)
    before, after = result.parameters
    row("parameters", millions(before), millions(after), after / before)
    if result.after is not None:
        _quality(row, "perplexity", result.before, result.after)
    for name, measured in result.also.items():
        _quality(row, f"  on {name}", *measured)
    if result.speed is not None:
        times, small = result.speed["dense"], result.speed["compressed"]
        prompt, token = f"prompt of {times.prompt} tokens", "one generated token"
        row(prompt, _milliseconds(times.prefill), _milliseconds(small.prefill), small.prefill / times.prefill)
        row(token, _milliseconds(times.decode), _milliseconds(small.decode), small.decode / times.decode)
    lines = [text_within(_COLUMNS, rows, width)]
    if result.after is not None and result.windows is not None:
        used, every = result.windows
        lines.append(
            f"perplexity on {used:,} of {every:,} windows of {result.after.window}, {result.after.tokens:,} tokens"
        )
    peak = "" if result.peak_bytes is None else f"; peak memory {megabytes(result.peak_bytes)}"
    lines.append(f"compressed in {result.report.seconds:,.0f} s{peak}")
    lines += [wrapped(f"no {what}: {reason}", width) for what, reason in result.problems.items()]
    return "\n".join([*lines, "", result.report.summary(width)])


def _quality(
    row: Callable[[str, str, str, float | None], None], what: str, dense: Perplexity | None, compressed: Perplexity
) -> None:
    row(
        what,
        "-" if dense is None else f"{dense.perplexity:.2f}",
        f"{compressed.perplexity:.2f}",
        None if dense is None else compressed.perplexity / dense.perplexity,
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"
