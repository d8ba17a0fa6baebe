"""Interpolative low rank of any size, from fits that were kept in a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from mpochain.compression.choices import Choices
from mpochain.compression.methods.interpolative import Interpolative, choices_of_projections, judged_fit
from mpochain.compression.methods.method import MethodSettings, Needs
from mpochain.compression.state_files import part_of, read_part, read_sealed, write_part, write_sealed
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Errors, Projections, relative_output_errors
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError, CheckpointError, OutputError
from mpochain.surgery.fingerprint import fingerprint_of_data
from mpochain.system.commit import is_internal
from mpochain.system.faults import output_errors

__all__ = ["AnySize", "Keeping", "finish_fits", "is_of_fits", "require_place_for_fits"]

_INDEX = "fits.json"
_VERSION = 1
# Names that write_part gives.
_PART = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.safetensors")
_UNIT = "nats per token"


class _Folder(MethodSettings):
    folder: Path = Field(description="Folder of the fits.")


class Keeping(Interpolative):
    """Low rank as :class:`Interpolative`, whose fits are kept in a folder; see :func:`mpochain.score`."""

    Settings = _Folder
    name = "interpolative"

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.fitted: dict[str, None] = {}  # names, in order

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """Fit a layer, and write the fit at every rank with its errors."""
        assert moments is not None
        projections, increases = judged_fit(target.weight, moments)
        outputs = relative_output_errors(projections, target.weight, moments.judging)
        tensors = {
            # Half of the memory of float64, and as exact as the layers that are built.
            "left": projections.left.float(),
            "right": projections.right.float(),
            "increases": torch.from_numpy(increases),
            "outputs": torch.from_numpy(outputs),
        }
        self.fitted[target.name] = None
        write_part(self.settings.folder, target.name, tensors, {"weight": fingerprint_of_data([target.weight])})
        return choices_of_projections(target, projections, increases, lambda _: None, _UNIT)


def is_of_fits(name: str) -> bool:
    """Whether a file in a folder of fits is one of them, by its name.

    Example:
        >>> is_of_fits("fits.json"), is_of_fits("4b227777d4dd1fc6-4cf078b0db6f7305.safetensors"), is_of_fits("a.json")
        (True, True, False)
    """
    return name == _INDEX or _PART.fullmatch(name) is not None


def require_place_for_fits(folder: Path) -> None:
    """Refuse a folder with other files than fits, before any work.

    Raises:
        OutputError: it holds one; the message names it.
    """
    with output_errors(folder):
        names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    other = next((name for name in sorted(names) if not is_of_fits(name) and not is_internal(name)), None)
    if other is not None:
        raise OutputError(f"{folder} holds something else than fits, such as {other}; name a new or empty folder")


def finish_fits(folder: Path, names: list[str], described: Mapping[str, Any]) -> None:
    """Record that the fits of all layers are in a folder.

    Args:
        folder: the folder.
        names: names of the layers that were fitted.
        described: where the fits come from, ready for JSON.
    """
    write_sealed(folder / _INDEX, {"version": _VERSION, "layers": names, **described})


class AnySize(Interpolative):
    """Low rank as :class:`Interpolative`, of any size, from the fits of :func:`mpochain.score` and without data.

    Example:
        >>> AnySize(folder="all/fits").needs
        'nothing'
    """

    Settings = _Folder
    needs: Needs = "nothing"
    sets_aside = False

    def check(self, targets: Mapping[str, Target], budget: float | str | None) -> None:  # noqa: ARG002  # of the protocol
        """Refuse layers that were not fitted, before any fit is read.

        Raises:
            CheckpointError: there are no finished fits in the folder, or they are of another version.
            ArgumentError: a layer was not fitted.
        """
        folder = self.settings.folder
        index = read_sealed(folder / _INDEX)
        if index is None or index.get("version") != _VERSION:
            what = "no finished fits" if index is None else f"fits of version {index.get('version')}"
            raise CheckpointError(
                f"{folder} holds {what}; make them with mpochain.score, or mpochain compress --any-size"
            )
        missing = [name for name in targets if name not in index["layers"]]
        if missing:
            raise ArgumentError(
                f"{folder} has no fit of {missing[0]} ({len(missing)} such layers of {len(targets)}); name the layers "
                "that were fitted as targets, or fit these too"
            )

    def prepare(self, target: Target, moments: Moments | None) -> Choices:  # noqa: ARG002  # they are in the folder
        """Read the fit of a layer.

        Raises:
            CheckpointError: the fit is damaged, or of another weight.
        """
        folder = self.settings.folder
        file = part_of(folder, target.name)
        part = None if file is None else read_part(file)
        if part is None:
            raise CheckpointError(f"the fit of {target.name} in {folder} is damaged; make the fits again")
        tensors, values = part
        if values["weight"] != fingerprint_of_data([target.weight]):
            raise CheckpointError(
                f"the fit of {target.name} in {folder} is of another weight; take the model that was fitted, or make "
                "the fits again"
            )
        increases, outputs = (np.asarray(tensors[name]) for name in ("increases", "outputs"))
        left, right = (tensors[name].to(target.weight.device, torch.float64) for name in ("left", "right"))
        projections = Projections(left, right, 2 * increases)

        def errors(rank: int) -> Errors:
            return Errors(float(outputs[rank]), float(increases[rank]))

        return choices_of_projections(target, projections, increases, errors, _UNIT)
