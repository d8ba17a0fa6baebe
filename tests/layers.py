"""One small layer of every kind, and more where a kind has several forms: from these every contract test draws."""

from __future__ import annotations

import torch

from mpochain import (
    ChainSpec,
    EntangledEmbedding,
    InterpolativeLinear,
    MPOEmbedding,
    MPOLinear,
    PermutedLinear,
    SumLinear,
    TokenTrainEmbedding,
    shapes,
)
from mpochain.nn import BlockTrainLinear, LinearChain, QuantizedEmbedding, QuantizedLinear, QuantizedParts, RowLinear
from mpochain.quantization import Scheme

UNITS = torch.tensor([[0, 1], [0, 2], [3, 1], [2, 2], [1, 3], [3, 3], [0, 0], [1, 1], [2, 0]])

_SYMMETRIC = Scheme(4, 3, symmetric=True)


def _permuted(**orders):
    return PermutedLinear(MPOLinear(12, 8, max_bond=2, bias=False), **orders)


def _in_codes(name, scheme):
    return QuantizedParts.of(_LAYERS[name](), scheme)


_LAYERS = {
    "chain": lambda: MPOLinear(12, 8, max_bond=3),
    "chain, three sites": lambda: MPOLinear(12, 8, out_dims=(2, 2, 2), in_dims=(2, 3, 2), max_bond=2, bias=False),
    "chain, padded": lambda: MPOLinear(7, 11, spec=ChainSpec((3, 4), (2, 4), 2, out_features=11, in_features=7)),
    "chains": lambda: MPOLinear(12, 8, terms=[ChainSpec((2, 4), (3, 4), 2), shapes.low_rank(8, 12, 1)]),
    "linears": lambda: LinearChain([ChainSpec((2, 2, 2), (2, 3, 2), 2)]),
    "linears, permuted": lambda: _permuted(rows=torch.randperm(8), columns=torch.randperm(12)).as_linears(),
    "linears, padded": lambda: LinearChain([ChainSpec((3, 4), (2, 4), 2, out_features=11, in_features=7)], bias=False),
    "linears, two terms": lambda: LinearChain([ChainSpec((2, 4), (3, 4), 2), shapes.low_rank(8, 12, 1)]),
    "interpolative": lambda: InterpolativeLinear(12, 8, 3),
    "interpolative, full rank": lambda: InterpolativeLinear(5, 8, 5, bias=False),
    "block train": lambda: BlockTrainLinear(12, 8, 2, in_dims=(3, 4), out_dims=(2, 4)),
    "block train, Monarch": lambda: BlockTrainLinear(9, 8, bias=False),
    "sum": lambda: SumLinear([InterpolativeLinear(12, 8, 2, bias=False), MPOLinear(12, 8, max_bond=2)]),
    "sum with linears": lambda: _LAYERS["sum"]().as_linears(),
    "sum without bias": lambda: SumLinear([MPOLinear(12, 8, max_bond=1, bias=False) for _ in range(2)]),
    "permuted": lambda: _permuted(rows=torch.randperm(8), columns=torch.randperm(12), bias=torch.randn(8)),
    "permuted rows": lambda: _permuted(rows=torch.randperm(8)),
    "permuted columns": lambda: _permuted(columns=torch.randperm(12), bias=torch.randn(8)),
    "embedding": lambda: MPOEmbedding(9, 8, max_bond=2),
    "embedding, permuted": lambda: MPOEmbedding.of(_permuted(rows=torch.randperm(8), columns=torch.randperm(12))),
    "entangled digits": lambda: EntangledEmbedding(9, 8, order=3, ranks=2),
    "entangled own": lambda: EntangledEmbedding(9, 8, order=2, units="own", ranks=2),
    "entangled index": lambda: EntangledEmbedding(9, 8, units=UNITS, ranks=2, coefficients=True, norm=True),
    "trains of rows": lambda: TokenTrainEmbedding(9, 8, max_bond=2),
    "rows of units": lambda: RowLinear(EntangledEmbedding(9, 8, units=UNITS, ranks=2)),
    "rows of trains": lambda: RowLinear(TokenTrainEmbedding(9, 8, max_bond=2)),
    "4 bits": lambda: QuantizedLinear(12, 8, Scheme(4, group=5)),
    "3 bits, symmetric": lambda: QuantizedLinear(45, 8, Scheme(3, group=9, symmetric=True), bias=False),
    "sum in codes": lambda: _in_codes(
        "sum", {"parts.0.rows.weight": Scheme(8), "parts.1.core_0_1": Scheme(4, 3, True)}
    ),
    "table, 2 bits": lambda: QuantizedEmbedding(9, 18, Scheme(2, group=16)),
    "embedding in codes": lambda: _in_codes("embedding", {"table.core_0_0": Scheme(8), "table.core_0_1": Scheme(4)}),
}
NAMES = tuple(_LAYERS)


def layer_named(name, dtype=torch.float64):
    """The layer of a name, every parameter random."""
    torch.manual_seed(0)
    layer = _LAYERS[name]().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            # Scales of codes, which are float16 in any layer, multiply numbers of up to 255.
            parameter.normal_(0.0, 0.6 if parameter.dtype == dtype else 0.05)
    return layer


def first_of_each_kind():
    """The first name of each kind of layer."""
    return tuple({layer_named(name).kind: name for name in reversed(NAMES)}.values())


def first_trained(layer):
    """The first parameter of the weight that is trained."""
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return next(parameter for parameter in trained if parameter is not getattr(layer, "bias", None))


def inputs_of(layer, lead, dtype=torch.float64):
    """Inputs of a shape ``lead``: rows of a linear layer, tokens of an embedding."""
    generator = torch.Generator().manual_seed(1)
    if hasattr(layer, "num_embeddings"):
        return torch.randint(layer.num_embeddings, lead, generator=generator)
    return torch.randn(*lead, layer.in_features, generator=generator, dtype=torch.float64).to(dtype)
