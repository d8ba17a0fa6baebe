"""Reading of models and tokenizers with transformers: no code from files, and no hub for what is a path.

transformers asks on the terminal whether to run code of a model's folder, and looks up on the hub what it does not find
in a folder. Here code never runs, and the hub is asked only for names ``organisation/name`` that are not paths.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import safetensors
import torch

from mpochain.checkpoint.hugging_face import require_own_implementations
from mpochain.errors import ArgumentError, CheckpointError, MissingDependencyError
from mpochain.system.reading import file_within, read_bytes

__all__ = [
    "DTYPES",
    "HUB_NAME",
    "imported_transformers",
    "is_hub_name",
    "read_configuration",
    "read_dense",
    "read_tokenizer",
    "require_complete",
    "require_dtype",
    "require_readable",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Element types that a language model can be read in, by name."""

# A name on the hub: organisation and model.
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")
_CONFIG, _LONGEST_CONFIG = "config.json", 64 << 20
# Files of which transformers needs at least one to build a tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


def imported_transformers() -> Any:
    """The package transformers.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("language models need transformers; install mpochain[hf]") from error
    return transformers


def require_dtype(dtype: str) -> None:
    """Refuse an element type that a language model cannot be read in.

    Raises:
        ArgumentError: it is neither "auto" nor one of :data:`DTYPES`.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ArgumentError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {dtype!r}")


def is_hub_name(source: str | Path) -> bool:
    """True if a source of a model is a name on the Hugging Face hub and not a path.

    A name whose first part is a folder here is a path, so that a mistyped path is an error at once.

    Example:
        >>> is_hub_name("HuggingFaceTB/SmolLM2-135M"), is_hub_name("./small/model"), is_hub_name("gpt2")
        (True, False, False)
    """
    name = str(source)
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists() and not Path(name).parent.exists()


def require_readable(folder: Path, *, links: bool, nested: bool = True) -> None:
    """Check that a folder holds only regular files and folders, so that nothing in it blocks a reader.

    Args:
        folder: folder of a model.
        links: whether symbolic links may lead out of the folder.
        nested: whether to look into its subfolders, too.

    Raises:
        CheckpointError: a pipe, socket or device, or a link out of the folder. The message names it.
    """
    for entry in sorted(folder.rglob("*") if nested else folder.glob("*")):
        try:
            mode = entry.stat().st_mode
            if not links:
                file_within(folder, str(entry.relative_to(folder)))
        except OSError as error:
            raise CheckpointError(f"{entry} cannot be read: {error.strerror or error}") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise CheckpointError(f"{entry} is neither a file nor a folder; remove it from the model's folder")


def require_complete(folder: Path) -> None:
    """Check that files of tensors are as long as they say, to name the one that is not.

    Raises:
        CheckpointError: a file is damaged, for example by a download that stopped.
    """
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safetensors.safe_open(file, framework="pt"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or incomplete ({error}); download it or copy it again") from error


def read_dense(transformers: Any, source: str | Path, **options: Any) -> Any:
    """Read a causal language model that transformers wrote, from a folder, a GGUF file's folder or the hub.

    Raises:
        CheckpointError: the folder has no configuration, it names an implementation to download, or the model has no
            head of a language model, so that its predictions would be random.
    """
    local = not is_hub_name(source)
    if local and "gguf_file" not in options:
        _require_configuration(Path(source))
    name = str(Path(source).resolve()) if local else str(source)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        name, trust_remote_code=False, local_files_only=local, output_loading_info=True, **options
    )
    _require_language_model(source, model, sorted(loading["missing_keys"]))
    return model


def _require_language_model(source: str | Path, model: Any, missing: list[str]) -> None:
    """Refuse a model that was made for another task; a head that is tied to the embedding would hide it."""
    from transformers.models.auto import modeling_auto

    tables = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MULTIPLE_CHOICE")
    others: set[str] = set()
    for table in tables:
        others.update(getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").values())
    stated = [name for name in getattr(model.config, "architectures", None) or () if name in others]
    if stated:
        raise CheckpointError(
            f"{source} holds a {stated[0]}, which is no language model; mpochain.compress takes it in Python"
        )
    if missing:
        raise CheckpointError(
            f"{source} has no weights of {missing[0]} ({len(missing)} such tensors), so the predictions of a "
            f"{type(model).__name__} would be random; give a causal language model"
        )


def read_configuration(transformers: Any, source: str | Path) -> Any:
    """Read the configuration of a model of transformers, from a folder or the hub, without its weights.

    Raises:
        CheckpointError: there is none, or it names an implementation to download or a model that is not known.
    """
    local = not is_hub_name(source)
    if local:
        _require_configuration(Path(source))
    name = str(Path(source).resolve()) if local else str(source)
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source} has no configuration that transformers knows: {error}") from error


def read_tokenizer(transformers: Any, source: str | Path, **options: Any) -> Any:
    """Read a tokenizer that transformers wrote, from a folder, a GGUF file's folder or the hub.

    Raises:
        CheckpointError: the folder has no tokenizer.
    """
    local = not is_hub_name(source)
    if local and "gguf_file" not in options and not any((Path(source) / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{source} holds no tokenizer; write one there with save_pretrained, or save the model with "
            "mpochain.language.save_language_model"
        )
    name = str(Path(source).resolve()) if local else str(source)
    return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local, **options)


def _require_configuration(folder: Path) -> None:
    require_readable(folder, links=True)
    file = folder / _CONFIG
    try:
        fields = json.loads(read_bytes(file, _LONGEST_CONFIG).decode())
        require_own_implementations(fields, f"{file}", CheckpointError)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"cannot read a language model from {folder}: {file.name}: {reason}; expected a folder written by mpochain "
            "or transformers"
        ) from error
