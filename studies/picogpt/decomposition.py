"""Compression of a PicoGPT's linear layers into chains, by TT-SVD or fitted to calibration data."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import mpochain as mpo
from mpochain.compression import Chains, CompressionReport
from mpochain.errors import ArgumentError
from studies.picogpt.corpus import Corpus
from studies.picogpt.design import Design
from studies.picogpt.model import PicoGPT

__all__ = ["calibrate_linears", "compress_linears", "decompose_linears"]

_BATCH = 32


def decompose_linears(model: PicoGPT, design: Design | int) -> PicoGPT:
    """Return a new PicoGPT whose linear layers are TT-SVDs of a dense model's.

    Args:
        model: dense model, which is not changed.
        design: design of the chains, or the bond of chains on the paper's sites.

    Raises:
        ArgumentError: the model already has chains, or the design has another width or no chains.

    Example:
        >>> from studies.picogpt import build
        >>> dense = build(seed=0)
        >>> chains = decompose_linears(dense, 8)
        >>> sum(p.numel() for p in chains.parameters())
        79168
    """
    return compress_linears(model, design if isinstance(design, Design) else Design("paper", design))[0]


def calibrate_linears(
    model: PicoGPT, design: Design, corpus: Corpus, *, batches: int = 6, iterations: int = 40, seed: int = 0
) -> PicoGPT:
    """Return a new PicoGPT whose linear layers are chains fitted to a dense model's on calibration data.

    The fits are weighted by the second moments of the inputs and of the gradients of the loss with respect to the
    outputs; for W_1, which has more outputs than inputs, only by those of the inputs. See
    :class:`mpochain.compression.Chains`.

    Args:
        model: dense model, which is not changed.
        design: design of the chains.
        corpus: the text; random windows of its training split are the calibration data.
        batches: number of batches of 32 windows.
        iterations: iterations of the fit.
        seed: seed of the windows and of the sampled labels for the gradients.

    Raises:
        ArgumentError: the model already has chains, or the design has another width or no chains.
        CorpusError: the training split is too short for a window, or the model has another vocabulary.

    Example:
        >>> from studies.picogpt import build
        >>> corpus = Corpus.from_text("to be or not " * 300)
        >>> dense = build(vocab_size=len(corpus.vocabulary), seed=0)
        >>> chains = calibrate_linears(dense, Design("low rank", 16), corpus, batches=1)
        >>> chains.blocks[0].w_1.spec.max_bond
        15
    """
    corpus.require_context(model.context)
    corpus.require_vocabulary(model.vocab_size)
    windows = _windows(corpus.train, model.context, batches, seed)
    return compress_linears(model, design, windows, iterations=iterations, seed=seed)[0]


def compress_linears(
    model: PicoGPT,
    design: Design,
    calibration: Sequence[Tensor] | None = None,
    *,
    iterations: int = 40,
    seed: int = 0,
) -> tuple[PicoGPT, CompressionReport]:
    """Return a new PicoGPT whose linear layers are the chains of a design, and the compression report.

    A layer whose chain would not be smaller stays dense.

    Args:
        model: dense model, which is not changed.
        design: design of the chains.
        calibration: batches of tokens ``(B, T)`` to fit the chains to; None for TT-SVD.
        iterations: iterations of the fit to calibration data.
        seed: seed of the sampled labels for the gradients.

    Raises:
        ArgumentError: the model already has chains, or the design has another width or no chains.

    Example:
        >>> from studies.picogpt import build
        >>> chains, report = compress_linears(build(seed=0), Design("paper", 8))
        >>> str(chains.design), len(report.layers)
        ('χ=8', 25)
    """
    if model.design.family != "dense":
        raise ArgumentError(f"a decomposition needs a dense model, got one whose linear layers are {model.design}")
    if design.width != model.design.width:
        raise ArgumentError(
            f"a model of width {model.design.width} cannot be decomposed by a design of width {design.width}"
        )
    if design.family == "dense":
        raise ArgumentError("a decomposition needs a design with chains, got a dense one")
    specs = {
        name: design.spec(layer.out_features, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    method = Chains(specs=specs, calibrated=calibration is not None, iterations=iterations)
    compressed = copy.deepcopy(model)
    report = mpo.compress(compressed, None, method=method, calibration=calibration, seed=seed)
    compressed.design = design
    return compressed, report


def _windows(tokens: Tensor, length: int, batches: int, seed: int) -> list[Tensor]:
    """Draw batches of random windows ``(32, length)``."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(length)
    starts = [torch.randint(tokens.numel() - length + 1, (_BATCH, 1), generator=generator) for _ in range(batches)]
    return [tokens[start + offsets].long() for start in starts]
