"""Records of a frontier: one JSON file per point, measured once and kept."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpochain.compression import CompressionReport, compressed_to_each
from mpochain.errors import CheckpointError
from mpochain.report import provenance
from mpochain.system.locks import locked
from mpochain.system.reading import read_bytes
from mpochain.workflows.frontier_points import OWN_BITS, Point
from mpochain.workflows.json_file import write_json

__all__ = ["DENSE", "is_measured", "locked_frontier", "measure_points", "read_frontier"]

logger = logging.getLogger(__name__)

DENSE = "dense"
"""Name of the record of the dense model."""

FORMAT = 1

_FIELDS = {"format", "name", "setting", "provenance"}
_LONGEST = 64 << 20  # bytes of a record


def locked_frontier(out: Path) -> AbstractContextManager[object]:
    """Lock of a folder of records, held while they are measured.

    Raises:
        OutputError: another process measures into the folder.
    """
    return locked(out / ".mpochain-lock", f"the frontier in {out}")


def is_measured(out: Path, points: Sequence[Point], setting: Mapping[str, Any], quality: str = "perplexity") -> bool:
    """Whether the dense model and all points have a record.

    Args:
        out: folder of the records.
        points: the points.
        setting: what all records depend on besides their point.
        quality: name of the field that holds the measured quality.

    Raises:
        CheckpointError: a record is damaged, or belongs to another setting.
    """
    finished = [_is_finished(out, point.name, {**setting, **_of_point(point)}, quality) for point in points]
    return all([*finished, _is_finished(out, DENSE, setting, quality)])


def measure_points(
    model: nn.Module,
    points: Sequence[Point],
    out: Path,
    setting: Mapping[str, Any],
    measure: Callable[[str], Any],
    *,
    quality: str = "perplexity",
    calibration: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    seed: int = 0,
) -> None:
    """Measure the dense model and every point that have no record yet; each method is calibrated once.

    Args:
        model: dense model; it is dense again afterwards.
        points: the points, those that one calibration serves next to each other.
        out: folder of the records.
        setting: what all records depend on besides their point.
        measure: returns the quality of the model as it is then, ready for JSON; its argument is the name of the point.
        quality: name of the field that holds what ``measure`` returns.
        calibration: see :func:`mpochain.compress`, as the arguments after it.
        held_out: batches that decide which state of a refined block is kept.
        targets: layers to compress.
        ignore: layers to leave out.
        seed: seed of the sampled labels.

    Raises:
        CheckpointError: a record is damaged, or belongs to another setting.
        OutputError: a record cannot be written.
        MPOError: a compression fails.
    """

    def measured(name: str) -> dict[str, Any]:
        return {
            quality: measure(name),
            "provenance": provenance(threads=torch.get_num_threads(), commit=True),
        }

    if not _is_finished(out, DENSE, setting, quality):
        size = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        _write(out, DENSE, setting, size | measured(DENSE))
    missing = [point for point in points if not _is_finished(out, point.name, {**setting, **_of_point(point)}, quality)]
    moments = out / "moments"
    for (method, _), group in groupby(missing, key=lambda point: (point.method, point.settings)):
        sized = list(group)
        plain = {point.budget: point for point in sized if not point.refined}
        refined = {point.budget: point for point in sized if point.refined}
        logger.info("%s at %s", method, ", ".join(f"{bits:g} bits" for bits in dict.fromkeys(p.bits for p in sized)))
        reports = compressed_to_each(
            model,
            [*(plain | refined)],
            calibration=calibration,
            targets=targets,
            ignore=ignore,
            method=sized[0].chosen_method(),
            seed=seed,
            refine=refined,
            held_out=held_out,
            moments=moments,
        )
        passed: set[float | str] = set()
        for report in reports:
            assert report.budget is not None
            # The first report of a budget is before refinement; it may have its record from an earlier run.
            point = (refined if report.budget in passed else plain).get(report.budget)
            passed.add(report.budget)
            if point is not None:
                record = {**_of_report(point, report), **measured(point.name)}
                _write(out, point.name, {**setting, **_of_point(point)}, record)
    # They are as large as several models, and every point has its record.
    shutil.rmtree(moments, ignore_errors=True)


def read_frontier(out: Path, quality: str = "perplexity") -> dict[str, dict[str, Any]]:
    """Read the records of a frontier by name.

    Args:
        out: folder of the records.
        quality: name of the field that holds the measured quality.

    Raises:
        CheckpointError: the dense model has no record, or a record is damaged.
    """
    records = (_read(file, quality) for file in sorted(out.glob("*.json")))
    by_name = {record["name"]: record for record in records}
    if DENSE not in by_name:
        raise CheckpointError(f"{out} contains no record of the dense model; measure the frontier first")
    return by_name


def _of_point(point: Point) -> dict[str, Any]:
    named = {"method": point.method, "bits": point.bits, "budget": point.budget, "settings": dict(point.settings)}
    return named | ({"refined": True} if point.refined else {})


def _of_report(point: Point, report: CompressionReport) -> dict[str, Any]:
    """Size and prediction of one point."""
    weights = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    stored = report.bytes_after
    if isinstance(point.budget, float):
        # The numbers of methods without few bits are counted in 16 bits; their indices count as they are.
        stored -= round(report.parameters_after * (report.bytes_before / weights - OWN_BITS // 8))
    # The prediction is of the compression alone.
    increases = [None if point.refined else layer.loss_increase for layer in report.layers]
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


def _is_finished(out: Path, name: str, setting: Mapping[str, Any], quality: str) -> bool:
    file = out / f"{name}.json"
    if not file.exists():
        return False
    if _read(file, quality)["setting"] != setting:
        raise CheckpointError(f"{file} belongs to another model, text or setting; remove it, or name another folder")
    return True


def _read(file: Path, quality: str) -> dict[str, Any]:
    try:
        record = json.loads(read_bytes(file, _LONGEST).decode())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); remove it and measure the frontier again") from error
    if not isinstance(record, dict) or not set(record) >= {*_FIELDS, quality} or record["format"] != FORMAT:
        raise CheckpointError(f"{file} is damaged or has another format; remove it and measure the frontier again")
    return record


def _write(out: Path, name: str, setting: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    write_json(out / f"{name}.json", {"format": FORMAT, "name": name, "setting": dict(setting), **record})
