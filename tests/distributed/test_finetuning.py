"""Two processes that finetune one model on batches that they share, beside one that does it alone."""

from __future__ import annotations

import json
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from mpochain.errors import CheckpointError
from mpochain.train.stored import read_record
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


@cache
def finetuned_alone(way):
    """What one process computes."""
    return finetuning.finetuned(way)


@pytest.mark.parametrize("way", finetuning.WAYS)
def test_shared_batches_give_the_model_of_one_process(results, way):
    alone = finetuned_alone(way)
    assert alone[0][-1] != alone[0][0]
    for result in results["each_way"]:
        agree(result[way], alone)


@pytest.mark.runs_in("FSDP2", "`mpochain.distributed.shard_blocks`, teachers included", "low rank")
@pytest.mark.parametrize("way", [way for way in finetuning.WAYS if way != "idle"])
def test_sharded_models_that_share_batches_give_the_model_of_one_process(results, way):
    for result in results["in_shards"]:
        agree(result[way], finetuned_alone(way))


@pytest.mark.parametrize("way", ["to shards", "from shards", "shards"])
def test_a_state_goes_on_with_and_without_shards(results, way):
    for result in results["in_shards"]:
        assert result[f"stopped, {way}"] == 2
        agree(result[way], finetuned_alone("labels"))


def test_one_process_goes_on_from_shards_of_two(folder, results, tmp_path):
    assert results
    name = "labels.shards"
    for place in folder.glob(f"{name}*"):
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / place.name)
    agree(finetuning.finetuned("labels", tmp_path / name), finetuned_alone("labels"))
    assert sorted(file.name for file in tmp_path.iterdir() if "shards-" in file.name) == [f"{name}.shards-1"]


@pytest.mark.parametrize("damage", ["changed", "missing", "none"])
def test_damaged_shards_are_named(folder, results, tmp_path, damage):
    assert results
    for place in folder.glob("labels.shards*"):
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / place.name)
    (shards,) = tmp_path.glob("labels.shards.shards-*")
    first = sorted(shards.iterdir())[0]
    if damage == "none":
        shutil.rmtree(shards)
    elif damage == "missing":
        first.unlink()
    else:
        data = bytearray(first.read_bytes())
        data[-1] ^= 1
        first.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{first.name} (is missing|does not have the SHA-256)"):
        finetuning.finetuned("labels", tmp_path / "labels.shards")


def test_a_process_holds_its_part_of_a_sharded_model(results):
    for sizes in results["sizes"]:
        for part, total in sizes:
            assert part <= 0.52 * total


def test_any_number_of_processes_goes_on(results, folder, tmp_path):
    """The state of two processes is that of one, which goes on from it."""
    state = folder / "labels.state"
    record = read_record(state)
    assert "others" not in record
    assert record["result"]["losses"] == pytest.approx(results["each_way"][0]["labels"][0])
    copied = tmp_path / "state"
    copied.write_bytes(state.read_bytes())
    agree(finetuning.finetuned("labels", copied), finetuning.finetuned("labels"))


@pytest.mark.parametrize("shards", [False, True])
def test_a_killed_process_costs_the_steps_since_the_last_state(tmp_path, shards):
    if shards:
        (tmp_path / "killed" / "in shards").mkdir(parents=True)
    with pytest.raises(AssertionError):
        run_pair(finetuning.killed, tmp_path / "killed", longest=30)
    state = tmp_path / "killed" / "state"
    # The first process takes a step more by itself, but writes no shards without the other.
    assert read_record(state)["result"]["steps"] == 2 - shards
    agree(finetuning.finetuned("labels", state), finetuning.finetuned("labels"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rate", "ArgumentError: the processes differ: learning_rate is 0.01 in process 0 and 1.01 in process 1"),
        ("small", "ArgumentError: 2 processes cannot share a batch of 1"),
        ("types", "ArgumentError: 1.weight is torch.bfloat16 and 0.weight torch.float32"),
        ("scalar", "ArgumentError: scale has no axis to be sharded along"),
        ("container", "ArgumentError: a ModuleList is never called itself"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_all_processes(results, name, words):
    for found in results["refusals"]:
        assert found[name].startswith(words)


@pytest.mark.runs_in("torchrun", "`mpochain finetune` in two processes equals one process", "every form but codes")
@pytest.mark.runs_in("torchrun", "`mpochain finetune --shard` equals one process", "every form but codes")
def test_torchrun_finetunes(files):
    (files / "recipe.yaml").write_text(
        "model: dense\nbudget: 0.7\nmethod: svd\nevaluation: {text: test.txt, window: 32}\n"
        "finetune: {text: valid.txt, window: 32, training: {steps: 3, batch_size: 4}}\n"
    )
    done = torchrun(files, "compress", "--recipe", "recipe.yaml", "--no-time", "--out", "base")
    assert done.returncode == 0, done.stderr
    losses = []
    for processes, options in ((1, ()), (2, ()), (2, ("--shard",))):
        out = f"tuned-{processes}{''.join(options)}"
        command = ["finetune", "base", "--recipe", "recipe.yaml", "--out", out, *options]
        done = torchrun(files, *command, processes=processes)
        assert done.returncode == 0, done.stderr
        assert not list((files / out).glob("finetune.state*"))
        perplexity = json.loads((files / out / "finetune.json").read_text())["perplexity"]
        losses.append([perplexity["before"]["loss"], perplexity["after"]["loss"]])
    for one in losses[1:]:
        assert one == pytest.approx(losses[0], rel=1e-5)
    first, *others = (
        load_file(next((files / f"tuned-{name}").glob("*.safetensors"))) for name in ("1", "2", "2--shard")
    )
    for other in others:
        for name, tensor in first.items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-4, msg=name)
    for options, words in (
        ((), "there is one; start them with torchrun"),
        (("--dtype", "bfloat16"), "--dtype float32"),
    ):
        command = ["finetune", "base", "--recipe", "recipe.yaml", "--out", "no", "--shard", *options]
        done = torchrun(files, *command, processes=1 + bool(options))
        assert done.returncode
        assert words in done.stderr
