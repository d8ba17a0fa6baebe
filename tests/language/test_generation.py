"""Greedy generation: by its definition, for models with and without a cache, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from tiny import write_model
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.language import generate, load_language_model

PROMPTS = ["the king loves", "my heart"]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    language = load_language_model(write_model(tmp_path_factory.mktemp("model")))
    language.model.config.eos_token_id = None  # by default one of the words
    return language


class NoCache(nn.Module):
    """The logits of a model, and nothing else."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, use_cache=False).logits


def test_each_token_is_the_most_probable_after_those_before(language):
    (text,) = generate(language.model, language.tokenizer, PROMPTS[:1], tokens=6)
    tokens = language.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    written = []
    for _ in range(6):
        with torch.no_grad():
            token = language.model(tokens).logits[0, -1].argmax()
        written.append(int(token))
        tokens = torch.cat([tokens, token[None, None]], dim=1)
    assert text == language.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert text


def test_the_cache_changes_no_text(language):
    expected = generate(language.model, language.tokenizer, PROMPTS, tokens=8)
    assert generate(NoCache(language.model), language.tokenizer, PROMPTS, tokens=8) == expected


def test_a_compressed_model_generates(language, tmp_path):
    copy = load_language_model(language.source)
    mpo.compress(copy.model, 0.99, calibration=[torch.arange(32)[None]])
    copy.model.config.eos_token_id = None
    assert all(generate(copy.model, copy.tokenizer, PROMPTS, tokens=4))


def test_a_text_ends_where_the_model_ends_it(language):
    (text,) = generate(language.model, language.tokenizer, PROMPTS[:1], tokens=6)
    first = language.tokenizer.convert_tokens_to_ids(text.split()[0])
    language.model.config.eos_token_id = [first]
    try:
        assert generate(language.model, language.tokenizer, PROMPTS[:1], tokens=6) == [""]
    finally:
        language.model.config.eos_token_id = None


def test_a_chat_template_makes_the_prompt_a_message(language):
    tokenizer = load_language_model(language.source).tokenizer
    tokenizer.chat_template = "my heart {% for message in messages %}{{ message['content'] }}{% endfor %}"
    written_out = generate(language.model, language.tokenizer, ["my heart loves"], tokens=5)
    assert generate(language.model, tokenizer, ["loves"], tokens=5) == written_out


def test_progress_and_mode(language):
    counts = []
    language.model.train()
    generate(language.model, language.tokenizer, PROMPTS, tokens=1, progress=lambda *count: counts.append(count))
    assert counts == [(1, 2), (2, 2)]
    assert language.model.training
    language.model.eval()


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [("the king", 0, "at least 1, got 0"), (" ", 4, "a prompt is empty"), ("the " * 62, 4, "context of 64")],
)
def test_refusals(language, prompt, tokens, message):
    with pytest.raises(MPOError, match=message):
        generate(language.model, language.tokenizer, [prompt], tokens=tokens)


def test_a_model_that_predicts_nan(language):
    class Broken(NoCache):
        def forward(self, tokens):
            return super().forward(tokens) * float("nan")

    with pytest.raises(MPOError, match="predicts NaN"):
        generate(Broken(language.model), language.tokenizer, PROMPTS)
