"""``mpochain compare``: several methods at several budgets on one model, with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import quiet_transformers
from mpochain.system.progress import say

__all__ = ["compare"]


def compare(
    recipe: Annotated[Path, typer.Argument(help="YAML file with the sections comparison and evaluation.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; what finished there is kept.")] = Path(
        "mpochain-comparison"
    ),
    model: Annotated[str | None, typer.Option(help="In place of the recipe's model.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Runs to make, by their names; all if not given.")] = None,
    page: Annotated[Path | None, typer.Option(help="Markdown file to write; comparison.md in the folder.")] = None,
    page_only: Annotated[bool, typer.Option("--page-only", help="Run nothing, write the page again.")] = False,
) -> None:
    """Compare methods at several budgets, healed or not; write tables, figures and an HTML page."""
    from mpochain.errors import RecipeError
    from mpochain.report.figures import require_matplotlib
    from mpochain.workflows import read_recipe
    from mpochain.workflows.comparing import cells
    from mpochain.workflows.comparing import compare as run
    from mpochain.workflows.comparison_page import write_comparison

    require_matplotlib()
    if not page_only:
        wanted = read_recipe(recipe, {"model": model})
        unknown = sorted(set(only or ()) - set(cells(wanted)))
        if unknown:
            raise RecipeError(f"{recipe} has no run {unknown[0]!r}; it has {', '.join(cells(wanted))}")
        try:
            with quiet_transformers():
                run(wanted, out, only=lambda name: not only or name in only, log=say)
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None
    for file in write_comparison(out, page or out / "comparison.md"):
        print(file)
