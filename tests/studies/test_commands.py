"""The command line of the PicoGPT study as its users meet it: real processes, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from texts import prose

# Processes run in a folder of their own and still import the studies of this checkout.
_PATHS = (Path(__file__).parents[2], os.environ.get("PYTHONPATH"))
_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in _PATHS if path)}


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text(prose(6000), encoding="utf-8")
    return path


def command(*arguments):
    return [sys.executable, "-m", "studies.picogpt", *map(str, arguments)]


def run(*arguments, cwd):
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=120, env=_ENVIRONMENT, check=False
    )


def interrupt_after_first_step(*arguments, cwd):
    """Start a training, send Ctrl-C after its first step, and return its exit status and the rest of stderr."""
    process = subprocess.Popen(command(*arguments), cwd=cwd, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT)
    assert process.stderr.readline().startswith("corpus:")
    assert "step 1/" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_demo(tmp_path, corpus):
    done = run(
        "demo", "--corpus", corpus, "--bond", 4, "--bond", 8, "--batch-size", 2, "--dense-steps", 4,
        "--tuning-steps", 3, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["dense", "χ=4", "χ=8"]
    assert "accuracy finetuned" in lines[0]
    assert "corpus: prose.txt: 6,000 characters" in done.stderr
    assert "χ=4: TT-SVD of every linear layer" in done.stderr
    out = tmp_path / "mpochain-demo"
    assert str(out) in done.stderr
    for name in ("accuracy.png", "errors.png", "losses.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    result = json.loads((out / "demo.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["dense", "χ=4", "χ=8"]
    assert len(result["rows"][1]["layer_errors"]) == 25
    assert result["rows"][1]["error"] > result["rows"][2]["error"] > 0
    assert len(result["rows"][1]["finetune_losses"]) == 3
    assert result["provenance"]["torch"].startswith("2.")
    assert result["provenance"]["threads"] >= 1
    page = (out / "demo.md").read_text()
    assert "| dense" in page
    assert all(f"{row['parameters']:,}" in page for row in result["rows"])


def test_demo_refuses_before_it_works(tmp_path, corpus):
    (tmp_path / "taken").write_text("")
    began = time.monotonic()
    done = run("demo", "--corpus", corpus, "--out", tmp_path / "taken" / "out", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write")
    assert done.stderr.count("\n") == 1
    done = run("demo", "--corpus", tmp_path / "none.txt", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot read the corpus" in done.stderr
    corpus.write_text("too short")
    done = run("demo", "--corpus", corpus, cwd=tmp_path)
    assert done.returncode == 1
    assert "too short" in done.stderr
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("arguments", [["demo", "--bond", "0"], ["demo", "--nonsense"], ["nonsense"], ["train"]])
def test_wrong_usage(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""


def test_help_names_every_command(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("demo", "study", "train"):
        assert name in done.stdout


def test_train_refuses_before_it_works(tmp_path, corpus):
    done = run("train", "--corpus", corpus, "--out", tmp_path, "--steps", 10_000, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "it is a folder" in done.stderr


def test_a_state_of_another_corpus_is_refused(tmp_path, corpus):
    arguments = ["train", "--out", "m.safetensors", "--max-bond", 4, "--steps", 500, "--batch-size", 2]
    status, _ = interrupt_after_first_step(*arguments, "--corpus", corpus, cwd=tmp_path)
    assert status == 130
    other = tmp_path / "other.txt"
    other.write_text(prose(6000, seed=1), encoding="utf-8")
    done = run(*arguments, "--corpus", other, cwd=tmp_path)
    assert done.returncode == 1
    assert "a run with corpus=" in done.stderr


def test_an_interrupted_training_goes_on_to_the_bit(tmp_path, corpus):
    def arguments(out):
        return ["train", "--corpus", corpus, "--out", out, "--max-bond", 4, "--steps", 40, "--batch-size", 2]

    uninterrupted = run(*arguments("uninterrupted.safetensors"), cwd=tmp_path)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    status, errors = interrupt_after_first_step(*arguments("resumed.safetensors"), cwd=tmp_path)
    assert status == 130, errors
    assert "interrupted; the state is saved in" in errors
    assert (tmp_path / "resumed.safetensors.state").exists()
    resumed = run(*arguments("resumed.safetensors"), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    a, b = json.loads(uninterrupted.stdout), json.loads(resumed.stdout)
    assert a["validation"] == b["validation"]
    assert a["steps"] == b["steps"] == 40
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("uninterrupted", "resumed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not list(tmp_path.glob("*.state"))
