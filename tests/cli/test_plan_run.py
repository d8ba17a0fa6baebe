"""``mpochain plan-run``: what it prints, and what it refuses."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that is a configuration alone."""
    folder = tmp_path_factory.mktemp("plan")
    LlamaConfig(**SIZES).save_pretrained(folder)
    return folder


@pytest.fixture
def plan(run):
    """Plan a run of it."""
    return lambda *options, code=0: run("plan-run", ".", "--window", "24", *options, code=code)


def test_the_table_tells_of_assumptions_and_memory(plan):
    options = ["--steps", "3", "--gpus", "2", "--batch-size", "2"]
    printed = plan(*options, "--memory", "80GB")
    assert "2 GPUs, each with 40 TFLOP/s (assumed; no GPU was measured)" in printed.out
    assert "fits into 80GB per process" in printed.out
    printed = plan(*options, "--memory", "10 kB")
    assert "does not fit into 10 kB per process: calibration, fits and layers, finetuning, 3 steps; try" in printed.out
    assert "--stream or --shard" in printed.out
    printed = plan(*options, "--memory", "10 kB", "--stream")
    assert printed.out.rstrip().endswith("; try --shard")
    assert "54 calibration windows" in printed.out, "as many as compress takes of a long text"


def test_the_record_has_every_phase(plan):
    printed = plan("--steps", "3", "--processes", "2", "--tflops", "0.5", "--json")
    record = json.loads(printed.out)
    assert record["rate"] == 5e11
    assert [phase["name"] for phase in record["phases"]] == ["calibration", "fits and layers", "finetuning, 3 steps"]
    printed = plan("--processes", "1")
    assert "(measured here)" in printed.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "many"], "--memory must be a size such as 80GB or 64GiB, got 'many'"),
        (["--gpus", "2", "--processes", "2"], "give either --processes, on CPUs, or --gpus"),
        (["--tflops", "0"], "--tflops must be positive"),
        (["--dtype", "int8"], "dtype must be auto or one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_options_that_cannot_be_meant(plan, options, words):
    assert words in plan(*options, code=2).err
