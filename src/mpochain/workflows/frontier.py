"""Frontier of quality against size: one model compressed to many sizes by several methods, each calibrated once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mpochain.errors import RecipeError
from mpochain.language import read_tokens
from mpochain.language.text import ENOUGH_WINDOWS, require_vocabulary
from mpochain.system.files import require_writable
from mpochain.system.progress import Counters, uncounted
from mpochain.workflows.checks import require_found, require_inputs
from mpochain.workflows.frontier_points import METHODS_DRAWN, SIZES, points_of
from mpochain.workflows.frontier_records import is_measured, locked_frontier, measure_points
from mpochain.workflows.inputs import ENOUGH_CALIBRATION, Inputs, evaluate, read_inputs
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.texts import digest

__all__ = ["measure_frontier"]

logger = logging.getLogger(__name__)


def measure_frontier(
    recipe: Recipe,
    out: Path,
    *,
    sizes: Sequence[float] = SIZES,
    methods: Sequence[str] = METHODS_DRAWN,
    refine: Sequence[str] = (),
    others: Sequence[Path] = (),
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
        others: further texts to evaluate on, of another kind.
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
    _require_others(recipe, others)
    require_inputs(recipe, ("calibration", "evaluation"))
    setting = _setting(recipe, others)
    require_writable(out)
    with locked_frontier(out):
        if is_measured(out, points, setting):
            return
        inputs = read_inputs(recipe.model_copy(update={"refine": bool(refine)}), "calibration", "evaluation")
        model = inputs.language.model
        tokens = {file.name: read_tokens(file, inputs.language.tokenizer) for file in others}
        for text in tokens.values():
            require_vocabulary(model, text)
        measure_points(
            model,
            points,
            out,
            setting,
            lambda name: _perplexities(inputs, model, tokens, name, counters),
            calibration=inputs.calibration,
            held_out=inputs.held_out or None,
            targets=recipe.targets,
            ignore=recipe.ignore,
            seed=recipe.seed,
        )


def _require_others(recipe: Recipe, others: Sequence[Path]) -> None:
    require_found({}, {f"text {number}": file for number, file in enumerate(others, 2)})
    names = [file.name for file in (recipe.evaluation.text, *others)] if recipe.evaluation is not None else []
    if len(set(names)) < len(names):
        raise RecipeError(f"two texts have the same file name, got {', '.join(names)}; rename one")
    seen = {digest(section.text): use for use, section in _sections(recipe)}
    for file in others:
        use = seen.get(digest(file))
        if use is not None:
            raise RecipeError(f"{file} is also the text for {use}; evaluate on another text")


def _sections(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for use in ("calibration", "evaluation"):
        yield use, getattr(recipe, use)


def _setting(recipe: Recipe, others: Sequence[Path]) -> dict[str, Any]:
    """What a record depends on besides its point; texts are known by name and content."""
    setting: dict[str, Any] = {
        "model": Path(recipe.model).name,
        **recipe.model_dump(mode="json", include={"dtype", "targets", "ignore", "seed", "calibration", "evaluation"}),
        "others": [f"{file.name}, sha256 {digest(file)[:16]}" for file in others],
    }
    for use, section in _sections(recipe):
        setting[use]["text"] = f"{section.text.name}, sha256 {digest(section.text)[:16]}"
    if recipe.evaluation is not None and recipe.evaluation.windows is None:
        setting["evaluation"]["windows"] = f"at most {ENOUGH_WINDOWS}"
    if recipe.calibration is not None and recipe.calibration.windows is None:
        setting["calibration"]["windows"] = ENOUGH_CALIBRATION
    return setting


def _perplexities(
    inputs: Inputs, model: nn.Module, others: Mapping[str, Tensor], label: str, counters: Counters
) -> dict[str, Any]:
    """Perplexity on every evaluation text, by its file name."""
    evaluation = inputs.recipe.evaluation
    assert evaluation is not None
    assert inputs.evaluation is not None
    result = {}
    for name, tokens in {evaluation.text.name: inputs.evaluation, **others}.items():
        counter = counters(f"perplexity, {label}, {name}")
        result[name] = evaluate(model, tokens, evaluation, counter).as_dict()
        logger.info("perplexity of %s on %s: %.2f", label, name, result[name]["perplexity"])
    return result
