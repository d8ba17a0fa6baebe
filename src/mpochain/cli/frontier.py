"""``mpochain frontier``: quality against size, one model at many sizes by several methods."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import (
    CalibrationText,
    CalibrationWindows,
    Device,
    Dtype,
    EvaluationText,
    EvaluationWindows,
    FurtherTexts,
    Ignore,
    Json,
    RecipeFile,
    Seed,
    Source,
    Targets,
    Window,
    evaluation_section,
    print_json,
    quiet_transformers,
)
from mpochain.system.progress import counting

__all__ = ["frontier"]

logger = logging.getLogger(__name__)


def frontier(
    model: Source = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; finished points in it are kept.")] = Path(
        "mpochain-frontier"
    ),
    recipe: RecipeFile = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Bits per weight of the layers, with commas; by default 8,6,5,4,3.5,3.25,3,2.5,2."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method to draw, by name; repeatable. By default auto, gptq, rtn and svd_llm."),
    ] = None,
    refine: Annotated[
        list[str] | None,
        typer.Option(
            help="Point at which the blocks are refined as well, such as auto-3, which makes another point; repeatable."
        ),
    ] = None,
    calibration: CalibrationText = None,
    calibration_windows: CalibrationWindows = None,
    window: Window = None,
    evaluate: EvaluationText = None,
    evaluate_windows: EvaluationWindows = None,
    also: FurtherTexts = None,
    target: Targets = None,
    ignore: Ignore = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = None,
    page: Annotated[
        Path | None, typer.Option(help="Markdown file for the results; by default frontier.md in the folder.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Perplexity against size",
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Only write the page again from the finished points.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw perplexity against size: compress a model to many sizes by several methods, each calibrated once.

    After an interruption, the same command resumes; finished points are kept.
    """
    from mpochain.report.figures import require_matplotlib
    from mpochain.workflows import read_recipe
    from mpochain.workflows.frontier import measure_frontier
    from mpochain.workflows.frontier_page import write_frontier
    from mpochain.workflows.frontier_points import METHODS_DRAWN, SIZES
    from mpochain.workflows.frontier_records import read_frontier

    require_matplotlib()
    if not page_only:
        settings = read_recipe(
            recipe,
            {
                "model": model,
                "targets": tuple(target) if target else None,
                "ignore": tuple(ignore) if ignore else None,
                "dtype": dtype,
                "device": device,
                "seed": seed,
                "calibration": {
                    "text": None if calibration is None else str(calibration),
                    "windows": calibration_windows,
                },
                "evaluation": evaluation_section(evaluate, evaluate_windows, also),
            },
            window=window,
        )
        with quiet_transformers(), counting() as counters:
            try:
                measure_frontier(
                    settings,
                    out,
                    sizes=SIZES if sizes is None else _numbers(sizes),
                    methods=method or METHODS_DRAWN,
                    refine=refine or (),
                    counters=counters,
                )
            except KeyboardInterrupt:
                logger.info("interrupted; the same command resumes from here")
                raise typer.Exit(130) from None
    files = write_frontier(out, page or out / "frontier.md", title=title)
    if as_json:
        print_json({"folder": str(out), "files": [str(file) for file in files], "points": read_frontier(out)})
        return
    for file in files:
        print(file)


def _numbers(sizes: str) -> list[float]:
    """Sizes of an option, numbers with commas between them.

    Example:
        >>> _numbers("4, 3.25")
        [4.0, 3.25]
    """
    from mpochain.errors import ArgumentError

    try:
        return [float(size) for size in sizes.split(",")]
    except ValueError:
        raise ArgumentError(f"--sizes takes numbers with commas between them, such as 4,3.25, got {sizes!r}") from None
