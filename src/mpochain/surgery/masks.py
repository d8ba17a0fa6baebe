"""Masks among the arguments of a model: which positions of a batch hold data and which are padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpochain.nn.experts import Expert

__all__ = ["IGNORED_LABEL", "Masks", "arguments_of", "unmasked_positions"]

# Label of positions that a loss ignores, as in torch and transformers.
IGNORED_LABEL = -100

# Additive masks add at least this to the scores of masked positions; biases by distance (ALiBi) stay far above it.
_MASKED_SCORE = -9999.0

# Method of transformers' audio models that shortens a mask as their convolutions shorten the sound.
_SHORTENED = "_get_feature_vector_attention_mask"

# Names of cross-attention modules, whose keys and values are computed from the states of the encoder.
_CROSS_ATTENTION = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn", "cross_attention")
_KEYS_AND_VALUES = ("k", "v", "k_proj", "v_proj", "key", "value", "kv", "kv_proj", "key_proj", "value_proj")

# An encoder-decoder model has an encoder, and its decoder is the main stack; other models have the main stack alone.
_Side = Literal["encoder", "main"]


def arguments_of(model: nn.Module, batch: Any) -> dict[str, Any]:
    """Arguments of a call of the model with a batch, by the names of the parameters of its ``forward``.

    Args:
        model: the model; not called.
        batch: a tensor, a tuple of positional arguments or a mapping of keyword arguments.

    Example:
        >>> arguments_of(nn.Linear(3, 2), (7,))
        {'input': 7}
    """
    if isinstance(batch, Mapping):
        return dict(batch)
    values = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # a forward without a signature, such as a built-in function
        return {}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    return dict(zip(names, values, strict=False))


def unmasked_positions(mask: Tensor, *, marks_padding: bool = False) -> Tensor:
    """Positions that a mask leaves in, ``(n, length)``, bool.

    Args:
        mask: ``(n, length)``; or ``(n, ..., queries, keys)``, in which a position counts if any query attends to it.
            Booleans and numbers are true or nonzero at data. Floats of which some are negative are added to the scores
            of attention: 0 at data and a large negative number at padding.
        marks_padding: whether booleans and numbers are true or nonzero at padding instead, as in torch's
            ``key_padding_mask``.

    Example:
        >>> unmasked_positions(torch.tensor([[1, 1, 0]])).tolist()
        [[True, True, False]]
        >>> unmasked_positions(torch.tensor([[0.0, -float("inf")]])).tolist()
        [[True, False]]
    """
    attends = mask.ndim > 2
    if mask.is_floating_point() and ((mask < 0).any() or (attends and not mask.any())):
        kept = mask > _MASKED_SCORE
    else:
        kept = (mask == 0) if marks_padding else (mask != 0)
    return kept.flatten(1, -2).any(1) if attends else kept


@dataclass(frozen=True, eq=False)
class _Mask:
    """``kept (n, length)``, and the stack of layers to which it belongs."""

    kept: Tensor
    side: _Side


class Masks:
    """Masks of one batch, applied to the inputs of layers by their shapes.

    Used are the arguments whose names end with ``attention_mask`` or ``padding_mask``. Without any, positions labelled
    -100 do not count; the decoder of an encoder-decoder model without a mask of its own is masked by these labels too.
    The rows of an expert of a mixture count if the positions do that they come from; other rows that a model gathers
    from several positions all count.

    Args:
        model: the model, whose kind decides how masks are read; not called.
        arguments: arguments of the call by name, see :func:`arguments_of`.

    Example:
        >>> masks = Masks(nn.Linear(3, 2), {"attention_mask": torch.tensor([[1, 1, 0]])})
        >>> masks.rows("up", (1, 3, 8)).tolist(), masks.rows("up", (5, 8))
        ([True, True, False], None)
    """

    def __init__(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        config = getattr(model, "config", None)
        self._two_sided = bool(getattr(config, "is_encoder_decoder", False)) or any(
            name.startswith(("decoder_", "tgt")) for name in arguments
        )
        self._time_first = any(getattr(module, "batch_first", None) is False for module in model.modules())
        self._shortened = next(filter(None, (getattr(module, _SHORTENED, None) for module in model.modules())), None)
        self._masks = list(
            _masks(arguments, two_sided=self._two_sided, from_transformers=hasattr(config, "model_type"))
        )
        self._labels = arguments.get("labels")
        sides = {mask.side for mask in self._masks}
        if "main" not in sides and (self._two_sided or not sides):
            labelled = self._labelled()
            if labelled is not None and not labelled.all():
                self._masks.append(_Mask(labelled, "main"))
        self._rows: dict[tuple[_Side, tuple[int, ...]], Tensor | None] = {}
        self._experts = {name: module for name, module in model.named_modules() if isinstance(module, Expert)}

    @property
    def empty(self) -> bool:
        """Whether a mask leaves no position of the batch."""
        return any(not mask.kept.any() for mask in self._masks)

    def rows(self, name: str, shape: Iterable[int]) -> Tensor | None:
        """Which rows of a layer's input are data, bool, one entry per row; None if all are.

        Args:
            name: name of the layer, which tells the encoder from the decoder; ``""`` for the output of the model.
            shape: shape of the input, ``(..., features)``.
        """
        expert = self._experts.get(name.rpartition(".")[0])
        if expert is not None and expert.positions is not None:
            every = self._of_shape(name, (expert.tokens,))
            return None if every is None else every.to(expert.positions.device)[expert.positions]
        return self._of_shape(name, tuple(shape)[:-1])

    def _of_shape(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        key = (self._side(name), shape)
        if key not in self._rows:
            self._rows[key] = self._matched(*key)
        return self._rows[key]

    def predictions(self, shape: Iterable[int], *, next_token: bool) -> Tensor | None:
        """Which rows of the model's output ``(..., features)`` are data and have a label, bool; None if all do.

        Args:
            shape: shape of the output.
            next_token: whether each position predicts the label of the next one.
        """
        rows, labelled = self.rows("", shape), self._labelled()
        if labelled is None or labelled.shape != tuple(shape)[:-1]:
            return rows
        if next_token:
            labelled = torch.cat([labelled[:, 1:], labelled.new_zeros(len(labelled), 1)], 1)
        labelled = labelled.flatten()
        return labelled if rows is None else labelled & rows.to(labelled.device)

    def _labelled(self) -> Tensor | None:
        labels = self._labels
        if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
            return None
        return labels != IGNORED_LABEL

    def _side(self, name: str) -> _Side:
        parts = name.split(".")
        if parts[-1] in _KEYS_AND_VALUES and any(part in _CROSS_ATTENTION for part in parts):
            return "encoder"
        if not self._two_sided:
            return "main"
        first = next((part for part in parts if "coder" in part), "decoder")
        return "main" if "decoder" in first else "encoder"

    def _matched(self, side: _Side, shape: tuple[int, ...]) -> Tensor | None:
        """The mask of one side for rows of this shape, flattened; None if there is none or it leaves all rows."""
        for mask in self._masks:
            rows = self._fitted(mask.kept, shape) if mask.side == side else None
            if rows is not None:
                return None if rows.all() else rows
        return None

    def _fitted(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        if not shape:
            return None
        if len(kept) == 1 and len(shape) > 1 and shape[0] > 1:
            kept = kept.expand(shape[0], -1)
        n, length = kept.shape
        if len(shape) > 1 and shape[:2] == (length, n) and (self._time_first or n != length):
            kept, n, length = kept.T, length, n
        rest = len(shape) - 2
        if shape[:2] == (n, length):
            return kept.reshape(n, length, *(1,) * rest).expand(shape).flatten()
        if len(shape) == 3 and (shape[0], shape[2]) == (n, length):  # by heads
            return kept[:, None].expand(shape).flatten()
        if shape == (n * length,) or shape == (1, n * length):
            return kept.flatten()
        if shape[0] != n:
            return None
        if self._shortened is not None and len(shape) == 2 and shape[1] < length:  # audio, shortened by convolutions
            return torch.as_tensor(self._shortened(shape[1], kept)).bool().flatten()
        # One row per sequence, or positions of another kind: of a sequence that is all padding none counts.
        return kept.any(1).reshape(n, *(1,) * (len(shape) - 1)).expand(shape).flatten()


def _masks(arguments: Mapping[str, Any], *, two_sided: bool, from_transformers: bool) -> Iterator[_Mask]:
    for name, mask in arguments.items():
        if not name.endswith(("attention_mask", "padding_mask")) or not isinstance(mask, Tensor) or mask.ndim < 2:
            continue
        # In transformers ones are data everywhere; in torch, padding masks are true at padding.
        marks_padding = name.endswith("padding_mask") and not from_transformers
        kept = unmasked_positions(mask.detach(), marks_padding=marks_padding)
        of_encoder = not name.startswith(("decoder_", "tgt")) if two_sided else name.startswith(("encoder_", "memory"))
        yield _Mask(kept, "encoder" if of_encoder else "main")
