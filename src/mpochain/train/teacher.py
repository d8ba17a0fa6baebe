"""What a teacher says of windows, and keeping it on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpochain.errors import CheckpointError, OutputError
from mpochain.surgery.calls import logits_of
from mpochain.system.files import require_writable, write_bytes
from mpochain.train.attention import attentions_of
from mpochain.train.config import FinetuneConfig
from mpochain.train.distillation import captured
from mpochain.train.windows import Windows

__all__ = ["Said", "Teacher", "TeacherCache", "autocast", "fingerprint", "said_by"]

_ABOUT, _VALUES, _HELD = "teacher.json", "logits.f16", "held.u1"


@dataclass(frozen=True)
class Said:
    """What a model gives for some windows.

    Attributes:
        logits: ``(n, length, V)``; None if nobody was asked.
        hidden: outputs of modules by their names.
        attentions: of every layer ``(n, heads, length, length)``.
    """

    logits: Tensor | None = None
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    attentions: tuple[Tensor, ...] = ()


def said_by(model: nn.Module, part: Windows, config: FinetuneConfig) -> Said:
    """Everything that the losses of a configuration compare, in one call of a model."""
    with captured(model, config.hidden_layers) as hidden:
        output = part.run(model, **({"output_attentions": True} if config.attention else {}))
    return Said(logits_of(output), hidden, attentions_of(output) if config.attention else ())


def autocast(device: torch.device, config: FinetuneConfig) -> Any:
    """The context that a configuration asks for."""
    if config.autocast is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, config.autocast))


def fingerprint(model: nn.Module) -> str:
    """The sha256 of all that a model holds."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Teacher:
    """A model that is asked and never changed.

    Args:
        model: in evaluation mode; None for no teacher, which says nothing.
        config: what is compared.
        cache: what it said before, of logits alone.
    """

    def __init__(self, model: nn.Module | None, config: FinetuneConfig, cache: TeacherCache | None = None) -> None:
        self._model, self._config, self._cache = model, config, cache

    @torch.no_grad()
    def says(self, part: Windows) -> Said:
        """Of these windows."""
        if self._model is None:
            return Said()
        if self._cache is None:
            return said_by(self._model, part, self._config)
        missing = self._cache.missing(part.places)
        if len(missing):
            logits = said_by(self._model, part.select(missing), self._config).logits
            assert logits is not None
            self._cache.put(part.places[missing], logits)
        return Said(self._cache.get(part.places).to(part.labels.device))


class TeacherCache:
    """Logits of every window in a folder, filled as they are asked for.

    As log-probabilities in float16, two bytes for each word of the vocabulary at each position: what is likely keeps
    three digits or more. A window that was not asked for takes no room on file systems with sparse files.

    Args:
        folder: made if needed; a cache of the same teacher and windows there is gone on with.
        windows: all of them.
        vocabulary: ``V``.
        identity: what else the logits depend on, such as the teacher's fingerprint.

    Raises:
        CheckpointError: what is there is of another teacher or other windows, or damaged.
        OutputError: the folder cannot be written, or its disk has too little room.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> windows = Windows.of(torch.arange(12).view(4, 3))
        >>> with TemporaryDirectory() as folder:
        ...     cache = TeacherCache(Path(folder), windows, 5, {})
        ...     cache.put(torch.tensor([1]), torch.zeros(1, 3, 5))
        ...     cache.missing(torch.tensor([0, 1, 2])), cache.get(torch.tensor([1])).shape
        (tensor([0, 2]), torch.Size([1, 3, 5]))
    """

    def __init__(self, folder: Path, windows: Windows, vocabulary: int, identity: Mapping[str, Any]) -> None:
        shape = len(windows), windows.length, vocabulary
        size = 2 * len(windows) * windows.length * vocabulary
        about = {"format": 1, "shape": list(shape), "windows": windows.sha256(), **identity}
        require_writable(folder)
        file = folder / _ABOUT
        try:
            if file.exists():
                if json.loads(file.read_text()) != about:
                    raise CheckpointError(
                        f"{folder} keeps what another teacher said, or of other windows; remove it, or name another"
                    )
                if (folder / _VALUES).stat().st_size != size or (folder / _HELD).stat().st_size != len(windows):
                    raise CheckpointError(f"{folder} is damaged: its files are not of {shape}; remove it")
            else:
                if shutil.disk_usage(folder).free < size:
                    raise OutputError(
                        f"what the teacher says of {len(windows)} windows takes {size / 2**30:.1f} GiB, more than "
                        f"{folder} has room for; use fewer windows, or no cache"
                    )
                for name, length in ((_VALUES, size), (_HELD, len(windows))):
                    with (folder / name).open("wb") as made:
                        made.truncate(length)
                write_bytes(file, (json.dumps(about) + "\n").encode())
            self._values = np.memmap(folder / _VALUES, np.float16, "r+", shape=shape)
            self._held = np.memmap(folder / _HELD, np.uint8, "r+", shape=shape[:1])
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot keep what the teacher says in {folder}: {error}") from error

    def missing(self, places: Tensor) -> Tensor:
        """Which of these places nothing is kept of, as indices among them."""
        return torch.from_numpy(np.flatnonzero(self._held[places.cpu().numpy()] == 0))

    def get(self, places: Tensor) -> Tensor:
        """Log-probabilities ``(n, length, V)`` of the windows at these places, of which none is missing."""
        return torch.from_numpy(np.ascontiguousarray(self._values[places.cpu().numpy()]))

    def put(self, places: Tensor, logits: Tensor) -> None:
        """Keep the logits of the windows at these places."""
        index = places.cpu().numpy()
        # What float16 cannot hold is as good as impossible.
        kept = logits.detach().float().log_softmax(-1).clamp_min(torch.finfo(torch.float16).min).half().cpu()
        self._values[index] = kept.numpy()
        # Only now, so that a kill between both leaves a window to be asked for again.
        self._held[index] = 1
