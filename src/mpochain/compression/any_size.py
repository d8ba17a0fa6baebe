"""One pass over data for all sizes: the fits of every layer are kept, and any budget is cut from them in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mpochain.compression.methods.any_size import AnySize, Keeping, finish_fits, is_of_fits, require_place_for_fits
from mpochain.compression.pipeline import compress
from mpochain.compression.records import CompressionReport
from mpochain.compression.statistics.passes import require_batches
from mpochain.system.folders import replaced_together
from mpochain.system.paths import as_path

__all__ = ["cut", "score"]

# Every layer stays dense, so that none is built.
_ANY_BUDGET = "0.0001% error"


def score(
    model: nn.Module,
    folder: str | Path,
    *,
    calibration: Iterable[Any],
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> Path:
    """Fit every layer of a model at all ranks, and keep the fits, from which :func:`cut` makes a model of any size.

    The fits are those of ``compress(method="interpolative")``, in float32: about as large as the model.

    Args:
        model: not changed.
        folder: a new or empty folder for the fits, or one of earlier fits, which are replaced.
        calibration: see :func:`mpochain.compress`.
        targets: see :func:`mpochain.compress`.
        ignore: see :func:`mpochain.compress`.
        loss: see :func:`mpochain.compress`.
        seed: see :func:`mpochain.compress`.

    Returns:
        The folder.

    Raises:
        ArgumentError: data are missing, or see :func:`mpochain.compress`.
        OutputError: the folder holds something else, or cannot be written.

    Example:
        >>> import copy, torch
        >>> from tempfile import TemporaryDirectory
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> with TemporaryDirectory() as folder:
        ...     fits = score(model, f"{folder}/fits", calibration=[torch.randn(100, 32)])
        ...     sizes = [cut(copy.deepcopy(model), fits, budget).parameters_after for budget in (0.8, 0.4)]
        >>> sizes[0] > sizes[1]
        True
    """
    place = as_path(folder, "folder")
    batches = require_batches(calibration, "calibration")
    require_place_for_fits(place)
    with replaced_together(place, outdated=is_of_fits) as new:
        way = Keeping(folder=new)
        report = compress(
            model,
            _ANY_BUDGET,
            calibration=batches,
            targets=targets,
            ignore=ignore,
            loss=loss,
            method=way,
            seed=seed,
            dry_run=True,
        )
        finish_fits(new, list(way.fitted), {"loss": report.loss, "provenance": report.provenance})
    return place


def cut(
    model: nn.Module,
    folder: str | Path,
    budget: float | str,
    *,
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    speed: float | str | None = None,
) -> CompressionReport:
    """Compress a model in place to any budget from the fits of :func:`score`, without data, in seconds.

    The result is that of ``compress(model, budget, method="interpolative")`` with the data of the fits, to the rounding
    of float32.

    Args:
        model: the dense model that was fitted.
        folder: the folder of the fits.
        budget: see :func:`mpochain.compress`.
        targets: see :func:`mpochain.compress`; only layers that were fitted.
        ignore: see :func:`mpochain.compress`.
        speed: see :func:`mpochain.compress`.

    Returns:
        See :func:`mpochain.compress`.

    Raises:
        CheckpointError: the folder has no fits, or they are damaged or of other weights.
        ArgumentError: the budget is out of reach, or a layer was not fitted.

    Example:
        See :func:`score`.
    """
    way = AnySize(folder=as_path(folder, "folder"))
    return compress(model, budget, targets=targets, ignore=ignore, speed=speed, method=way)
