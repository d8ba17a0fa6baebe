"""The default element type and device of torch, which a program may set, change no result."""

from __future__ import annotations

import contextlib

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain import shapes
from mpochain.compression import METHODS
from mpochain.train.windows import Windows


@contextlib.contextmanager
def defaults(dtype=torch.float32, device="cpu"):
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(32, 16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, ids):
        return self.down(torch.tanh(self.up(self.words(ids))))


def compressed(method):
    torch.manual_seed(0)
    net = Words()
    ids = torch.randint(32, (4, 30))
    return net, ids, METHODS[method]


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("interpolative", torch.float64),
        ("search", torch.float16),
        ("svd_llm", torch.float64),
        ("calibrated_kronecker", torch.bfloat16),
        ("permuted_kronecker", torch.float64),
        ("tt_svd", torch.float16),
        ("word2ket", torch.float64),
        ("token_train", torch.float64),
    ],
)
def test_every_method_gives_the_same_model_under_any_default(method, dtype):
    results = []
    for chosen in ({}, {"dtype": dtype, "device": "meta"}):
        net, ids, way = compressed(method)
        with defaults(**chosen):
            report = mpo.compress(net, 0.8, calibration=[ids], method=way)
            with torch.no_grad():
                results.append((report.parameters_after, net(ids)))
    assert results[0][0] == results[1][0] < report.parameters_before
    assert results[1][1].dtype == torch.float32
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_layers_of_trained_weights_are_the_same_under_any_default(dtype):
    torch.manual_seed(0)
    linear, embedding, x = nn.Linear(24, 12), nn.Embedding(12, 8), torch.randn(3, 24)
    index = [[word // 4, word % 4] for word in range(12)]
    layers = []
    for chosen in ({}, {"dtype": dtype, "device": "meta"}):
        with defaults(**chosen), torch.no_grad():
            chain = mpo.MPOLinear.from_linear(linear, max_bond=4)
            low = mpo.MPOLinear.from_linear(linear, spec=shapes.low_rank(12, 24, 3))
            trains = mpo.TokenTrainEmbedding.from_embedding(embedding, 2)
            table = mpo.MPOEmbedding.from_embedding(embedding, mpo.ChainSpec((3, 4), (2, 4), 2))
            units = mpo.EntangledEmbedding(12, 8, units=torch.tensor(index, device="cpu"), device="cpu").index
            layers.append([chain(x), low(x), trains.weight, table.weight, chain.to_linear().weight, units])
    for before, after in zip(*layers, strict=True):
        torch.testing.assert_close(after, before)


def test_a_saved_model_is_read_to_the_cpu_under_any_default(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.randint(32, (2, 8))
    mpo.compress(model, 0.8, method="svd")
    mpo.save(model, tmp_path / "model")
    with defaults(dtype=torch.float64, device="meta"), torch.no_grad():
        loaded = mpo.load(tmp_path / "model")
        assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_windows_stay_on_the_cpu_under_another_default_device():
    with defaults(device="meta"):
        windows = Windows.of([torch.arange(8, device="cpu")[None].repeat(4, 1)])
        drawn = windows.batch(0, 2, seed=1)
        assert not drawn.inputs["input_ids"].is_meta
        assert [part.labels.is_meta for part, _ in windows.split(2)] == [False, False]
