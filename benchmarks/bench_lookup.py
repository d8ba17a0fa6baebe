"""Benchmark of embedding look-ups: time and extra memory of compressed tables against ``nn.Embedding``."""

from __future__ import annotations

import grid
import pytest
import results
import torch
from cells import skip_if_finished, warm_up
from interleave import interleave
from torch import Tensor, nn

from mpochain import EntangledEmbedding, MPOEmbedding, TokenTrainEmbedding, shapes
from mpochain.execution.peak_memory import peak_bytes
from mpochain.nn import RowEmbedding

_WORDS, _COLUMNS, _TOKENS = {"tiny": (100, 12, 80)}.get(grid.NAME, (50_257, 768, 4096))

# Number of units in an index: about as many as a vocabulary of this size has morphemes or meanings.
_UNITS = max(_WORDS // 5, 10)


def _index(order: int) -> Tensor:
    return torch.randint(_UNITS, (_WORDS, order))


_FORMS = {
    **{
        f"MPO, {sites} sites, χ={bond}": lambda sites=sites, bond=bond: MPOEmbedding(
            _WORDS, _COLUMNS, bond, sites=sites
        )
        for sites in (2, 3)
        for bond in (4, 8, 16)
    },
    "low rank, 64": lambda: MPOEmbedding(_WORDS, _COLUMNS, spec=shapes.low_rank(_WORDS, _COLUMNS, min(64, _COLUMNS))),
    "word2ketXS, 2 places, rank 16": lambda: EntangledEmbedding(_WORDS, _COLUMNS, order=2, ranks=16),
    "word2ketXS, 4 places, rank 4": lambda: EntangledEmbedding(_WORDS, _COLUMNS, order=4, ranks=4),
    "word2ket, 2 places, rank 1": lambda: EntangledEmbedding(_WORDS, _COLUMNS, order=2, units="own"),
    "MorphTE, 3 places, rank 8": lambda: EntangledEmbedding(_WORDS, _COLUMNS, ranks=8, units=_index(3), norm=True),
    "SEE, 2 places, rank 8": lambda: EntangledEmbedding(_WORDS, _COLUMNS, ranks=8, units=_index(2), coefficients=True),
    "TensorGPT, 3 sites, χ=1": lambda: TokenTrainEmbedding(_WORDS, _COLUMNS, 1),
}


def _tokens(kind: str) -> Tensor:
    if kind == "text":
        # Words drawn by Zipf's law, as in a text, so that most words occur several times.
        return torch.multinomial(1 / torch.arange(1.0, _WORDS + 1), _TOKENS, replacement=True)
    return torch.randint(_WORDS, (_TOKENS,))


def _step(embedding: nn.Module, ids: Tensor, grad: Tensor) -> None:
    embedding.zero_grad(set_to_none=True)
    embedding(ids).backward(grad)


@pytest.mark.parametrize("kind", ["any", "text"])
@pytest.mark.parametrize("form", _FORMS)
def bench_lookup(benchmark, form, kind):
    name = f"{form}, {kind}"
    skip_if_finished(benchmark, "lookup", name)
    embedding: RowEmbedding = _FORMS[form]()
    dense = nn.Embedding(_WORDS, _COLUMNS)
    ids = [_tokens(kind) for _ in range(4)]
    grad = torch.randn(_TOKENS, _COLUMNS)
    rounds = 15 if benchmark.enabled else 1
    with torch.no_grad():
        functions = {
            "rows": lambda k: embedding(ids[k % len(ids)]),
            "dense": lambda k: dense(ids[k % len(ids)]),
        }
        warm_up(functions, (), _TOKENS)
        timings = interleave(functions, rounds=rounds, most_seconds=2.0)
        beyond = peak_bytes(lambda: embedding(ids[0])) - grad.numel() * grad.element_size()
        benchmark.group = f"lookup: {name}"
        benchmark.extra_info.update(timings=timings, beyond=beyond)
        benchmark.pedantic(functions["rows"], args=(0,), rounds=3)
    steps = {
        "rows": lambda k: _step(embedding, ids[k % len(ids)], grad),
        "dense": lambda k: _step(dense, ids[k % len(ids)], grad),
    }
    warm_up(steps, (), _TOKENS)
    training = interleave(steps, rounds=rounds, most_seconds=2.0)
    if benchmark.enabled:
        record = {
            "cell": name,
            "form": form,
            "tokens": kind,
            "size": [_TOKENS, _WORDS, _COLUMNS],
            "parameters": sum(parameter.numel() for parameter in embedding.parameters()),
            "beyond": beyond,
            "table": dense.weight.numel() * dense.weight.element_size(),
        }
        results.add("lookup", {**record, "timings": timings, "training": training})
