"""Training state in one safetensors file, to resume bit for bit: parameters, optimiser, generator and record.

The file contains no pickle. It is written under another name and renamed, so a kill at any moment leaves either the old
file or the new one. It states the SHA-256 of its content, so damage is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mpochain.distributed import done_by_first, filled, full, gathered, reshard, trains_together
from mpochain.errors import CheckpointError
from mpochain.nn.former_names import former_names_in
from mpochain.surgery.fingerprint import fingerprint_of_data
from mpochain.surgery.tying import ties_of
from mpochain.system.files import write_bytes
from mpochain.system.reading import open_regular

__all__ = ["checksum", "read_record", "read_state", "restore_state", "save_state"]

_FORMAT = {"format": "mpochain-training", "version": "2"}
# States of version 1 have no SHA-256, and do not tell from which weights their run started.
_VERSIONS = ("1", _FORMAT["version"])

# State that AdamW keeps for each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model by name, tied tensors once."""
    tied = ties_of(model)
    return {f"model.{name}": value for name, value in model.state_dict().items() if name not in tied}


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    record: dict[str, Any],
    *,
    together: bool = False,
) -> None:
    """Write parameters, optimiser moments, the generator of the batches and ``record`` (JSON) to ``path``.

    Of a model that several processes train, the first one writes the file that a single process would write; all of
    them must call this.

    Args:
        path: the file.
        model: the model, without wrappers.
        optimizer: optimiser of its parameters.
        generator: generator of the batches.
        record: record of the run.
        together: whether several processes train the model, which shards show but copies of the model do not.

    Raises:
        OutputError: the file cannot be written; an older file stays intact.
    """
    reshard(model)  # an evaluation may have gathered parameters, of which the optimiser knows nothing
    tensors = _model_tensors(model)
    for name, parameter in model.named_parameters():
        # Frozen parameters have no moments.
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    with done_by_first(together=together or trains_together(model)) as writes:
        unsharded = {name: value.contiguous() for name, value in gathered(tensors, keeps=writes).items()}
        if writes:
            unsharded["generator"] = generator.get_state()
            text = json.dumps(record)
            write_bytes(path, save(unsharded, metadata=_FORMAT | {"record": text, "sha256": checksum(unsharded, text)}))


def checksum(tensors: Mapping[str, Tensor], record: str) -> str:
    """SHA-256 of a state file's content: tensors with their names, shapes and dtypes, and the record as JSON."""
    return fingerprint_of_data([[[name, tensors[name]] for name in sorted(tensors)], record])


def read_record(path: Path) -> dict[str, Any]:
    """Read the JSON record of a state file, without its tensors.

    Raises:
        CheckpointError: the file is not a readable training state.
    """
    try:
        open_regular(path).close()  # safetensors would wait for a pipe
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        kind, number = metadata.get("format"), metadata.get("version")
        if kind != _FORMAT["format"] or number not in _VERSIONS:
            raise CheckpointError(
                f"{path} is not a training state of version {' or '.join(_VERSIONS)}: its format is {kind!r} and its "
                f"version {number!r}; finish that run with the release that began it, or remove the file to start again"
            )
        record = json.loads(metadata["record"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: the record is not a JSON object; remove the file to start again")
    return {"start": None, "versions": None, **record} if number == "1" else record


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a state file: its record and its tensors.

    Raises:
        CheckpointError: the file is damaged, or not a training state.
    """
    record = read_record(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
            metadata = file.metadata()
        intact = metadata["version"] == "1" or checksum(tensors, metadata["record"]) == metadata.get("sha256")
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if not intact:
        raise CheckpointError(
            f"{path} is damaged: its content does not have the SHA-256 that it states; remove it to start again"
        )
    return record, tensors


def restore_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    *,
    start: tuple[str | None, str],
) -> bool:
    """Restore a state written by :func:`save_state`.

    Everything is checked before anything is changed, so a bad file leaves model and optimiser as they were. Of a
    sharded model every process takes its own part.

    Args:
        path: the file, for messages.
        tensors: its tensors, see :func:`read_state`.
        model: the model that the run was started with, or one that has been trained up to this state.
        optimizer: a new optimiser of the model's parameters.
        generator: the generator of the batches.
        start: hash of the weights that the run started from, None if the state does not tell, and that of the weights
            which the caller gave.

    Returns:
        Whether an earlier version wrote the state under other names, so that the hash of its start means nothing now.

    Raises:
        CheckpointError: the file belongs to another model.
    """
    model_tensors = _model_tensors(model)
    tensors, renamed = _by_present_names(_unwrapped_names(tensors, model_tensors), model)
    expected = {name: (tuple(value.shape), value.dtype) for name, value in model_tensors.items()}
    moments: dict[str, tuple[nn.Parameter, str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key in _MOMENTS:
                moments[f"optimizer.{key}.{name}"] = parameter, key
                counter = key == "step"
                shape, dtype = ((), torch.float32) if counter else (tuple(parameter.shape), parameter.dtype)
                expected[f"optimizer.{key}.{name}"] = shape, dtype
    state = generator.get_state()
    expected["generator"] = tuple(state.shape), state.dtype
    # Earlier versions wrote a tied tensor without elements under all of its names.
    tensors = {name: value for name, value in tensors.items() if name in expected or value.numel()}
    names = set(tensors)
    if names != set(expected):
        raise CheckpointError(
            f"{path} belongs to another model: missing {sorted(set(expected) - names)[:3]}, "
            f"unexpected {sorted(names - set(expected))[:3]}; use the model of that run, or remove the file to "
            "start again"
        )
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            raise CheckpointError(
                f"{path}: {name} is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}; use the model "
                "of that run, or remove the file to start again"
            )
    # Who goes on with a model that has been trained up to this state does not give another one.
    # The hash depends on names.
    if (
        not renamed
        and start[0] not in (None, start[1])
        and not all(torch.equal(full(value).cpu(), tensors[name]) for name, value in model_tensors.items())
    ):
        raise CheckpointError(
            f"{path} belongs to a run that started from other weights: their hash was {start[0]}, and that of the "
            f"model given now is {start[1]}; use the model of that run, name another file or folder, or remove this "
            "file to start again"
        )
    with torch.no_grad():
        for name, value in model_tensors.items():
            value.copy_(filled(value, tensors[name]))
        for name, (parameter, key) in moments.items():
            # Fused optimisers require the memory layout of the parameter.
            moment = tensors[name] if key == "step" else filled(parameter, tensors[name])
            optimizer.state[parameter][key] = moment
    generator.set_state(tensors["generator"])
    return renamed


def _unwrapped_names(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors by the names in the model, in a state that was written with those in ``DistributedDataParallel``."""
    own = [name for name in tensors if name.startswith("model.")]
    if not own or not all(name.startswith("model.module.") for name in own) or own[0] in expected:
        return tensors
    return {name.replace("module.", "", 1) if name != "generator" else name: value for name, value in tensors.items()}


def _by_present_names(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], bool]:
    """Tensors of a state by the names that the model has now, and whether an earlier version gave them others."""
    present = {
        f"{kind}.{former}": f"{kind}.{name}"
        for former, name in former_names_in(model).items()
        for kind in ("model", *(f"optimizer.{key}" for key in _MOMENTS))
        if f"model.{former}" in tensors
    }
    return {present.get(name, name): value for name, value in tensors.items()}, bool(present)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as a training state ({error}); remove it to start again")
