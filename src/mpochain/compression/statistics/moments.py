"""Second moments of the inputs, outputs and gradients of layers on calibration data.

A low-rank approximation of ``W`` depends only on the moments of its smaller side, so only these are collected: those of
the outputs and of the gradients with respect to the outputs if ``out <= in``, otherwise those of the inputs and of the
gradients with respect to the inputs. A chain and the rounding to few bits need both sides, so those of the larger side
are collected too where a method asks for them. Only running sums are kept, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from mpochain.errors import ArgumentError, MPOError
from mpochain.nn.dense import dense_shape
from mpochain.surgery.wrappers import uncompiled

__all__ = ["Moments", "copied", "frozen", "moment_bytes", "run_batch"]

_ELEMENT = 4  # bytes of a float32


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of one layer ``W (out, in)`` on its smaller side ``s``: means over input rows.

    For a layer of an expert, sums over gradients are divided by the number of tokens that the mixture reads, of which
    the rows are a part, so that the errors of all layers are per token.

    Tensors are float32, or float64 where float32 cannot hold the squares.

    Attributes:
        activations: ``(s, s)``: ``E[y y^T]`` with ``y = W x`` if ``out <= in``, else ``E[x x^T]``, which layers with
            the same input share as one tensor.
        gradients: ``(s, s)``: ``E[g g^T]`` with ``g`` the gradient of the loss with respect to the output if
            ``out <= in``, else ``E[(W^T g)(W^T g)^T]``; None if no gradients were taken.
        input_power: ``E[|x|^2] / in``.
        gradient_power: ``E[|g|^2] / out``; None if no gradients were taken.
        rows: number of input rows.
        inputs: ``(in, in)``: ``E[x x^T]``; None if ``out <= in`` and it was not requested.
        output_gradients: ``(out, out)``: ``E[g g^T]``; None if no gradients were taken, or if ``out > in`` and it was
            not requested. The same tensor as ``gradients`` if ``out <= in``.
        held_out: the same moments of other data, which were set aside from these, see :attr:`Method.sets_aside
            <mpochain.compression.Method>`; None if none were.
        chosen: what a fit to these moments chose by trial, by name, so that a second fit need not try again.
    """

    activations: Tensor
    gradients: Tensor | None
    input_power: float
    gradient_power: float | None
    rows: int
    inputs: Tensor | None = None
    output_gradients: Tensor | None = None
    held_out: Moments | None = None
    chosen: dict[str, float] = field(default_factory=dict)

    @property
    def judging(self) -> Moments:
        """The moments by which an approximation is judged: those set aside, or these without any."""
        return self if self.held_out is None else self.held_out

    @property
    def rows_read(self) -> int:
        """Number of input rows, those set aside included."""
        return self.rows + (0 if self.held_out is None else self.held_out.rows)

    @property
    def bytes(self) -> int:
        """Memory of the tensors; what two fields share counts once."""
        tensors = {id(value): value for value in self.tensors()}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, those of the moments set aside included; one may come twice."""
        yield from (value for entry in fields(self) if isinstance(value := getattr(self, entry.name), Tensor))
        if self.held_out is not None:
            yield from self.held_out.tensors()


def moment_bytes(
    layers: Mapping[str, nn.Module],
    *,
    gradients: bool,
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
) -> int:
    """Upper bound of the bytes of the moments, reached if no two layers share their input.

    While they are collected, layers with the same input hold a sum each, so the bound is reached.
    """
    total = 0
    for name, layer in layers.items():
        shape = dense_shape(layer)
        assert shape is not None
        # The moments of the outputs follow from those of the inputs, so only one of them is stored.
        total += (shape[1] if name in inputs else min(shape)) ** 2
        if gradients:
            # Those of the gradients on the smaller side, and in full where the outputs are the larger side.
            total += min(shape) ** 2 + (shape[0] ** 2 if name in outputs and shape[0] > shape[1] else 0)
    return total * _ELEMENT


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call a model with one batch: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    The model gets copies of the tensors, because it may change its inputs in place and the data are read several times.
    They lie on the device of the model's first parameter. Copies made outside of ``torch.inference_mode()`` can also
    take part in gradients.

    Raises:
        ArgumentError: the batch has another type, or the model cannot be called with it.
    """
    if not isinstance(batch, Tensor | Mapping | tuple | list):
        raise ArgumentError(
            "a calibration batch must be a tensor, a tuple of arguments or a mapping of keyword arguments, got "
            f"{type(batch).__name__}"
        )
    first = next(model.parameters(), None)
    device = None if first is None else first.device
    try:
        if isinstance(batch, Tensor):
            return model(copied(batch, device))
        if isinstance(batch, Mapping):
            return model(**copied(dict(batch), device))
        return model(*copied(tuple(batch), device))
    except (MPOError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArgumentError(
            f"{type(model).__name__} cannot be called with a calibration batch of {_described(batch)}: {lines[0]}; "
            "give batches with the arguments, shapes and dtypes that its forward takes"
        ) from error


def _described(value: Any) -> str:
    """What a batch consists of, with shapes and dtypes."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_described(item)}" for name, item in value.items()) or "no arguments"
    if isinstance(value, tuple | list):
        return ", ".join(_described(item) for item in value) or "no arguments"
    return type(value).__name__


def copied(arguments: Any, device: torch.device | None = None) -> Any:
    """Arguments of a model, or a batch, with copies of the tensors.

    Args:
        arguments: tensors in lists, tuples or mappings.
        device: where the copies lie; None for where the tensors lie.

    Example:
        >>> batch = torch.zeros(2)
        >>> copied({"x": batch})["x"] is batch
        False
    """

    def copy(value: Any) -> Any:
        return value.to(device or value.device, copy=True) if isinstance(value, Tensor) else value

    return tree.tree_map(copy, arguments)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and disable gradients of parameters, which would cost a third of the work.

    Compiled parts of the model run without compilation, since compiled code does not call the hooks on its modules.
    """
    training = {module: module.training for module in model.modules()}
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        with uncompiled(model):
            yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode
