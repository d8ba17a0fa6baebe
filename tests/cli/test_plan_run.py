"""``mpochain plan-run``: what it prints, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest
from transformers import LlamaConfig

from mpochain.cli import main

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Plan a run of a model that is a configuration alone; returns the status and what was printed."""
    LlamaConfig(**SIZES).save_pretrained(tmp_path)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["mpochain", "plan-run", str(tmp_path), "--window", "24", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    return run


def test_the_table_tells_of_assumptions_and_memory(run):
    options = ["--steps", "3", "--gpus", "2", "--batch-size", "2"]
    status, printed = run(*options, "--memory", "80GB")
    assert status == 0
    assert "2 GPUs, each with 40 TFLOP/s (assumed; no GPU was measured)" in printed.out
    assert "fits into 80GB per process" in printed.out
    _, printed = run(*options, "--memory", "10 kB")
    assert "does not fit into 10 kB per process: calibration, fits and layers, finetuning, 3 steps; try" in printed.out
    assert "--stream or --shard" in printed.out


def test_the_record_has_every_phase(run):
    _, printed = run("--steps", "3", "--processes", "2", "--tflops", "0.5", "--json")
    record = json.loads(printed.out)
    assert record["rate"] == 5e11
    assert [phase["name"] for phase in record["phases"]] == ["calibration", "fits and layers", "finetuning, 3 steps"]
    _, printed = run("--processes", "1")
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
def test_options_that_cannot_be_meant(run, options, words):
    status, printed = run(*options)
    assert status in (1, 2)
    assert words in printed.err
