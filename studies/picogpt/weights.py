"""Saving and loading of trained PicoGPTs as safetensors files with the design of the model, without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from mpochain.errors import CheckpointError
from mpochain.system.files import write_bytes
from studies.picogpt.corpus import Corpus
from studies.picogpt.design import Design
from studies.picogpt.model import PicoGPT, build

__all__ = ["load_weights", "save_weights", "shipped"]

_WIDEST = 1024

_TRAINED = Path(__file__).with_name("trained")

_FORMAT = {"format": "mpochain-picogpt", "version": "1"}


def save_weights(path: Path, model: PicoGPT, corpus: Corpus, training: dict[str, Any]) -> None:
    """Write a trained model with the name and hash of its corpus and its training settings.

    Raises:
        OutputError: the path is not writable.
    """
    record = {
        "vocab_size": model.vocab_size,
        "design": model.design.as_dict(),
        "corpus": {"name": corpus.name, "sha256": corpus.sha256},
        "training": training,
    }
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_bytes(path, save(tensors, metadata=_FORMAT | {"record": json.dumps(record)}))


def load_weights(path: Path) -> tuple[PicoGPT, dict[str, Any]]:
    """Load the model and the record of a file written by :func:`save_weights`.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors do not match its design.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if {key: metadata.get(key) for key in _FORMAT} != _FORMAT:
                raise CheckpointError(f"{path} is not a PicoGPT file of version {_FORMAT['version']}")
            record = json.loads(metadata["record"])
            size, design = record["vocab_size"], _design(record)
            # Checked before anything is allocated, since a hostile file could name a model of any size.
            if not (isinstance(size, int) and 1 <= size <= 1 << 16):
                raise CheckpointError(f"{path}: vocab_size must be an integer up to 65,536, got {size!r}")
            bond = design.max_bond
            if not (bond is None or (isinstance(bond, int) and 1 <= bond <= 1 << 10)):
                raise CheckpointError(f"{path}: max_bond must be null or an integer up to 1,024, got {bond!r}")
            if design.width > _WIDEST:
                raise CheckpointError(f"{path}: width must be an integer up to {_WIDEST}, got {design.width}")
            model = build(design=design, vocab_size=size, seed=0)
            expected = model.state_dict()
            if set(file.keys()) != set(expected):
                differing = sorted(set(file.keys()) ^ set(expected))[:3]
                raise CheckpointError(f"{path} does not match its design: missing or unexpected tensors {differing}")
            with torch.no_grad():
                for name, value in expected.items():
                    shape = tuple(file.get_slice(name).get_shape())
                    if shape != tuple(value.shape):
                        raise CheckpointError(f"{path}: {name} has shape {shape}, expected {tuple(value.shape)}")
                    value.copy_(file.get_tensor(name))
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a PicoGPT: {error}") from error
    return model, record


def _design(record: dict[str, Any]) -> Design:
    if "design" in record:
        return Design(**record["design"])
    bond = record["max_bond"]  # the oldest files store a bond instead of a design
    return Design() if bond is None else Design("paper", bond)


def shipped(corpus: Corpus, max_bond: int | None = None) -> Path | None:
    """Path of the model in ``trained/`` that was trained on ``corpus``; None if the file does not exist."""
    kind = "dense" if max_bond is None else f"chi{max_bond}"
    path = _TRAINED / f"{kind}-{corpus.sha256[:8]}.safetensors"
    return path if path.exists() else None
