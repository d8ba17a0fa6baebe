"""Distillation in stages by two processes of torchrun, beside one process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from mpochain.distributed import Team
from mpochain.errors import RecipeError
from mpochain.workflows import read_recipe, staging
from tests.distributed.pairs import torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")

RECIPE = """
model: dense
finetune: {text: valid.txt, window: 16, windows: 12, training: {steps: 3, batch_size: 4, warmup_steps: 1}}
evaluation: {text: test.txt, window: 16, windows: 4}
stages:
  - name: mlps
    groups:
      - {targets: ['re:.*(up|gate|down)_proj'], method: svd, budget: 0.5}
  - name: all-again
    training: {trainable: all, steps: 2}
"""


@pytest.fixture
def recipe(files):
    (files / "distill.yaml").write_text(RECIPE)
    return files / "distill.yaml"


def runs(what):
    return pytest.mark.runs_in("torchrun", what, "low rank")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=runs("`mpochain distill` in two processes equals one process")),
        pytest.param(("--shard",), marks=runs("`mpochain distill --shard` equals one process")),
    ],
)
def test_two_processes_distil_what_one_does(files, recipe, tmp_path, options):
    command = ["distill", str(recipe), "--out"]
    done = torchrun(files, *command, str(tmp_path / "together"), *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters of") == 1, "one process prints"
    alone = [sys.executable, "-m", "mpochain", *command, str(tmp_path / "alone")]
    subprocess.run(alone, cwd=files, check=True, capture_output=True, timeout=300)
    together, single = (
        json.loads((tmp_path / name / "distillation.json").read_text())["stages"] for name in ("together", "alone")
    )
    assert [stage["name"] for stage in together] == ["mlps", "all-again"]
    for one, other in zip(together, single, strict=True):
        assert one["layers"] == other["layers"]
        assert one["training"]["losses"] == pytest.approx(other["training"]["losses"], rel=1e-4)
        assert one["after"]["perplexity"] == pytest.approx(other["after"]["perplexity"], rel=1e-4)
    assert not (tmp_path / "together" / "stages").exists()


def test_a_cache_is_for_one_process(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(staging, "team_of_group", lambda: Team(0, 2))
    with pytest.raises(RecipeError, match="2 processes cannot share a cache of the teacher's logits; leave it out"):
        staging.distill_by(read_recipe(recipe), tmp_path / "out", teacher_cache=tmp_path / "cache")
