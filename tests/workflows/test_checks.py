"""Checks of a recipe's inputs: every problem at once, before a model is read, and without waiting for the hub."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from texts import prose
from tiny import write_model

from mpochain.distributed import Team
from mpochain.errors import ArgumentError, MissingDependencyError, RecipeError
from mpochain.language import load_language_model, lookup, perplexity, read_tokens
from mpochain.language.lookup import source_problem
from mpochain.workflows import Recipe, checks, compress_by, finetune_by, read_recipe
from mpochain.workflows.checks import require_found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    write_model(folder / "dense")
    (folder / "valid.txt").write_text(prose(2000, seed=1), encoding="utf-8")
    (folder / "binary.txt").write_bytes(b"abc\xff\xfe\x00")
    (folder / "empty.txt").write_text(" \n", encoding="utf-8")
    (folder / "file").write_text("{}", encoding="utf-8")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def unread(monkeypatch):
    """No model may be read."""

    def read(*_, **__):
        raise AssertionError("a model was read before its inputs were checked")

    monkeypatch.setattr("mpochain.workflows.inputs.load_language_model", read)


def recipe(folder, **fields):
    section = {"text": str(folder / "valid.txt"), "window": 16, "windows": 2}
    values = {"model": str(folder / "dense"), "budget": 0.5, "calibration": section, **fields}
    return read_recipe(None, values)


def test_all_problems_are_found_before_the_model_is_read(folder, unread):
    wrong = recipe(
        folder,
        calibration={"text": str(folder / "none.txt")},
        evaluation={"text": str(folder / "binary.txt"), "window": 16},
        targets=("q_prj", "Linear"),
        ignore=("Embeding",),
    )
    with pytest.raises(RecipeError) as raised:
        compress_by(wrong)
    first, *lines = str(raised.value).splitlines()
    assert first == "the inputs: 5 problems"
    starts = [
        f"calibration.text: cannot read the text {folder / 'none.txt'}: there is no such file",
        f"evaluation.text: cannot read the text {folder / 'binary.txt'}: byte 3 is not UTF-8",
        "calibration: a window of 512 tokens is longer than the model's context of 64",
        "targets: 'q_prj' matches no layer; the nearest names are model.layers.1.self_attn.q_proj",
        "ignore: 'Embeding' matches no layer; the nearest names are Embedding",
    ]
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"  {start}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "dense"}, "model: there is no folder or .gguf file 'dense'"),
        ({"calibration": {"text": "{folder}/empty.txt"}}, "it has no text"),
        ({"calibration": {"text": "{folder}"}}, "it is a folder, not a file"),
        ({"evaluation": {"text": "{folder}/valid.txt", "window": 16}}, "is the text that the model is calibrated on"),
        ({"method": "svd", "targets": ("lm_hea",)}, "targets: 'lm_hea' matches no layer"),
    ],
)
def test_one_problem_is_one_line(folder, unread, fields, message):
    def within(value):
        if isinstance(value, dict):
            return {"window": 16, **{name: within(text) for name, text in value.items()}}
        return value.format(folder=folder) if isinstance(value, str) else value

    with pytest.raises(RecipeError, match=message) as raised:
        compress_by(recipe(folder, **{name: within(value) for name, value in fields.items()}))
    assert "\n" not in str(raised.value)


def test_a_teacher_and_a_student_that_are_not_there(folder, unread, tmp_path):
    training = {"text": str(folder / "valid.txt"), "window": 16, "teacher": str(folder / "dens")}
    with pytest.raises(RecipeError) as raised:
        finetune_by(recipe(folder, finetune=training), folder / "dense", tmp_path / "out")
    lines = str(raised.value).splitlines()
    wrong, right = folder / "dens", folder / "dense"
    assert f"  teacher: there is no folder or .gguf file '{wrong}'; did you mean '{right}'?" in lines
    assert f"  {folder / 'dense'} holds no compressed model; compress it first" in lines


def test_paths_are_never_looked_up_on_the_hub(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(lookup, "_hub_problem", asked.append)
    monkeypatch.chdir(folder)
    for source, problem in {
        "dense": None,
        "./dense": None,
        "dnse": "there is no folder or .gguf file 'dnse'; did you mean 'dense'?",
        "./nowhere": "there is no folder or .gguf file './nowhere'",
        "dense/small": "dense is a folder here, so the Hugging Face hub is not asked",
        "a/b/c": "there is no folder or .gguf file 'a/b/c'",
        "model.gguf": "there is no folder or .gguf file 'model.gguf'",
        "file": "file is no language model: it is a file; expected a folder",
        "empty": "empty is no language model: it holds no config.json; expected a folder",
        "x" * 300: "there is no folder or .gguf file 'xxx",
        "a\0": "there is no folder or .gguf file 'a",
        "": "",
    }.items():
        answer = source_problem(source)
        assert (answer is None) is (problem is None), source
        assert problem is None or problem in answer, answer
    assert asked == []
    assert source_problem("organisation/name") is None
    assert asked == ["organisation/name"]


def test_the_hub_is_asked_once(monkeypatch):
    began = time.monotonic()
    import huggingface_hub

    calls = []

    def refuse(url, **_):
        calls.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    problem = source_problem("organisation/name")
    assert "'organisation/name', and the Hugging Face hub cannot be reached (no network)" in problem
    assert len(calls) == 1
    assert time.monotonic() - began < 20


def test_missing_packages(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"need transformers; .*mpochain\[hf\]"):
        require_found({"model": folder / "dense"})
    with pytest.raises(RecipeError, match=r"2 problems\n  --text: .*\n  language models need transformers"):
        require_found({"model": folder / "dense"}, {"--text": Path("none.txt")})


def test_the_tokenizer_of_another_model_is_named(folder, tmp_path):
    shutil.copytree(folder / "dense", tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"] = {word: number + 100 for word, number in tokenizer["model"]["vocab"].items()}
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(RecipeError, match=r"calibration: the text has the token 1\d\d, but the model has 60 tokens"):
        compress_by(recipe(folder, model=str(tmp_path / "other")))
    language = load_language_model(tmp_path / "other")
    with pytest.raises(ArgumentError, match="its tokenizer is that of another model"):
        perplexity(language.model, read_tokens(folder / "valid.txt", language.tokenizer), window=16)


def test_processes_do_not_share_one_gpu(monkeypatch):
    monkeypatch.setattr(checks, "team_of_group", lambda: Team(1, 4))
    with pytest.raises(
        RecipeError, match="device: 4 processes cannot share cuda:1; give cuda, the one of each process"
    ):
        checks.require_inputs(Recipe(model="./dense", device="cuda:1"), [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "bfloat16"}, "dtype 'bfloat16'"),
        ({"device": "cuda"}, "device 'cuda'"),
        ({"refine": True, "sequential": True}, "sequential, refine"),
        ({"stage_budgets": [0.9]}, "stage_budgets"),
        ({"model": "./small.gguf"}, "a .gguf file"),
    ],
)
def test_what_a_stream_cannot_do_is_known_from_the_recipe(changes, words):
    with pytest.raises(ValueError, match=f"stream leaves the weights .* combined with {words}; leave out"):
        Recipe(**{"model": "./dense", "stream": True, **changes})
