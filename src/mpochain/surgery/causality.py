"""Check that a model predicts every token from the tokens before it only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpochain.architectures import all_configs
from mpochain.errors import ArgumentError, DTypeError, MPOError
from mpochain.surgery.calls import logits_of

__all__ = ["require_causal"]

# Tokens that are read for the check, at most.
_LENGTH = 64


@torch.no_grad()
def require_causal(model: nn.Module, tokens: Tensor) -> None:
    """Check that a model is a causal language model, whose perplexity has a meaning.

    A model that also reads the later tokens (BERT) could copy the token that it is to predict. Its class does not tell:
    the same class may be used either way. So the model reads a text twice, with other tokens in the second half, and
    must predict the same in the first half.

    Args:
        model: module from token ids ``(1, n)`` to logits ``(1, n, V)``, or to an output with ``.logits``, in evaluation
            mode.
        tokens: ``(n,)``, integers, on the device of the model.

    Raises:
        ArgumentError: the model has no logits at every position, has fewer classes than the text has tokens, reads
            something else than tokens, or predicts a token from later ones.

    Example:
        >>> model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))
        >>> require_causal(model, torch.arange(8))
        >>> class Backwards(nn.Module):
        ...     def forward(self, tokens):
        ...         return model(tokens.flip(1))
        >>> require_causal(Backwards(), torch.arange(8))
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: Backwards is no causal language model: ...
    """
    name = type(model).__name__
    if any(getattr(config, "is_encoder_decoder", False) for config in all_configs(model)):
        raise ArgumentError(
            f"{name} translates a source to a target, so a text alone has no perplexity; measure its loss on pairs"
        )
    text = tokens[:_LENGTH]
    logits = _logits(model, text)
    if logits.shape[:-1] != (1, len(text)):
        raise ArgumentError(
            f"{name} computes logits {tuple(logits.shape)} for {len(text)} tokens, as a classifier does; perplexity "
            "needs a causal language model, with logits at every position"
        )
    if int(tokens.max()) >= logits.shape[-1]:
        raise ArgumentError(
            f"{name} predicts {logits.shape[-1]:,} classes, but the text has the token {int(tokens.max()):,}; give a "
            "causal language model with its own tokenizer"
        )
    half = len(text) // 2
    # Tokens of the text, so that none has a special meaning, such as padding.
    first, last = (tokens.min(), tokens.max()) if tokens.min() < tokens.max() else (0, 1)
    other = text.clone()
    other[half:] = torch.where(text[half:] == first, last, first)
    before, after = (values[0, :half].float() for values in (logits, _logits(model, other)))
    # The same products in the same order, so that a causal model hardly rounds in another way.
    tolerance = torch.finfo(logits.dtype).eps ** 0.5 * float(before.std(correction=0))
    change = float((before - after).abs().max()) if half else 0.0
    if change > tolerance:
        raise ArgumentError(
            f"{name} is no causal language model: its predictions change by up to {change:.2g} with tokens that follow "
            "them, as those of masked language models do; give a causal language model"
        )


def _logits(model: nn.Module, text: Tensor) -> Tensor:
    name = type(model).__name__
    try:
        output = model(text[None])
    except MPOError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArgumentError(
            f"{name} cannot be called with tokens alone ({reason}); perplexity needs a causal language model"
        ) from error
    try:
        return logits_of(output)
    except DTypeError as error:
        raise ArgumentError(f"{name} predicts no tokens ({error}); perplexity needs a causal language model") from error
