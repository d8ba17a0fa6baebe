"""Compressed layers that become dense again: each comes back as the type of layer that it replaced."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

import mpochain as mpo
from mpochain import MPOEmbedding, MPOLinear, PermutedLinear
from mpochain.surgery import absorb_orders


class Named(nn.Linear):
    """A subclass without a forward of its own, with an attribute."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.rank_hint = (3, "rows")


def _marked(layer):
    layer._is_hf_initialized = True
    layer.weight._is_hf_initialized = True
    return layer


LAYERS = {
    "Linear": lambda: nn.Linear(16, 12),
    "Linear without bias": lambda: nn.Linear(16, 12, bias=False),
    "Conv1D": lambda: Conv1D(12, 16),
    "square Conv1D": lambda: Conv1D(16, 16),
    "FalconLinear": lambda: FalconLinear(16, 12, bias=False),
    "attention's output": lambda: NonDynamicallyQuantizableLinear(16, 16),
    "subclass": lambda: Named(16, 12),
    "marked": lambda: _marked(nn.Linear(16, 12)),
    "bfloat16": lambda: Conv1D(12, 16).bfloat16(),
    "Embedding": lambda: nn.Embedding(24, 16, padding_idx=3),
}


def attributes(layer):
    return {
        name: value
        for name, value in vars(layer).items()
        if not isinstance(value, dict) and name != "_is_full_backward"
    }


def described(layer):
    parameters = {
        name: (parameter.shape, parameter.dtype, parameter.is_contiguous(), parameter.requires_grad, vars(parameter))
        for name, parameter in layer.named_parameters()
    }
    return type(layer), attributes(layer), parameters, list(layer.state_dict()), repr(layer)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_layer_comes_back_as_it_was(make, training, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(make()).train(training)
    before = described(model[0])
    x = (
        torch.randint(24, (5,))
        if isinstance(model[0], nn.Embedding)
        else torch.randn(5, 16, dtype=model[0].weight.dtype)
    )
    with torch.device("meta"):
        architecture = nn.Sequential(make())
    mpo.compress(model, 0.8, method="svd", targets=["0"])
    y = model(x)
    loaded = mpo.load(mpo.save(model, tmp_path), architecture).train(training)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded, model):
        mpo.to_dense(again)
        assert described(again[0])[:-1] == before[:-1]
        torch.testing.assert_close(again(x), y, rtol=1e-2 if y.dtype == torch.bfloat16 else 1e-4, atol=1e-5)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_what_is_converted_by_hand_comes_back_too(make):
    dense = make()
    if isinstance(dense, nn.Embedding):
        layer = MPOEmbedding.from_embedding(dense, mpo.ChainSpec((4, 6), (4, 4)))
    else:
        layer = MPOLinear.from_linear(dense)
    assert described(layer.to_dense())[:4] == described(dense)[:4]
    torch.testing.assert_close(layer.to_dense().weight, dense.weight, rtol=2e-2, atol=2e-2)


def test_a_changed_type_and_device_are_those_of_the_compressed_layer():
    model = nn.Sequential(Conv1D(12, 16))
    mpo.compress(model, 0.8, method="svd")
    dense = mpo.to_dense(model.double())[0]
    assert type(dense) is Conv1D
    assert dense.weight.dtype == dense.bias.dtype == torch.float64


def test_gpt2_is_written_as_transformers_reads_it(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    types = {name: type(module) for name, module in model.named_modules()}
    mpo.compress(model, 0.8, method="svd", ignore=["lm_head"])
    loaded = mpo.load(mpo.save(model, tmp_path / "compressed"))
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    dense = mpo.to_dense(loaded)
    assert {name: type(module) for name, module in dense.named_modules()} == types
    dense.save_pretrained(tmp_path / "dense")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense").eval()
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_an_absorbed_order_keeps_the_type():
    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc, self.c_proj = Conv1D(32, 16), Conv1D(16, 32)

        def forward(self, x):
            return self.c_proj(torch.relu(self.c_fc(x)))

    model, order = MLP(), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    inner = MPOLinear(16, 32, max_bond=2, bias=False)
    model.c_fc = PermutedLinear(inner, rows=order, bias=torch.randn(32)).replacing(model.c_fc)
    assert absorb_orders(model) == 1
    assert type(model.c_fc) is MPOLinear
    x = torch.randn(3, 16)
    y = model(x)
    mpo.to_dense(model)
    assert type(model.c_fc) is type(model.c_proj) is Conv1D
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["svd", "tt_svd", "interpolative", "word2ketxs"])
@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True), (False, False)])
def test_frozen_parameters_stay_frozen_and_others_do_not(method, weight, bias):
    torch.manual_seed(0)
    table = method == "word2ketxs"
    model = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 12), nn.Linear(12, 12, bias=False))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bias if name.endswith("bias") else weight)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    data = [torch.randint(30, (40,))] if method == "interpolative" else None
    mpo.compress(model, 0.9, method=method, calibration=data, targets=["0"] if table else ["1", "2"])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (bias if name.endswith("bias") else weight)
    mpo.to_dense(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted


def test_parameters_frozen_after_the_compression_stay_frozen():
    model = nn.Sequential(nn.Linear(16, 12))
    mpo.compress(model, 0.8, method="svd")
    model[0].bias.requires_grad_(False)
    dense = mpo.to_dense(model)[0]
    assert dense.weight.requires_grad
    assert not dense.bias.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_sequential_compression_keeps_the_training_mode(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).train(training)
    mpo.compress(model, 0.8, calibration=[torch.randn(60, 16)] * 2, sequential=True)
    assert {module.training for module in model.modules()} == {training}
