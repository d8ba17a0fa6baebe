"""Command ``study``: the paper's experiment with controls and times, and a page of the results."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from mpochain.system.allocator import keep_freed_memory

__all__ = ["study"]

# Number of similar rows that an error message lists.
_NEAREST = 5


def study(
    preset: Annotated[list[str] | None, typer.Option(help="quick, paper or best; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs; finished runs in it are kept.")] = Path(
        "mpochain-study"
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="Names of rows to run, or errors or times; by default all.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Markdown file; by default study.md in the folder.")] = None,
    page_only: Annotated[bool, typer.Option("--page-only", help="Only write the page, without runs.")] = False,
    corpus: Annotated[Path | None, typer.Option(help="Text file; the README lists the defaults.")] = None,
) -> None:
    """Rerun the PicoGPT study: tables, figures and one HTML page. After Ctrl-C the same command continues."""
    # At levels up to 5, the profiler that measures memory would write to the terminal.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")

    from mpochain.errors import ArgumentError
    from mpochain.report.figures import require_matplotlib
    from mpochain.system.files import require_writable
    from studies import picogpt
    from studies.picogpt.study import run_preset
    from studies.picogpt.study.page import write_page

    if page_only and (preset or only or corpus):
        raise ArgumentError(
            "--page-only writes the page from the folder's records and runs nothing; leave out --preset, --only and "
            "--corpus"
        )
    require_writable(out)
    require_matplotlib()
    if not page_only:
        keep_freed_memory()
        text = picogpt.load_corpus(corpus)
        print(f"corpus: {text}", file=sys.stderr)
        presets = preset or ["quick"]
        _require_rows(only or (), presets, len(text.vocabulary))
        try:
            for name in presets:
                run_preset(name, text, out, only=only or ())
        except KeyboardInterrupt:
            print("interrupted; the same command continues from here", file=sys.stderr)
            raise typer.Exit(130) from None
    for file in write_page(out, page or out / "study.md"):
        print(file)


def _require_rows(rows: Sequence[str], presets: Sequence[str], vocab_size: int) -> None:
    """Raise ArgumentError for a row that is in none of the presets, and list the most similar rows."""
    from mpochain.errors import ArgumentError
    from studies.picogpt.study import MEASURES
    from studies.picogpt.study import preset as runs_of

    known = [*dict.fromkeys(run.row for name in presets for run in runs_of(name, vocab_size)), *MEASURES]
    for row in rows:
        if row not in known:
            near = ", ".join(get_close_matches(row, known, n=_NEAREST, cutoff=0.0))
            raise ArgumentError(f"{', '.join(presets)} has no row {row!r} among its {len(known)}; similar: {near}")
