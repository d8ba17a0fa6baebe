"""One architecture and one method: compress, save, load, make dense, and back through transformers."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import mpochain as mpo
from architectures.inputs import batch_for
from architectures.shrinking import tiny_config
from mpochain import MPOError
from mpochain.errors import ArgumentError

__all__ = ["BUDGETS", "DENSE", "LOADED", "METHODS", "SEED", "build", "check"]

METHODS = ("svd", "interpolative", "tt_svd")
# Shares of the parameters of the layers. The second is for models of which the inputs reach only a part, such as the
# text model of a model of images: all else stays dense and counts.
BUDGETS, SEED = (0.7, 0.98), 0
# Largest differences of outputs, relative to the largest number: after loading the same numbers, and in dense form.
LOADED, DENSE = 1e-6, 1e-3


def build(name: str) -> nn.Module:
    """Build a tiny model with random weights.

    Args:
        name: name of the class in transformers.
    """
    torch.manual_seed(SEED)
    kind = getattr(transformers, name)
    return kind(tiny_config(kind.config_class)).eval()


def check(dense: nn.Module, method: str) -> dict[str, Any]:
    """Compress a model and take it through every form that the library writes.

    Args:
        dense: transformers model; not changed.
        method: name of a compression method.

    Returns:
        ``outcome``: ``"equal"``; ``"refused"`` with the ``message`` of an MPOError; or ``"fault"``, with the ``step``
        at which it happened and its ``message``.
    """
    step = "compress"
    layers = 0
    try:
        batches = [batch_for(dense, seed) for seed in (1, 2)]
        model: Any = copy.deepcopy(dense)
        try:
            report = mpo.compress(model, BUDGETS[0], method=method, calibration=batches)
        except ArgumentError as error:
            if "out of reach" not in str(error):
                raise
            report = mpo.compress(model, BUDGETS[1], method=method, calibration=batches)
        layers = sum(layer.form != "dense" for layer in report.layers)
        step = "forward"
        expected = outputs(model, batches[0])
        with tempfile.TemporaryDirectory() as folder:
            step = "save"
            mpo.save(model, Path(folder) / "small")
            step = "load"
            loaded = mpo.load(Path(folder) / "small")
            require_equal(outputs(loaded, batches[0]), expected, LOADED)
            step = "to_dense"
            whole: Any = mpo.to_dense(model)
            again = outputs(whole, batches[0])
            require_equal(again, expected, DENSE)
            step = "save_pretrained"
            whole.save_pretrained(Path(folder) / "dense")
            step = "from_pretrained"
            back, info = type(whole).from_pretrained(Path(folder) / "dense", output_loading_info=True)
            if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
                raise AssertionError(f"other weights: {info}")
            require_equal(outputs(back.eval(), batches[0]), again, LOADED)
    except MPOError as error:
        return {"outcome": "refused", "step": step, "message": str(error), "layers": layers}
    except Exception as error:  # whatever it is, it is a fault
        return {
            "outcome": "fault",
            "step": step,
            "message": f"{type(error).__name__}: {str(error).strip()[:400]}",
            "layers": layers,
        }
    return {"outcome": "equal", "layers": layers}


def outputs(model: nn.Module, batch: Mapping[str, Any]) -> list[Tensor]:
    """All floating-point tensors of a model's output, in order."""
    torch.manual_seed(SEED)  # some models draw noise
    with torch.no_grad():
        return list(tensors(model(**batch)))


def tensors(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors within an output, without caches."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors(inner)


def require_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Raise AssertionError if outputs differ by more than a share of their largest number."""
    assert len(actual) == len(expected) > 0, f"{len(actual)} outputs, expected {len(expected)}"
    for k, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape, f"output {k} has shape {tuple(a.shape)}, expected {tuple(b.shape)}"
        both = a.isfinite() & b.isfinite()
        assert torch.equal(a.isfinite(), b.isfinite()), f"output {k} is finite elsewhere"
        difference = float((a - b)[both].abs().max()) if both.any() else 0.0
        scale = float(b[both].abs().max()) if both.any() else 0.0
        assert difference <= tolerance * scale, f"output {k} differs by {difference:.2g} of {scale:.2g}"
