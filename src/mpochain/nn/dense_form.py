"""Dense layer that a compressed layer replaced, without its values, to build a layer of the same type again."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mpochain.errors import DTypeError
from mpochain.nn.attachments import alterations, extra_tensors, hooks
from mpochain.nn.dense import dense_shape, is_transposed

__all__ = ["DenseForm", "in_the_state_of"]

Dense = TypeVar("Dense", bound=nn.Module)

# Attributes that a hook of accelerate sets on a module; they refer to the module itself.
_ACCELERATE = ("_hf_hook", "_old_forward", "forward")


@dataclass(frozen=True, eq=False)
class DenseForm:
    """Type and attributes of a dense layer, without the values of its weight and bias.

    Attributes:
        template: copy of the layer whose parameters are on the meta device.
        marks: attributes that were set on each parameter, such as ``_is_hf_initialized``, by its name.
    """

    template: nn.Module
    marks: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, layer: nn.Module) -> DenseForm | None:
        """The form of a plain dense layer or embedding; None for any other module.

        Example:
            >>> form = DenseForm.of(nn.Linear(3, 2))
            >>> form.template.weight.device, DenseForm.of(nn.ReLU())
            (device(type='meta'), None)
        """
        added = (*hooks(layer), *alterations(layer), *extra_tensors(layer))
        if added or "weight" not in layer._parameters or cls._shape(layer) is None:
            return None
        template = _copy(layer)
        for name in _ACCELERATE:
            vars(template).pop(name, None)
        marks = {}
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                marks[name] = dict(vars(parameter))
                template._parameters[name] = nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"), requires_grad=False
                )
        return cls(template, marks)

    @staticmethod
    def _shape(layer: nn.Module) -> tuple[int, int] | None:
        if isinstance(layer, nn.Embedding):
            return layer.num_embeddings, layer.embedding_dim
        return dense_shape(layer)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``, or ``(num_embeddings, embedding_dim)`` of an embedding."""
        shape = self._shape(self.template)
        assert shape is not None
        return shape

    @property
    def is_embedding(self) -> bool:
        """Whether the layer is an embedding."""
        return isinstance(self.template, nn.Embedding)

    def filled(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A layer of this type with copies of a weight ``(out_features, in_features)`` and a bias.

        Args:
            weight: the weight, or the table of an embedding.
            bias: ``(out_features,)``; None for zeros, or for no bias if this type of layer can do without.

        Raises:
            DTypeError: a bias for an embedding.

        Example:
            >>> DenseForm.of(nn.Linear(3, 2, bias=False)).filled(torch.ones(2, 3), None)
            Linear(in_features=3, out_features=2, bias=False)
        """
        if bias is not None and self.is_embedding:
            raise DTypeError("an embedding has no bias")
        layer = _copy(self.template)
        stored = weight.T if is_transposed(layer) else weight
        layer._parameters["weight"] = self._parameter("weight", stored)
        if bias is not None:
            layer._parameters["bias"] = self._parameter("bias", bias)
        elif self.template._parameters.get("bias") is not None:
            layer._parameters["bias"] = self._parameter("bias", weight.new_zeros(weight.shape[0]))
        return layer

    def _parameter(self, name: str, values: Tensor) -> nn.Parameter:
        parameter = nn.Parameter(values.detach().clone(memory_format=torch.contiguous_format))
        vars(parameter).update(self.marks.get(name, {}))
        return parameter


def in_the_state_of(layer: Any, dense: Dense) -> Dense:
    """Give a dense layer the training mode of a compressed one, and freeze its weight and bias as they are frozen."""
    trains = any(parameter.requires_grad for parameter in layer.parameters() if parameter is not layer.bias)
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_(trains if name != "bias" or layer.bias is None else layer.bias.requires_grad)
    return dense.train(layer.training)


def _copy(layer: nn.Module) -> nn.Module:
    """A copy that shares tensors and attributes, but no dictionary of parameters, buffers or hooks."""
    twin = copy.copy(layer)
    for name, value in vars(twin).items():
        if isinstance(value, dict):
            vars(twin)[name] = value.copy()
    return twin
