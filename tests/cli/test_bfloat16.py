"""A model in bfloat16 from end to end: compressed, finetuned, saved, evaluated, and distilled in stages."""

from __future__ import annotations

import json
import sys

import pytest
from texts import prose
from tiny import write_model

from mpochain.checkpoint import contents
from mpochain.cli import main

STAGES = """
model: dense
dtype: bfloat16
finetune: {text: valid.txt, window: 16, windows: 8, training: {steps: 2, batch_size: 4, warmup_steps: 0}}
stages: [{name: mlps, groups: [{targets: ['re:.*mlp.*'], factors: [[2, 2]], terms: 2}]}]
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_model("dense")
    for name, seed in (("valid.txt", 1), ("test.txt", 2)):
        (tmp_path / name).write_text(prose(2000, seed=seed), encoding="utf-8")
    (tmp_path / "stages.yaml").write_text(STAGES, encoding="utf-8")

    def call(command):
        monkeypatch.setattr(sys, "argv", ["mpochain", *command.split(), "--json"])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert not ending.value.code, output.err
        return json.loads(output.out)

    return call


def test_compress_finetune_evaluate_and_distill(run):
    texts = "--evaluate test.txt --evaluate-windows 3 --window 32"
    compressed = run(
        f"compress dense --dtype bfloat16 --budget 0.7 --calibration valid.txt --calibration-windows 4 {texts} "
        "--no-speed --out small"
    )
    assert compressed["model_bytes"]["before"] == 2 * compressed["parameters"]["before"] + 32, "32 of a buffer"
    finetuned = run(f"finetune small --teacher dense --text valid.txt --steps 3 {texts} --out tuned")
    assert finetuned["perplexity"]["before"]["loss"] == compressed["perplexity"]["after"]["loss"]
    evaluation = run("eval tuned --text test.txt --windows 3 --window 32")
    assert evaluation["loss"] == finetuned["perplexity"]["after"]["loss"]
    run("distill stages.yaml --out distilled")
    for folder in ("small", "tuned", "distilled"):
        assert set(contents(folder).dtypes) <= {"BF16", "I32"}
