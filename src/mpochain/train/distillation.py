"""What a model is healed by: cross-entropy, the divergence from a teacher, the error of hidden states.

Shapes: ``V`` is the vocabulary, ``...`` the axes of windows and positions. Losses are means over the positions that
have a label, in nats, computed in float32 (float64 for float64 logits).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mpochain.errors import DTypeError, ShapeError, SpecError

__all__ = ["IGNORED", "captured", "distillation_loss", "hidden_loss", "next_tokens"]

# The label of positions without one, as in torch and transformers.
IGNORED = -100

# Elements of a chunk of logits: 16 MiB in float32, of which a few are alive at a time.
_CHUNK = 1 << 22


def next_tokens(labels: Tensor) -> Tensor:
    """The label of each position of a language model: the token after it, and none for the last.

    The labels are shifted and not the logits, whose slice would have to be copied.

    Args:
        labels: ``(..., length)``, integers.

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
    """``(1 - w) CE(labels, z) + w T^2 KL(softmax(t / T) || softmax(z / T))``, the mean over labelled positions.

    ``T^2`` keeps the size of the gradient when the temperature changes. Source: Hinton et al., arXiv 1503.02531,
    section 2. Loss and gradient are made together, some rows at a time: beside both logits there is one array of their
    size, the gradient, in place of the many that autograd would keep. There is no second derivative.

    Args:
        logits: ``z (..., V)``, of the model.
        labels: ``(...)``, integers; -100 for positions that do not count.
        teacher_logits: ``t (..., V)``; no gradient goes there. Not needed at weight 0.
        weight: ``w``, in ``[0, 1]``; at 0 cross-entropy alone, at 1 the divergence alone.
        temperature: ``T``, positive.

    Returns:
        A scalar, float32 or the type of the logits if that is wider.

    Raises:
        ShapeError: shapes that do not fit, such as another vocabulary.
        SpecError: a weight or temperature out of range, a label outside of the vocabulary, or no label at all.
        DTypeError: labels that are not integers.

    Example:
        >>> logits = torch.zeros(2, 3, 5, requires_grad=True)
        >>> labels = torch.tensor([[0, 1, -100], [2, 3, -100]])
        >>> round(distillation_loss(logits, labels, weight=0.0).item(), 4)  # ln 5
        1.6094
        >>> distillation_loss(logits, labels, logits.detach() + 7.0, temperature=2.0).item()
        0.0
    """
    if not 0 <= weight <= 1:
        raise SpecError(f"weight must be in [0, 1], got {weight}")
    if not 0 < temperature < float("inf"):
        raise SpecError(f"temperature must be positive, got {temperature}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DTypeError(f"labels must be integers, got {labels.dtype}")
    if logits.shape[:-1] != labels.shape:
        raise ShapeError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    if weight and teacher_logits is None:
        raise SpecError(f"weight={weight} needs teacher_logits=; weight=0 is cross-entropy alone")
    if teacher_logits is not None and teacher_logits.shape != logits.shape:
        raise ShapeError(
            f"logits {tuple(logits.shape)} and those of the teacher {tuple(teacher_logits.shape)} differ; a teacher "
            "needs the same vocabulary"
        )
    vocabulary = logits.shape[-1]
    flat = labels.reshape(-1)
    kept = (flat != IGNORED).nonzero().squeeze(1)
    targets = flat[kept].long()
    if not len(targets):
        raise SpecError("no position has a label; -100 everywhere leaves nothing to learn")
    if targets.min() < 0 or targets.max() >= vocabulary:
        raise SpecError(f"labels must be below {vocabulary} or {IGNORED}, got {targets.min()} to {targets.max()}")
    teacher = None
    if weight and teacher_logits is not None:
        teacher = teacher_logits.detach().reshape(-1, vocabulary)
    apply: Any = _Chunked.apply
    loss: Tensor = apply(logits.reshape(-1, vocabulary), teacher, kept, targets, weight, temperature)
    return loss


class _Chunked(torch.autograd.Function):
    """Loss and gradient of rows of logits, a chunk of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        teacher: Tensor | None,
        kept: Tensor,
        targets: Tensor,
        weight: float,
        temperature: float,
    ) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        needed = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits) if needed else None
        loss = torch.zeros((), dtype=wide, device=logits.device)
        rows = max(1, _CHUNK // logits.shape[1])
        count = len(kept)
        for places, labels in zip(kept.split(rows), targets.split(rows), strict=True):
            z = logits.index_select(0, places).to(wide)
            slope: Tensor | None = None
            if weight < 1:
                log_q = z.log_softmax(-1)
                loss -= (1 - weight) * log_q.gather(1, labels[:, None]).sum()
                if needed:
                    slope = log_q.exp_()
                    slope.scatter_add_(1, labels[:, None], slope.new_full((len(labels), 1), -1.0))
                    slope *= 1 - weight
            if teacher is not None:
                log_q = (z / temperature).log_softmax(-1)
                log_p = (teacher.index_select(0, places).to(wide) / temperature).log_softmax(-1)
                p = log_p.exp()
                loss += weight * temperature**2 * (p * log_p.sub_(log_q)).sum()
                if needed:
                    # T^2 of the loss, one T of the derivative of z / T.
                    pull = log_q.exp_().sub_(p).mul_(weight * temperature)
                    slope = pull if slope is None else slope.add_(pull)
            if gradient is not None and slope is not None:
                gradient.index_copy_(0, places, slope.div_(count).to(gradient.dtype))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None, None


def hidden_loss(hidden: Tensor, teacher_hidden: Tensor, labels: Tensor) -> Tensor:
    """Squared error of hidden states, ``|h - t|^2 / |t|^2`` with ``t`` the teacher's, the mean over labelled positions.

    Relative for each position, since the states of some positions of a language model are hundreds of times as large as
    all others, and would be all that a plain mean sees; and so that a weight means the same in every layer.

    Args:
        hidden: ``h (..., features)``, of the model.
        teacher_hidden: ``t (..., features)``; no gradient goes there.
        labels: ``(...)``; positions of -100 do not count.

    Raises:
        ShapeError: shapes that do not fit.
        SpecError: no label at all.

    Example:
        >>> labels = torch.tensor([[1, 2, -100]])
        >>> round(hidden_loss(torch.full((1, 3, 4), 1.1), torch.ones(1, 3, 4), labels).item(), 4)
        0.01
    """
    if hidden.shape != teacher_hidden.shape or hidden.shape[:-1] != labels.shape:
        raise ShapeError(
            f"hidden states {tuple(hidden.shape)}, those of the teacher {tuple(teacher_hidden.shape)} and labels "
            f"{tuple(labels.shape)} do not fit each other"
        )
    kept = labels != IGNORED
    if not kept.any():
        raise SpecError("no position has a label; -100 everywhere leaves nothing to learn")
    wide = torch.promote_types(hidden.dtype, torch.float32)
    h, t = hidden[kept].to(wide), teacher_hidden.detach()[kept].to(wide)
    power = t.square().sum(-1)
    # A state of zeros has no scale of its own.
    return ((h - t).square().sum(-1) / power.clamp_min(torch.finfo(wide).tiny ** 0.5)).mean()


@contextmanager
def captured(model: nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """The outputs of the named modules, of the last call of the model within the block.

    Of an output that is a tuple, the first item.

    Raises:
        SpecError: a module that the model has not, naming those most like it.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with captured(model, ["0"]) as outputs:
        ...     y = model(torch.ones(2, 3))
        >>> outputs["0"].shape
        torch.Size([2, 4])
    """
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    hooks = []
    for name in names:
        if name not in modules:
            near = get_close_matches(name, modules, cutoff=0.3)
            raise SpecError(f"{type(model).__name__} has no module {name!r}; most like it: {', '.join(near) or 'none'}")

    def keeper(name: str) -> Any:
        def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return keep

    try:
        hooks += [modules[name].register_forward_hook(keeper(name)) for name in names]
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
