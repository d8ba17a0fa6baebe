"""The demo as a function; as a process it runs in the tests of the command line."""

from __future__ import annotations

import pytest
from texts import prose

from studies import picogpt
from studies.picogpt.demo import demo, run


@pytest.fixture
def corpus():
    return picogpt.Corpus.from_text(prose(4000))


def test_chains_that_were_trained_stand_beside_the_decomposed_ones(tmp_path, monkeypatch, corpus):
    chains = picogpt.build(4, vocab_size=len(corpus.vocabulary), seed=1)
    dense = picogpt.build(vocab_size=len(corpus.vocabulary), seed=1)
    files = {None: tmp_path / "dense.safetensors", 4: tmp_path / "chi4.safetensors"}
    for model, file in zip((dense, chains), files.values(), strict=True):
        picogpt.save_weights(file, model, corpus, {"config": {"steps": 7}})
    monkeypatch.setattr(run, "shipped", lambda corpus, bond=None: files.get(bond))
    result = demo(corpus, tmp_path / "out", bonds=(4, 8), finetune_steps=0, batch_size=2)
    assert result.dense_model == "stored in this repository, trained for 7 steps on this corpus"
    assert [row.name for row in result.rows] == ["dense", "χ=4", "χ=4, trained", "χ=8"]
    trained = result.rows[2]
    assert trained.error is None
    assert trained.layer_errors == {}
    assert trained.parameters == result.rows[1].parameters
    assert trained.loss_before == pytest.approx(picogpt.evaluate(chains, corpus.validation).loss)
    assert "χ=4, trained" in result.table()
    assert (tmp_path / "out" / "accuracy.png").exists()
