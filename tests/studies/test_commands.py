"""The command line of the PicoGPT study as its users meet it: real files, and a process where one is interrupted."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from texts import prose

from mpochain.workflows.frontier_page import write_frontier
from mpochain.workflows.frontier_points import points_of
from mpochain.workflows.frontier_records import read_frontier
from studies import frontier_points, picogpt
from studies.picogpt.__main__ import main
from studies.picogpt.design import Design

# Processes run in a folder of their own and still import the studies of this checkout.
_PATHS = (Path(__file__).parents[2], os.environ.get("PYTHONPATH"))
_PYTHONPATH = os.pathsep.join(str(path) for path in _PATHS if path)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text(prose(6000), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in the folder of the test: its exit status and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["studies.picogpt", *map(str, arguments)])
        loggers = {name: logging.getLogger(name) for name in ("mpochain", "studies")}
        before = {name: (logger.level, list(logger.handlers)) for name, logger in loggers.items()}
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            for name, logger in loggers.items():
                logger.level, logger.handlers = before[name]
        written = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=written.out, stderr=written.err)

    return run


def start(*arguments, cwd):
    """Start a command in a process of its own, with the cache of the test."""
    command = [sys.executable, "-m", "studies.picogpt", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": _PYTHONPATH}
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_demo(run, tmp_path, corpus):
    done = run(
        "demo", "--corpus", corpus, "--bond", 4, "--bond", 8, "--batch-size", 2, "--dense-steps", 4,
        "--tuning-steps", 3,
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


def test_demo_refuses_before_it_works(run, tmp_path, corpus):
    (tmp_path / "taken").write_text("")
    began = time.monotonic()
    done = run("demo", "--corpus", corpus, "--out", tmp_path / "taken" / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write")
    assert done.stderr.count("\n") == 1
    done = run("demo", "--corpus", tmp_path / "none.txt")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot read the corpus" in done.stderr
    corpus.write_text("too short")
    done = run("demo", "--corpus", corpus)
    assert done.returncode == 1
    assert "too short" in done.stderr
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("arguments", [["demo", "--bond", "0"], ["demo", "--nonsense"], ["nonsense"], ["train"]])
def test_wrong_usage(run, arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""


def test_help_names_every_command(run):
    done = run("--help")
    assert done.returncode == 0
    for name in ("demo", "study", "train"):
        assert name in done.stdout


def test_train_refuses_before_it_works(run, tmp_path, corpus):
    done = run("train", "--corpus", corpus, "--out", tmp_path, "--steps", 10_000)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "it is a folder" in done.stderr


def test_an_interrupted_training_goes_on_to_the_bit(run, tmp_path, corpus):
    def arguments(out, text=corpus):
        return ["train", "--corpus", text, "--out", out, "--max-bond", 4, "--steps", 12, "--batch-size", 2]

    # All in processes of their own: plans depend on constants that this one may have measured before.
    uninterrupted, _ = start(*arguments("uninterrupted.safetensors"), cwd=tmp_path).communicate(timeout=120)
    process = start(*arguments("resumed.safetensors"), cwd=tmp_path)
    assert process.stderr.readline().startswith("corpus:")
    assert "step 1/" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; the state is saved in" in errors
    assert (tmp_path / "resumed.safetensors.state").exists()

    other = tmp_path / "other.txt"
    other.write_text(prose(6000, seed=1), encoding="utf-8")
    refused = run(*arguments("resumed.safetensors", other))
    assert refused.returncode == 1
    assert "a run with corpus=" in refused.stderr

    resumed, _ = start(*arguments("resumed.safetensors"), cwd=tmp_path).communicate(timeout=120)
    a, b = json.loads(uninterrupted), json.loads(resumed)
    assert a["validation"] == b["validation"]
    assert a["steps"] == b["steps"] == 12
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("uninterrupted", "resumed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not list(tmp_path.glob("*.state"))


def test_a_frontier_of_the_stored_model_is_measured_and_kept(tmp_path, monkeypatch, corpus, run):
    text = picogpt.load_corpus(corpus)
    model = picogpt.build(design=Design(width=16), vocab_size=len(text.vocabulary), seed=0)
    status = run("frontier", "--corpus", corpus, "--out", "out")
    assert (status.returncode, "no trained model of this corpus" in status.stderr) == (1, True)
    picogpt.save_weights(tmp_path / "dense.safetensors", model, text, {})
    monkeypatch.setattr(picogpt, "shipped", lambda _: tmp_path / "dense.safetensors")
    monkeypatch.setattr(frontier_points, "points", lambda: points_of(["rtn"], [8.5, 3.5]))
    command = ("frontier", "--corpus", corpus, "--out", "out", "--calibration-windows", "4")
    assert run(*command).returncode == 0
    records = read_frontier(tmp_path / "out")
    assert set(records) == {"dense", "rtn-8.5", "rtn-3.5"}
    loss = {name: record["perplexity"]["validation"]["loss"] for name, record in records.items()}
    assert loss["dense"] == pytest.approx(picogpt.evaluate(model.eval(), text.validation).loss, abs=0.02)
    assert abs(loss["rtn-8.5"] - loss["dense"]) < abs(loss["rtn-3.5"] - loss["dense"])
    write_frontier(tmp_path / "out", tmp_path / "page.md")
    assert f"{math.exp(loss['rtn-3.5']):#.4g}" in (tmp_path / "page.md").read_text()
    monkeypatch.setattr(picogpt.PicoGPT, "forward", lambda *_: pytest.fail("measured again"))
    assert run(*command).returncode == 0
