"""``mpochain compress --any-size`` and ``mpochain cut``, beside ``mpochain compress``."""

from __future__ import annotations

import json

import pytest
from texts import prose
from tiny import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any-size")
    write_model(folder / "dense")
    (folder / "valid.txt").write_text(prose(6000, seed=1))
    (folder / "test.txt").write_text(prose(3000, seed=2))
    return folder


def test_a_model_that_is_cut_is_that_of_compress(run, folder):
    calibration = ["--calibration", "valid.txt", "--window", "32"]
    evaluation = ["--evaluate", "test.txt", "--window", "32", "--no-time"]
    printed = run("compress", "dense", "--any-size", *calibration, "--out", "all").out
    assert "14 layers fitted for every size" in printed
    run("eval", "all", "--text", "test.txt", "--window", "32")  # the folder is the dense model
    for number, budget in enumerate(("0.8", "0.5")):
        record = json.loads(run("cut", "all", "--budget", budget, *evaluation, "--out", f"cut-{number}", "--json").out)
        plain = [
            "compress",
            "dense",
            "--budget",
            budget,
            *calibration,
            *evaluation,
            "--out",
            f"plain-{number}",
            "--json",
        ]
        other = json.loads(run(*plain).out)
        assert record["perplexity"]["after"]["loss"] == pytest.approx(other["perplexity"]["after"]["loss"], rel=1e-5)
        assert record["compression"]["method"] == "any_size"
    assert "method any_size" in run("cut", "all", "--budget", "0.6", "--dry-run").out
    message = run("compress", "dense", "--any-size", *calibration, "--out", "all", code=1).err
    assert "already contains a model" in message or "overwrite" in message
    run("compress", "dense", "--any-size", *calibration, "--out", "all", "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cut", "dense", "--budget", "0.5", "--out", "x"], "dense holds no fits of every size"),
        (["compress", "dense", "--any-size", "--out", "x"], "the fits need calibration data"),
        (["compress", "dense", "--any-size", "--calibration", "valid.txt"], "give --out FOLDER"),
        (
            ["compress", "dense", "--any-size", "--calibration", "valid.txt", "--budget", "0.5", "--out", "x"],
            "fits low rank for every size, which budget does not decide",
        ),
        (
            ["compress", "dense", "--any-size", "--calibration", "valid.txt", "--method", "svd", "--out", "x"],
            "which method does not decide",
        ),
        (["compress", "dense", "--any-size", "--calibration", "valid.txt", "--out", "dense"], "folder of the dense"),
        (
            ["compress", "dense", "--any-size", "--calibration", "valid.txt", "--dry-run", "--out", "x"],
            "--any-size writes fits, and --dry-run nothing",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(run, folder, arguments, words):
    assert words in run(*arguments, code=1 if arguments[0] == "cut" else 2).err
    assert not (folder / "x").exists()
