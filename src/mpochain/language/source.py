"""Loading and saving of language models: compressed checkpoints, transformers folders, GGUF files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from mpochain.checkpoint import device_named, is_checkpoint, is_outdated, load, require_no_other_model, write_checkpoint
from mpochain.errors import CheckpointError, OutputError
from mpochain.language.companions import read_companions, write_companions
from mpochain.language.pretrained import (
    DTYPES,
    imported_transformers,
    is_hub_name,
    read_dense,
    read_tokenizer,
    require_complete,
    require_dtype,
    require_readable,
)
from mpochain.surgery import to_dense
from mpochain.system.files import require_writable
from mpochain.system.folders import folder_lock, read_unchanged, replaced_together
from mpochain.system.paths import as_path, require_path
from mpochain.wording import kind_of

__all__ = [
    "LanguageModel",
    "load_language_model",
    "require_no_model",
    "save_dense",
    "save_language_model",
]

# What transformers and safetensors raise for a folder that holds no model, or a damaged one.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, EOFError),
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)
_TOKENIZER, _COMPANIONS = "tokenizer", "files"
# Folders of transformers and of this library both use this name.
_CONFIG = "config.json"

# Files of a transformers folder, from which a tokenizer and a model are read.
_TOKENIZER_FILES = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|vocab\.txt|"
    r"chat_template\.(jinja|json)|(spiece|tokenizer|sentencepiece\.bpe)\.model"
)
_DENSE_FILES = re.compile(
    r"config\.json|generation_config\.json|(model|pytorch_model)[\w.-]*\.(safetensors|bin)(\.index\.json)?|"
    + _TOKENIZER_FILES.pattern
)


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and its tokenizer.

    Attributes:
        model: model in evaluation mode.
        tokenizer: transformers tokenizer.
        source: folder, file or name that the model was loaded from.
        companions: other files of the model's folder by name, such as the settings of an image processor or the
            licence; they are saved with the model.
    """

    model: nn.Module
    tokenizer: Any
    source: str
    companions: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def load_language_model(source: str | Path, *, dtype: str = "auto", device: str = "cpu") -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        source: a folder written by :func:`save_language_model` or by transformers, a ``.gguf`` file (which is
            dequantised), or a name on the Hugging Face hub.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for the stored dtype (float32 for a GGUF
            file).
        device: where the model is put, see :func:`mpochain.checkpoint.device_named`.

    Raises:
        CheckpointError: the source has no language model, or it cannot be read.
        ArgumentError: the dtype is unknown, or the device is not there.
        MissingDependencyError: transformers is not installed.
    """
    require_dtype(dtype)
    place = device_named(device)
    path = as_path(source, "source")
    language = read_unchanged(path, lambda: _load(source, dtype)) if path.is_dir() else _load(source, dtype)
    language.model.to(place)
    return language


def _load(source: str | Path, dtype: str) -> LanguageModel:
    transformers = imported_transformers()
    path = Path(source)
    if not path.exists() and (path.suffix == ".gguf" or not is_hub_name(source)):
        raise CheckpointError(
            f"cannot read a language model from {source}: no such file or folder; give a folder, a .gguf file, or a "
            "name on the Hugging Face hub as organisation/name"
        )
    compressed = is_checkpoint(path)
    # Folders of version 1 had a subfolder for the tokenizer.
    apart = compressed and (path / _TOKENIZER).is_dir()
    stored = path / _TOKENIZER if apart else path
    try:
        if path.suffix == ".gguf":
            model = _dequantised(transformers, path, dtype)
            tokenizer = read_tokenizer(transformers, path.parent, gguf_file=path.name)
        elif compressed:
            require_readable(stored, links=False, nested=apart)
            require_readable(path / _COMPANIONS, links=False)
            model = load(path)
            model = model if dtype == "auto" else model.to(DTYPES[dtype])
            tokenizer = read_tokenizer(transformers, stored)
        else:
            model = read_dense(transformers, source, dtype=dtype)
            tokenizer = read_tokenizer(transformers, source)
    except _UNREADABLE as error:
        require_complete(path)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"cannot read a language model and its tokenizer from {source}: {lines[0]}; expected a folder written by "
            "mpochain or transformers, a .gguf file, or a name on the Hugging Face hub"
        ) from error
    # The folder of a GGUF file is not that of a model, and files of a model on the hub are not downloaded.
    local = path.is_dir()
    companions = read_companions(path / _COMPANIONS if compressed else path) if local else {}
    return LanguageModel(model.eval(), tokenizer, str(source), companions)


def save_language_model(
    language: LanguageModel,
    folder: Path,
    *,
    records: Callable[[Path], object] = lambda _: None,
    outdated: Callable[[str], bool] = lambda _: False,
    largest_file: int | None = None,
) -> Path:
    """Write a compressed model and its tokenizer into a folder, and replace an older model there.

    All files change in one step: if the process is killed or the disk is full, the folder stays as it was.

    Args:
        language: the model and its tokenizer.
        folder: created if needed.
        records: called with an empty folder whose files are to be part of this step, such as a report.
        outdated: whether a file or subfolder of this name is removed in this step, unless a new one replaces it.
        largest_file: see :func:`mpochain.save`.

    Returns:
        The folder.

    Raises:
        OutputError: the folder is not writable, or another process writes to it.
    """
    require_no_other_model(folder)
    replaced = ({_COMPANIONS, _TOKENIZER}.__contains__, is_outdated, _is_of_tokenizer, outdated)
    with replaced_together(folder, outdated=lambda name: any(test(name) for test in replaced)) as new:
        language.tokenizer.save_pretrained(new)
        if language.companions:
            (new / _COMPANIONS).mkdir()
            write_companions(language.companions, new / _COMPANIONS)
        write_checkpoint(language.model, new, folder, largest_file=largest_file)
        records(new)
    return folder


def save_dense(language: LanguageModel, folder: Path, *, overwrite: bool = False) -> Path:
    """Replace the compressed layers of a model with dense ones, in place, and write it in the transformers format.

    All files change in one step: if the process is killed or the disk is full, the folder stays as it was.

    Args:
        language: the model and its tokenizer.
        folder: created if needed.
        overwrite: whether a dense model in the folder is replaced.

    Returns:
        The folder.

    Raises:
        OutputError: the folder is not writable, or already contains a model.
        CheckpointError: the model is not a transformers model.
    """
    require_no_model(folder, overwrite=overwrite)
    if Path(language.source).exists() and Path(language.source).resolve() == folder.resolve():
        raise OutputError(f"{folder} is the folder of the model to convert; name another folder")
    model: Any = to_dense(language.model)
    if not hasattr(model, "save_pretrained"):
        raise CheckpointError(f"{kind_of(model)} is not a transformers model; write it with mpochain.save")
    with replaced_together(folder, outdated=_is_of_dense_model) as new:
        model.save_pretrained(new)
        language.tokenizer.save_pretrained(new)
        write_companions(language.companions, new)
    return folder


def require_no_model(folder: Path, *, overwrite: bool = False) -> Path:
    """Check, before any work, that a folder is writable and contains no model that may not be replaced.

    Args:
        folder: need not exist.
        overwrite: whether a dense model may be replaced; a compressed one never is.

    Returns:
        The folder.

    Raises:
        OutputError: the folder is not writable, or contains a model.
    """
    if (require_path(folder) / _CONFIG).exists():
        if is_checkpoint(folder):
            raise OutputError(f"{folder} contains a compressed model; name another folder, or remove it")
        if not overwrite:
            raise OutputError(
                f"{folder} contains a model, which would be overwritten; name another folder, or add overwrite=True"
            )
    with folder_lock(folder):
        require_writable(folder)
    return folder


def _is_of_tokenizer(name: str) -> bool:
    """Whether a file belongs to a tokenizer that is replaced, by its name."""
    return _TOKENIZER_FILES.fullmatch(name) is not None


def _is_of_dense_model(name: str) -> bool:
    """Whether a file belongs to a transformers model that is replaced, by its name."""
    return _DENSE_FILES.fullmatch(name) is not None


def _dequantised(transformers: Any, path: Path, dtype: str) -> nn.Module:
    loaded = read_dense(transformers, path.parent, gguf_file=path.name, dtype=DTYPES.get(dtype, torch.float32))
    config = loaded.config
    # The weights are dequantised, so a saved configuration must not call them quantised.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    buffers = dict(loaded.named_buffers())
    model.generation_config = loaded.generation_config  # with the stop tokens of the file
    model.load_state_dict(loaded.state_dict(), assign=True)
    for name, _ in list(model.named_buffers()):
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffers[name])
    model.tie_weights()
    return model
