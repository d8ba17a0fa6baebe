"""Two processes that compress one model together, beside one that does it alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from mpochain.compression.statistics.division import divided
from mpochain.distributed import Team
from mpochain.errors import ArgumentError
from tests.distributed import compressing
from tests.distributed.pairs import run_pair, torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes computed, by function; one pair for all tests, since it takes seconds to start."""
    pair = run_pair(compressing.everything, tmp_path_factory.mktemp("pair"))
    return {name: [result[name] for result in pair] for name in pair[0]}


@pytest.mark.parametrize("way", compressing.WAYS)
def test_two_processes_choose_and_build_what_one_does(results, way):
    alone = compressing.compressed(way)
    first, second = (result[way] for result in results["each_way"])
    for result in (first, second):
        assert result["layers"] == alone["layers"]
        assert result["errors"] == pytest.approx(alone["errors"], rel=1e-3, abs=1e-6)
        tolerance = 2e-2 if way == "refined" else 1e-5
        assert (result["logits"] - alone["logits"]).abs().max() <= tolerance * alone["logits"].abs().max()
        assert result["report"][:2] == alone["report"][:2]
        assert (result["report"][2] is None) == (alone["report"][2] is None)
        assert result["report"][3] == alone["report"][3]
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name]), name


def test_moments_are_those_of_one_process_in_their_owners(results):
    merged = results["moments"][0] | results["moments"][1]
    assert len(merged) == 15
    for name, (together, alone) in merged.items():
        assert together[0] == alone[0]
        assert together[1] == pytest.approx(alone[1], rel=1e-12)
        for one, other in zip(together[2:], alone[2:], strict=True):
            assert torch.dist(one.double(), other.double()) <= 1e-6 * other.double().norm(), name


def test_inputs_are_shared_though_no_gradient_reaches_their_first_reader(results):
    (together, alone), (nothing, _) = results["beside"]
    assert nothing is None, "the first process owns all layers"
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weights", "ArgumentError: the processes differ: the hash of the model's weights is"),
        ("data", "ArgumentError: the processes differ: the hash of calibration= is"),
        ("budget", "ArgumentError: the processes differ: budget is 0.7 in process 0 and 0.8 in process 1"),
        ("method", "ArgumentError: the processes differ: method is"),
        ("sequential", "ArgumentError: sequential=True corrects block after block"),
        ("layers", "ArgumentError: 2 processes cannot share the 1 layers of 1 modules; start at most 1 process"),
        ("no data", "ArgumentError: method 'interpolative' needs calibration= batches"),
        ("one batch", "ArgumentError: LlamaForCausalLM cannot be called with a calibration batch"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_all_processes(results, name, words):
    for found in results["refusals"]:
        assert found[name].startswith(words)


def test_a_killed_process_costs_what_was_not_finished(tmp_path):
    with pytest.raises(AssertionError):
        run_pair(compressing.interrupted, tmp_path / "killed", longest=20)
    done = list((tmp_path / "killed" / "state" / "layers").glob("*.safetensors"))
    assert len(done) >= 2
    before = {file: file.stat().st_mtime_ns for file in done}
    first, second = run_pair(compressing.resumed, tmp_path / "resumed")
    assert {file: file.stat().st_mtime_ns for file in done} == before, "nothing is written twice"
    alone = compressing.compressed("interpolative")
    for result in (first, second):
        assert result["layers"] == alone["layers"]
        assert (result["logits"] - alone["logits"]).abs().max() <= 1e-5 * alone["logits"].abs().max()


def test_a_process_killed_while_blocks_stream_costs_the_block_that_it_was_at(tmp_path):
    with pytest.raises(AssertionError):
        run_pair(compressing.stream_interrupted, tmp_path / "killed", longest=20)
    alone = compressing.compressed("streamed")
    for result in run_pair(compressing.stream_resumed, tmp_path / "resumed"):
        assert result["layers"] == alone["layers"]
        assert (result["logits"] - alone["logits"]).abs().max() <= 1e-5 * alone["logits"].abs().max()


def test_layers_are_dealt_by_the_time_of_their_fits():
    class Target:
        def __init__(self, *shape):
            self.shape = shape

    targets = {"a.q": Target(8, 8), "a.k": Target(8, 8), "b.up": Target(16, 16), "c.up": Target(4, 4)}
    division = divided(targets, Team(1, 2))
    assert division.owners == {"a.q": 1, "a.k": 1, "b.up": 0, "c.up": 1}
    assert division.own(targets) == ["a.q", "a.k", "c.up"]
    assert divided(targets, Team(0, 1)).own(targets) == list(targets)
    with pytest.raises(ArgumentError, match="start at most 3"):
        divided(targets, Team(0, 4))


@pytest.mark.runs_in(
    "torchrun", "`mpochain compress` in two processes equals one process", "every method with data or without"
)
def test_torchrun_writes_the_folder_that_one_process_writes(files):
    arguments = ["compress", "dense", "--budget", "0.7", "--calibration", "valid.txt", "--window", "32"]
    arguments += ["--calibration-windows", "9", "--evaluate", "test.txt", "--no-time"]
    done = torchrun(files, *arguments, "--out", "together")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("layers with") == 1, "one process prints"
    single = [sys.executable, "-m", "mpochain", *arguments, "--out", "alone"]
    subprocess.run(single, cwd=files, check=True, capture_output=True)
    together, alone = (json.loads((files / name / "report.json").read_text()) for name in ("together", "alone"))
    assert [layer["form"] for layer in together["compression"]["layers"]] == [
        layer["form"] for layer in alone["compression"]["layers"]
    ]
    perplexities = [report["perplexity"]["after"]["perplexity"] for report in (together, alone)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-5)
    assert sorted(place.name for place in (files / "together").iterdir() if place.suffix != ".safetensors") == sorted(
        place.name for place in (files / "alone").iterdir() if place.suffix != ".safetensors"
    )
    again = torchrun(files, *arguments, "--out", "together")
    assert [line for line in again.stderr.splitlines() if line.startswith(("error", "process"))] == [
        "error: together holds a finished model, which would be overwritten; name another folder, or add --overwrite"
    ]


@pytest.mark.refused_in("torchrun", "commands other than `compress`, `finetune` and `distill`")
def test_a_command_for_one_process_says_so(files):
    done = torchrun(files, "inspect", "dense")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error", "process"))]
    assert lines == [
        "error: this command (inspect) runs in one process, and torchrun started 2; run it without torchrun"
    ]
