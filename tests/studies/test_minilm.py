"""The frontier of a sentence encoder, with a tiny one: embeddings, records and page."""

from __future__ import annotations

import json
import random

import pytest
import torch
import transformers
from texts import WORDS
from torch.nn import functional as F

from mpochain.errors import ArgumentError, CheckpointError
from mpochain.workflows.frontier_points import points_of
from studies.minilm import measure as study
from studies.minilm.encoder import agreement, batches, embeddings, load_encoder, sentences
from studies.minilm.page import write_page


def text(seed):
    rng = random.Random(seed)
    return "\n".join(" ".join(rng.choices(WORDS, k=rng.randint(8, 20))) + " ." for _ in range(60))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(vocabulary))
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "valid.txt").write_text(text(1))
    (tmp_path / "test.txt").write_text(text(2))
    return tmp_path


def test_padding_has_no_influence(folder):
    encoder, tokenizer = load_encoder(folder / "model")
    chosen = sentences(text(1), 6)
    together, alone = batches(tokenizer, chosen, 6), batches(tokenizer, chosen, 1)
    assert not together[0]["attention_mask"].all()
    torch.testing.assert_close(embeddings(encoder, together), embeddings(encoder, alone))


def test_ranks_do_not_see_a_rotation_and_the_cosine_does():
    rows = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    rotated = agreement(rows, rows @ rotation)
    assert rotated["spearman"] == pytest.approx(1)
    assert rotated["neighbours"] == 1
    assert rotated["cosine"] < 0.9
    other = agreement(rows, rows.flip(0))
    assert max(map(abs, (other["spearman"], other["cosine"]))) < 0.3
    assert other["neighbours"] < 0.5


def test_headings_fragments_unknown_words_and_repetitions_are_no_sentences():
    long = "one two three four five six seven eight ."
    given = f" = {long} = \n {long} Too short . {long} {long.replace('one', '<unk>')}\n{long.replace('one', '1 @,@ 0')}"
    assert sentences(given, 2) == [long, long.replace("one", "1,0")]
    with pytest.raises(ArgumentError, match="has 2 usable sentences, but 3 are needed"):
        sentences(given, 3)


def test_a_frontier_is_measured_kept_and_drawn(folder, monkeypatch):
    def measure(seed=0):
        monkeypatch.setattr(study, "SEED", seed)
        chosen = [*points_of(["auto"], [8.0]), *points_of(["rtn"], [8.5, 4.5])]
        texts = folder / "valid.txt", folder / "test.txt"
        study.measure(folder / "model", *texts, folder / "out", chosen, calibrated=40, evaluated=30)

    measure()
    records = {file.stem: json.loads(file.read_text()) for file in (folder / "out").glob("*.json")}
    assert set(records) == {"dense", "auto-8", "rtn-8.5", "rtn-4.5"}
    cosine = {name: record["embeddings"]["cosine"] for name, record in records.items()}
    assert cosine["dense"] == pytest.approx(1)
    assert cosine["rtn-4.5"] < cosine["rtn-8.5"] < 1
    page = folder / "page.md"
    write_page(folder / "out", page)
    assert f"{cosine['rtn-4.5']:.4f}" in page.read_text()
    assert "within each limit: " in page.read_text()
    # What is finished is kept, and never mixed with another setting.
    monkeypatch.setattr(study, "load_encoder", lambda _: pytest.fail("measured again"))
    measure()
    with pytest.raises(CheckpointError, match="belongs to another model"):
        measure(seed=1)
