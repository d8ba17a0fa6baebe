"""Compression of embeddings by every method that takes them, with tied heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain import EntangledEmbedding, MPOEmbedding, MPOError, TokenTrainEmbedding
from mpochain.compression import Entangled, Kronecker, Rtn, TokenTrain
from mpochain.nn import QuantizedEmbedding, RowLinear
from mpochain.units import Units

WORDS, COLUMNS = 60, 16


def model_of(tied=True, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "words": nn.Embedding(WORDS, COLUMNS, padding_idx=3),
            "up": nn.Linear(COLUMNS, COLUMNS),
            "head": nn.Linear(COLUMNS, WORDS, bias=False),
        }
    ).to(dtype)
    if tied:
        model["head"].weight = model["words"].weight
    return model


def index():
    return Units.of([f"{first}{second}" for first in "abcdefgh" for second in "stuvwxyz"][:WORDS], tuple, order=2).index


METHODS = {
    "svd": ("svd", MPOEmbedding),
    "tt_svd": ("tt_svd", MPOEmbedding),
    "kronecker": (Kronecker(permuted=False, factors=[(2, 2)]), MPOEmbedding),
    "word2ketxs": ("word2ketxs", EntangledEmbedding),
    "word2ket": ("word2ket", EntangledEmbedding),
    "token_train": (TokenTrain(dims=(4, 4)), TokenTrainEmbedding),
    "rtn": (Rtn(group=8), QuantizedEmbedding),
    "SEE": (Entangled(units=index(), coefficients=True, iterations=20), EntangledEmbedding),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tied", [True, False])
def test_each_method_keeps_to_the_budget_and_the_tie(name, tied, tmp_path):
    method, kind = METHODS[name]
    model, before = model_of(tied), model_of(tied)
    report = mpo.compress(model, 0.6, targets=["words"], method=method)
    words, head = model["words"], model["head"]
    assert isinstance(words, kind)
    assert words.padding_idx == 3
    (record,) = report.layers
    assert record.parameters_after == words.numbers().parameters
    if kind is not QuantizedEmbedding:
        held = sum(parameter.numel() for parameter in words.parameters())
        assert record.parameters_after == held <= 0.6 * WORDS * COLUMNS
    assert record.bytes_after == sum(tensor.numel() * tensor.element_size() for tensor in words.state_dict().values())
    assert record.bytes_after <= 0.6 * record.bytes_before
    dense = before["words"].weight.detach()
    error = (words.weight.detach() - dense).norm() / dense.norm()
    assert record.weight_error == pytest.approx(float(error), rel=1e-4)
    assert record.weight_error < 0.95
    assert isinstance(model["up"], nn.Linear)
    if tied:
        assert next(head.parameters()) is next(words.parameters())
        assert isinstance(head, RowLinear) is not isinstance(words, MPOEmbedding | QuantizedEmbedding)
    else:
        assert type(head) is nn.Linear
    mpo.save(model, tmp_path)
    with torch.device("meta"):
        architecture = model_of(tied)
    again = mpo.load(tmp_path, architecture)
    ids = torch.arange(WORDS)
    torch.testing.assert_close(again["head"](again["words"](ids)), head(words(ids)))


@pytest.mark.parametrize("method", ["word2ketxs", "token_train"])
def test_methods_for_embeddings_alone_take_them_all_and_nothing_else(method):
    model = nn.Sequential(nn.Embedding(50, 16), nn.Embedding(40, 16), nn.Linear(16, 16))
    report = mpo.compress(model, 0.8, method=method)
    assert [record.name for record in report.layers] == ["0", "1"]
    with pytest.raises(
        MPOError, match="'2' is a Linear, which cannot be compressed this way; name a torch.nn.Embedding"
    ):
        mpo.compress(
            nn.Sequential(nn.Embedding(50, 16), nn.ReLU(), nn.Linear(16, 16)), 0.8, method=method, targets=["2"]
        )
    with pytest.raises(MPOError, match="are unknown before it is built"):
        mpo.compress(nn.Sequential(nn.Embedding(50, 16)), "5% error", method=method)
    with pytest.raises(MPOError, match="cannot be made as small as"):
        mpo.compress(nn.Sequential(nn.Embedding(50, 16)), 0.01, method=method)


def test_ranks_that_are_given_need_no_budget():
    model = model_of()
    report = mpo.compress(model, None, method=Entangled(order=4, ranks=2), targets=["words"])
    assert sum(parameter.numel() for parameter in model["words"].parameters()) == 2 * 4 * 3 * 2
    assert report.layers[0].form == "3 units (digits), products of 2x2x2x2, rank 2"
    again = model_of()
    mpo.compress(again, None, method=Entangled(order=4, ranks=2), targets=["words"])
    torch.testing.assert_close(again["words"].weight, model["words"].weight, rtol=0, atol=0)
    for method, budget in (
        (Entangled(order=2, ranks=40), None),
        (Entangled(units=torch.arange(WORDS * 6).view(WORDS, 6)), 0.5),
    ):
        with pytest.raises(MPOError, match="let more words share a unit, or give a higher order"):
            mpo.compress(model_of(), budget, method=method, targets=["words"])


@pytest.mark.parametrize("method", ["word2ket", "word2ketxs", "token_train"])
def test_a_table_without_numbers_is_named(method):
    model = model_of()
    with torch.no_grad():
        model["words"].weight[3, 3] = float("nan")
    with pytest.raises(MPOError, match="words: the weight has NaN or infinite entries"):
        mpo.compress(model, 0.5, method=method)


@pytest.mark.parametrize("method", ["word2ketxs", "svd"])
def test_inference_mode_is_no_obstacle(method):
    with torch.inference_mode():
        report = mpo.compress(model_of(), 0.5, targets=["words"], method=method)
    assert report.layers[0].weight_error < 0.95


def test_frequencies_seeds_and_narrow_types():
    often = torch.ones(WORDS)
    often[:5] = 1000.0
    errors = []
    for frequencies in (None, often):
        model, before = model_of(dtype=torch.bfloat16), model_of()["words"].weight.detach()
        state = torch.random.get_rng_state()
        mpo.compress(model, None, method=Entangled(order=3, ranks=3, frequencies=frequencies))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert model["words"].table_0.dtype == torch.bfloat16
        errors.append(float((model["words"].weight.detach().float() - before)[:5].norm()))
    assert errors[1] < 0.5 * errors[0]
