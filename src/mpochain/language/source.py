"""Where a language model is read from and written to: compressed checkpoints, folders of transformers, GGUF files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpochain.checkpoint import is_checkpoint, load, require_replaceable, save
from mpochain.errors import CheckpointError, MissingDependencyError, OutputError, SpecError
from mpochain.surgery import to_dense
from mpochain.system.files import require_writable

__all__ = ["LanguageModel", "load_language_model", "require_no_model", "save_dense", "save_language_model"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER = "tokenizer"
# Of transformers and of this library alike.
_CONFIG = "config.json"
# The hub is asked for nothing else, so that a wrong path is told at once.
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


@dataclass(frozen=True)
class LanguageModel:
    """A model and what turns text into its tokens.

    Attributes:
        model: in evaluation mode.
        tokenizer: of transformers.
        source: where it was read from.
    """

    model: nn.Module
    tokenizer: Any
    source: str


def load_language_model(source: str | Path, *, dtype: str = "auto") -> LanguageModel:
    """A causal language model with its tokenizer.

    Args:
        source: a folder written by :func:`save_language_model` or by transformers, a ``.gguf`` file (which is
            dequantised), or else a name on the Hugging Face hub.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for what is stored (float32 of a GGUF file).

    Raises:
        CheckpointError: nothing that can be read there.
        SpecError: another dtype.
        MissingDependencyError: transformers is not installed.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise SpecError(f"dtype must be auto or one of {', '.join(_DTYPES)}, got {dtype!r}")
    transformers = _transformers()
    path = Path(source)
    if not path.exists() and (path.suffix == ".gguf" or not _HUB_NAME.fullmatch(str(source))):
        raise CheckpointError(f"cannot read a language model from {source}: there is no such file or folder")
    compressed = is_checkpoint(path)
    stored = path / _TOKENIZER if compressed else path
    try:
        if path.suffix == ".gguf":
            kept = {"gguf_file": path.name}
            model = _dequantised(transformers, path, dtype)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **kept)
        elif compressed:
            model = load(path)
            model = model if dtype == "auto" else model.to(_DTYPES[dtype])
            tokenizer = transformers.AutoTokenizer.from_pretrained(stored)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"cannot read a language model and its tokenizer from {source}: {lines[0]}; expected a folder of mpochain "
            "or transformers, a .gguf file, or a name on the Hugging Face hub"
        ) from error
    return LanguageModel(model.eval(), tokenizer, str(source))


def save_language_model(language: LanguageModel, folder: Path) -> Path:
    """Write a compressed model with :func:`mpochain.save`, and its tokenizer beside it.

    Raises:
        OutputError: the folder cannot be written.
    """
    require_replaceable(folder)
    _write_tokenizer(language.tokenizer, folder / _TOKENIZER)
    return save(language.model, folder)


def save_dense(language: LanguageModel, folder: Path) -> Path:
    """Write a model for transformers, compressed layers made dense again; the model is changed.

    Raises:
        OutputError: the folder cannot be written, or holds a model.
        CheckpointError: a model that transformers does not know.
    """
    require_no_model(folder)
    model: Any = to_dense(language.model)
    if not hasattr(model, "save_pretrained"):
        raise CheckpointError(f"a {type(model).__name__} is no model of transformers")
    try:
        model.save_pretrained(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}") from error
    _write_tokenizer(language.tokenizer, folder)
    return folder


def require_no_model(folder: Path) -> Path:
    """Make a folder if needed and prove, before any work, that it can be written and that no model is there yet.

    Raises:
        OutputError: it cannot, or one is.
    """
    if (folder / _CONFIG).exists():
        raise OutputError(f"{folder} holds a model, which would be overwritten; name another folder, or remove it")
    return require_writable(folder)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}") from error


def _dequantised(transformers: Any, path: Path, dtype: str) -> nn.Module:
    wanted = _DTYPES.get(dtype, torch.float32)
    read = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=wanted)
    config = read.config
    # It is not quantised any more, and must not say so where it is saved.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(read)(config)
    buffers = dict(read.named_buffers())
    model.load_state_dict(read.state_dict(), assign=True)
    for name, _ in list(model.named_buffers()):
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffers[name])
    model.tie_weights()
    return model


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("language models need transformers; install mpochain[hf]") from error
    return transformers
