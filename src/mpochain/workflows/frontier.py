"""Frontier of quality against size: one model compressed to many sizes by several methods, each calibrated once."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression import CompressionReport, compressed_to_each
from mpochain.errors import CheckpointError, RecipeError
from mpochain.language import read_tokens
from mpochain.language.text import ENOUGH_WINDOWS, require_vocabulary
from mpochain.report import provenance
from mpochain.system.files import require_writable
from mpochain.system.locks import locked
from mpochain.system.progress import Counters, uncounted
from mpochain.system.reading import read_bytes
from mpochain.workflows.checks import require_found, require_inputs
from mpochain.workflows.frontier_points import METHODS_DRAWN, OWN_BITS, SIZES, Point, points_of
from mpochain.workflows.inputs import Inputs, evaluate, read_inputs
from mpochain.workflows.json_file import write_json
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.texts import digest

__all__ = ["DENSE", "measure_frontier", "read_frontier"]

logger = logging.getLogger(__name__)

DENSE = "dense"
"""Name of the record of the dense model."""

FORMAT = 1

_FIELDS = {"format", "name", "setting", "perplexity", "provenance"}
_LONGEST = 64 << 20  # bytes of a record


def measure_frontier(
    recipe: Recipe,
    out: Path,
    *,
    sizes: Sequence[float] = SIZES,
    methods: Sequence[str] = METHODS_DRAWN,
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
        others: further texts to evaluate on, of another kind.
        counters: returns the progress counter for a label.

    Raises:
        RecipeError: a text or the model is missing, or an evaluation text is also used for calibration.
        ArgumentError: see :func:`points_of`.
        CheckpointError: a record is damaged, or belongs to another setting.
        OutputError: the folder is not writable, or another process measures into it.
        MPOError: a step fails.
    """
    points = points_of(methods, sizes)
    if recipe.evaluation is None or recipe.calibration is None:
        raise RecipeError("a frontier needs a calibration text and an evaluation text (--calibration, --evaluate)")
    _require_others(recipe, others)
    require_inputs(recipe, ("calibration", "evaluation"))
    setting = _setting(recipe, others)
    require_writable(out)
    with locked(out / ".mpochain-lock", f"the frontier in {out}"):
        missing = [point for point in points if not _is_finished(out, point.name, setting | _of_point(point))]
        if not missing and _is_finished(out, DENSE, setting):
            return
        inputs = read_inputs(recipe, "calibration", "evaluation")
        model = inputs.language.model
        tokens = {file.name: read_tokens(file, inputs.language.tokenizer) for file in others}
        for text in tokens.values():
            require_vocabulary(model, text)

        def measured(label: str) -> dict[str, Any]:
            return {
                "perplexity": _perplexities(inputs, model, tokens, label, counters),
                "provenance": provenance(threads=torch.get_num_threads(), commit=True),
            }

        if not _is_finished(out, DENSE, setting):
            size = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
            _write(out, DENSE, setting, size | measured(DENSE))
        moments = out / "moments"
        for (method, _), group in groupby(missing, key=lambda point: (point.method, point.settings)):
            sized = list(group)
            logger.info("%s at %s", method, ", ".join(f"{point.bits:g} bits" for point in sized))
            reports = compressed_to_each(
                model,
                [point.budget for point in sized],
                calibration=inputs.calibration,
                targets=recipe.targets,
                ignore=recipe.ignore,
                method=sized[0].chosen_method(),
                seed=recipe.seed,
                moments=moments,
            )
            for point, report in zip(sized, reports, strict=True):
                record = {**_of_report(point, report), **measured(point.name)}
                _write(out, point.name, setting | _of_point(point), record)
        # They are as large as several models, and every point has its record.
        shutil.rmtree(moments, ignore_errors=True)


def read_frontier(out: Path) -> dict[str, dict[str, Any]]:
    """Read the records of a frontier by name.

    Raises:
        CheckpointError: a record is damaged.
    """
    records = (_read(file) for file in sorted(out.glob("*.json")))
    return {record["name"]: record for record in records}


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
    return setting


def _of_point(point: Point) -> dict[str, Any]:
    return {"method": point.method, "bits": point.bits, "budget": point.budget, "settings": dict(point.settings)}


def _of_report(point: Point, report: CompressionReport) -> dict[str, Any]:
    """Size and prediction of one point."""
    weights = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    stored = report.bytes_after
    if isinstance(point.budget, float):
        # The numbers of methods without few bits are counted in 16 bits; their indices count as they are.
        stored -= round(report.parameters_after * (report.bytes_before / weights - OWN_BITS // 8))
    increases = [layer.loss_increase for layer in report.layers]
    return {
        "layers": {
            "weights": weights,
            "bytes": stored,
            "bits": 8 * stored / weights,
            "macs": sum(layer.macs_after for layer in report.layers)
            / sum(layer.macs_before for layer in report.layers),
            "forms": dict(Counter(layer.form for layer in report.layers)),
        },
        "predicted": None if None in increases else sum(increase for increase in increases if increase is not None),
        "seconds": report.seconds,
    }


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


def _is_finished(out: Path, name: str, setting: Mapping[str, Any]) -> bool:
    file = out / f"{name}.json"
    if not file.exists():
        return False
    if _read(file)["setting"] != setting:
        raise CheckpointError(f"{file} belongs to another model, text or setting; remove it, or name another folder")
    return True


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_bytes(file, _LONGEST).decode())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); remove it and measure the frontier again") from error
    if not isinstance(record, dict) or not set(record) >= _FIELDS or record["format"] != FORMAT:
        raise CheckpointError(f"{file} is damaged or has another format; remove it and measure the frontier again")
    return record


def _write(out: Path, name: str, setting: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    write_json(out / f"{name}.json", {"format": FORMAT, "name": name, "setting": dict(setting), **record})
