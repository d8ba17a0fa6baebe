"""Tiny random models of transformers: plain, with Conv1D, with a tied head, with a mixture of experts."""

from __future__ import annotations

import torch
import transformers

IDS = torch.arange(24).reshape(2, 12) % 30

_SHARED = {"vocab_size": 30, "hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}


def llama(*, tied=False, layers=2):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **_SHARED | {"num_hidden_layers": layers},
        intermediate_size=40,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=64, n_embd=24, n_layer=2, n_head=2, initializer_range=0.3
    )
    return transformers.GPT2LMHeadModel(config).eval()


def mixtral():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        **_SHARED,
        intermediate_size=40,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return transformers.MixtralForCausalLM(config).eval()


MODELS = {"llama": llama, "tied": lambda: llama(tied=True), "gpt2": gpt2, "mixtral": mixtral}


def logits(model):
    """Logits of a fixed batch."""
    with torch.no_grad():
        return model(IDS).logits


def random_state(model):
    """The same model with random values in what compressed layers hold, so that equal logits mean equal tensors."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model
