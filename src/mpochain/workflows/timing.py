"""Times of several language models in turn, in fast execution."""

from __future__ import annotations

from torch import nn

from mpochain.architectures import context_length
from mpochain.language import LanguageModel, Speed, compare_speed
from mpochain.surgery import set_execution
from mpochain.surgery.finding import compressed_layers
from mpochain.system.progress import Counters, uncounted

__all__ = ["time_models"]

# Length of the prompt, in tokens; at most half of the model's context is used.
_PROMPT = 512
_SENTENCE = "The quick brown fox jumps over the lazy dog. "


def time_models(
    models: dict[str, nn.Module], language: LanguageModel, *, counters: Counters = uncounted
) -> dict[str, Speed]:
    """Time prefill and decoding of several models in turn, with compressed layers switched to fast execution.

    Args:
        models: models by name, all with one tokenizer and context length.
        language: source of this tokenizer and context length.
        counters: returns the progress counter for a label.
    """
    longest = context_length(language.model) or _PROMPT
    prompt = language.tokenizer(_SENTENCE * _PROMPT, add_special_tokens=False, verbose=False, return_tensors="pt")
    tokens = prompt["input_ids"][:, : min(_PROMPT, longest // 2)]
    compressed = [model for model in models.values() if compressed_layers(model)]
    for model in compressed:
        set_execution(model, cache=True, autotune=True)
    try:
        return compare_speed(models, tokens, progress=counters("timing"))
    finally:
        for model in compressed:
            set_execution(model)
