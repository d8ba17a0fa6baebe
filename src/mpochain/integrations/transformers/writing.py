"""Folders of compressed models, written by ``save_pretrained`` of transformers and then completed.

transformers writes the configuration, the tensors and what else belongs to a model into a staging folder. There the
files of tensors get the names that their hashes give, and the configuration the description of the compressed layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from mpochain.checkpoint.card import write_card
from mpochain.checkpoint.configuration import CONFIG, INDEX, TENSORS
from mpochain.checkpoint.described import entries_of, quantization_of, write_configuration
from mpochain.checkpoint.hugging_face import constructor_arguments
from mpochain.checkpoint.saving import distinct_tensors, is_outdated, written_by_first
from mpochain.checkpoint.tensor_files import index_bytes, tensors_name, without_shared_memory, write_index
from mpochain.errors import ArgumentError
from mpochain.surgery.finding import compressed_layers
from mpochain.surgery.tying import ties_of
from mpochain.surgery.wrappers import without_wrappers
from mpochain.system.faults import output_errors
from mpochain.system.files import write_bytes
from mpochain.system.folders import replaced_together
from mpochain.system.paths import as_path
from mpochain.system.reading import sha256_of

__all__ = ["is_written_here", "remove_outdated", "write_pretrained"]

_SINGLE = "model.safetensors"
# Files of tensors and their index as transformers names them.
_OF_TRANSFORMERS = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
# Folders from which Trainer goes on; it asks there for a file of tensors, or an index, of a fixed name.
_OF_TRAINER = re.compile(r"checkpoint-\d+")


def is_written_here(model: Any) -> bool:
    """Whether a model has compressed layers, and is written whole and not by its adapters alone."""
    return bool(compressed_layers(model)) and not getattr(model, "_hf_peft_config_loaded", False)


def write_pretrained(
    model: Any,
    save_pretrained: Callable[..., Any],
    save_directory: Path | str,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "50GB",
    variant: str | None = None,
    token: str | bool | None = None,
    *,
    distributed_checkpoint: bool = False,
    **named: Any,
) -> None:
    """Write a compressed model of transformers; the arguments are those of its ``save_pretrained``.

    Of a sharded model the first process writes, unless tensors are given; all processes must call this.

    Args:
        model: model with compressed layers.
        save_pretrained: the method of transformers.
        save_directory: created if needed; a model in it is replaced.
        is_main_process: whether this process writes.
        state_dict: tensors to write in place of the model's own.
        push_to_hub: whether to publish the model, too.
        max_shard_size: largest size of a file of tensors.
        variant: must be None, since files are named by their hashes.
        token: of the hub.
        distributed_checkpoint: must be False.
        named: further arguments of ``push_to_hub``.

    Raises:
        ArgumentError: a variant or a distributed checkpoint, or a tensor that no file holds.
        OutputError: the folder cannot be written.
    """
    if variant is not None or distributed_checkpoint:
        which = "distributed_checkpoint" if variant is None else f"variant={variant!r}"
        raise ArgumentError(
            f"{which} is not possible for a compressed model, whose files are named by their hashes; leave it out, and "
            "save to a folder of its own"
        )
    named.pop("safe_serialization", None)  # transformers ignores it, too
    folder = as_path(save_directory, "save_directory")
    gathering = written_by_first(model) if state_dict is None else nullcontext(True)
    with without_wrappers(model) as plain, _all_keys(plain), gathering as writes:
        if not writes:
            return
        if state_dict is None:
            layers = entries_of(plain)
            tensors, tied = distinct_tensors(plain)
        else:
            tied = ties_of(plain)
            tensors = {name: value for name, value in state_dict.items() if name not in tied}
            layers = {name: layer.entry().model_dump(mode="json") for name, layer in compressed_layers(plain).items()}
        options = {"max_shard_size": max_shard_size, "save_original_format": False}
        if not is_main_process:  # it takes part in gathering the tensors
            save_pretrained(plain, folder, is_main_process=False, state_dict=tensors, **options)
            return
        with replaced_together(folder, outdated=_is_outdated) as new, output_errors(folder):
            save_pretrained(plain, new, state_dict=without_shared_memory(tensors), **options)
            sha256, index = _named_by_hash(new)
            config = json.loads((new / CONFIG).read_bytes())
            arguments = constructor_arguments(plain)
            description = quantization_of(plain, layers, tied, sha256, arguments=arguments, sharded=index is not None)
            write_configuration(new, config, config["architectures"][0], None, description)
            if _OF_TRAINER.fullmatch(folder.name):
                write_bytes(new / INDEX, index_bytes(index or {name: tensors_name(sha256) for name in tensors}))
            write_card(plain, new, folder)
    if push_to_hub:
        model.push_to_hub(named.pop("repo_id", folder.name), token=token, max_shard_size=max_shard_size, **named)


def remove_outdated(model: Any, folder: Path) -> None:
    """Remove the tensors of a compressed model from a folder into which transformers wrote a dense one."""
    if not getattr(model, "_hf_peft_config_loaded", False) and (folder / CONFIG).is_file():
        for file in folder.iterdir():
            if TENSORS.fullmatch(file.name):
                file.unlink()


def _is_outdated(name: str) -> bool:
    """Whether a file holds the tensors of a model that is replaced, by its name."""
    return is_outdated(name) or _OF_TRANSFORMERS.fullmatch(name) is not None


def _named_by_hash(folder: Path) -> tuple[str, dict[str, str] | None]:
    """Name files of tensors by their hashes.

    Returns:
        The hash of the file, or of the index of several files; the file of each tensor if there are several.
    """
    if not (folder / INDEX).exists():
        sha256 = sha256_of(folder / _SINGLE)
        (folder / _SINGLE).rename(folder / tensors_name(sha256))
        return sha256, None
    files: dict[str, str] = json.loads((folder / INDEX).read_bytes())["weight_map"]
    hashes = {file: sha256_of(folder / file) for file in sorted(set(files.values()))}
    for file, sha256 in hashes.items():
        (folder / file).rename(folder / tensors_name(sha256))
    index = {name: tensors_name(hashes[file]) for name, file in files.items()}
    (folder / INDEX).unlink()
    _, sha256 = write_index(folder, index, {tensors_name(sha256): sha256 for sha256 in hashes.values()})
    return sha256, index


@contextmanager
def _all_keys(model: Any) -> Iterator[None]:
    """Context in which transformers leaves out no tensor: what is left out would be missing in the folder."""
    model._keys_to_ignore_on_save = None
    try:
        yield
    finally:
        del model._keys_to_ignore_on_save
