"""Whole language models for the benchmark: dense, in int8, compiled, and with interpolative layers at given shares."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mpochain as mpo
from mpochain.decomposition import interpolative_parameters
from mpochain.execution.packed import packed, product
from mpochain.nn import InterpolativeLinear
from mpochain.nn.reordering import features_of
from mpochain.surgery import absorb_orders, compressed_layers
from mpochain.surgery.replacement import replace_layers

SHARES = (80, 60, 40)


@dataclass(frozen=True)
class Shape:
    """A model to build with random weights.

    Attributes:
        build: returns the dense model.
        prompt: tokens of the prefill and of the training step.
        has_cache: whether it generates token by token with a cache of keys and values.
    """

    build: Callable[[], nn.Module]
    prompt: int
    has_cache: bool = True


def _llama(**sizes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, max_position_embeddings=2048, **sizes))


def _smollm() -> nn.Module:
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    return _llama(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, **heads)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def _pico() -> nn.Module:
    from studies.picogpt.model import build

    return build()


def _tiny() -> nn.Module:
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1}
    return _llama(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=1, **heads)


MODELS = {
    "SmolLM2-135M": Shape(_smollm, 512),
    "GPT-2 small": Shape(_gpt2, 512),
    "PicoGPT": Shape(_pico, 256, has_cache=False),
    "tiny": Shape(_tiny, 8),
}


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The linear layers of all blocks: all but the head, which shares the table of the tokens or is small."""
    from transformers.pytorch_utils import Conv1D

    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name not in ("lm_head", "head")
    ]


def rank_for(out: int, in_: int, share: float) -> int:
    """The largest rank whose interpolative form has at most this share of the parameters; in steps of 8, as chosen."""
    step = 8 if min(out, in_) >= 64 else 1
    ranks = range(step, min(out, in_) + 1, step)
    return max((rank for rank in ranks if interpolative_parameters(out, in_, rank) <= share * out * in_), default=step)


def compressed(model: nn.Module, share: float) -> nn.Module:
    """A copy of a model with random interpolative layers; MLPs take over the order of outputs where they can."""
    model = copy.deepcopy(model)
    new = {}
    for layer in layers_of(model):
        out, in_ = features_of(layer)
        first = next(layer.parameters())
        with_bias = layer.bias is not None
        new[layer] = InterpolativeLinear(in_, out, rank_for(out, in_, share), bias=with_bias, dtype=first.dtype)
        new[layer].place.copy_(torch.randperm(out))
    replace_layers(model, new)
    absorb_orders(model)
    return model


def in_int8(model: nn.Module) -> nn.Module:
    """A copy whose linear layers hold weights in int8 and round their inputs at each call, by torch."""
    model = copy.deepcopy(model)
    replace_layers(model, {layer: _as_linear(layer) for layer in layers_of(model) if not isinstance(layer, nn.Linear)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated for torchao, whose int8 products on a CPU are slower
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def _as_linear(layer: nn.Module) -> nn.Linear:
    if isinstance(layer, nn.Linear):
        return layer
    out, in_ = features_of(layer)
    linear = nn.Linear(in_, out, bias=layer.bias is not None, dtype=layer.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(layer.weight.t())
        if layer.bias is not None:
            linear.bias.copy_(layer.bias)
    return linear


class _Packed(nn.Module):
    """A linear layer that keeps its matrix in the layout of oneDNN, as layers of the library in fast execution do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._kept = packed(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self._kept, self.bias)


def in_packed(model: nn.Module) -> nn.Module:
    """A copy whose linear layers keep packed matrices, where that is faster."""
    model = copy.deepcopy(model)
    replace_layers(model, {layer: _Packed(_as_linear(layer)) for layer in layers_of(model)})
    return model


def macs(model: nn.Module, dense: nn.Module, *, head: bool) -> float:
    """Share of the dense model's multiply-adds in linear layers, with or without the head; attention is not counted."""
    whole = sum(out * in_ for out, in_ in map(features_of, layers_of(dense)))
    mine = sum(layer.macs() for layer in compressed_layers(model).values()) or whole
    top = next(module for name, module in dense.named_modules() if name in ("lm_head", "head"))
    extra = top.weight.numel() if head else 0
    return (mine + extra) / (whole + extra)


def variants(dense: nn.Module, *, compiles: bool) -> dict[str, nn.Module]:
    """All models of one cell by name."""
    built = {"dense": dense, "dense, packed": in_packed(dense)}
    if next(dense.parameters()).dtype == torch.float32:
        built["dense, int8"] = in_int8(dense)
    for share in SHARES:
        model = compressed(dense, share / 100)
        built[f"{share} %"] = model
        built[f"{share} %, cached"] = copy.deepcopy(model)
        mpo.set_execution(built[f"{share} %, cached"], cache=True)
    if compiles:
        for name in ("dense", *(f"{share} %" for share in SHARES)):
            built[f"{name}, compiled"] = torch.compile(copy.deepcopy(built[name]))
    return built


def prefill(model: nn.Module, tokens: Tensor, *, last_only: bool) -> Callable[[int], Any]:
    """A call that reads a prompt and computes the logits of its last token."""
    arguments = {"use_cache": False, "logits_to_keep": 1} if last_only else {}

    @torch.inference_mode()
    def run(_: int) -> Any:
        return model(tokens, **arguments)

    return run


def decode(model: nn.Module, tokens: Tensor) -> Callable[[int], Any]:
    """A call that computes the logits after one more token than a prompt that it has read."""
    from transformers import DynamicCache

    past = DynamicCache()
    with torch.inference_mode():
        model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def run(_: int) -> Any:
        output = model(tokens[:, -1:], past_key_values=past, use_cache=True)
        past.crop(-1)
        return output

    return run


def training_step(model: nn.Module, tokens: Tensor) -> Callable[[int], Any]:
    """A call of one step of AdamW on the next-token loss of a text; its learning rate changes nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def run(_: int) -> Any:
        output = model(tokens)
        logits = output if isinstance(output, Tensor) else output.logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run
