"""Attention as something to learn from: where the teacher looks, the model should look too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import family_of
from mpochain.errors import ShapeError, SpecError
from mpochain.train.distillation import IGNORED

__all__ = ["attention_loss", "attention_maps", "attentions_of"]


def attention_loss(maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], labels: Tensor) -> Tensor:
    """``KL(p || q)`` of the teacher's attention ``p`` and the model's ``q``, the mean over layers, heads and positions.

    In nats. Source: KnGPT-2 (arXiv 2110.08152) has it among its losses.

    Args:
        maps: of each layer ``(n, heads, length, length)``, rows that sum to 1.
        teacher_maps: in the same shapes; no gradient goes there.
        labels: ``(n, length)``; positions of -100 do not count.

    Raises:
        ShapeError: other numbers of layers, or shapes that do not fit.
        SpecError: no label at all.

    Example:
        >>> even = torch.full((1, 1, 2, 2), 0.5)
        >>> labels = torch.tensor([[3, 4]])
        >>> round(attention_loss([even], [torch.eye(2)[None, None]], labels).item(), 4)  # ln 2
        0.6931
    """
    shapes, theirs = ([tuple(each.shape) for each in side] for side in (maps, teacher_maps))
    if shapes != theirs or not shapes or any(shape[0::2] != tuple(labels.shape) for shape in shapes):
        raise ShapeError(
            f"attention {shapes}, that of the teacher {theirs} and labels {tuple(labels.shape)} do not fit"
        )
    kept = labels != IGNORED
    if not kept.any():
        raise SpecError("no position has a label; -100 everywhere leaves nothing to learn")
    losses = []
    for q, p in zip(maps, teacher_maps, strict=True):
        wide = torch.promote_types(q.dtype, torch.float32)
        # Of the labelled positions, every head: (positions, heads, length).
        ours, aim = q.transpose(1, 2)[kept].to(wide), p.detach().transpose(1, 2)[kept].to(wide)
        least = torch.finfo(wide).tiny
        # What is masked is zero in both, and adds nothing.
        losses.append((aim * (aim.clamp_min(least).log() - ours.clamp_min(least).log())).sum(-1).mean())
    return torch.stack(losses).mean()


def attentions_of(output: Any) -> tuple[Tensor, ...]:
    """The attention of every layer in the output of a model of transformers.

    Raises:
        SpecError: there is none.
    """
    found = getattr(output, "attentions", None)
    if not found or any(each is None for each in found):
        raise SpecError(
            f"attention > 0 compares where model and teacher look, but {type(output).__name__} has no attentions; "
            "models of transformers have them"
        )
    return tuple(found)


@contextmanager
def attention_maps(*models: nn.Module) -> Iterator[None]:
    """Let models of transformers compute attention in the plain way, the only one that can tell it.

    Without its dropout, after which the maps that they tell are those of other models.

    Raises:
        SpecError: a model that cannot.
    """
    given: list[Any] = list(models)
    for model in given:
        if not hasattr(model, "set_attn_implementation"):
            raise SpecError(
                f"attention > 0 compares where model and teacher look, which {type(model).__name__} cannot tell; "
                "models of transformers can"
            )
    # All of them first: models may share a configuration.
    before = [(model, model.config._attn_implementation) for model in given]
    rates = [(holder, name, getattr(holder, name)) for model in given for holder, name in _dropouts(model)]
    try:
        for model in given:
            model.set_attn_implementation("eager")
        for holder, name, _ in rates:
            setattr(holder, name, 0.0)
        yield
    finally:
        for holder, name, rate in rates:
            setattr(holder, name, rate)
        for model, implementation in before:
            model.set_attn_implementation(implementation)


def _dropouts(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """Where the rates of dropout on attention are kept: numbers, or modules of their own."""
    for module in model.modules():
        names = family_of(model).attention_dropouts
        for name in (*names, "dropout") if "Attention" in type(module).__name__ else names:
            found = getattr(module, name, None)
            if isinstance(found, nn.Dropout):
                yield found, "p"
            elif isinstance(found, float):
                yield module, name
