"""The model: a pre-norm character transformer whose linears are dense or chains.

Architecture and sites: arXiv 2603.28534 and its public code, written anew. Shape letters: B batch, T time, D width,
H heads, V vocabulary.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain import shapes
from mpochain.errors import ShapeError
from mpochain.nn import MPOLinear
from mpochain.spec import ChainSpec

__all__ = ["PicoGPT", "build", "decompose_linears", "site_spec"]

WIDTH, HEADS, LAYERS, CONTEXT, HIDDEN = 128, 4, 4, 256, 512

_SITES = {
    (128, 128): ((8, 16), (8, 16)),
    (512, 128): ((8, 8, 8), (4, 4, 8)),
    (128, 512): ((4, 4, 8), (8, 8, 8)),
}

# Of linear weights and embeddings, as in the paper's code.
_WEIGHT_STD = 0.02


def site_spec(out_features: int, in_features: int, max_bond: int | None) -> ChainSpec:
    """The paper's sites for a linear of this shape; the head's output is factored in two, balanced.

    Example:
        >>> print(site_spec(65, 128, 16))
        65x128 (5,13)|(8,16) bonds (16), 3,968 parameters
    """
    dims = _SITES.get((out_features, in_features))
    if dims is None:
        dims = shapes.balanced(out_features, 2), shapes.balanced(in_features, 2)
    return ChainSpec(*dims, max_bond)


class Attention(nn.Module):
    """Causal self-attention: ``(B, T, D) -> (B, T, D)``."""

    def __init__(self) -> None:
        super().__init__()
        self.w_q: nn.Module = nn.Linear(WIDTH, WIDTH, bias=False)
        self.w_k: nn.Module = nn.Linear(WIDTH, WIDTH, bias=False)
        self.w_v: nn.Module = nn.Linear(WIDTH, WIDTH, bias=False)
        self.w_o: nn.Module = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each row of the batch, never to later positions."""
        heads = (*x.shape[:2], HEADS, WIDTH // HEADS)
        q, k, v = (w(x).view(heads).transpose(1, 2) for w in (self.w_q, self.w_k, self.w_v))  # (B, H, T, D/H)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.w_o(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """One pre-norm layer: ``(B, T, D) -> (B, T, D)``."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.ln2 = nn.LayerNorm(WIDTH)
        self.w_1: nn.Module = nn.Linear(WIDTH, HIDDEN)
        self.w_2: nn.Module = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then the position-wise network, each added to its input."""
        x = x + self.attention(self.ln1(x))
        return x + self.w_2(F.relu(self.w_1(self.ln2(x))))


class PicoGPT(nn.Module):
    """``tokens (B, T) -> logits (B, T, V)``, ``T`` at most 256.

    Args:
        vocab_size: number of characters.

    Example:
        >>> PicoGPT(65)(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 7, 65])
    """

    context = CONTEXT

    def __init__(self, vocab_size: int = 65) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.max_bond: int | None = None
        self.embedding = nn.Embedding(vocab_size, WIDTH)
        self.register_buffer("positions", _sinusoids(), persistent=False)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.head: nn.Module = nn.Linear(WIDTH, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next character at every position.

        Raises:
            ShapeError: more than 256 positions.
        """
        time = tokens.shape[1]
        if time > CONTEXT:
            raise ShapeError(f"PicoGPT reads at most {CONTEXT} positions, got tokens of shape {tuple(tokens.shape)}")
        positions: Tensor = self.get_buffer("positions")
        x = self.embedding(tokens) + positions[:time]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def _sinusoids() -> Tensor:
    """Fixed positions ``(T, D)`` of Vaswani et al. 2017: sines in even columns, cosines in odd ones."""
    time = torch.arange(CONTEXT, dtype=torch.float64)[:, None]
    frequency = torch.exp(torch.arange(0, WIDTH, 2, dtype=torch.float64) * (-math.log(10000.0) / WIDTH))
    table = torch.empty(CONTEXT, WIDTH, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = torch.sin(time * frequency), torch.cos(time * frequency)
    return table.float()


def _linears(model: PicoGPT) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Every dense linear with its parent and attribute: q, k, v, o, W_1 and W_2 of each block, and the head."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]


def build(max_bond: int | None = None, *, vocab_size: int = 65, seed: int | None = None) -> PicoGPT:
    """A randomly initialised PicoGPT.

    Args:
        max_bond: ``None`` for dense linears, or the bond of chains with the paper's sites in place of every linear.
        vocab_size: number of characters.
        seed: of the initialisation; the global generator is left untouched. ``None`` draws from the global one.

    Raises:
        SpecError: a bond that is not a positive integer.

    Example:
        >>> [sum(p.numel() for p in build(bond).parameters()) for bond in (None, 16)]
        [808448, 177408]
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = PicoGPT(vocab_size)
        nn.init.normal_(model.embedding.weight, std=_WEIGHT_STD)
        for parent, name, linear in _linears(model):
            layer: nn.Linear | MPOLinear = linear
            if max_bond is None:
                nn.init.normal_(linear.weight, std=_WEIGHT_STD)
            else:
                spec = site_spec(linear.out_features, linear.in_features, max_bond)
                layer = MPOLinear(linear.in_features, linear.out_features, spec=spec, bias=linear.bias is not None)
                layer.reset_parameters(_WEIGHT_STD)
                setattr(parent, name, layer)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    model.max_bond = max_bond
    return model


def decompose_linears(model: PicoGPT, max_bond: int) -> PicoGPT:
    """A new PicoGPT in which every linear of a dense one is its TT-SVD; the given model is left as it is.

    Example:
        >>> dense = build(seed=0)
        >>> chains = decompose_linears(dense, 8)
        >>> sum(p.numel() for p in chains.parameters())
        79168
    """
    result = copy.deepcopy(model)
    names = {module: name for name, module in result.named_modules()}
    for parent, name, linear in _linears(result):
        spec = site_spec(linear.out_features, linear.in_features, max_bond)
        setattr(parent, name, MPOLinear.from_linear(linear, spec, name=names[linear]))
    result.max_bond = max_bond
    return result
