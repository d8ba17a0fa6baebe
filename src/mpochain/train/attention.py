"""Attention maps of a teacher as a training target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import family_of
from mpochain.errors import ArgumentError, ShapeError
from mpochain.train.losses import IGNORED

__all__ = ["attention_loss", "attention_maps", "attentions_of"]


def attention_loss(maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], labels: Tensor) -> Tensor:
    """KL divergence ``KL(p || q)`` from the teacher's attention ``p`` to the model's ``q``, in nats.

    The mean over layers, heads and positions. Source: one of the losses of KnGPT-2 (arXiv 2110.08152).

    Args:
        maps: one tensor ``(n, heads, length, length)`` per layer, whose rows sum to 1.
        teacher_maps: tensors of the same shapes; they receive no gradient.
        labels: ``(n, length)``; positions with the label -100 do not count.

    Returns:
        A scalar, in float32 or the dtype of the maps if that is wider.

    Raises:
        ShapeError: the numbers of layers differ, or shapes do not match.
        ArgumentError: no position has a label.

    Example:
        >>> uniform = torch.full((1, 1, 2, 2), 0.5)
        >>> labels = torch.tensor([[3, 4]])
        >>> round(attention_loss([uniform], [torch.eye(2)[None, None]], labels).item(), 4)  # ln 2
        0.6931
    """
    shapes, teacher_shapes = ([tuple(layer.shape) for layer in layers] for layers in (maps, teacher_maps))
    if shapes != teacher_shapes or not shapes or any(shape[0::2] != tuple(labels.shape) for shape in shapes):
        raise ShapeError(
            f"shapes of attention {shapes}, the teacher's attention {teacher_shapes} and labels {tuple(labels.shape)} "
            "do not match; the teacher needs the same numbers of layers and heads"
        )
    labelled = labels != IGNORED
    if not labelled.any():
        raise ArgumentError(f"no position has a label: all labels are {IGNORED}; give a batch with labels")
    losses = []
    for q, p in zip(maps, teacher_maps, strict=True):
        dtype = torch.promote_types(q.dtype, torch.float32)
        # (positions, heads, length), labelled positions only
        q_rows, p_rows = q.transpose(1, 2)[labelled].to(dtype), p.detach().transpose(1, 2)[labelled].to(dtype)
        smallest = torch.finfo(dtype).tiny
        # A masked entry is zero in both and contributes nothing.
        divergence = p_rows * (p_rows.clamp_min(smallest).log() - q_rows.clamp_min(smallest).log())
        losses.append(divergence.sum(-1).mean())
    return torch.stack(losses).mean()


def attentions_of(output: Any) -> tuple[Tensor, ...]:
    """Return the attention maps in the output of a transformers model, one ``(n, heads, length, length)`` per layer.

    Raises:
        ArgumentError: the output has no attention maps.
    """
    attentions = getattr(output, "attentions", None)
    if not attentions or any(layer is None for layer in attentions):
        raise ArgumentError(
            f"attention > 0 compares attention maps, but {type(output).__name__} has no attentions; use attention=0, "
            "or transformers models that return them"
        )
    return tuple(attentions)


@contextmanager
def attention_maps(*models: nn.Module) -> Iterator[None]:
    """Switch transformers models to "eager" attention, the only implementation that returns attention maps.

    Attention dropout is also disabled, because it would change the maps. Both are restored when the block ends.

    Raises:
        ArgumentError: the attention implementation of a model cannot be changed.
    """
    transformers_models: list[Any] = list(models)
    for model in transformers_models:
        if not hasattr(model, "set_attn_implementation"):
            raise ArgumentError(
                f"attention > 0 compares attention maps, which {type(model).__name__} cannot return; use attention=0, "
                "or a transformers model"
            )
    # Read all settings before any is changed: models may share a configuration.
    implementations = [(model, model.config._attn_implementation) for model in transformers_models]
    dropouts = [dropout for model in transformers_models for dropout in _dropouts(model)]
    rates = [(holder, name, getattr(holder, name)) for holder, name in dropouts]
    try:
        for model in transformers_models:
            model.set_attn_implementation("eager")
        for holder, name, _ in rates:
            setattr(holder, name, 0.0)
        yield
    finally:
        for holder, name, rate in rates:
            setattr(holder, name, rate)
        for model, implementation in implementations:
            model.set_attn_implementation(implementation)


def _dropouts(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """Objects and attributes that hold an attention dropout rate."""
    names = family_of(model).attention_dropouts
    for module in model.modules():
        for name in (*names, "dropout") if "Attention" in type(module).__name__ else names:
            dropout = getattr(module, name, None)
            if isinstance(dropout, nn.Dropout):
                yield dropout, "p"
            elif isinstance(dropout, float):
                yield module, name
