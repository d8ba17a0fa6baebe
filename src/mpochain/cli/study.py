"""``mpochain study``: the paper's experiment, controls and times, and a page of it all."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from mpochain.system.allocator import keep_freed_memory

__all__ = ["study"]

# Rows that an error names.
_NEAREST = 5


def study(
    preset: Annotated[list[str] | None, typer.Option(help="quick, paper or best; give it again for more.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; what finished there is kept.")] = Path(
        "mpochain-study"
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="Rows to run, by their name, errors or times; all if not given.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Markdown file to write; study.md in the folder.")] = None,
    page_only: Annotated[bool, typer.Option("--page-only", help="Run nothing, write the page again.")] = False,
    corpus: Annotated[Path | None, typer.Option(help="Text file; otherwise found as the README says.")] = None,
) -> None:
    """Rerun the PicoGPT study: tables, figures and one HTML page. After Ctrl-C the same command goes on."""
    # The profiler that counts memory would write to the terminal, at levels up to 5.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")

    from mpochain import picogpt
    from mpochain.errors import SpecError
    from mpochain.picogpt.study import MEASURES, run_preset
    from mpochain.picogpt.study import preset as runs_of
    from mpochain.picogpt.study.page import write_page
    from mpochain.report.figures import require_matplotlib
    from mpochain.system.files import require_writable

    if page_only and (preset or only or corpus):
        raise SpecError(
            "--page-only writes what the folder holds and runs nothing: leave --preset, --only, --corpus out"
        )
    require_writable(out)
    require_matplotlib()
    if not page_only:
        keep_freed_memory()
        text = picogpt.load_corpus(corpus)
        print(f"corpus: {text}", file=sys.stderr)
        names = preset or ["quick"]
        known = [*dict.fromkeys(run.row for name in names for run in runs_of(name, len(text.vocabulary))), *MEASURES]
        for row in only or ():
            if row not in known:
                near = ", ".join(get_close_matches(row, known, n=_NEAREST, cutoff=0.0))
                raise SpecError(f"{', '.join(names)} has no row {row!r} among its {len(known)}; most like it: {near}")
        try:
            for name in names:
                run_preset(
                    name,
                    text,
                    out,
                    only=only or (),
                    log=lambda line: print(line, file=sys.stderr, flush=True),
                )
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(130) from None
    for file in write_page(out, page or out / "study.md"):
        print(file)
