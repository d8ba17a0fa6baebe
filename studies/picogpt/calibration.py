"""PicoGPT's linears as chains fitted to what they see, where TT-SVD looks at their weights alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mpochain.chain import MPOChain
from mpochain.compression.methods.interpolative import DAMPING
from mpochain.compression.statistics.low_rank import weights_of
from mpochain.compression.statistics.moments import collect_moments
from mpochain.compression.statistics.sampled_loss import SampledLoss
from mpochain.decomposition import calibrated
from mpochain.nn import MPOLinear
from mpochain.spec import ChainSpec
from studies.picogpt.corpus import Corpus
from studies.picogpt.decomposition import replace_linears, require_decomposable
from studies.picogpt.design import Design
from studies.picogpt.model import PicoGPT

__all__ = ["calibrate_linears"]

_BATCH = 32


def calibrate_linears(
    model: PicoGPT, design: Design, corpus: Corpus, *, batches: int = 6, iterations: int = 40, seed: int = 0
) -> PicoGPT:
    """A new PicoGPT in which every linear of a dense one is a chain fitted to it under the moments of what it sees.

    Moments are those of the inputs and, but for W_1, of the gradients of the loss by the outputs; of W_1, whose outputs
    outnumber its inputs, the inputs' alone. See :func:`mpochain.decomposition.calibrated`.

    Args:
        model: a dense one, left as it is.
        design: the chains.
        corpus: the text, of whose training split random windows are read.
        batches: of 32 windows.
        iterations: of the fit.
        seed: of the windows and of the labels that gradients are taken for.

    Raises:
        SpecError: a model that has chains already, a design of another width, or one without chains.
        CorpusError: the training split is too short for a window, or the model has another vocabulary.

    Example:
        >>> from studies.picogpt import build
        >>> corpus = Corpus.from_text("to be or not " * 300)
        >>> dense = build(vocab_size=len(corpus.vocabulary), seed=0)
        >>> chains = calibrate_linears(dense, Design("low rank", 16), corpus, batches=1)
        >>> chains.blocks[0].w_1.spec.max_bond
        15
    """
    require_decomposable(model, design)
    corpus.require_context(model.context)
    corpus.require_vocabulary(model.vocab_size)
    names = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    seen = collect_moments(
        model,
        {name: model.get_submodule(name) for name in sorted(names)},
        _windows(corpus.train, model.context, batches, seed),
        loss=SampledLoss(seed),
        inputs=names,
    )

    def fitted(name: str, linear: nn.Linear, spec: ChainSpec) -> MPOLinear:
        inputs, outputs = weights_of(seen[name], damping=DAMPING)
        if spec.out_features > spec.in_features:
            outputs = None  # these are moments on the side of the inputs
        found = calibrated(linear.weight, spec, inputs, outputs, iterations=iterations, precision="float32", name=name)
        return MPOLinear.from_chains(MPOChain(found.terms[0], spec), linear.bias)

    return replace_linears(model, design, fitted)


def _windows(tokens: Tensor, length: int, batches: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        starts = torch.randint(tokens.numel() - length + 1, (_BATCH, 1), generator=generator)
        yield tokens[starts + torch.arange(length)].long()
