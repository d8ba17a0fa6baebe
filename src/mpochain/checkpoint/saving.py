"""Saving of checkpoints: the tensors in a file named by its hash, and the configuration that names the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mpochain.checkpoint.card import write_card
from mpochain.checkpoint.configuration import CONFIG, GENERATION, INDEX, METHOD, TENSORS, VERSION, is_checkpoint
from mpochain.checkpoint.described import dtype_of, entries_of, quantization_of, separated, write_configuration
from mpochain.checkpoint.hugging_face import described
from mpochain.checkpoint.tensor_files import write_tensors
from mpochain.distributed import done_by_first, is_first, is_sharded, whole_on_first
from mpochain.errors import ArgumentError, OutputError
from mpochain.surgery.finding import require_module
from mpochain.surgery.tying import ties_of
from mpochain.surgery.wrappers import without_wrappers
from mpochain.system.faults import output_errors
from mpochain.system.files import require_writable, write_bytes
from mpochain.system.folders import replaced_together
from mpochain.system.paths import as_path, require_path

__all__ = [
    "distinct_tensors",
    "is_outdated",
    "require_no_other_model",
    "require_replaceable",
    "save",
    "write_checkpoint",
    "written_by_first",
]


def save(model: nn.Module, folder: Path | str, *, largest_file: int | None = None) -> Path:
    """Save a model with its compressed layers to a folder, and replace an older checkpoint there.

    Args:
        model: any model. A Hugging Face model is saved with its configuration, so that :func:`mpochain.load` can build
            it. Of a model within ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``, or with compiled
            parts, the plain model is saved. A model that is sharded over processes (``fully_shard``) is written by the
            first of them with its tensors in one piece: all processes must call this.
        folder: created if needed.
        largest_file: bytes of the tensors in one file, to write several with an index; None for one file.

    Returns:
        The folder.

    Raises:
        OutputError: the folder cannot be written, or holds another model, such as the dense one.
        ArgumentError: ``largest_file`` is not positive, or there is a compressed layer that :func:`mpochain.load` could
            not load, or a tensor or extra state that a checkpoint cannot hold; the message says what to do.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> from tempfile import TemporaryDirectory
        >>> model = nn.Sequential(MPOLinear(8, 8, max_bond=2), nn.ReLU())
        >>> with TemporaryDirectory() as folder:
        ...     sorted(file.suffix for file in save(model, folder).iterdir())
        ['.json', '.safetensors']
    """
    require_module(model)
    if largest_file is not None and largest_file < 1:
        raise ArgumentError(f"largest_file must be a number of bytes, at least 1, or None, got {largest_file}")
    folder = as_path(folder, "folder")
    with without_wrappers(model) as plain, written_by_first(plain) as writes:
        if writes:
            layers = entries_of(plain)
            require_no_other_model(folder)
            with replaced_together(folder, outdated=is_outdated) as new:
                _write(plain, layers, new, folder, largest_file)
    return folder


@contextmanager
def written_by_first(model: nn.Module) -> Iterator[bool]:
    """A block that writes a model: of a sharded one only the first process does, with all tensors in one piece.

    Every process that holds a part of the model must enter it; they wait for the first, and raise its error.

    Args:
        model: a plain model, which every process writes that enters, or a sharded one.

    Yields:
        Whether this process writes.

    Example:
        >>> with written_by_first(nn.Linear(2, 2)) as writes:
        ...     print(writes)
        True
    """
    together = is_sharded(model)
    with done_by_first(together=together) as writes, whole_on_first(model, is_first=is_first()):
        yield writes


def write_checkpoint(model: nn.Module, new: Path, folder: Path, *, largest_file: int | None = None) -> None:
    """Write a model to an empty folder that ``replaced_together`` gave.

    Args:
        model: the model.
        new: that folder.
        folder: folder that the files will be in.
        largest_file: see :func:`save`.

    Raises:
        ArgumentError: a compressed layer that :func:`mpochain.load` could not load.
        OutputError: the files cannot be written.
    """
    require_module(model)
    with without_wrappers(model) as plain:
        _write(plain, entries_of(plain), new, folder, largest_file)


def is_outdated(name: str) -> bool:
    """Whether a file of a checkpoint's folder is of the model that a new one replaces, by its name."""
    return TENSORS.fullmatch(name) is not None or name in (GENERATION, INDEX)


def _write(model: nn.Module, layers: dict[str, Any], new: Path, folder: Path, largest_file: int | None) -> None:
    hugging_face = described(model)
    tensors, tied = distinct_tensors(model)
    buffers = _unlisted_buffers(model) if hugging_face is None else {}
    with output_errors(folder):
        name, sha256 = write_tensors(tensors | buffers, new, largest_file)
    sharded = name.endswith(".json")
    if hugging_face is not None:
        arguments = hugging_face.get("arguments")
        description = quantization_of(model, layers, tied, sha256, arguments=arguments, sharded=sharded)
        write_configuration(new, hugging_face["config"], hugging_face["name"], dtype_of(model), description)
        if hugging_face["generation"] is not None:
            write_bytes(new / GENERATION, (json.dumps(hugging_face["generation"], indent=1) + "\n").encode())
        write_card(model, new, folder)
        return
    config = {
        "format": METHOD,
        "version": VERSION,
        "tensors": name,
        "sha256": sha256,
        "layers": layers,
        "tied": tied,
        **({"buffers": list(buffers)} if buffers else {}),
        **({"experts": experts} if (experts := separated(model)) else {}),
        "model": None,
    }
    write_bytes(new / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def require_replaceable(folder: Path) -> Path:
    """Create a folder if needed, and check before any work that a checkpoint can be saved there without data loss.

    Raises:
        OutputError: the folder cannot be written, or holds a model that is no checkpoint of this library.
    """
    require_no_other_model(folder)
    return require_writable(folder)


def require_no_other_model(folder: Path) -> None:
    """Check that a folder, if it exists, holds no model but a checkpoint of this library.

    Raises:
        OutputError: it holds another model.
    """
    if (require_path(folder) / CONFIG).exists() and not is_checkpoint(folder):
        raise OutputError(
            f"{folder} holds another model, whose {CONFIG} would be replaced; name another folder, or remove it"
        )


def distinct_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All distinct tensors by their first name, and a map from the other names of tied tensors to the first."""
    tied = ties_of(model)
    return {name: value for name, value in model.state_dict().items() if name not in tied}, tied


def _unlisted_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that the state dict leaves out."""
    listed = model.state_dict()
    buffers = model.named_buffers(remove_duplicate=False)
    return {name: value for name, value in buffers if name not in listed and value.device.type != "meta"}
