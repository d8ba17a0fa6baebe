"""Frontier of quality against size: one model compressed to many sizes by several methods, each calibrated once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mpochain.errors import RecipeError
from mpochain.execution import predicted_plans
from mpochain.language.text import ENOUGH_WINDOWS
from mpochain.system.files import require_writable
from mpochain.system.progress import Counters, uncounted
from mpochain.workflows.checks import require_inputs
from mpochain.workflows.frontier_points import METHODS_DRAWN, SIZES, points_of
from mpochain.workflows.frontier_records import is_measured, locked_frontier, measure_points
from mpochain.workflows.inputs import ENOUGH_CALIBRATION, Inputs, read_inputs
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.texts import identified

__all__ = ["measure_frontier"]

logger = logging.getLogger(__name__)


@predicted_plans()
def measure_frontier(
    recipe: Recipe,
    out: Path,
    *,
    sizes: Sequence[float] = SIZES,
    methods: Sequence[str] = METHODS_DRAWN,
    refine: Sequence[str] = (),
    counters: Counters = uncounted,
) -> None:
    """Measure every point of a frontier that has no record yet.

    The model is read once, and each method is calibrated once for all its sizes.

    Args:
        recipe: recipe with the sections calibration and evaluation; its budget and method are not used.
        out: folder for one JSON file per point; finished points in it are kept.
        sizes: bits per weight of the layers.
        methods: names of methods.
        refine: names of points, such as ``"auto-3"``, at which the blocks are refined too, which makes another point.
        counters: returns the progress counter for a label.

    Raises:
        RecipeError: a text or the model is missing, or an evaluation text is also used for calibration.
        ArgumentError: see :func:`points_of`.
        CheckpointError: a record is damaged, or belongs to another setting.
        OutputError: the folder is not writable, or another process measures into it.
        MPOError: a step fails.
    """
    points = points_of(methods, sizes, refine)
    if recipe.evaluation is None or recipe.calibration is None:
        raise RecipeError("a frontier needs a calibration text and an evaluation text (--calibration, --evaluate)")
    require_inputs(recipe, ("calibration", "evaluation"))
    setting = _setting(recipe)
    require_writable(out)
    with locked_frontier(out):
        if is_measured(out, points, setting):
            return
        inputs = read_inputs(recipe.model_copy(update={"refine": bool(refine)}), "calibration", "evaluation")
        model = inputs.language.model
        measure_points(
            model,
            points,
            out,
            setting,
            lambda name: _perplexities(inputs, model, name, counters),
            calibration=inputs.calibration,
            held_out=inputs.held_out or None,
            targets=recipe.targets,
            ignore=recipe.ignore,
            seed=recipe.seed,
        )


def _sections(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for use in ("calibration", "evaluation"):
        yield use, getattr(recipe, use)


def _setting(recipe: Recipe) -> dict[str, Any]:
    """What a record depends on besides its point; texts are known by name and content."""
    setting: dict[str, Any] = {
        "model": Path(recipe.model).name,
        **recipe.model_dump(mode="json", include={"dtype", "targets", "ignore", "seed", "calibration", "evaluation"}),
    }
    for use, section in _sections(recipe):
        setting[use]["text"] = identified(section.text)
    if recipe.evaluation is not None:
        del setting["evaluation"]["also"]
        setting["others"] = [identified(text) for text in recipe.evaluation.also]
        if recipe.evaluation.windows is None:
            setting["evaluation"]["windows"] = f"at most {ENOUGH_WINDOWS}"
    if recipe.calibration is not None and recipe.calibration.windows is None:
        setting["calibration"]["windows"] = ENOUGH_CALIBRATION
    return setting


def _perplexities(inputs: Inputs, model: nn.Module, label: str, counters: Counters) -> dict[str, Any]:
    """Perplexity on every evaluation text, by its file name."""
    evaluation, first = inputs.recipe.evaluation, inputs.perplexity(model, label, counters)
    assert evaluation is not None
    assert first is not None
    every = {evaluation.text.name: first, **inputs.perplexities_of_also(model, label, counters)}
    return {name: perplexity.as_dict() for name, perplexity in every.items()}
