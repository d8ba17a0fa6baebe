"""Outputs of a model and what they mean: classes, labels, or numbers such as those of a regression or hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor, nn

from mpochain.architectures import logits_names
from mpochain.errors import DTypeError

__all__ = ["Meaning", "ModelOutput", "model_outputs"]

Meaning = Literal["classes", "probabilities", "labels", "values", "either", "loss"]

# Outputs that hold no prediction: states for the next call, and what is computed on the way.
_NO_PREDICTIONS = ("loss", "past_key_values", "cache_params", "hidden_states", "attentions", "mems")

# Entries of probabilities sum to 1, and embeddings have norm 1, up to this.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """One tensor of a model's output.

    Attributes:
        name: name in the output; ``""`` for an output that is a tensor or a tuple.
        values: ``(..., features)``.
        meaning: how the entries of the last axis are read.
    """

    name: str
    values: Tensor
    meaning: Meaning

    def __str__(self) -> str:
        return self.name or "the output"


def model_outputs(model: nn.Module, output: Any, arguments: Mapping[str, Any]) -> list[ModelOutput]:
    """Predictions among the outputs of a model, each ``(..., features)``.

    Outputs named ``logits``, or whose names contain it, are classes; all other named outputs are values. An output
    without a name is values if it has a single feature, more than three axes, the shape of the model's input or rows of
    norm 1. It is classes if they are as many as the tokens of an embedding, and probabilities of classes if its rows
    are not negative and sum to 1. Otherwise it may be either.

    Args:
        model: the model, whose configuration may name the kind of problem; not called.
        output: a tensor, a tuple, a mapping, or an object with named outputs.
        arguments: arguments of the call, by name.

    Raises:
        DTypeError: there is no tensor of floating point numbers among the outputs.

    Example:
        >>> import torch
        >>> [(str(part), part.meaning) for part in model_outputs(nn.ReLU(), torch.zeros(4, 1), {})]
        [('the output', 'values')]
        >>> output = {"logits": torch.zeros(4, 3), "hidden_states": (torch.zeros(4, 8),)}
        >>> [(str(part), part.meaning) for part in model_outputs(nn.ReLU(), output, {})]
        [('logits', 'classes')]
    """
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    parts: list[ModelOutput] = []
    for name, tensor in _predictions(output):
        if not tensor.ndim:
            parts.append(ModelOutput(name, tensor, "loss"))
            continue
        is_logits = "logits" in name
        values = tensor[:, None] if tensor.ndim == 1 else tensor
        if is_logits and values.ndim == 4:  # classes of pixels, (n, classes, height, width)
            values = values.movedim(1, -1)
        parts.append(ModelOutput(name, values, _meaning(model, name, values, is_logits, problem, arguments)))
    if not parts:
        raise DTypeError(f"{type(output).__name__} holds no tensor of floating point numbers; give loss=")
    return parts


def _meaning(
    model: nn.Module, name: str, values: Tensor, is_logits: bool, problem: str | None, arguments: Mapping[str, Any]
) -> Meaning:
    if values.shape[-1] == 1 or problem == "regression":
        return "values"
    if is_logits:
        return "labels" if problem == "multi_label_classification" else "classes"
    if name or values.ndim > 3:
        return "values"
    inputs = [value for value in arguments.values() if isinstance(value, Tensor) and value.is_floating_point()]
    if any(value.shape == values.shape for value in inputs):
        return "values"
    rows = values.detach().float()
    if bool(((rows.norm(dim=-1) - 1).abs() < _TOLERANCE).all()):
        return "values"
    if bool((rows >= 0).all() and ((rows.sum(-1) - 1).abs() < _TOLERANCE).all()):
        return "probabilities"
    vocabularies = {getattr(module, "num_embeddings", None) for module in model.modules()}
    return "classes" if values.shape[-1] in vocabularies else "either"


def _predictions(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the predictions."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield "", output
        return
    named = _named(output)
    if named is None:
        if isinstance(output, tuple | list):
            # The first prediction; a scalar before it is the loss.
            tensors = [item for item in output if isinstance(item, Tensor) and item.is_floating_point()]
            tensors = [item for item in tensors if item.ndim] or tensors
            if tensors:
                yield "", tensors[0]
        return
    tensors_by_name = {name: value[0] if isinstance(value, tuple | list) and value else value for name, value in named}
    floats = {
        name: value
        for name, value in tensors_by_name.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name not in _NO_PREDICTIONS
    }
    scores = {name: value for name, value in floats.items() if "logits" in name or name in logits_names()}
    boxes = {name: value for name, value in floats.items() if name.startswith("pred_")}
    chosen = {**scores, **boxes} if scores else {name: value for name, value in floats.items() if value.ndim}
    if not chosen and isinstance(loss := tensors_by_name.get("loss"), Tensor):
        chosen = {"loss": loss}
    for name, value in chosen.items():
        yield ("logits" if name in logits_names() else name), value


def _named(output: Any) -> list[tuple[str, Any]] | None:
    if isinstance(output, Mapping):
        return [(str(name), value) for name, value in output.items()]
    if is_dataclass(output) and not isinstance(output, type):
        return [(field.name, getattr(output, field.name)) for field in fields(output)]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if not isinstance(output, tuple | list) and hasattr(output, "__dict__"):
        return list(vars(output).items())
    return None
