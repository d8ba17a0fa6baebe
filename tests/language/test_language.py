"""Language models: windows of a text, perplexity, speed, loading and saving."""

from __future__ import annotations

import itertools
import math
import shutil

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from texts import prose
from tiny import write_model
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.language import (
    compare_speed,
    load_language_model,
    perplexity,
    read_tokens,
    save_dense,
    save_language_model,
    windows,
)
from mpochain.language.text import starts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(prose(3000, seed=1), encoding="utf-8")
    return path


@given(st.integers(2, 200), st.integers(2, 30), st.integers(1, 20), st.integers(1, 30))
def test_windows_lie_within_the_text_and_apart(total, window, count, stride):
    every = 1 + (total - window) // window if total >= window else 0
    if every < count:
        with pytest.raises(MPOError, match="tokens has"):
            starts(total, window, count)
        return
    positions = starts(total, window, count)
    assert len(positions) == count
    assert positions[0] == 0
    assert positions[-1] + window <= total
    assert all(later - earlier >= window for earlier, later in itertools.pairwise(positions))
    overlapping = starts(total, window, None, stride)
    assert overlapping == list(range(0, total - window + 1, stride))


def test_tokens_are_those_of_the_whole_file(folder, text):
    tokenizer = load_language_model(folder).tokenizer
    tokens = read_tokens(text, tokenizer)
    assert tokens.dtype == torch.long
    assert len(tokens) > 500  # longer than the model reads at once, without a warning
    assert tokenizer.decode(tokens[:4]).split() == prose(100, seed=1).replace(".", " .").split()[:4]
    assert [piece.shape for piece in windows(tokens, 16, 3)] == [(1, 16)] * 3


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\xff"])
def test_a_file_without_text(folder, tmp_path, content):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MPOError, match=str(file)):
        read_tokens(file, load_language_model(folder).tokenizer)


class Bigram(nn.Module):
    """Predicts from the last token only, and counts its calls."""

    def __init__(self, size):
        super().__init__()
        self.table = nn.Parameter(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))
        self.calls = 0

    def forward(self, tokens):
        self.calls += 1
        return self.table[tokens]


def test_perplexity_follows_its_definition():
    tokens = torch.randint(7, (50,), generator=torch.Generator().manual_seed(1))
    model = Bigram(7)
    logs = model.table.detach().log_softmax(-1)

    def mean(pairs):
        return -sum(float(logs[tokens[k - 1], tokens[k]]) for k in pairs) / len(pairs)

    # Five windows of ten: the first token of each does not count. Two calls check that the model is causal.
    apart = perplexity(model, tokens, window=10)
    assert (apart.tokens, apart.windows, apart.stride, model.calls) == (45, 5, 10, 5 + 2)
    assert apart.loss == pytest.approx(mean([k for k in range(50) if k % 10]), rel=1e-6)
    assert apart.perplexity == pytest.approx(math.exp(apart.loss))
    # With overlap every token but the first counts once.
    overlapping = perplexity(model, tokens, window=10, stride=4)
    assert overlapping.tokens == 49
    assert overlapping.loss == pytest.approx(mean(range(1, 50)), rel=1e-6)
    spread = perplexity(model, tokens, window=10, count=2)
    assert spread.loss == pytest.approx(mean([*range(1, 10), *range(21, 30)]), rel=1e-6)


def test_perplexity_restores_the_mode_and_reports_progress():
    model = Bigram(5).train()
    calls = []
    perplexity(model, torch.arange(5).repeat(4), window=5, progress=lambda *counts: calls.append(counts))
    assert model.training
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_perplexity_refuses(folder):
    model = Bigram(5)
    tokens = torch.arange(5).repeat(4)
    for arguments, message in (
        ({"window": 21}, "no window of 21"),
        ({"window": 5, "stride": 6}, "stride must be from 1 to the window"),
        ({"window": 5, "count": 5}, "has 4 windows of 5, not 5"),
    ):
        with pytest.raises(MPOError, match=message):
            perplexity(model, tokens, **arguments)
    with pytest.raises(MPOError, match="one row of tokens"):
        perplexity(model, tokens[None], window=5)
    with pytest.raises(MPOError, match="longer than the model's context of 64"):
        perplexity(load_language_model(folder).model, torch.zeros(100, dtype=torch.long), window=65)
    model.table.data[0, 0] = math.nan
    with pytest.raises(MPOError, match="NaN"):
        perplexity(model, tokens, window=5)


BERT = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
BART = {"vocab_size": 30, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24}


class TestPerplexityIsThatOfCausalModels:
    def measure(self, kind, config, dtype=torch.float32):
        torch.manual_seed(0)
        tokens = torch.randint(3, 30, (80,), generator=torch.Generator().manual_seed(0))
        return perplexity(kind(config).to(dtype), tokens, window=20)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_class_that_is_used_either_way_is_decided_by_what_it_does(self, dtype):
        kind = transformers.BertLMHeadModel
        config = transformers.BertConfig(**BERT, initializer_range=0.3)
        with pytest.raises(MPOError, match="BertLMHeadModel is no causal language model"):
            self.measure(kind, config, dtype)
        config.is_decoder = True
        assert self.measure(kind, config, dtype).perplexity > 1

    @pytest.mark.parametrize(
        ("kind", "config", "message"),
        [
            ("BertForMaskedLM", "Bert", "no causal language model"),
            ("BertForSequenceClassification", "Bert", r"logits \(1, 2\) for 20 tokens, as a classifier does"),
            ("BertForTokenClassification", "Bert", "predicts 2 classes, but the text has the token"),
            ("BertModel", "Bert", "predicts no tokens"),
            ("BartForConditionalGeneration", "Bart", "translates a source to a target"),
        ],
    )
    def test_others_have_none(self, kind, config, message):
        settings = BERT if config == "Bert" else {**BART, "decoder_ffn_dim": 24}
        config = getattr(transformers, f"{config}Config")(**settings)
        with pytest.raises(MPOError, match=message):
            self.measure(getattr(transformers, kind), config)

    def test_modules_that_read_something_else(self):
        class Sees(nn.Module):
            def forward(self, pixels, sizes):
                return pixels

        with pytest.raises(MPOError, match="Sees cannot be called with tokens alone"):
            perplexity(Sees(), torch.arange(30), window=10)


@pytest.mark.parametrize(
    ("kind", "tied", "message"),
    [
        ("LlamaForSequenceClassification", True, "holds a LlamaForSequenceClassification, which is no language model"),
        ("LlamaModel", False, r"no weights of lm_head.weight \(1 such tensors\)"),
    ],
)
def test_a_model_without_the_head_of_a_language_model_is_not_given_a_random_one(kind, tied, message, folder, tmp_path):
    config = transformers.AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = tied
    getattr(transformers, kind)(config).save_pretrained(tmp_path / "other")
    load_language_model(folder).tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(MPOError, match=message):
        load_language_model(tmp_path / "other")


def test_compressed_and_dense_folders(folder, tmp_path, text):
    language = load_language_model(folder)
    tokens = read_tokens(text, language.tokenizer)
    mpo.compress(language.model, 0.7, calibration=windows(tokens, 32, 4))
    x = tokens[None, :20]
    expected = language.model(x).logits
    small = save_language_model(language, tmp_path / "small")
    again = load_language_model(small)
    assert torch.equal(again.model(x).logits, expected)
    assert torch.equal(read_tokens(text, again.tokenizer), tokens)
    assert load_language_model(small, dtype="bfloat16").model.dtype == torch.bfloat16
    for overwrite in (False, True):
        with pytest.raises(MPOError, match="contains a compressed model; name another folder"):
            save_dense(again, small, overwrite=overwrite)
    plain = load_language_model(save_dense(again, tmp_path / "dense"))
    (tmp_path / "dense" / "notes.txt").write_text("mine")
    (tmp_path / "dense" / "pytorch_model.bin").write_text("weights of an older model")
    with pytest.raises(MPOError, match="contains a model, which would be overwritten; .*overwrite=True"):
        save_dense(again, tmp_path / "dense")
    save_dense(again, tmp_path / "dense", overwrite=True)
    assert (tmp_path / "dense" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "dense" / "pytorch_model.bin").exists()
    assert not any(isinstance(layer, mpo.InterpolativeLinear) for layer in plain.model.modules())
    torch.testing.assert_close(plain.model(x).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_missing(tmp_path):
    with pytest.raises(MPOError, match="cannot read a language model"):
        load_language_model(tmp_path)
    with pytest.raises(MPOError, match="cannot read a language model"):
        load_language_model(tmp_path / "none.gguf")
    with pytest.raises(MPOError, match="dtype must be"):
        load_language_model(tmp_path, dtype="float8")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_dense_model_that_was_not_copied_completely(folder, tmp_path, keep):
    shutil.copytree(folder, tmp_path / "short")
    file = tmp_path / "short" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(MPOError, match=r"short/model\.safetensors is damaged or incomplete .*; download it or copy it"):
        load_language_model(tmp_path / "short")


def test_every_model_is_timed(folder):
    models = {name: load_language_model(folder).model for name in ("one", "other")}
    prompt = torch.zeros(1, 20, dtype=torch.long)
    speeds = compare_speed(models, prompt, rounds=2, written=2)
    assert set(speeds) == {"one", "other"}
    assert all(speed.prefill > 0 and speed.decode > 0 and speed.prompt == 20 for speed in speeds.values())
    with pytest.raises(MPOError, match="at least one round"):
        compare_speed(models, prompt, rounds=0)
