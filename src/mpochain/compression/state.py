"""Resumable state of a compression: statistics, choices and built layers, in a folder.

Every part is one file, written atomically with its hash. A part that is missing or damaged is computed again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mpochain.compression.blocks.refined_blocks import RefinedBlock
from mpochain.compression.blocks.refinement_settings import Refinement, settings_of
from mpochain.compression.methods import Method, method_of
from mpochain.compression.records import LayerRecord
from mpochain.compression.selection import as_patterns
from mpochain.compression.state_files import part_of, read_part, read_sealed, write_part, write_sealed
from mpochain.compression.target import Target
from mpochain.errors import CheckpointError, MPOError
from mpochain.nn import LAYERS, CompressedLayer
from mpochain.nn.kinds import layer_of
from mpochain.surgery.experts import separated_experts
from mpochain.surgery.fingerprint import fingerprint, fingerprint_of_data
from mpochain.system.files import require_writable

__all__ = ["CompressionState", "open_state"]

_RUN, _CHOICES, _LAYERS, _BLOCKS, _STAGES = "run.json", "choices.json", "layers", "blocks", "stages"
_FORMAT = 1

# What a run is identified by, in words.
_WORDS = {"weights": "the hash of the model's weights", "calibration": "the hash of the calibration data"}


class CompressionState:
    """Finished parts of a compression, from which the next call with the same arguments goes on.

    Args:
        folder: created if needed.
        identity: everything that determines the result, ready for JSON.
        replace_other: remove the state of another run, or a damaged one, instead of refusing it. A state without any
            finished part is always replaced.

    Attributes:
        mapped: whether built layers stay in their files, which are read where the layers are used; False at first.

    Raises:
        CheckpointError: the folder holds the state of another run, or a damaged one. The message names the difference.
        OutputError: the folder is not writable.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, replace_other: bool = False) -> None:
        self.mapped = False
        self.folder, self._identity = require_writable(folder), dict(identity)
        self._began, self._earlier = time.monotonic(), 0.0
        file = folder / _RUN
        identity = json.loads(json.dumps(identity))
        stored = read_sealed(file)
        if stored is None and file.exists() and not replace_other:
            raise CheckpointError(f"{file} is damaged; remove {folder} to start again")
        difference = "" if stored is None else self._difference(stored, identity)
        if difference and not replace_other and self._has_parts():
            raise CheckpointError(difference)
        if stored is None or difference:
            self._remove_parts()
            write_sealed(file, {"format": _FORMAT, "identity": identity})
        self._earlier = max([0.0, *(float(part.get("seconds", 0.0)) for part in self._parts())])

    def remove_if_empty(self) -> None:
        """Remove the folder if no part of the run is finished."""
        if not self._has_parts():
            shutil.rmtree(self.folder)

    def _has_parts(self) -> bool:
        return any(place.name != _RUN for place in self.folder.rglob("*") if place.is_file())

    def _remove_parts(self) -> None:
        for place in self.folder.iterdir():
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()

    def stage(self, number: int) -> CompressionState:
        """The state of an earlier stage, in a folder inside this one.

        Args:
            number: number of the stage, from 1.
        """
        return CompressionState(self.folder / _STAGES / str(number), {**self._identity, "stage": number})

    @property
    def moments(self) -> Path:
        """Folder of the layers' moments."""
        return self.folder / "moments"

    @property
    def seconds(self) -> float:
        """Time spent so far, over all sessions, up to the last finished part of each."""
        return self._earlier + time.monotonic() - self._began

    def choices(self) -> dict[str, Any] | None:
        """The choice of each layer as kept by :meth:`keep_choices`; None before that."""
        return read_sealed(self.folder / _CHOICES)

    def keep_choices(self, choices: Mapping[str, Any]) -> None:
        """Keep the choice of each layer and other results of the allocation, ready for JSON."""
        write_sealed(self.folder / _CHOICES, {**choices, "seconds": self.seconds})

    def has_layers(self, names: Iterable[str]) -> bool:
        """Whether the layers of all these names are built."""
        return all(part_of(self.folder / _LAYERS, name) is not None for name in names)

    def layer(self, target: Target) -> tuple[CompressedLayer | None, LayerRecord] | None:
        """The built replacement of a layer, None if it stays dense, and its record; None if it is not built yet."""
        file = part_of(self.folder / _LAYERS, target.name)
        part = None if file is None else read_part(file, mapped=self.mapped)
        if part is None:
            return None
        tensors, values = part
        try:
            record = LayerRecord(**{**values["record"], "shape": tuple(values["record"]["shape"])})
            if values["entry"] is None:
                return None, record
            layer = layer_of(values["entry"], target.shape, target.name)
            for parameter in layer.parameters():
                parameter.requires_grad_(parameter.is_floating_point() and target.trainable)
            layer.load_state_dict(tensors, assign=True)
        except (MPOError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{file} is no layer of this version ({error}); remove {self.folder}") from error
        return layer.to(target.weight.device), record

    def keep_layer(self, name: str, layer: CompressedLayer | None, record: LayerRecord) -> None:
        """Keep the built replacement of a layer, None if it stays dense, and its record."""
        entry, tensors = None, {}
        if layer is not None:
            if type(layer) is not LAYERS.get(layer.kind) or is_parametrized(layer):
                return  # it could not be read back, so it is built again
            entry = layer.entry().model_dump(mode="json")
            tensors = dict(layer.state_dict())
        values = {"entry": entry, "record": asdict(record), "seconds": self.seconds}
        write_part(self.folder / _LAYERS, name, tensors, values)

    def keep_refined(self, block: RefinedBlock, parameters: Mapping[str, Tensor]) -> None:
        """Keep the record of a refined block and its parameters and codes; none of a block that stayed as it was."""
        values = {"record": asdict(block), "seconds": self.seconds}
        write_part(self.folder / _BLOCKS, block.name, dict(parameters), values)

    def refined(self, name: str, parameters: Mapping[str, Tensor]) -> RefinedBlock | None:
        """Set the parameters of a block to what was kept of it, and return its record; None if it is not refined yet.

        Raises:
            CheckpointError: the kept parameters are those of another block.
        """
        file = part_of(self.folder / _BLOCKS, name)
        part = None if file is None else read_part(file)
        if part is None:
            return None
        tensors, values = part
        shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
        expected = {key: (parameter.shape, parameter.dtype) for key, parameter in parameters.items()}
        try:
            record = RefinedBlock(**values["record"])
            fits = shapes == (expected if record.epochs else {})
        except (KeyError, TypeError):
            fits = False
        if not fits:
            raise CheckpointError(f"{file} is no refined block of this version; remove {self.folder}")
        with torch.no_grad():
            for key, tensor in tensors.items():
                parameters[key].copy_(tensor)
        return record

    def _parts(self) -> Iterable[Mapping[str, Any]]:
        """The values of all finished parts, those of earlier stages included."""
        for file in self.folder.rglob(_CHOICES):
            yield read_sealed(file) or {}
        for folder in (_LAYERS, _BLOCKS):
            for file in self.folder.rglob(f"{folder}/*.safetensors"):
                part = read_part(file)
                yield {} if part is None else part[1]

    def _difference(self, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
        """Why a stored state is not that of this run; empty if it is."""
        if stored.get("format") != _FORMAT:
            return f"{self.folder} was written by another version; remove it to start again"
        before = stored["identity"]
        for name in sorted({*before, *identity}):
            if before.get(name) != identity.get(name):
                return (
                    f"{self.folder} is the unfinished state of another compression: {_WORDS.get(name, name)} was "
                    f"{_shown(before.get(name))} and is now {_shown(identity.get(name))}; use the same again, name "
                    "another folder, or remove this one to start again"
                )
        return ""


def open_state(
    folder: Path | str,
    model: nn.Module,
    budget: float | str | None,
    *,
    calibration: Iterable[Any] | None = None,
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    method: str | Method | None = None,
    sequential: bool = False,
    refine: bool | Refinement = False,
    speed: float | str | None = None,
    stages: Sequence[float | str] = (),
    loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
    replace_other: bool = False,
) -> CompressionState:
    """Open the state of an unfinished compression, for ``checkpoint`` of :func:`mpochain.compress`.

    Args:
        folder: created if needed.
        model: the dense model; its weights identify the run.
        budget: see :func:`mpochain.compress`, as all other arguments.
        calibration: read once, because the data identify the run.
        targets: layers to compress.
        ignore: layers to leave out.
        method: compression method.
        sequential: whether layers are built block by block.
        refine: whether blocks are refined, and how.
        speed: second budget, of multiply-adds.
        stages: budgets of earlier stages.
        loss: its name identifies the run.
        seed: seed of the sampled labels.
        replace_other: see :class:`CompressionState`.

    Raises:
        CheckpointError: the folder holds the state of another run, or a damaged one. The message names the difference.
        OutputError: the folder is not writable.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     sorted(file.name for file in open_state(folder, nn.Linear(2, 2), 0.5).folder.iterdir())
        ['run.json']
    """
    way = method_of(method, budget)
    with separated_experts(model):  # as compress() sees it
        weights = fingerprint(model)
    identity: dict[str, Any] = {
        "weights": weights,
        "calibration": None if calibration is None else fingerprint_of_data(calibration),
        "method": f"{type(way).__module__}:{type(way).__qualname__}",
        "settings": {name: _plain(value) for name, value in way.settings},
        "budget": budget,
        "targets": None if targets is None else as_patterns(targets, "targets"),
        "ignore": as_patterns(ignore, "ignore"),
        "sequential": sequential,
        "speed": speed,
        "loss": None if loss is None else f"{loss.__module__}:{getattr(loss, '__qualname__', type(loss).__qualname__)}",
        "seed": seed,
        # Layers of another version may be chosen or built differently.
        "version of mpochain": _version(),
    }
    refinement = settings_of(refine)
    if refinement is not None:
        identity["refine"] = refinement.model_dump()
    if stages:
        identity["stages"] = list(stages)
    return CompressionState(Path(folder), identity, replace_other=replace_other)


def _version() -> str | None:
    try:
        return version("mpochain")
    except PackageNotFoundError:
        return None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(value: Any) -> Any:
    """A setting as data that can be compared: itself if it is JSON, otherwise a hash or its description."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return fingerprint_of_data([value])
