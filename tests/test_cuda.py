"""The library on an NVIDIA GPU: calibration, compression, refinement, finetuning and language models on the device."""

from __future__ import annotations

import pytest
import torch
from texts import prose
from tiny import write_model
from torch import nn

import mpochain as mpo
from mpochain.compression import compressed_to_each
from mpochain.language import load_language_model, perplexity, read_tokens, windows

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.runs_in("NVIDIA GPU", "calibration, compression, finetuning, perplexity", "low rank, codes"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on an NVIDIA GPU"),
]


@pytest.fixture
def language(tmp_path):
    write_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text(prose(8000, seed=1), encoding="utf-8")
    language = load_language_model(tmp_path / "model", device="cuda")
    tokens = read_tokens(tmp_path / "text.txt", language.tokenizer)
    return language, tokens, windows(tokens, 32, 16)


@pytest.mark.parametrize(
    ("method", "budget"), [("interpolative", 0.6), ("svd_llm", 0.6), ("auto", "6 bits"), ("gptq", "6 bits")]
)
def test_a_model_is_compressed_where_it_lies(language, method, budget):
    read, tokens, data = language
    model = read.model
    report = mpo.compress(model, budget, calibration=data, method=method)
    assert report.bytes_after <= report.allowed_bytes
    assert {parameter.device.type for parameter in [*model.parameters(), *model.buffers()]} == {"cuda"}
    assert perplexity(model, tokens, window=32, count=4).perplexity > 1


def test_errors_are_those_of_the_cpu():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 8))
    data = [torch.randn(400, 48)]
    (own,) = compressed_to_each(net, [0.6], calibration=data, method="svd_llm")
    (other,) = compressed_to_each(net.cuda(), [0.6], calibration=data, method="svd_llm")
    for one, two in zip(own.layers, other.layers, strict=True):
        assert (one.form, one.output_error) == (two.form, pytest.approx(two.output_error, rel=1e-3))


def test_blocks_are_refined_and_corrected_on_the_device(language):
    read, _, data = language
    report = mpo.compress(read.model, 0.6, calibration=data, refine=True, sequential=True)
    assert report.refined
    assert {parameter.device.type for parameter in read.model.parameters()} == {"cuda"}


def test_finetuning_and_saving(language, tmp_path):
    read, tokens, data = language
    mpo.compress(read.model, 0.6, calibration=data)
    mpo.finetune(read.model, torch.cat(data), config=mpo.train.FinetuneConfig(steps=4, batch_size=4))
    before = perplexity(read.model, tokens, window=32, count=4).loss
    mpo.language.save_language_model(read, tmp_path / "small")
    again = load_language_model(tmp_path / "small", device="cuda").model
    assert perplexity(again, tokens, window=32, count=4).loss == pytest.approx(before, rel=1e-5)
