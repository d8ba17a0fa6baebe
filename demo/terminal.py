"""The result of the demo on the terminal: a table, the generated texts, and where to go on."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo.run import Outcome, command_for
from mpochain.workflows import Compressed, Recipe

__all__ = ["print_outcome"]

_MEGA = 1e6


def print_outcome(outcome: Outcome, recipe: Recipe, seconds: float) -> None:
    """Print what matters most first: size, quality and speed of both models, then texts, then files.

    Args:
        outcome: of :func:`demo.run.run`.
        recipe: of the demo.
        seconds: that all of it took.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(outcome))
    console.print(_notes(outcome.result))
    for text in outcome.result.texts:
        console.print(f"\n[bold]{escape(text.prompt)}[/bold]")
        console.print(f"  dense       {escape(_line(text.dense))}")
        console.print(f"  compressed  {escape(_line(text.compressed))}")
    console.print(f"\nTook {seconds / 60:.1f} minutes. Report: {_name(outcome.report)}")
    console.print(f"Compressed model: {_name(outcome.model)}")
    console.print("\nThe same for your own model and texts:")
    own = recipe.model_copy(update={"model": "MODEL", "prompts": ()})
    if own.calibration is not None and own.evaluation is not None:
        own = own.model_copy(
            update={
                "calibration": own.calibration.model_copy(update={"text": Path("TYPICAL_TEXT")}),
                "evaluation": own.evaluation.model_copy(update={"text": Path("OTHER_TEXT")}),
            }
        )
    console.print(f"  {escape(command_for(own, 'FOLDER'))}")


def _table(outcome: Outcome) -> Table:
    result = outcome.result
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    for title in ("dense", "compressed", "ratio"):
        table.add_column(title, justify="right")

    def row(name: str, dense: float, compressed: float, style: str, unit: str = "") -> None:
        table.add_row(name, format(dense, style) + unit, format(compressed, style) + unit, f"{compressed / dense:.2f}")

    if result.before is not None and result.after is not None:
        row("perplexity (lower is better)", result.before.perplexity, result.after.perplexity, ".2f")
    parameters, bytes_dense = result.parameters, result.model_bytes[0]
    row("parameters", parameters[0] / _MEGA, parameters[1] / _MEGA, ",.1f", " M")
    row("in memory, as float32", bytes_dense / _MEGA, result.model_bytes[1] / _MEGA, ",.0f", " MB")
    # The dense model takes on disk what it takes in memory: the same numbers and some KB of names.
    row("on disk, as float32", bytes_dense / _MEGA, outcome.weights / _MEGA, ",.0f", " MB")
    if result.speed is not None:
        dense, compressed = result.speed["dense"], result.speed["compressed"]
        row(f"reading {dense.prompt} tokens (prefill)", dense.prefill * 1e3, compressed.prefill * 1e3, ",.0f", " ms")
        row("writing one token (decode)", dense.decode * 1e3, compressed.decode * 1e3, ",.1f", " ms")
    return table


def _notes(result: Compressed) -> str:
    lines = []
    if result.after is not None:
        lines.append(
            f"Perplexity of {result.after.tokens:,} tokens of text that the compression has not seen. "
            f"{len(result.report.layers)} layers were compressed, by {result.report.method}."
        )
    if result.speed is not None:
        lines.append(f"Times are medians of {result.speed['dense'].rounds} rounds, dense and compressed in turn.")
    return "\n".join(lines)


def _line(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


def _name(path: Path) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
