"""Two processes that finetune one model on batches that they share, beside one that does it alone."""

from __future__ import annotations

import json

import pytest
import torch

from mpochain.train.state import read_record
from tests.distributed import finetuning
from tests.distributed.pairs import run_pair, torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def results(folder):
    pair = run_pair(finetuning.everything, folder)
    return {name: [result[name] for result in pair] for name in pair[0]}


def agree(result, alone):
    """Whether losses and tensors of a training are those of another, to rounding in float64."""
    assert result[0] == pytest.approx(alone[0], rel=1e-10)
    assert result[1] == alone[1]
    for name, tensor in alone[2].items():
        torch.testing.assert_close(result[2][name], tensor, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("way", finetuning.WAYS)
def test_shared_batches_give_the_model_of_one_process(results, way):
    alone = finetuning.finetuned(way)
    assert alone[0][-1] != alone[0][0]
    for result in results["each_way"]:
        agree(result[way], alone)


def test_any_number_of_processes_goes_on(results, folder, tmp_path):
    """The state of two processes is that of one, which goes on from it."""
    state = folder / "labels.state"
    record = read_record(state)
    assert "others" not in record
    assert record["result"]["losses"] == pytest.approx(results["each_way"][0]["labels"][0])
    copied = tmp_path / "state"
    copied.write_bytes(state.read_bytes())
    agree(finetuning.finetuned("labels", copied), finetuning.finetuned("labels"))


def test_a_killed_process_costs_the_steps_since_the_last_state(tmp_path):
    with pytest.raises(AssertionError):
        run_pair(finetuning.killed, tmp_path / "killed", longest=30)
    state = tmp_path / "killed" / "state"
    assert read_record(state)["result"]["steps"] == 2
    agree(finetuning.finetuned("labels", state), finetuning.finetuned("labels"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rate", "ArgumentError: the processes differ: learning_rate is 0.01 in process 0 and 1.01 in process 1"),
        ("small", "ArgumentError: 2 processes cannot share a batch of 1"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_all_processes(results, name, words):
    for found in results["refusals"]:
        assert found[name].startswith(words)


@pytest.mark.runs_in("torchrun", "`mpochain finetune` in two processes equals one process", "every form but codes")
def test_torchrun_finetunes(files):
    (files / "recipe.yaml").write_text(
        "model: dense\nbudget: 0.7\nmethod: svd\nevaluation: {text: test.txt, window: 32}\n"
        "finetune: {text: valid.txt, window: 32, training: {steps: 3, batch_size: 4}}\n"
    )
    done = torchrun(files, "compress", "--recipe", "recipe.yaml", "--no-time", "--out", "base")
    assert done.returncode == 0, done.stderr
    losses = []
    for processes in (1, 2):
        out = f"tuned-{processes}"
        command = ["finetune", "base", "--recipe", "recipe.yaml", "--out", out]
        done = torchrun(files, *command, processes=processes)
        assert done.returncode == 0, done.stderr
        losses.append(json.loads((files / out / "finetune.json").read_text())["perplexity"]["after"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
