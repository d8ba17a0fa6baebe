"""Kronecker products in models: fixed numbers of terms, calibration, embeddings with tied heads."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain import MPOEmbedding, MPOError, PermutedLinear
from mpochain.checkpoint import contents
from mpochain.compression import Kronecker


def gpt2(**changes):
    torch.manual_seed(0)
    settings = {"vocab_size": 23, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, **changes}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, bos_token_id=0, eos_token_id=0)).eval()


def tokens(seed=1):
    return torch.randint(23, (6, 12), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("permuted", [True, False])
def test_an_embedding_and_its_head_stay_one(permuted, tmp_path):
    model = gpt2()
    method = Kronecker(permuted=permuted, factors=[(1, 2), (1, 2)], terms=1)
    report = mpo.compress(model, None, targets=["transformer.wte"], method=method)
    assert isinstance(model.transformer.wte, MPOEmbedding)
    assert report.layers[0].parameters_after == 23 * 4 + 4
    assert report.method == ("permuted_kronecker" if permuted else "kronecker")
    assert "lm_head" not in report.table()
    cores = list(model.transformer.wte.parameters())
    assert all(mine is theirs for mine, theirs in zip(cores, model.lm_head.parameters(), strict=True))
    table = model.transformer.wte.weight.detach()
    dense = gpt2()
    dense.transformer.wte.weight.data.copy_(table)
    assert dense.lm_head.weight is dense.transformer.wte.weight
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()).logits, dense(tokens()).logits, atol=1e-5, rtol=1e-4)
    mpo.save(model, tmp_path)
    loaded = mpo.load(tmp_path)
    assert loaded.lm_head.parameters().__next__() is loaded.transformer.wte.parameters().__next__()
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    again = mpo.to_dense(loaded)
    assert again.lm_head.weight is again.transformer.wte.weight
    model(tokens()).logits.square().sum().backward()
    assert all(core.grad.any() for core in cores)


def test_a_better_order_is_no_worse():
    errors = {}
    for permuted in (False, True):
        method = Kronecker(permuted=permuted, factors=[(4, 2)], terms=2)
        report = mpo.compress(gpt2(), None, targets=[r"re:.*mlp\.c_fc"], method=method)
        errors[permuted] = [record.weight_error for record in report.layers]
    assert all(permuted < plain for permuted, plain in zip(errors[True], errors[False], strict=True))


@pytest.mark.parametrize("permuted", [True, False])
def test_calibration_lowers_the_error_of_the_outputs(permuted):
    torch.manual_seed(0)
    scale = torch.linspace(0.05, 4, 12)
    batches = [torch.randn(40, 12) * scale for _ in range(3)]
    dense = nn.Sequential(nn.Linear(12, 16))
    errors = {}
    for calibrated in (False, True):
        model = copy.deepcopy(dense)
        method = Kronecker(permuted=permuted, calibrated=calibrated, factors=[(2, 2)], terms=2)
        report = mpo.compress(model, None, calibration=batches, method=method)
        x = torch.cat(batches)
        with torch.no_grad():
            aim = dense(x) - dense[0].bias
            errors[calibrated] = float((model(x) - dense(x)).norm() / aim.norm())
    assert report.layers[0].output_error == pytest.approx(errors[True], rel=1e-3)
    chains = model[0].inner if permuted else model[0]
    assert chains.cores[0][1].square().mean().item() == pytest.approx(1, rel=1e-5)
    assert errors[True] < errors[False]


@pytest.mark.parametrize("permuted", [True, False])
@pytest.mark.parametrize("terms", [4, 99])
def test_a_layer_that_would_grow_stays_dense_in_sight(permuted, terms):
    model = nn.Sequential(nn.Linear(8, 8))
    report = mpo.compress(model, None, method=Kronecker(permuted=permuted, factors=[(2, 2)], terms=terms))
    assert report.layers[0].form == "dense"
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.5, "method": Kronecker(permuted=False, factors=[(2, 2)], terms=1)}, "leave no choice"),
        ({"budget": None, "method": "svd"}, "'svd' needs a budget"),
        ({"budget": None, "method": Kronecker(permuted=False, factors=[(3, 2)], terms=1)}, "3x2 does not divide"),
        ({"budget": 0.5, "method": "svd_llm", "targets": ["transformer.wte"]}, "Embedding, which cannot be compressed"),
        ({"budget": 0.5, "method": nn.Linear}, "name or an instance of Method"),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(MPOError, match=message):
        mpo.compress(gpt2(), **arguments)
    with pytest.raises(MPOError, match="give terms=1, or one factor"):
        Kronecker(permuted=True, factors=[(1, 2), (1, 2)])


def test_what_shares_the_table_of_an_embedding_must_be_a_head():
    model = gpt2()
    model.other = nn.Embedding(23, 16)
    model.other.weight = model.transformer.wte.weight
    with pytest.raises(MPOError, match="transformer.wte is named in targets=, but it shares a parameter with other"):
        mpo.compress(
            model, None, targets=["transformer.wte"], method=Kronecker(permuted=False, factors=[(1, 2)], terms=1)
        )
    assert isinstance(model.transformer.wte, nn.Embedding)


def test_a_head_that_is_named_too_is_counted_once():
    for targets in (["re:.*"], ["lm_head", "transformer.wte"]):
        model = gpt2(vocab_size=24)
        report = mpo.compress(model, 0.7, targets=targets, method="kronecker")
        assert "lm_head" not in {record.name for record in report.layers}
        held = sum(parameter.numel() for parameter in model.parameters())
        dense = sum(parameter.numel() for parameter in gpt2(vocab_size=24).parameters())
        assert dense - held == report.parameters_before - report.parameters_after
        assert report.parameters_after <= 0.7 * report.parameters_before


def test_looking_up_is_not_multiplying(tmp_path):
    model = gpt2()
    report = mpo.compress(
        model, None, targets=["transformer.wte"], method=Kronecker(permuted=False, factors=[(1, 2)], terms=1)
    )
    assert (report.layers[0].macs_before, report.layers[0].macs_after) == (0, model.transformer.wte.macs())
    checkpoint = contents(mpo.save(model, tmp_path))
    assert checkpoint.dense_parameters == sum(parameter.numel() for parameter in gpt2().parameters())
    assert [layer.name for layer in checkpoint.layers] == ["transformer.wte"]


def test_permuted_layers_of_gpt2_are_those_of_the_paper():
    model = gpt2(n_embd=32)
    method = Kronecker(permuted=True, factors=[(4, 2)], terms=4)
    mpo.compress(model, None, targets=[r"re:.*\.1\.mlp\.c_fc"], method=method)
    layer = model.transformer.h[1].mlp.c_fc
    assert isinstance(layer, PermutedLinear)
    assert [tuple(core.shape) for core in layer.inner.cores[0]] == [(1, 32, 16, 4), (4, 4, 2, 1)]
