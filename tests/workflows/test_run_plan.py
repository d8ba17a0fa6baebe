"""Predicted time, memory and traffic of runs, beside what the same functions count in real models."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig

from mpochain.compression.statistics.damping import TRIED
from mpochain.compression.statistics.division import dealt_by_module
from mpochain.compression.statistics.work import build_work, fit_work, moments_work
from mpochain.distributed import Team
from mpochain.errors import ArgumentError, CheckpointError
from mpochain.surgery.calls import without_cache
from mpochain.workflows.model_sizes import _saved, read_sizes
from mpochain.workflows.run_plan import Load, Resources, planned

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64),
}


@pytest.fixture(scope="module", params=CONFIGS)
def described(request, tmp_path_factory):
    """A folder with a configuration alone, and the model of it."""
    import transformers

    folder = tmp_path_factory.mktemp("described")
    config = CONFIGS[request.param]
    config.save_pretrained(folder)
    torch.manual_seed(0)
    return folder, transformers.AutoModelForCausalLM.from_config(config)


def test_sizes_are_those_of_the_model(described):
    folder, model = described
    sizes = read_sizes(folder, 24)
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.model_bytes == 4 * sizes.parameters
    assert read_sizes(folder, 24, "bfloat16").model_bytes == 2 * sizes.parameters
    assert sizes.blocks == 3
    assert sizes.logits_bytes == 24 * 96 * 4
    linear = sum(target.parameters for target in sizes.layers.values())
    attention = 4 * 24**2 * 32 * 3
    assert sizes.flops == pytest.approx(2 * 24 * (linear + 96 * 32) + attention, rel=0.05)
    model.train()
    with without_cache(model), _saved(model) as saved:
        model(torch.zeros(1, 24, dtype=torch.long))
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert sizes.saved_bytes == pytest.approx(kept, rel=0.15)


def phases(folder, processes=1, **changes):
    load = Load(**{"budget": 0.8, "windows": 16, "steps": 10, "batch_size": 4, **changes})
    return planned(read_sizes(folder, 24), load, Resources(processes, 1e11, 0))


def test_processes_divide_time_and_send_what_others_own(described):
    folder, _ = described
    alone, two, four = (phases(folder, number) for number in (1, 2, 4))
    for one, more, most in zip(alone, two, four, strict=True):
        assert one.sent_bytes == 0
        assert 0 < more.sent_bytes < most.sent_bytes
        assert 0.5 * one.seconds <= more.seconds < one.seconds
        assert more.seconds > most.seconds


def test_one_block_at_a_time_takes_less_memory_and_sharding_less_in_training(described):
    folder, _ = described
    plain, streamed = phases(folder), phases(folder, stream=True)
    assert all(one.peak_bytes < other.peak_bytes for one, other in zip(streamed[:2], plain[:2], strict=True))
    copied, sharded = (phases(folder, 2, shard=shard, batch_size=2)[-1] for shard in (False, True))
    assert sharded.peak_bytes < copied.peak_bytes
    assert sharded.sent_bytes > copied.sent_bytes


def test_more_steps_and_windows_take_longer(described):
    folder, _ = described
    first, more = phases(folder), phases(folder, windows=32, steps=20)
    assert more[0].seconds == pytest.approx(2 * first[0].seconds)
    assert more[1].seconds == first[1].seconds
    assert more[2].seconds == pytest.approx(2 * first[2].seconds)
    # Below eight batches no damping is tried.
    assert phases(folder, windows=4)[1].seconds < first[1].seconds
    assert len(phases(folder, steps=0)) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": 1.5}, "a share of the parameters such as 0.8, got 1.5"),
        ({"windows": 2, "processes": 4}, "4 processes cannot share 2 calibration windows"),
        ({"batch_size": 2, "processes": 4}, "4 processes cannot share a batch of 2"),
        ({"windows": 400, "batch_size": 400, "processes": 400}, "400 processes cannot share the 1?[0-9]+ layers"),
    ],
)
def test_what_cannot_be_run_is_not_predicted(described, changes, words):
    with pytest.raises(ArgumentError, match=words):
        phases(described[0], **changes)


def test_what_describes_no_language_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="config.json"):
        read_sizes(tmp_path, 24)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(CheckpointError, match="no configuration that transformers knows"):
        read_sizes(tmp_path, 24)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CheckpointError, match="describes no causal language model"):
        read_sizes(tmp_path, 24)
    CONFIGS["gpt2"].save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="65"):
        read_sizes(tmp_path, 65)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 5))
def test_laws_of_the_counted_work(out, in_, rows):
    shape = out, in_
    assert fit_work(shape, TRIED) == TRIED * fit_work(shape)
    assert build_work(shape) > fit_work(shape) > 0
    assert moments_work(shape, 2 * rows, gradients=True) == 2 * moments_work(shape, rows, gradients=True)
    assert moments_work(shape, rows, gradients=True) >= 2 * moments_work(shape, rows, gradients=False)


def test_the_layers_of_a_module_stay_together():
    costs = {f"{block}.{name}": 1.0 for block in range(4) for name in ("up", "down")}
    owners = dealt_by_module(costs, Team(0, 2))
    assert all(owners[f"{block}.up"] == owners[f"{block}.down"] for block in range(4))
    assert sorted(owners.values()) == [0] * 4 + [1] * 4
