"""Training state, to resume bit for bit: parameters, optimiser, generator and record.

It is one safetensors file, without a pickle. It is written under another name and renamed, so a kill at any moment
leaves either the old state or the new one. The tensors of a sharded model lie beside it, in a folder with a file for
each process, and the first file names that folder and the SHA-256 of its files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.distributed import done_by_first, is_sharded, local_part, reshard, team_of_group, trains_together
from mpochain.errors import CheckpointError
from mpochain.nn.former_names import former_names_in
from mpochain.surgery.tying import ties_of
from mpochain.train.shards import remove_shards, shard_folders, write_shards
from mpochain.train.stored import StoredTensors, shards_of, write_file

__all__ = ["remove_state", "restore_state", "save_state"]

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

    Of a model that several processes train, the first one writes the file that a single process would write; of a
    sharded one each process writes its shards. All of them must call this.

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
    tensors["generator"] = generator.get_state()
    text = json.dumps(record)
    if is_sharded(model):
        folders = shard_folders(path)
        folder = folders[int(team_of_group().from_first(shards_of(path)) == folders[0])]
        hashes = write_shards(folder, tensors)
        with done_by_first(together=True) as writes:
            if writes:
                write_file(path, {}, text, {"shards": folder.name, "files": json.dumps(hashes)})
                remove_shards(path, keep=folder)
        return
    with done_by_first(together=together or trains_together(model)) as writes:
        if writes:
            write_file(path, {name: value.contiguous() for name, value in tensors.items()}, text)
            remove_shards(path)


def remove_state(path: Path) -> None:
    """Remove a state, with its shards, if there is one.

    Example:
        >>> remove_state(Path("nowhere.state"))
    """
    path.unlink(missing_ok=True)
    remove_shards(path)


def restore_state(
    path: Path,
    stored: StoredTensors,
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
        stored: its tensors, see :func:`mpochain.train.stored.read_state`.
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
    places, renamed = _by_present_names(_unwrapped_names(stored.tensors, model_tensors), model)
    likes: dict[str, Tensor] = dict(model_tensors)
    moments: dict[str, tuple[nn.Parameter, str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key in _MOMENTS:
                moments[f"optimizer.{key}.{name}"] = parameter, key
                likes[f"optimizer.{key}.{name}"] = torch.empty(()) if key == "step" else parameter
    likes["generator"] = generator.get_state()
    described = {name: stored.tensors[place] for name, place in places.items()}
    # Earlier versions wrote a tied tensor without elements under all of its names.
    names = {name for name, value in described.items() if name in likes or value.numel()}
    if names != set(likes):
        raise CheckpointError(
            f"{path} belongs to another model: missing {sorted(set(likes) - names)[:3]}, "
            f"unexpected {sorted(names - set(likes))[:3]}; use the model of that run, or remove the file to "
            "start again"
        )
    for name, like in likes.items():
        tensor = described[name]
        if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise CheckpointError(
                f"{path}: {name} is {tuple(tensor.shape)} {tensor.dtype}, expected {tuple(like.shape)} {like.dtype}; "
                "use the model of that run, or remove the file to start again"
            )
    values = stored.numbers({name: (places[name], like) for name, like in likes.items()}, together=is_sharded(model))
    # Who goes on with a model that has been trained up to this state does not give another one.
    # The hash depends on names.
    if not renamed and start[0] not in (None, start[1]):
        same = all(torch.equal(local_part(own), local_part(values[name])) for name, own in model_tensors.items())
        if not all(team_of_group(together=is_sharded(model)).gathered(same)):
            raise CheckpointError(
                f"{path} belongs to a run that started from other weights: their hash was {start[0]}, and that of the "
                f"model given now is {start[1]}; use the model of that run, name another file or folder, or remove "
                "this file to start again"
            )
    with torch.no_grad():
        for name, own in model_tensors.items():
            own.copy_(values[name])
        for name, (parameter, key) in moments.items():
            optimizer.state[parameter][key] = values[name]
    generator.set_state(values["generator"])
    return renamed


def _unwrapped_names(stored: Iterable[str], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Stored names by those in the model, for a state that was written with those in ``DistributedDataParallel``."""
    names = list(stored)
    own = [name for name in names if name.startswith("model.")]
    if not own or not all(name.startswith("model.module.") for name in own) or own[0] in expected:
        return {name: name for name in names}
    return {name.replace("module.", "", 1) if name != "generator" else name: name for name in names}


def _by_present_names(places: Mapping[str, str], model: nn.Module) -> tuple[dict[str, str], bool]:
    """Stored names by those that the model has now, and whether an earlier version gave it others."""
    present = {
        f"{kind}.{former}": f"{kind}.{name}"
        for former, name in former_names_in(model).items()
        for kind in ("model", *(f"optimizer.{key}" for key in _MOMENTS))
        if f"model.{former}" in places
    }
    return {present.get(name, name): place for name, place in places.items()}, bool(present)
