"""Distillation losses: cross-entropy, divergence from a teacher's predictions, error of hidden states.

Shapes: ``V`` is the vocabulary size and ``...`` the axes of windows and positions. Losses are means over the labelled
positions, in nats, computed in float32 (float64 for float64 logits).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mpochain.errors import ArgumentError, DTypeError, ShapeError

__all__ = ["IGNORED", "captured", "distillation_loss", "hidden_loss", "next_tokens"]

# Label of positions that the loss ignores, as in torch and transformers.
IGNORED = -100

# Elements per chunk of logits: 16 MiB in float32; a few chunks are alive at a time.
_CHUNK = 1 << 22


def next_tokens(labels: Tensor) -> Tensor:
    """Return the target of each position of a language model: the next token, or -100 for the last position.

    Labels are shifted instead of logits, because slicing the logits would copy them.

    Args:
        labels: ``(..., length)``, integers.

    Returns:
        ``(..., length)``, in the dtype of ``labels``.

    Example:
        >>> next_tokens(torch.tensor([[5, 6, 7]]))
        tensor([[   6,    7, -100]])
    """
    return torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], IGNORED)], dim=-1)


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Distillation loss ``(1 - w) CE(labels, z) + w T^2 KL(softmax(t / T) || softmax(z / T))``.

    The mean over labelled positions. ``T^2`` keeps the scale of the gradient when the temperature changes. Source:
    Hinton et al., arXiv 1503.02531, section 2. Loss and gradient are computed together, in chunks of rows, so the
    gradient is the only new array as large as the logits; autograd would keep several. There is no second derivative.

    Args:
        logits: ``z``, ``(..., V)``, logits of the model.
        labels: ``(...)``, integers; positions with the label -100 do not count.
        teacher_logits: ``t``, ``(..., V)``; they receive no gradient. Not needed at weight 0.
        weight: ``w``, in ``[0, 1]``; 0 for cross-entropy alone, 1 for the divergence alone.
        temperature: ``T``, positive.

    Returns:
        A scalar, in float32 or the dtype of the logits if that is wider.

    Raises:
        ShapeError: shapes do not match, for example because the vocabularies differ.
        ArgumentError: a weight or temperature is out of range, a label is outside the vocabulary, or no position has
            a label.
        DTypeError: labels are not integers.

    Example:
        >>> logits = torch.zeros(2, 3, 5, requires_grad=True)
        >>> labels = torch.tensor([[0, 1, -100], [2, 3, -100]])
        >>> round(distillation_loss(logits, labels, weight=0.0).item(), 4)  # ln 5
        1.6094
        >>> distillation_loss(logits, labels, logits.detach() + 7.0, temperature=2.0).item()
        0.0
    """
    if not 0 <= weight <= 1:
        raise ArgumentError(f"weight must be in [0, 1], got {weight}")
    if not 0 < temperature < float("inf"):
        raise ArgumentError(f"temperature must be positive, got {temperature}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DTypeError(f"labels must be integers, got {labels.dtype}")
    if logits.shape[:-1] != labels.shape:
        raise ShapeError(f"labels {tuple(labels.shape)} do not match logits {tuple(logits.shape)}")
    if weight and teacher_logits is None:
        raise ArgumentError(f"weight={weight} needs teacher_logits=; give them, or weight=0 for cross-entropy alone")
    if teacher_logits is not None and teacher_logits.shape != logits.shape:
        raise ShapeError(
            f"logits {tuple(logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ in shape; the "
            "teacher needs the same vocabulary"
        )
    vocabulary = logits.shape[-1]
    flat = labels.reshape(-1)
    labelled = (flat != IGNORED).nonzero().squeeze(1)
    targets = flat[labelled].long()
    if not len(targets):
        raise ArgumentError(f"no position has a label: all labels are {IGNORED}; give a batch with labels")
    if targets.min() < 0 or targets.max() >= vocabulary:
        raise ArgumentError(f"labels must be below {vocabulary} or {IGNORED}, got {targets.min()} to {targets.max()}")
    teacher = None
    if weight and teacher_logits is not None:
        teacher = teacher_logits.detach().reshape(-1, vocabulary)
    apply: Any = _Chunked.apply
    loss: Tensor = apply(logits.reshape(-1, vocabulary), teacher, labelled, targets, weight, temperature)
    return loss


class _Chunked(torch.autograd.Function):
    """Loss and gradient with respect to the logits, computed in chunks of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        teacher: Tensor | None,
        labelled: Tensor,
        targets: Tensor,
        weight: float,
        temperature: float,
    ) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits) if needs_gradient else None
        loss = torch.zeros((), dtype=dtype, device=logits.device)
        rows = max(1, _CHUNK // logits.shape[1])
        count = len(labelled)
        for positions, labels in zip(labelled.split(rows), targets.split(rows), strict=True):
            z = logits.index_select(0, positions).to(dtype)
            slope: Tensor | None = None  # gradient of the summed loss with respect to z
            if weight < 1:
                log_q = z.log_softmax(-1)
                loss -= (1 - weight) * log_q.gather(1, labels[:, None]).sum()
                if needs_gradient:
                    slope = log_q.exp_()
                    slope.scatter_add_(1, labels[:, None], slope.new_full((len(labels), 1), -1.0))
                    slope *= 1 - weight
            if teacher is not None:
                log_q = (z / temperature).log_softmax(-1)
                log_p = (teacher.index_select(0, positions).to(dtype) / temperature).log_softmax(-1)
                p = log_p.exp()
                loss += weight * temperature**2 * (p * log_p.sub_(log_q)).sum()
                if needs_gradient:
                    # The factor T^2 of the loss times 1 / T, the derivative of z / T.
                    divergence_slope = log_q.exp_().sub_(p).mul_(weight * temperature)
                    slope = divergence_slope if slope is None else slope.add_(divergence_slope)
            if gradient is not None and slope is not None:
                gradient.index_copy_(0, positions, slope.div_(count).to(gradient.dtype))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None, None


def hidden_loss(hidden: Tensor, teacher_hidden: Tensor, labels: Tensor) -> Tensor:
    """Relative squared error of hidden states, ``|h - t|^2 / |t|^2``, averaged over labelled positions.

    The error is relative at each position, because some positions of a language model have states hundreds of times
    larger than all others, which would dominate a mean of absolute errors. A loss weight also means the same in every
    layer.

    Args:
        hidden: ``h``, ``(..., features)``, hidden states of the model.
        teacher_hidden: ``t``, ``(..., features)``; they receive no gradient.
        labels: ``(...)``; positions with the label -100 do not count.

    Returns:
        A scalar, in float32 or the dtype of the states if that is wider.

    Raises:
        ShapeError: shapes do not match.
        ArgumentError: no position has a label.

    Example:
        >>> labels = torch.tensor([[1, 2, -100]])
        >>> round(hidden_loss(torch.full((1, 3, 4), 1.1), torch.ones(1, 3, 4), labels).item(), 4)
        0.01
    """
    if hidden.shape != teacher_hidden.shape or hidden.shape[:-1] != labels.shape:
        raise ShapeError(
            f"hidden states {tuple(hidden.shape)}, teacher's hidden states {tuple(teacher_hidden.shape)} and labels "
            f"{tuple(labels.shape)} do not match; the teacher's modules need outputs of the same shapes"
        )
    labelled = labels != IGNORED
    if not labelled.any():
        raise ArgumentError(f"no position has a label: all labels are {IGNORED}; give a batch with labels")
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    h, t = hidden[labelled].to(dtype), teacher_hidden.detach()[labelled].to(dtype)
    # The bound avoids division by zero for a state of zeros.
    scale = t.square().sum(-1).clamp_min(torch.finfo(dtype).tiny ** 0.5)
    return ((h - t).square().sum(-1) / scale).mean()


@contextmanager
def captured(model: nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """Record the outputs of named modules in the latest call of the model; the first item of an output tuple.

    Raises:
        ArgumentError: the model has no module of that name; the message lists similar names.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with captured(model, ["0"]) as outputs:
        ...     y = model(torch.ones(2, 3))
        >>> outputs["0"].shape
        torch.Size([2, 4])
    """
    names = list(names)
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    hooks = []
    for name in names:
        if name not in modules:
            similar = ", ".join(get_close_matches(name, modules, cutoff=0.3)) or "none"
            raise ArgumentError(f"{type(model).__name__} has no module {name!r}; similar names: {similar}")

    def recorder(name: str) -> Any:
        def record(_module: nn.Module, _arguments: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return record

    try:
        hooks += [modules[name].register_forward_hook(recorder(name)) for name in names]
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
