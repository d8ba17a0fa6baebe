"""Embeddings of every form, small, and their tables by definition."""

from __future__ import annotations

import math

import torch

from mpochain import ChainSpec, EntangledEmbedding, MPOEmbedding, MPOLinear, PermutedLinear, TokenTrainEmbedding
from mpochain.decomposition import split_off

WORDS, COLUMNS = 30, 10


def index_of(order, units=9):
    torch.manual_seed(1)
    return torch.randint(units, (WORDS, order))


FORMS = {
    "word2ketXS": {"order": 3, "ranks": 2},
    "word2ketXS, even": {"order": 4, "ranks": 3},
    "word2ketXS, dims": {"order": 2, "ranks": 2, "dims": (5, 2)},
    "word2ketXS, one table": {"order": 2, "ranks": 2, "shared": True},
    "word2ket": {"order": 2, "ranks": 3, "units": "own"},
    "MorphTE": {"ranks": 2, "units": index_of(3), "norm": True},
    "SEE": {"ranks": 3, "units": index_of(2), "coefficients": True},
    "index, tables of places": {"ranks": 2, "units": index_of(2), "shared": False, "dims": (2, 5), "unit_count": 12},
}


def made(form, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    if form == "tokens":
        return TokenTrainEmbedding(WORDS, 12, max_bond=2, dims=(2, 3, 2), dtype=dtype, **arguments)
    if form == "tokens, padded":
        return TokenTrainEmbedding(WORDS, COLUMNS, max_bond=2, dtype=dtype, **arguments)
    if form == "tokens, bond 1":
        return TokenTrainEmbedding(WORDS, 12, max_bond=1, dtype=dtype, **arguments)
    if form in CHAINS:
        return _chain(form, dtype, arguments)
    embedding = EntangledEmbedding(WORDS, COLUMNS, **FORMS[form], dtype=dtype, **arguments)
    with torch.no_grad():
        for each in (embedding.coefficients, embedding.scale, embedding.shift):
            if each is not None:
                each.normal_()
    return embedding


def _chain(form, dtype, arguments):
    if form == "permuted":
        table = split_off(torch.randn(WORDS, 8, dtype=dtype), [(1, 2), (1, 2)])
        return MPOEmbedding.of(PermutedLinear.from_split(table), **arguments)
    if form == "both orders":
        inner = MPOLinear(6, WORDS, out_dims=(15, 2), in_dims=(2, 3), max_bond=2, bias=False, dtype=dtype)
        orders = {"rows": torch.randperm(WORDS), "columns": torch.randperm(6)}
        return MPOEmbedding.of(PermutedLinear(inner, **orders), **arguments)
    if form == "sum":
        terms = [ChainSpec((15, 2), (2, 3), 2), ChainSpec((2, 15), (3, 2), 1)]
        return MPOEmbedding(WORDS, 6, terms=terms, dtype=dtype, **arguments)
    sites, dims = (3, (4, 4, 2)) if form == "three sites" else (2, (6, 6))  # both padded
    spec = ChainSpec(dims, (1, 2, 5) if sites == 3 else (2, 5), 3, out_features=WORDS)
    return MPOEmbedding(WORDS, COLUMNS, spec=spec, dtype=dtype, **arguments)


CHAINS = ["chain", "three sites", "sum", "permuted", "both orders"]
ROWS = [*FORMS, "tokens", "tokens, padded", "tokens, bond 1"]
ALL = [*CHAINS, *ROWS]


def dense_table(embedding):
    """The table by its definition, one entry after the other; of a chain its matrix."""
    if isinstance(embedding, MPOEmbedding):
        return embedding.table.weight
    if isinstance(embedding, TokenTrainEmbedding):
        rows = []
        for word in range(embedding.num_embeddings):
            row = torch.ones(1, 1, dtype=torch.float64)
            for core, shape in zip(embedding.cores, embedding.core_shapes, strict=True):
                row = torch.einsum("ml,lqr->mqr", row, core[word].view(shape)).reshape(-1, shape[2])
            rows.append(row[: embedding.embedding_dim, 0])
        return torch.stack(rows)
    rows = []
    for word in range(embedding.num_embeddings):
        units = [int(each) for each in embedding.units_of(torch.tensor([word]))]
        row = torch.zeros(math.prod(embedding.dims), dtype=torch.float64)
        for rank in range(embedding.ranks):
            product = torch.ones(1, dtype=torch.float64)
            for unit, table, dim in zip(units, embedding.tables, embedding.dims, strict=True):
                product = torch.kron(product, table[unit].view(embedding.ranks, dim)[rank])
            row = row + product * (1 if embedding.coefficients is None else embedding.coefficients[word, rank])
        rows.append(row[: embedding.embedding_dim])
    table = torch.stack(rows)
    if embedding.scale is not None:
        centred = table - table.mean(1, keepdim=True)
        table = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * embedding.scale + embedding.shift
    return table
