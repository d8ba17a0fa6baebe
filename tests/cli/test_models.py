"""Commands for language models as users meet them: compress, finetune, eval, inspect, convert, compare, distill."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import get_type_hints

import jsonschema
import pytest
import yaml
from texts import prose
from tiny import write_model
from versions import tensors_of

from mpochain.cli import main
from mpochain.cli.finetune import finetune
from mpochain.compression import Refinement
from mpochain.errors import MPOError, RecipeError
from mpochain.train import FinetuneConfig
from mpochain.train.stored import read_record
from mpochain.workflows import Recipe, example_recipes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "dense")
    write_model(folder / "other")
    (folder / "valid.txt").write_text(prose(6000, seed=1), encoding="utf-8")
    (folder / "test.txt").write_text(prose(3000, seed=2), encoding="utf-8")
    (folder / "plays.txt").write_text(prose(3000, seed=3), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        "model: dense\nbudget: 0.7\ncalibration: {text: valid.txt, window: 32, windows: 6}\n"
        "evaluation: {text: test.txt, window: 32, windows: 5}\n",
        encoding="utf-8",
    )
    begun = "model: dense\ncalibration: {text: valid.txt, window: 32, windows: 6}\n"
    for name, rest in {
        "yes": "budget: yes",
        "bare": "budget: 0.5",
        "word": "budget: 0.5\ntargets: model",
        "much": "evaluation: {text: test.txt, window: 32}\ncomparison: {budgets: [1.7]}",
        "seen": "evaluation: {text: copy.txt, window: 32}\ncomparison: {budgets: [0.7]}",
    }.items():
        (folder / f"{name}.yaml").write_text(f"{begun}{rest}\n", encoding="utf-8")
    (folder / "data.yaml").write_text("model: dense\nevaluation: {text: test.txt, window: 32}\n", encoding="utf-8")
    shutil.copy(folder / "valid.txt", folder / "copy.txt")
    return folder


# Wrong usage, or a failure later on.
FAILED = (1, 2)


class Done:
    def __init__(self, returncode, stdout, stderr):
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run the command in this process, which has imported everything already."""

    def call(*arguments, code=0):
        monkeypatch.chdir(call.folder)
        monkeypatch.setattr(sys, "argv", ["mpochain", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        done = Done(exit_.value.code or 0, captured.out, captured.err)
        assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stderr
        return done

    call.folder = folder
    return call


def run_process(folder, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "mpochain", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_the_walk_through(folder, run):
    preview = run("compress", "--recipe", "recipe.yaml", "--dry-run", "--json")
    record = json.loads(preview.stdout)
    assert len(record["layers"]) == 14
    assert record["parameters_after"] <= 0.7 * record["parameters_before"]
    assert "gradients of 14 layers" in preview.stderr

    compressed = run_process(folder, "compress", "--recipe", "recipe.yaml", "--out", "small", "--ignore", "re:.*o_proj")
    lines = compressed.stdout.splitlines()
    assert re.match(r" +dense +compressed +ratio", lines[0]), "what matters most first"
    assert re.match(r"file of weights +0\.\d+ MB +0\.\d+ MB +0\.\d\d", lines[2])
    assert any(re.match(r"perplexity +[0-9.]+ +[0-9.]+ +[0-9.]+", line) for line in lines)
    assert any(re.match(r"perplexity on 5 of \d+ windows of 32, 155 tokens", line) for line in lines)
    assert any(re.match(r"one generated token +[0-9.]+ ms +[0-9.]+ ms", line) for line in lines)
    assert any(re.match(r"compressed in \d+ s; peak memory [0-9,]+ MB", line) for line in lines)
    assert any(re.match(r"model\.layers\.\*\.mlp\.up_proj +2 ", line) for line in lines), "layers by kind"
    assert max(map(len, lines)) <= 100
    assert compressed.stdout.splitlines()[-3:] == ["small", "small/report.json", "small/report.html"]
    report = json.loads((folder / "small" / "report.json").read_text())
    assert report["command"].startswith("mpochain compress --recipe recipe.yaml --out small")
    assert report["recipe"]["ignore"] == ["re:.*o_proj"]
    assert report["perplexity"]["after"]["tokens"] == 5 * 31
    assert report["parameters"]["after"] < report["parameters"]["before"]
    assert report["peak_bytes"] > 1 << 20
    assert len(report["compression"]["frontier"]) > 5
    page = (folder / "small" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert "model.layers.1.mlp.down_proj" in page

    shown = json.loads(run("inspect", "small", "--json").stdout)
    assert shown["intact"] is True
    assert shown["parameters"] == report["parameters"]["after"]
    assert shown["dense_parameters"] == report["parameters"]["before"]
    assert re.search(r"rank \d+, interpolative", run("inspect", "small").stdout)

    evaluation = json.loads(run("eval", "small", "--text", "test.txt", "--window", 32, "--windows", 5, "--json").stdout)
    assert evaluation["perplexity"] == pytest.approx(report["perplexity"]["after"]["perplexity"], rel=1e-5)
    converted = json.loads(run("convert", "small", "--out", "plain", "--json").stdout)
    assert converted == {
        "source": "small",
        "folder": "plain",
        "parameters": report["parameters"]["before"],
        "bytes": 4 * report["parameters"]["before"],
    }
    line = run("eval", "plain", "--text", "test.txt", "--window", 32, "--windows", 5).stdout
    expected = r"perplexity (\S+) \((\S+) nats per token\) on 155 tokens, 5 of \d+ windows of 32, stride 32\n"
    shown = re.fullmatch(expected, line)
    assert float(shown[1]) == pytest.approx(evaluation["perplexity"], rel=1e-3)
    assert float(shown[2]) == pytest.approx(evaluation["loss"], rel=1e-3)


def test_what_needs_no_data_and_a_dry_run(folder, run):
    done = run("compress", "dense", "--budget", "50%", "--method", "svd", "--dry-run")
    assert "14 layers" in done.stdout
    assert not (folder / "out").exists()
    done = run("compress", "dense", "--budget", 0.5, "--method", "tt_svd", "--out", "chains", "--no-speed", "--json")
    record = json.loads(done.stdout)
    assert (record["folder"], record["speed"], record["perplexity"]) == (
        "chains",
        None,
        {"before": None, "after": None, "also": {}},
    )
    assert record["compression"]["frontier"] == []
    evaluated = ["--evaluate", "test.txt", "--window", 32, "--evaluate-windows", 2]
    done = run(
        "compress", "dense", "--budget", 0.5, "--method", "svd", "--out", "svd", "--no-speed", "--json", *evaluated
    )
    assert json.loads(done.stdout)["perplexity"]["after"]["window"] == 32, "without calibration there is none to change"
    assert "bonds" in run("inspect", "chains").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "--budget", "0.5", "--out", "o"], "command line: no model is named"),
        (["compress", "dense", "--out", "o"], "the budget is missing"),
        (["compress", "dense", "--budget", "0.5"], "--out FOLDER"),
        (["compress", "dense", "--budget", "0.5", "--out", "o"], "--calibration"),
        (["compress", "dense", "--budget", "0.5", "--out", "dense"], "is the folder of the dense model"),
        (["compress", "dense", "--budget", "1.5", "--method", "svd", "--out", "o"], "out of range"),
        (["compress", "dense", "--budget", "0.5", "--method", "magic", "--out", "o"], "there is no method 'magic'"),
        (["compress", "dense", "--budget", "0.5", "--calibration-windows", "3", "--out", "o"], "calibration.text"),
        (
            ["compress", "--dry-run", "dense", "--budget", "0.5", "--method", "svd", "--target", "q_prj"],
            "nearest names are",
        ),
        (["compress", "--dry-run", "./nowhere", "--budget", "0.5", "--method", "svd"], "there is no folder or"),
        (["compress", "--dry-run", "--recipe", "none.yaml"], "cannot read the recipe none.yaml"),
        (["eval", "dense", "--text", "none.txt"], "cannot read the text none.txt"),
        (["eval", "dense", "--text", "test.txt"], "longer than the model's context of 64"),
        (["inspect", "dense"], "expected 'mpochain' (a compressed model's checkpoint)"),
        (["inspect", "nowhere"], "there is no folder 'nowhere'"),
        (["convert", "dense", "--out", "dense"], "contains a model, which would be"),
        (["compress", "dense", "--budget", "0.5", "--method", "svd", "--out", "other"], "holds another model"),
        (["convert", "dense", "--out", "other"], "contains a model, which would be"),
        (
            ["compress", "--dry-run", "dense", "--budget", "0.5", "--calibration", "test.txt"],
            "window of 512 tokens is longer than the model's context of 64",
        ),
        (
            ["compress", "dense", "--budget", "0.5", "--method", "svd", "--evaluate", "test.txt", "--out", "o"],
            "window of 512 tokens is longer than the model's context of 64",
        ),
    ],
)
def test_wrong_usage_is_one_line(folder, run, arguments, message):
    done = run(*arguments, code=FAILED)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (folder / "o" / "config.json").exists()
    assert json.loads((folder / "other" / "config.json").read_text())["model_type"] == "llama"


def test_bits_and_speed(folder, run):
    arguments = "compress", "dense", "--budget", "7 bits", "--calibration", "valid.txt", "--window", 32
    out = run(*arguments, "--speed", "80%", "--out", "bits", "--no-time", "--json", "--calibration-windows", 6).stdout
    report = json.loads(out)["compression"]
    assert (report["method"], report["budget"], report["speed"]) == ("auto", "7 bits", "80%")
    assert report["bits_per_weight"] <= 7
    assert report["macs_after"] <= 0.8 * report["macs_before"]
    layers = json.loads(run("inspect", "bits", "--json").stdout)["layers"]
    assert any("bits in groups" in str(layer) for layer in layers)
    run("eval", "bits", "--text", "test.txt", "--window", 32, "--windows", 2)
    assert re.search(r"\d bits", run(*arguments[:3], "5 bits", *arguments[4:], "--dry-run").stdout.partition("\n")[2])
    refused = run(*arguments[:3], "0.1 bits", *arguments[4:], "--out", "none", code=FAILED).stderr
    assert "the smallest reachable is" in refused


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    run("compress", "dense", "--budget", 0.5, "--method", "svd", "--out", tmp_path / "small", "--no-speed")
    tensors = next((tmp_path / "small").glob("model-*.safetensors"))
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    assert "DAMAGED" in run("inspect", tmp_path / "small", code=1).stdout
    assert "is damaged" in run("eval", tmp_path / "small", "--text", "test.txt", code=1).stderr
    again = run("compress", tmp_path / "small", "--dry-run", "--budget", 0.5, "--method", "svd", code=2)
    assert "is already compressed" in again.stderr


FINETUNE = ["--text", "valid.txt", "--window", 32, "--teacher", "dense", "--steps", 8, "--learning-rate", 0.003]


@pytest.fixture(scope="module")
def small(folder):
    run_process(
        folder, "compress", "--recipe", "recipe.yaml", "--budget", 0.4, "--out", "forty", "--no-speed"
    )  # fmt: skip
    return "forty"


def test_finetuning(folder, run, small):
    evaluated = ["--evaluate", "test.txt", "--evaluate-windows", 5, "--also", "plays.txt"]
    done = run("finetune", small, "--out", "finetuned", *FINETUNE, *evaluated, "--json")
    record = json.loads(done.stdout)
    assert record["perplexity"]["after"]["perplexity"] < record["perplexity"]["before"]["perplexity"]
    other = record["perplexity"]["also"]["plays.txt"]
    assert other["after"]["perplexity"] < other["before"]["perplexity"] != record["perplexity"]["before"]["perplexity"]
    assert record["training"]["steps"] == 8
    assert record["training"]["tokens"] > 0
    assert record == json.loads((folder / "finetuned" / "finetune.json").read_text())
    assert not list((folder / "finetuned").glob("*.state"))
    line = run("eval", "finetuned", "--text", "test.txt", "--window", 32, "--windows", 5).stdout
    assert f"perplexity {record['perplexity']['after']['perplexity']:.3f}" in line
    card = (folder / "finetuned" / "README.md").read_text()
    assert 'base_model: "dense"' in card
    assert f"{other['before']['perplexity']:.4g} before, {other['after']['perplexity']:.4g} after" in card
    assert card.index("mpochain compress") < card.index("Finetuned afterwards.") < card.index("mpochain finetune")
    # On the text alone, without a teacher.
    done = run("finetune", small, "--out", "alone", "--text", "valid.txt", "--window", 32, "--steps", 5)
    assert "5 steps" in done.stdout
    assert (
        json.loads((folder / "alone" / "finetune.json").read_text())["recipe"]["finetune"]["training"]["distillation"]
        == 0
    )


def test_a_killed_finetuning_resumes_to_the_same_model(folder, run, small):
    arguments = ["--text", "valid.txt", "--window", 32, "--teacher", "dense", "--steps", 60]
    run("finetune", small, "--out", "whole", *arguments)
    command = [sys.executable, "-m", "mpochain", "finetune", small, "--out", "killed", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "killed" / "finetune.state").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / "killed" / "config.json").exists()
    run("finetune", small, "--out", "killed", *arguments)
    uninterrupted, killed = (json.loads((folder / name / "finetune.json").read_text()) for name in ("whole", "killed"))
    assert uninterrupted["training"]["losses"] == killed["training"]["losses"]
    names = [tensors_of(folder / name).name for name in ("whole", "killed")]
    assert names[0] == names[1], "the same to the bit"


def test_ctrl_c_while_finetuning_writes_the_state_of_the_finished_step(folder, small):
    (folder / "long.yaml").write_text(
        "model: dense\nfinetune: {text: valid.txt, window: 32, training: {steps: 2000, checkpoint_every: 2000}}\n"
    )
    command = [sys.executable, "-m", "mpochain", "finetune", small, "--out", "cut", "--recipe", "long.yaml"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if ": step 1/2000" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted; the state is saved in cut" in errors
    (state,) = (folder / "cut").glob("*.state")
    assert 1 <= read_record(state)["result"]["steps"] < 2000, "before the first regular checkpoint"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "forty", "--out", "forty", "--text", "valid.txt"], "is the folder of the compressed model"),
        (["finetune", "forty", "--out", "dense", *FINETUNE, "--teacher", "dense"], "dense holds another model"),
        (["finetune", "forty", "--out", "o"], "the text to finetune on is missing"),
        (
            ["finetune", "forty", "--out", "o", *FINETUNE, "--temperature", "-1"],
            "training.temperature: Input should be greater than 0, got -1.0 (on the command line --temperature)",
        ),
        (["finetune", "forty", "--out", "o", "--steps", 2], "finetune.text is missing (on the command line --text)"),
        (
            ["finetune", "forty", "--out", "o", *FINETUNE, "--evaluate", "valid.txt"],
            "is the text that the model is finetuned on",
        ),
        (
            ["compress", "--recipe", "recipe.yaml", "--evaluate", "valid.txt", "--out", "o"],
            "valid.txt is the text that the model is calibrated on",
        ),
        (["finetune", "forty", "--out", "o", *FINETUNE, "--window", "100"], "64"),
        (["finetune", "forty", "--out", "o", "--recipe", "recipe.yaml"], "the text to finetune on is missing"),
        (["finetune", "forty", "--out", "o", *FINETUNE, "--teacher", "forty"], "its own teacher"),
        (["finetune", "forty", "--out", "o", "--text", "valid.txt", "--distillation", "0.5"], "its own teacher"),
        (["compress", "--dry-run", "--recipe", "yes.yaml"], "yes.yaml: budget: budget True is out of range"),
        (["compare", "much.yaml"], "much.yaml: comparison.budgets.0: budget 1.7 is out of range"),
        (
            ["compress", "--dry-run", "--recipe", "word.yaml"],
            "targets: Input should be a list, as in [a, b]",
        ),
        (["compare", "seen.yaml"], "is the text that the model is calibrated on"),
        (["compare", "word.yaml"], "targets: Input should be a list"),
        (["compare", "bare.yaml"], "needs the section evaluation"),
        (["compare", "data.yaml"], "method interpolative needs calibration data; name a text in the section"),
        (["compare", "recipe.yaml", "--page-only"], "contains no finished run"),
        (["compress", "dense", "--budget", "0.5", "--method", "svd", "--sequential", "--out", "o"], "does not use"),
    ],
)
def test_wrong_usage_of_finetuning_and_comparison(run, small, arguments, message):
    last = run(*arguments, code=FAILED).stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Files that the example recipes name: a model of a longer context, and longer texts."""
    folder = tmp_path_factory.mktemp("examples")
    write_model(folder / "model", layers=1)
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    (folder / "valid.txt").write_text(prose(80_000, seed=1), encoding="utf-8")
    for name, seed in (("test.txt", 2), ("plays.txt", 3)):
        (folder / name).write_text(prose(10_000, seed=seed), encoding="utf-8")
    return folder


def test_a_comparison(examples, run, monkeypatch):
    folder = examples
    example = run("recipe", "--example", "compare").stdout
    with_more = example.replace("evaluation:", "prompts: [the old lighthouse]\nevaluation:\n  also: [plays.txt]")
    (folder / "comparison.yaml").write_text(with_more)
    names = ["dense", "interpolative-0.8", "svd_llm-0.8", "svd_llm-0.8-finetuned"]
    monkeypatch.setattr(run, "folder", folder)
    arguments = "compare", "comparison.yaml", "--out", "runs"
    lines = run(*arguments, "--only", "dense").stderr.splitlines()
    assert [line for line in lines if line.startswith(("1/", "2/"))] == ["1/4: dense"]
    # Only the first run starts a process from nothing, as all do for users: it takes seconds to import everything.
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forked)
    done = run(*arguments, "--page", "page/comparison.md", "--json")
    assert [line for line in done.stderr.splitlines() if line.startswith(("1/", "4/"))] == [
        "4/4: svd_llm-0.8-finetuned"
    ]
    printed = json.loads(done.stdout)
    assert list(printed) == ["folder", "files", "runs"]
    assert set(printed["runs"]) == set(names)
    records = {name: json.loads((folder / "runs" / f"{name}.json").read_text()) for name in names}
    page = (folder / "page" / "comparison.md").read_text()
    for name in names:
        assert f"{records[name]['perplexity']['perplexity']:#.4g}" in page
        assert set(records[name]["also"]) == {"plays.txt"}
        assert f"- {name}: {' '.join(records[name]['texts'][0].split())[:20]}" in page
    for name in names[:3]:
        assert f"{records[name]['also']['plays.txt']['perplexity']:#.4g}" in page
    for name in names[1:3]:
        layers = records[name]["layers"]
        assert layers["parameters_after"] <= 0.8 * layers["parameters_before"]
    assert str(folder) not in json.dumps(records), "texts are known by name and hash"
    assert (folder / "page" / "comparison.html").read_text().count("data:image/png") == 1
    # What finished is never run again, and never mixed with another recipe.
    before = (folder / "runs" / "dense.json").stat().st_mtime_ns
    assert run("compare", "comparison.yaml", "--out", "runs").stderr == ""
    assert (folder / "runs" / "dense.json").stat().st_mtime_ns == before
    (folder / "comparison.yaml").write_text((folder / "comparison.yaml").read_text() + "seed: 5\n")
    assert "belongs to another recipe" in run("compare", "comparison.yaml", "--out", "runs", code=1).stderr
    assert "has no run 'svd-0.5'" in run("compare", "comparison.yaml", "--only", "svd-0.5", code=2).stderr
    (folder / "runs" / "dense.json").write_text("{")
    assert "is damaged" in run("compare", "comparison.yaml", "--out", "runs", "--page-only", code=1).stderr


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "warmup_steps", "learning_rate", "temperature"])
def test_help_names_the_defaults_of_the_configuration(name):
    option = get_type_hints(finetune, include_extras=True)[name].__metadata__[0]
    default = re.search(r"; by default (\S+)\.$", option.help)
    assert default is not None
    assert float(default[1]) == getattr(FinetuneConfig(), name)


STAGES = """
finetune: {text: valid.txt, window: 16, windows: 12, training: {steps: 6, batch_size: 4, checkpoint_every: 1}}
model: dense
stages:
  - {name: words, groups: [{targets: [model.embed_tokens], factors: [[1, 2]]}]}
  - {name: mlps, groups: [{targets: ['re:.*mlp.*'], factors: [[2, 2]], terms: 2}]}
"""


def test_stages_that_are_killed_resume_to_the_same_model(folder, run):
    (folder / "stages.yaml").write_text(STAGES, encoding="utf-8")
    arguments = ["distill", "stages.yaml", "--evaluate", "test.txt", "--window", "16", "--evaluate-windows", "4"]
    uninterrupted = run(*arguments, "--out", "uninterrupted").stdout
    assert re.search(r"words: 1 layer, 6 steps; perplexity [0-9.]+, then [0-9.]+\n", uninterrupted)
    assert uninterrupted.splitlines()[-2:] == ["uninterrupted", "uninterrupted/distillation.json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mpochain", *arguments, "--out", "killed-stages"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 240
    while not list(folder.glob("killed-stages/stages/*.state")):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    process.stderr.close()
    assert not (folder / "killed-stages" / "distillation.json").exists()
    again = json.loads(run(*arguments, "--out", "killed-stages", "--json").stdout)
    expected = json.loads((folder / "uninterrupted" / "distillation.json").read_text())
    for mine, theirs in zip(again["stages"], expected["stages"], strict=True):
        assert mine["training"]["losses"] == theirs["training"]["losses"]
        assert mine["after"]["loss"] == theirs["after"]["loss"]
    assert again["command"].startswith("mpochain distill stages.yaml")
    assert again["parameters"] == expected["parameters"]
    assert not (folder / "killed-stages" / "stages").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "there is no recipe 'nowhere.yaml'; name a YAML file, or kngpt2 or tqcompressor-gpt2-small"),
        (["kngpt2"], "finetune.text is missing"),
        (
            ["kngpt2", "--model", "dense", "--text", "valid.txt", "--window", "16"],
            "stage all: .*'transformer.wte' matches no layer",
        ),
    ],
)
def test_wrong_usage_of_stages(run, arguments, message):
    assert re.search(f"(?s)error: .*{message}", run("distill", *arguments, "--out", "none", code=2).stderr)


def test_example_recipes_work_as_they_stand(examples, run, monkeypatch):
    """The example of compare is run by the test of comparisons."""
    monkeypatch.setattr(run, "folder", examples)
    for name in ("compress", "finetune", "distill"):
        (examples / f"{name}.yaml").write_text(run("recipe", "--example", name).stdout)
    compressed = json.loads(
        run("compress", "--recipe", "compress.yaml", "--out", "small", "--no-speed", "--json").stdout
    )
    assert compressed["compression"]["parameters_after"] <= 0.8 * compressed["compression"]["parameters_before"]
    assert run("inspect", "small", "-q").stderr == ""
    finetuned = json.loads(run("finetune", "small", "--recipe", "finetune.yaml", "--out", "tuned", "--json").stdout)
    assert finetuned["training"]["steps"] == 20
    distilled = json.loads(run("distill", "distill.yaml", "--out", "staged", "--json").stdout)
    assert [stage["training"]["steps"] for stage in distilled["stages"]] == [10, 20]


def test_the_schema_of_recipes(run):
    schema = json.loads(run("recipe", "--schema").stdout)
    validator = jsonschema.Draft202012Validator(schema)
    for file in example_recipes().values():
        validator.validate(yaml.safe_load(file.read_text()))
    assert not validator.is_valid({"model": "m", "budgt": 0.5})
    assert not validator.is_valid({"model": "m", "evaluation": {"text": "a", "windows": 0}})
    assert "either --schema or --example" in run("recipe", code=2).stderr
    assert "did you mean 'compare'?" in run("recipe", "--example", "comprae", code=2).stderr


def test_a_recipe_without_a_comparison_compares_the_default_methods(caplog, tmp_path):
    from mpochain.workflows import comparing

    text = {"text": tmp_path / "a.txt"}
    recipe = Recipe(model="m", budget=0.7, method="svd", evaluation=text, calibration=text)
    assert comparing.run_names(recipe)[:2] == ["dense", "interpolative-0.7"]
    with pytest.raises(RecipeError), caplog.at_level("INFO", logger="mpochain"):
        comparing.compare(recipe, tmp_path / "out")
    assert caplog.messages == ["a comparison does not use method of the recipe; see its section comparison"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("svd_llm", ("svd_llm", False, False, ())),
        ("svd_llm+sequential", ("svd_llm", True, False, ())),
        ("interpolative+refined", ("interpolative", False, Refinement(epochs=2), ())),
        ("interpolative+stages+refined", ("interpolative", False, Refinement(epochs=2), (0.9,))),
    ],
)
def test_options_follow_the_method_of_a_comparison(monkeypatch, tmp_path, method, expected):
    from mpochain.workflows import comparing

    recipe = Recipe(
        model="m",
        speed=0.5,
        refine={"epochs": 2},
        stage_budgets=[0.9],
        sequential=True,
        comparison={"methods": [method], "budgets": [0.5]},
    )
    runs = []

    def compress_by(single, **_):
        assert (single.budget, single.speed) == (0.5, None)
        runs.append((single.method, single.sequential, single.refine, single.stage_budgets))
        raise MPOError("enough")

    monkeypatch.setattr(comparing, "compress_by", compress_by)
    with pytest.raises(MPOError, match="enough"):
        comparing._compressed(recipe, f"{method}-0.5", tmp_path)
    assert runs == [expected]


def test_settings_of_options_belong_to_the_runs_that_use_them(tmp_path):
    from mpochain.workflows import comparing

    text = {"text": tmp_path / "a.txt"}
    (tmp_path / "a.txt").write_text("a")
    methods = ["interpolative", "interpolative+refined", "interpolative+stages"]
    settings = []
    for changes in ({}, {"refine": {"epochs": 2}}, {"stage_budgets": [0.8]}):
        recipe = Recipe(
            model="m",
            calibration=text,
            evaluation=text,
            comparison={"methods": methods},
            **({"stage_budgets": [0.9]} | changes),
        )
        settings.append([comparing._setting(recipe, f"{method}-0.5") for method in methods])
    plain, refined, staged = settings
    assert [a == b for a, b in zip(plain, refined, strict=True)] == [True, False, True]
    assert [a == b for a, b in zip(plain, staged, strict=True)] == [True, True, False]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"methods": ["svd+quickly"]}, "'quickly' is unknown; after the method may come"),
        ({"methods": ["svd+refined+refined"]}, "an option is given twice"),
        ({"methods": ["+refined"]}, "method"),
    ],
)
def test_a_comparison_names_options_that_it_does_not_know(fields, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Recipe(model="m", comparison=fields)


def test_a_comparison_in_stages_needs_their_budgets(tmp_path):
    from mpochain.workflows import comparing

    text = {"text": tmp_path / "a.txt"}
    recipe = Recipe(model="m", calibration=text, evaluation=text, comparison={"methods": ["interpolative+stages"]})
    with pytest.raises(RecipeError, match="give them as stage_budgets"):
        comparing.run_names(recipe)
