"""Models recorded as one graph with symbolic batch and length, by ``torch.export``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import context_length, text_configs
from mpochain.errors import ArgumentError, DTypeError, ExportError, MPOError
from mpochain.execution.tracing import for_other_programs
from mpochain.integrations.export.sampling import Sample
from mpochain.surgery.calls import predictions_of, without_cache

__all__ = ["Captured", "capture", "in_evaluation"]

# Rows and tokens of the call that is recorded; torch.export takes sizes of 0 and 1 for constants.
_ROWS, _TOKENS = 2, 7


class _Outputs(nn.Module):
    """A model whose outputs are a tuple of tensors, called with positional tensors."""

    def __init__(self, model: nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.model = model
        self.keywords = names

    def outputs(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Predictions by name."""
        if self.keywords is None:
            return predictions_of(self.model(*inputs))
        return predictions_of(self.model(**dict(zip(self.keywords, inputs, strict=True))))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs(*inputs).values())


@dataclass(frozen=True, eq=False)
class Captured:
    """A model recorded as one graph.

    Attributes:
        program: the graph, with symbolic batch and length.
        run: the model itself, from the graph's inputs to its outputs.
        sample: the inputs that were recorded, and how further ones are drawn.
        inputs: names of the inputs.
        outputs: names of the outputs.
        tensors: number of elements of every parameter and buffer of the model, by its name in the graph.
        constants: number of elements of the tensors in the graph that are neither, such as attributes of modules.
    """

    program: Any
    run: nn.Module
    sample: Sample
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, int]
    constants: tuple[int, ...]


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Context in which a model is in evaluation mode and has no key-value cache; both are restored on exit.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with in_evaluation(model):
        ...     print([module.training for module in model])
        [False, False]
        >>> [module.training for module in model]
        [True, False]
    """
    modes = {module: module.training for module in model.modules()}
    try:
        with without_cache(model):
            for module in modes:
                module.training = False
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def capture(model: nn.Module, inputs: Tensor | Sequence[Tensor] | None) -> Captured:
    """Record a model in evaluation mode.

    Args:
        model: a model of transformers that reads token ids, or any module.
        inputs: example inputs, on the device of the model; needed where it is no model of transformers.

    Raises:
        ArgumentError: inputs that are no tensors, or that are missing.
        ExportError: torch cannot record the model.
    """
    sample = _tokens_of(model) if inputs is None else _from_example(inputs)
    wrapped = _Outputs(model, sample.names if inputs is None else None)
    with in_evaluation(model), torch.inference_mode(False), torch.no_grad():
        try:
            outputs = tuple(wrapped.outputs(*sample.tensors))
            with for_other_programs():
                program = torch.export.export(wrapped, sample.tensors, dynamic_shapes=(sample.axes,), strict=False)
        except DTypeError as error:
            raise ExportError(f"{type(model).__name__} returns no tensor that a file could hold: {error}") from error
        except MPOError:
            raise
        except Exception as error:  # torch.export raises errors of many kinds
            raise ExportError(
                f"torch cannot record {type(model).__name__} as one graph ({type(error).__name__}: {_line(error)}); "
                "layers that others have changed, such as quantised or adapted ones, are often the reason: export the "
                "model before, merge adapters first (merge_and_unload()), or make it dense (mpochain.to_dense)"
            ) from error
    names = tuple(name if not name.isdigit() else f"output_{name}" for name in outputs)
    if inputs is not None and names == ("logits",):
        names = ("output",)
    tensors = {
        name: tensor.numel()
        for values in (wrapped.named_parameters, wrapped.named_buffers)
        for name, tensor in values(remove_duplicate=False)
    }
    constants = tuple(
        value.numel() for name, value in program.constants.items() if isinstance(value, Tensor) and name not in tensors
    )
    return Captured(program, wrapped, sample.symbolic(program), sample.names, names, tensors, constants)


def _tokens_of(model: nn.Module) -> Sample:
    """Inputs of a model that reads token ids: the ids, and a mask of the ids that are no padding."""
    name = type(model).__name__
    configs = list(text_configs(model))
    accepted = inspect.signature(model.forward).parameters
    if not configs or "input_ids" not in accepted:
        raise ArgumentError(
            f"{name} is no model of transformers that reads token ids; give inputs=, an example tensor, or several, "
            "with which the model can be called"
        )
    if any(getattr(config, "is_encoder_decoder", False) for config in configs):
        raise ArgumentError(
            f"{name} translates a source to a target, which is two models in a file; export its encoder "
            "(model.get_encoder()), or give inputs=, example tensors with which it can be called"
        )
    vocabulary = next((size for config in reversed(configs) if (size := getattr(config, "vocab_size", None))), None)
    if not isinstance(vocabulary, int):
        raise ArgumentError(f"the configuration of {name} has no vocab_size; give inputs=, an example of token ids")
    longest = context_length(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    names = tuple(label for label in ("input_ids", "attention_mask") if label in accepted)
    ids = torch.arange(_ROWS * min(_TOKENS, longest or _TOKENS), device=device).reshape(_ROWS, -1) % vocabulary
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=longest)
    tensors = tuple(ids if label == "input_ids" else torch.ones_like(ids) for label in names)
    return Sample(names, tensors, tuple({0: batch, 1: length} for _ in names), longest or math.inf, vocabulary)


def _from_example(inputs: Tensor | Sequence[Tensor]) -> Sample:
    """Inputs from an example: their first axis is the batch, the second one the length if there are two others."""
    values: object = inputs
    tensors = (values,) if isinstance(values, Tensor) else values
    if not isinstance(tensors, list | tuple) or not tensors or not all(isinstance(t, Tensor) for t in tensors):
        raise ArgumentError(f"inputs must be a tensor, or a list of tensors, got {type(inputs).__name__}")
    for number, tensor in enumerate(tensors):
        if not tensor.ndim or 0 in tensor.shape or tensor.shape[0] < 2:
            raise ArgumentError(
                f"input {number} has shape {tuple(tensor.shape)}; expected a batch of at least 2 on the first axis, as "
                "a size of 1 would be recorded as a constant"
            )
    names = tuple("input" if len(tensors) == 1 else f"input_{number}" for number in range(len(tensors)))
    axes = tuple(
        {0: torch.export.Dim.DYNAMIC, **({1: torch.export.Dim.AUTO} if _has_length(tensor) else {})}
        for tensor in tensors
    )
    return Sample(names, tuple(tensors), axes, math.inf, None)


def _has_length(tensor: Tensor) -> bool:
    return tensor.ndim > 2 or (tensor.ndim == 2 and not tensor.is_floating_point())


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
