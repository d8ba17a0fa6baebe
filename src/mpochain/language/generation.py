"""Greedy text generation with a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import context_length, family_of
from mpochain.distributed import without_gradients
from mpochain.errors import ArgumentError, NonFiniteError
from mpochain.surgery.calls import logits_of

__all__ = ["generate"]


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    tokens: int = 48,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Generate continuations of prompts by greedy decoding.

    The result depends only on the model and the prompt: there is no sampling, no penalty, and no generation setting
    stored with the model is used, so the texts of two models differ only if their predictions do. If the tokenizer has
    a chat template, a prompt is the user's first message, and the text is the reply.

    Args:
        model: causal language model; runs in evaluation mode, on its present device.
        tokenizer: a transformers tokenizer.
        prompts: texts to continue, or questions to answer.
        tokens: maximum number of tokens to generate per prompt; the text is shorter if the model ends it.
        progress: called with the number of prompts done and the total number.

    Returns:
        The generated texts, without prompts and special tokens.

    Raises:
        ArgumentError: ``tokens`` is below 1, a prompt is empty, or a prompt and the tokens together exceed the model's
            context.
        NonFiniteError: the model predicts NaN.

    Example:
        >>> class Successor(nn.Module):  # predicts the next letter of the alphabet
        ...     def forward(self, tokens):
        ...         return torch.nn.functional.one_hot(tokens + 1, 128).float()
        >>> class Letters:
        ...     def __call__(self, text, **_):
        ...         return {"input_ids": [ord(letter) for letter in text]}
        ...     def decode(self, tokens, **_):
        ...         return "".join(map(chr, tokens))
        >>> generate(Successor(), Letters(), ["abc", "x"], tokens=2)
        ['de', 'yz']
    """
    if tokens < 1:
        raise ArgumentError(f"tokens, the number of tokens to generate, must be at least 1, got {tokens}")
    starts = [_tokenise(tokenizer, prompt) for prompt in prompts]
    longest = context_length(model)
    for prompt, start in zip(prompts, starts, strict=True):
        if longest is not None and start.numel() + tokens > longest:
            raise ArgumentError(
                f"the prompt {prompt[:40]!r} has {start.numel():,} tokens, and {tokens:,} more exceed the context of "
                f"{longest:,}; give a shorter prompt or generate fewer tokens"
            )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    end = _end_tokens(model, tokenizer)
    texts = []
    training = model.training
    model.eval()
    try:
        for number, start in enumerate(starts, 1):
            with without_gradients(model):
                generated = _continue(model, start.to(device), tokens, end)
            texts.append(str(tokenizer.decode(generated, skip_special_tokens=True)).strip())
            if progress is not None:
                progress(number, len(starts))
    finally:
        model.train(training)
    return texts


def _continue(model: nn.Module, start: Tensor, count: int, end: set[int]) -> list[int]:
    """Generate up to ``count`` tokens after ``start (1, n)``, stopping at any token in ``end``."""
    # Models without a key-value cache read the whole text again for each token.
    family = family_of(model)
    cached = {family.cache: True} if hasattr(model, "config") else {}
    generated: list[int] = []
    past: dict[str, Any] = {}
    text = start
    while True:
        output = model(text[:, -1:] if past else text, **past, **cached)
        logits = logits_of(output)[0, -1]
        if not logits.isfinite().all():
            raise NonFiniteError("the model predicts NaN or infinite numbers; run it in a wider dtype")
        token = logits.argmax()
        if int(token) in end:
            return generated
        generated.append(int(token))
        if len(generated) == count:
            return generated
        text = torch.cat([text, token[None, None]], dim=1)
        cache = getattr(output, family.past, None)
        past = {family.past: cache} if cache is not None else {}


def _tokenise(tokenizer: Any, prompt: str) -> Tensor:
    """Encode a prompt as ``(1, n)``, int64, wrapped as a user message if the tokenizer has a chat template."""
    if not prompt.strip():
        raise ArgumentError("a prompt is empty; give some words to continue")
    if getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    else:
        encoded = tokenizer(prompt, add_special_tokens=True)
    start = torch.tensor(encoded["input_ids"], dtype=torch.long, device="cpu")
    if not start.numel():
        raise ArgumentError(f"the prompt {prompt!r} has no token in the vocabulary of the model; give other words")
    return start[None]


def _end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    """End-of-text tokens of the tokenizer and of the model's configuration."""
    config = getattr(model, "config", None)
    end: set[int] = set()
    for stated in (getattr(tokenizer, "eos_token_id", None), getattr(config, "eos_token_id", None)):
        if stated is not None:
            end.update(stated if isinstance(stated, list) else [stated])
    return end
