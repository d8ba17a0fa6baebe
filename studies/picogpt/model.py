"""PicoGPT: a pre-norm character transformer whose linear layers are dense or chains.

Architecture and sites follow arXiv 2603.28534; the implementation is new. Shape letters: B batch, T time, D width,
H heads, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import ArgumentError, ShapeError
from mpochain.nn import MPOLinear
from mpochain.spec import ChainSpec
from studies.picogpt.design import HEADS, WIDTH, Design

__all__ = ["Initialization", "PicoGPT", "build", "linears", "narrow_width"]

LAYERS, CONTEXT, EXPANSION = 4, 256, 4

# "fan-in" gives the matrix of every linear layer, dense or chain, the standard deviation of nn.Linear; "paper" draws
# weights and cores as the paper's code does.
Initialization = Literal["fan-in", "paper"]

# Standard deviation of embeddings, close to that of the sinusoidal positions. If it were smaller, the first layers
# would read little but the position.
_EMBEDDING_STD = 0.5

# Standard deviation of embeddings and dense weights in the paper's code.
_PAPER_STD = 0.02


class Attention(nn.Module):
    """Causal self-attention: ``(B, T, D) -> (B, T, D)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w_q: nn.Module = nn.Linear(width, width, bias=False)
        self.w_k: nn.Module = nn.Linear(width, width, bias=False)
        self.w_v: nn.Module = nn.Linear(width, width, bias=False)
        self.w_o: nn.Module = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each row of the batch, never to later positions."""
        heads = (*x.shape[:2], HEADS, x.shape[2] // HEADS)
        q, k, v = (w(x).view(heads).transpose(1, 2) for w in (self.w_q, self.w_k, self.w_v))  # (B, H, T, D/H)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.w_o(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Pre-norm transformer block: ``(B, T, D) -> (B, T, D)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.ln2 = nn.LayerNorm(width)
        self.w_1: nn.Module = nn.Linear(width, EXPANSION * width)
        self.w_2: nn.Module = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention, then the position-wise network, each with a residual connection."""
        x = x + self.attention(self.ln1(x))
        return x + self.w_2(F.relu(self.w_1(self.ln2(x))))


class PicoGPT(nn.Module):
    """Character transformer: ``tokens (B, T) -> logits (B, T, V)``, ``T`` at most 256.

    Args:
        vocab_size: number of characters.
        width: features of the residual stream.

    Example:
        >>> PicoGPT(65)(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 7, 65])
    """

    context = CONTEXT

    def __init__(self, vocab_size: int = 65, width: int = WIDTH) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.design = Design(width=width)
        self.embedding = nn.Embedding(vocab_size, width)
        self.register_buffer("positions", _sinusoids(width), persistent=False)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(width)
        self.head: nn.Module = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits of the next character at every position.

        Raises:
            ShapeError: there are more than 256 positions.
        """
        time = tokens.shape[1]
        if time > CONTEXT:
            raise ShapeError(f"PicoGPT reads at most {CONTEXT} positions, got tokens of shape {tuple(tokens.shape)}")
        positions: Tensor = self.get_buffer("positions")
        x = self.embedding(tokens) + positions[:time]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def _sinusoids(width: int) -> Tensor:
    """Fixed sinusoidal positions ``(T, D)`` of Vaswani et al. 2017: sines in even columns, cosines in odd ones."""
    time = torch.arange(CONTEXT, dtype=torch.float64)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    table = torch.empty(CONTEXT, width, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = torch.sin(time * frequency), torch.cos(time * frequency)
    return table.float()


def linears(model: PicoGPT) -> list[tuple[nn.Module, str, nn.Linear]]:
    """All dense linear layers with parent and attribute name: q, k, v, o, W_1 and W_2 of each block, and the head.

    Example:
        >>> len(linears(PicoGPT()))
        25
    """
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]


def build(
    max_bond: int | None = None,
    *,
    design: Design | None = None,
    vocab_size: int = 65,
    seed: int | None = None,
    initialization: Initialization = "fan-in",
) -> PicoGPT:
    """Build a randomly initialised PicoGPT.

    Args:
        max_bond: bond of the chains on the paper's sites that replace every linear layer; None for dense layers.
        design: design of the linear layers, instead of ``max_bond``.
        vocab_size: number of characters.
        seed: seed of the initialisation, which leaves the global generator untouched; None draws from the global one.
        initialization: ``"fan-in"`` gives the matrix of every linear layer, dense or chain, the standard deviation of
            ``nn.Linear``, ``1 / sqrt(3 in_features)``, and embeddings about that of the positions. ``"paper"`` draws
            embeddings and dense weights with standard deviation 0.02, and cores as the paper's code does, which is
            correct only for two sites.

    Raises:
        ArgumentError: both ``max_bond`` and ``design`` are given, or the initialisation is unknown.
        SpecError: the bond is not a positive integer.

    Example:
        >>> [sum(p.numel() for p in build(bond).parameters()) for bond in (None, 16)]
        [808448, 177408]
    """
    if design is None:
        design = Design() if max_bond is None else Design("paper", max_bond)
    elif max_bond is not None:
        raise ArgumentError("give max_bond= or design=, not both")
    if initialization not in get_args(Initialization):
        raise ArgumentError(f"initialization must be one of {get_args(Initialization)}, got {initialization!r}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = PicoGPT(vocab_size, design.width)
        paper = initialization == "paper"
        nn.init.normal_(model.embedding.weight, std=_PAPER_STD if paper else _EMBEDDING_STD)
        for parent, name, linear in linears(model):
            spec = design.spec(linear.out_features, linear.in_features)
            layer: nn.Linear | MPOLinear = linear
            if spec is None:
                nn.init.normal_(linear.weight, std=_PAPER_STD if paper else 1 / math.sqrt(3 * linear.in_features))
            else:
                layer = MPOLinear(linear.in_features, linear.out_features, spec=spec, bias=linear.bias is not None)
                if paper:
                    for core in layer.cores[0]:
                        nn.init.normal_(core, std=_paper_std(spec))
                setattr(parent, name, layer)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    model.design = design
    return model


def _paper_std(spec: ChainSpec) -> float:
    """Standard deviation of the paper's cores, ``in^(-1/4) χ^(-(n-1)/(2n))`` for ``n`` sites."""
    return float(spec.in_features**-0.25 * spec.max_bond ** (-(spec.sites - 1) / (2 * spec.sites)))


def narrow_width(parameters: int, vocab_size: int = 65) -> int:
    """Width of the dense PicoGPT whose number of parameters is closest to ``parameters``; the smaller in a tie.

    Raises:
        ArgumentError: even the narrowest model has more parameters.

    Example:
        >>> width = narrow_width(177_408)
        >>> width, sum(p.numel() for p in PicoGPT(65, width).parameters())
        (60, 183120)
    """
    if parameters < _dense_parameters(HEADS, vocab_size):
        raise ArgumentError(f"no PicoGPT has {parameters:,} parameters or fewer")
    width = HEADS
    while _dense_parameters(width + HEADS, vocab_size) <= parameters:
        width += HEADS
    return min(width, width + HEADS, key=lambda candidate: abs(_dense_parameters(candidate, vocab_size) - parameters))


def _dense_parameters(width: int, vocab_size: int) -> int:
    # q, k, v, o and both position-wise matrices; biases of o, W_1 and W_2; four LayerNorm vectors.
    block = (4 + 2 * EXPANSION) * width**2 + (2 + EXPANSION) * width + 4 * width
    return LAYERS * block + 2 * width + 2 * vocab_size * width
