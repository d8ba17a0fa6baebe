"""Outputs of a teacher model, and their cache on disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import weakref
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError, CheckpointError, OutputError
from mpochain.surgery.calls import logits_of, predictions_of
from mpochain.system.faults import output_errors
from mpochain.system.files import require_writable, write_bytes
from mpochain.system.locks import locked
from mpochain.system.reading import read_bytes
from mpochain.train.attention import attentions_of
from mpochain.train.config import FinetuneConfig
from mpochain.train.data import TrainingData
from mpochain.train.losses import captured
from mpochain.train.windows import Windows

__all__ = ["Outputs", "Teacher", "TeacherCache", "autocast", "called", "outputs_of"]

# Largest record that is read, in bytes.
_LONGEST = 256 << 20

# Files of a cache: its identity, the log-probabilities, and the checksums of the windows that are filled.
_IDENTITY, _VALUES, _CHECKSUMS = "teacher.json", "logits.f16", "checksums.u4"
# Seconds to wait for another process that begins the same cache.
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model that the losses compare.

    Attributes:
        logits: ``(n, length, V)``, of a model that predicts the next token; None for others and without a teacher.
        predictions: predictions of another model by name, see :func:`mpochain.surgery.calls.predictions_of`.
        loss: the loss that such a model computes of its labels; None if it computes none.
        hidden: outputs of the compared modules by name, ``(n, length, features)``.
        attentions: attention maps ``(n, heads, length, length)``, one per layer.
    """

    logits: Tensor | None = None
    predictions: Mapping[str, Tensor] = field(default_factory=dict)
    loss: Tensor | None = None
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    attentions: tuple[Tensor, ...] = ()


def outputs_of(model: nn.Module, part: TrainingData, config: FinetuneConfig) -> Outputs:
    """Call the model once and return all outputs that the configured losses compare."""
    return called(model, part, config)[1]


def called(
    model: nn.Module, part: TrainingData, config: FinetuneConfig, inner: nn.Module | None = None
) -> tuple[Any, Outputs]:
    """Call the model once.

    Args:
        model: the model, or a wrapper such as ``DistributedDataParallel``.
        part: what it is called with.
        config: determines which outputs are compared.
        inner: the model in the wrapper, in which hidden layers are named; None without a wrapper.

    Returns:
        The output as the model returned it, and what the configured losses compare.

    Raises:
        ArgumentError: the model does not give the hidden states or attention maps that a loss compares.
    """
    with captured(inner or model, config.hidden_layers) as hidden:
        output = part.run(model, **({"output_attentions": True} if config.attention else {}))
    for name in config.hidden_layers:
        if not isinstance(hidden.get(name), Tensor):
            kind = f"returned {type(hidden[name]).__name__}" if name in hidden else "was not called"
            raise ArgumentError(
                f"hidden_layers: {name!r} {kind} in {type(inner or model).__name__}, so there are no hidden states to "
                "compare; name modules that return a tensor in both models, such as the blocks"
            )
    attentions = attentions_of(output) if config.attention else ()
    if isinstance(part, Windows):
        return output, Outputs(logits_of(output), hidden=hidden, attentions=attentions)
    loss = getattr(output, "loss", None)
    return output, Outputs(None, predictions_of(output), loss, hidden, attentions)


def autocast(device: torch.device, config: FinetuneConfig) -> Any:
    """Return the autocast context of a configuration."""
    if config.autocast is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, config.autocast))


class Teacher:
    """Frozen model whose outputs are the training targets.

    Args:
        model: the teacher in evaluation mode; None for no teacher, which gives empty outputs.
        config: determines which outputs are compared.
        cache: logits of earlier calls; only if nothing but logits is compared.
    """

    def __init__(self, model: nn.Module | None, config: FinetuneConfig, cache: TeacherCache | None = None) -> None:
        self._model, self._config, self._cache = model, config, cache

    @torch.no_grad()
    def outputs(self, part: TrainingData) -> Outputs:
        """Return the teacher's outputs for some windows."""
        if self._model is None:
            return Outputs()
        if self._cache is None:
            return outputs_of(self._model, part, self._config)
        missing = self._cache.missing(part.indices)
        if len(missing):
            logits = outputs_of(self._model, part.select(missing), self._config).logits
            assert logits is not None
            self._cache.put(part.indices[missing], logits)
        return Outputs(self._cache.get(part.indices).to(next(iter(part.inputs.values())).device))


class TeacherCache:
    """Cache on disk of the teacher's log-probabilities for every window, filled on first use.

    They are float16, two bytes per position and vocabulary entry; likely tokens keep three digits or more. A window
    that was never used takes no disk space on file systems with sparse files.

    Args:
        folder: created if needed; an existing cache of the same teacher and windows is continued.
        windows: all windows of the run.
        vocabulary: ``V``, the vocabulary size.
        identity: other properties that the logits depend on, such as the teacher's fingerprint (JSON).

    Raises:
        CheckpointError: the cache in the folder is damaged, or belongs to another teacher or other windows.
        OutputError: the folder is not writable, or its disk has too little space.

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
        record = {"format": 2, "shape": list(shape), "windows": windows.sha256(), **identity}
        require_writable(folder)
        file = folder / _IDENTITY
        with locked(folder / ".mpochain-lock", folder, wait=_LONGEST_WAIT), output_errors(folder):
            if file.exists():
                if _read_record(file) != record:
                    raise CheckpointError(
                        f"{folder} caches the logits of another teacher or of other windows; name another folder, or "
                        "remove it"
                    )
                stored = [(folder / name).stat().st_size for name in (_VALUES, _CHECKSUMS) if (folder / name).exists()]
                if stored != [size, 4 * len(windows)]:
                    raise CheckpointError(f"{folder} is damaged: its files do not match the shape {shape}; remove it")
            else:
                if shutil.disk_usage(folder).free < size:
                    raise OutputError(
                        f"the teacher's logits of {len(windows)} windows take {size / 2**30:.1f} GiB, more than the "
                        f"free space on the disk of {folder}; use fewer windows, or no cache"
                    )
                for name, length in ((_VALUES, size), (_CHECKSUMS, 4 * len(windows))):
                    with (folder / name).open("wb") as empty:
                        empty.truncate(length)
                write_bytes(file, (json.dumps(record) + "\n").encode())
            self._values, self._checksums = (os.open(folder / name, os.O_RDWR) for name in (_VALUES, _CHECKSUMS))
        for descriptor in (self._values, self._checksums):
            weakref.finalize(self, os.close, descriptor)
        self._folder, self._shape = folder, shape[1:]
        # Windows whose values have been compared with their checksum.
        self._verified: set[int] = set()

    def missing(self, indices: Tensor) -> Tensor:
        """Return the positions within ``indices (n,)`` of the windows that have no logits yet, or damaged ones."""
        return torch.tensor(
            [place for place, row in enumerate(indices.tolist()) if not self._holds(row)],
            dtype=torch.long,
            device="cpu",
        )

    def get(self, indices: Tensor) -> Tensor:
        """Return log-probabilities ``(n, length, V)``, float16, of windows ``(n,)``; none of them may be missing."""
        rows = [np.frombuffer(self._read(row), np.float16).reshape(self._shape) for row in indices.tolist()]
        return torch.from_numpy(np.stack(rows))

    def put(self, indices: Tensor, logits: Tensor) -> None:
        """Store the logits ``(n, length, V)`` of windows ``(n,)`` as log-probabilities.

        Raises:
            OutputError: the disk is full.
        """
        # A log-probability below the range of float16 means a probability of zero.
        lowest = torch.finfo(torch.float16).min
        values = logits.detach().float().log_softmax(-1).clamp_min(lowest).half().cpu().numpy()
        with output_errors(self._folder):
            for row, window in zip(indices.tolist(), values, strict=True):
                content = window.tobytes()
                # Written to the files themselves: a mapped file on a full disk would kill the process.
                _write_at(self._values, content, row * len(content))
                # The checksum is set last, so that a kill in between leaves the window missing.
                _write_at(self._checksums, _checksum(content), 4 * row)
                self._verified.add(row)

    def _holds(self, row: int) -> bool:
        if row not in self._verified:
            checksum = os.pread(self._checksums, 4, 4 * row)
            if checksum != bytes(4) and checksum == _checksum(self._read(row)):
                self._verified.add(row)
        return row in self._verified

    def _read(self, row: int) -> bytes:
        size = 2 * math.prod(self._shape)
        content = b""
        while len(content) < size:
            part = os.pread(self._values, size - len(content), row * size + len(content))
            if not part:
                raise CheckpointError(f"{self._folder} is damaged: its files became shorter; remove it")
            content = content + part if content else part
        return content


def _read_record(file: Path) -> Any:
    try:
        return json.loads(read_bytes(file, _LONGEST).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.parent} is damaged: {file.name}: {error}; remove it") from error


def _checksum(content: bytes) -> bytes:
    """CRC-32 in 4 bytes; never zero, which marks a window that is missing."""
    return (zlib.crc32(content) or 1).to_bytes(4, "little")


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
