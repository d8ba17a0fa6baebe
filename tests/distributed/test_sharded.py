"""Models that two processes train together: finetuning, cached matrices, folders and training states."""

from __future__ import annotations

import json

import pytest
import torch
from layers import first_trained, inputs_of, layer_named
from safetensors.torch import load_file

import mpochain as mpo
from mpochain.train.stored import read_state
from tests.distributed import sharded
from tests.distributed.pairs import run_pair

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def results(folder):
    """What each of two processes computed, by function; one pair for all tests, since it takes seconds to start."""
    pair = run_pair(sharded.everything, folder)
    return {name: [result[name] for result in pair] for name in pair[0]}


@pytest.mark.runs_in("FSDP2", "`mpo.finetune` in two processes equals one process", "every form but codes; tied heads")
@pytest.mark.runs_in("DDP", "`mpo.finetune` in two processes equals one process", "every form but codes; tied heads")
def test_finetuning_equals_that_of_one_process_with_the_whole_batch(results):
    for name, model in sharded.networks().items():
        result = mpo.finetune(model, sharded.windows(), config=sharded.CONFIG)
        for way in ("fsdp", "ddp"):
            (losses, tensors), (others, same_tensors) = (result[name, way] for result in results["finetuned"])
            mean = [(one + other) / 2 for one, other in zip(losses, others, strict=True)]
            assert mean == pytest.approx(result.losses, rel=0, abs=1e-12), (name, way)
            for key, value in model.state_dict().items():
                assert torch.equal(tensors[key], same_tensors[key])
                torch.testing.assert_close(tensors[key], value, rtol=0, atol=1e-11, msg=f"{name}, {way}: {key}")


def test_only_what_is_trainable_changes_though_the_model_was_called_before(results):
    assert results["frozen"] == [["head.weight", "head.bias"]] * 2


@pytest.mark.refused_in("FSDP2", "training of parameters in bfloat16 or float16")
def test_a_sharded_model_in_half_precision_is_refused(results):
    for message in results["half"]:
        assert "convert it before it is sharded" in message


def test_nothing_is_cached_of_parameters_that_are_gathered_for_a_call(results):
    for outputs in results["scaled"]:
        for form in sharded.FORMS:
            layer = layer_named(form)
            x = inputs_of(layer, (3,))
            with torch.no_grad():
                expected = [layer(x)] * 2
                first_trained(layer).mul_(4)
                expected += [layer(x)] * 2
            for resharded in (True, False):
                torch.testing.assert_close(outputs[form, resharded], expected, msg=form)


def test_outputs_grow_with_the_parameters_though_their_address_and_version_stay(results):
    for ratios in results["grown"]:
        assert ratios == pytest.approx([4.0] * 12)


@pytest.mark.runs_in("FSDP2", "`mpo.save`: the folder of one process to the byte", "every form but codes; tied heads")
def test_the_folder_of_a_sharded_model_is_that_of_one_process(results, folder, tmp_path):
    messages = results["saved"]
    assert messages[0] == messages[1]
    assert "holds another model" in messages[0]
    for name, model in sharded.networks().items():
        ours, theirs = mpo.save(model, tmp_path / name), folder / name
        assert sorted(file.name for file in theirs.iterdir()) == sorted(file.name for file in ours.iterdir())
        for file in ours.iterdir():
            assert (theirs / file.name).read_bytes() == file.read_bytes(), (name, file.name)
        config = json.loads((theirs / "config.json").read_text())
        assert bool(config["tied"]) is name.endswith("tied")
        fresh = sharded.Network(name.removesuffix(", tied"), tied=name.endswith("tied"))
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.zero_()
        loaded = mpo.load(theirs, fresh)
        with torch.no_grad():
            assert torch.equal(loaded(sharded.windows()), model(sharded.windows()))


@pytest.mark.runs_in("FSDP2", "`save_pretrained`", "low rank; tied heads")
def test_both_ways_of_saving_a_sharded_model_of_transformers(results, folder, tmp_path):
    model = sharded.tied_llama()
    model.save_pretrained(tmp_path / "pretrained")
    for ours, theirs in (
        (mpo.save(model, tmp_path / "llama"), folder / "llama"),
        (tmp_path / "pretrained", folder / "pretrained"),
    ):
        assert {file.name: file.read_bytes() for file in theirs.iterdir()} == {
            file.name: file.read_bytes() for file in ours.iterdir()
        }
        loaded = mpo.load(theirs)
        with torch.no_grad():
            assert torch.equal(loaded(sharded.windows()).logits, model(sharded.windows()).logits)


@pytest.mark.runs_in("FSDP2", "resumption of `mpo.finetune` to the bit", "chain")
@pytest.mark.runs_in("DDP", "resumption of `mpo.finetune` to the bit", "chain")
def test_finetuning_in_two_sessions_is_exact(results, folder):
    pair = results["resumed"]
    for result in pair:
        for way in ("fsdp", "ddp"):
            (losses, tensors), (again, same_tensors), message = result[way]
            assert losses == again
            assert all(torch.equal(value, same_tensors[name]) for name, value in tensors.items())
            assert "belongs to a run with data=" in message
    assert pair[0]["fsdp"][0][0] != pair[1]["fsdp"][0][0], "every process keeps its own losses"
    _, stored = read_state(folder / "fsdp-complete")
    tensors = stored.tensors
    for name, value in sharded.Network("chain").named_parameters():
        assert tensors[f"model.{name}"].shape == tensors[f"optimizer.exp_avg.{name}"].shape == value.shape
    assert load_file(folder / "ddp-complete").keys() == tensors.keys()
    # Only the shards that the state names are left, one file for each process.
    (shards,) = folder.glob("fsdp-complete.shards-*")
    assert shards == stored.shards
    assert len(list(shards.iterdir())) == 2
