"""Write a Llama model with its channels in a random order, which computes the same.

Weights that were read from a file in few bits lie on the grids of that file, in groups of consecutive inputs. A method
that rounds them in the same groups finds these grids again, and looks better than it is. In a random order it cannot.

    python benchmarks/shuffled_channels.py model.gguf shuffled
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.language import load_language_model, save_dense

__all__ = ["shuffle"]


@torch.no_grad()
def shuffle(model: Any, seed: int = 0) -> None:
    """Put the channels of a Llama model in a random order, in place.

    Shuffled are the features of the residual stream, those of every MLP, and those of the values within every head. Its
    outputs differ by rounding alone.

    Args:
        model: a ``LlamaForCausalLM`` without biases.
        seed: seed of the order.
    """
    random = torch.Generator().manual_seed(seed)
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    residual = torch.randperm(config.hidden_size, generator=random)
    base = model.model
    tied = model.lm_head.weight is base.embed_tokens.weight
    _columns(base.embed_tokens, residual)
    if not tied:
        _columns(model.lm_head, residual)
    base.norm.weight.copy_(base.norm.weight[residual])
    for layer in base.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.copy_(norm.weight[residual])
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            _columns(reader, residual)
        for writer in (attention.o_proj, mlp.down_proj):
            _rows(writer, residual)
        hidden = torch.randperm(config.intermediate_size, generator=random)
        _rows(mlp.gate_proj, hidden)
        _rows(mlp.up_proj, hidden)
        _columns(mlp.down_proj, hidden)
        # All query heads of a key-value head read its values in one order.
        values = torch.stack([torch.randperm(size, generator=random) for _ in range(config.num_key_value_heads)])
        _rows(attention.v_proj, _within_heads(values, size))
        repeated = values.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=0)
        _columns(attention.o_proj, _within_heads(repeated, size))


def _within_heads(orders: Tensor, size: int) -> Tensor:
    """Orders ``(heads, size)`` within heads as one order of all features."""
    return (orders + size * torch.arange(len(orders))[:, None]).reshape(-1)


def _rows(layer: nn.Module, order: Tensor) -> None:
    weight: Any = layer.weight
    weight.copy_(weight[order])


def _columns(layer: nn.Module, order: Tensor) -> None:
    weight: Any = layer.weight
    weight.copy_(weight[:, order])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="folder, .gguf file or name on the hub")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    language = load_language_model(arguments.model, dtype="float32")
    ids = torch.arange(64)[None]
    with torch.no_grad():
        before = language.model(ids).logits
        shuffle(language.model, arguments.seed)
        difference = (language.model(ids).logits - before).abs().max() / before.abs().max()
    if difference > 1e-4:
        raise SystemExit(f"the shuffled model computes something else, by {difference:.1e}: it is no plain Llama")
    save_dense(language, arguments.out)
    print(f"{arguments.out}; outputs differ by {difference:.1e}")


if __name__ == "__main__":
    main()
