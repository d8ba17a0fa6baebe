"""``mpochain compare``: comparison of several compression methods at several budgets on one model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import Device, Json, print_json, quiet_transformers

__all__ = ["compare"]

logger = logging.getLogger(__name__)


def compare(
    recipe: Annotated[Path, typer.Argument(help="YAML file with the sections comparison and evaluation.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs; finished runs in it are kept.")] = Path(
        "mpochain-comparison"
    ),
    model: Annotated[str | None, typer.Option(help="Dense model to compress instead of the recipe's.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run to execute, by name; repeatable. By default all.")] = None,
    device: Device = None,
    page: Annotated[
        Path | None, typer.Option(help="Markdown file for the results; by default comparison.md in the folder.")
    ] = None,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Only write the page again from finished runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare compression methods at several budgets, also after finetuning; write a page of tables and figures.

    After an interruption, the same command resumes; finished runs are kept.
    """
    from mpochain.errors import RecipeError
    from mpochain.report.figures import require_matplotlib
    from mpochain.workflows import compare as make_runs
    from mpochain.workflows import read_recipe
    from mpochain.workflows.comparing import run_names
    from mpochain.workflows.comparison_page import write_comparison
    from mpochain.workflows.comparison_records import read_runs

    require_matplotlib()
    if not page_only:
        settings = read_recipe(recipe, {"model": model, "device": device})
        names = run_names(settings)
        unknown = sorted(set(only or ()) - set(names))
        if unknown:
            raise RecipeError(f"--only: {recipe} has no run {unknown[0]!r}; it has {', '.join(names)}")
        try:
            with quiet_transformers():
                make_runs(settings, out, only=lambda name: not only or name in only)
        except KeyboardInterrupt:
            logger.info("interrupted; the same command resumes from here")
            raise typer.Exit(130) from None
    files = write_comparison(out, page or out / "comparison.md")
    if as_json:
        print_json({"folder": str(out), "files": [str(file) for file in files], "runs": read_runs(out)})
        return
    for file in files:
        print(file)
