"""Scores on tasks of lm-evaluation-harness, from local YAML files, of the model in memory."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tiny import write_model

import mpochain as mpo
from mpochain.cli import main
from mpochain.errors import ArgumentError, CorpusError, MissingDependencyError
from mpochain.language import evaluate_tasks, load_language_model, tasks

# Packages of the harness deprecate what others of them use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def harness():
    pytest.importorskip("lm_eval")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "dense")
    tokenizer = load_language_model(tmp_path / "dense").tokenizer
    tokenizer.eos_token = "?"
    tokenizer.save_pretrained(tmp_path / "dense")
    vocabulary = sorted(tokenizer.get_vocab())
    words = [word for word in vocabulary if word.isalpha()][:12]
    lines = [
        {"text": f"{words[k]} {words[k + 1]}", "choices": words[:4], "label": k % 4} for k in range(len(words) - 1)
    ]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "tasks").mkdir()
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks" / "words.yaml").write_text(json.dumps(task))
    remote = task | {"task": "remote", "dataset_path": "nobody/nothing", "dataset_kwargs": {}}
    (tmp_path / "tasks" / "remote.yaml").write_text(json.dumps(remote))
    (tmp_path / "test.txt").write_text(" ".join(words * 30))
    return tmp_path


def command(monkeypatch, capsys, *arguments, code=0):
    monkeypatch.setattr(sys, "argv", ["mpochain", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    captured = capsys.readouterr()
    assert (exit_.value.code or 0) == code, captured.err
    return captured


def accuracy(model, tokenizer, folder):
    """The share of examples whose right word is the most likely next one."""
    hits = []
    for line in (folder / "words.jsonl").read_text().splitlines():
        example = json.loads(line)
        ids = torch.tensor(tokenizer(example["text"])["input_ids"])[None]
        choices = [tokenizer(word)["input_ids"][0] for word in example["choices"]]
        with torch.no_grad():
            hits.append(model(ids).logits[0, -1, choices].argmax().item() == example["label"])
    return sum(hits) / len(hits)


@pytest.mark.runs_in("lm-evaluation-harness", "the model in memory on local tasks", "low rank")
def test_the_model_in_memory_is_scored(harness, folder):
    language = load_language_model(folder / "dense")
    mpo.compress(language.model, 0.5, method="svd")
    (score,) = evaluate_tasks(language, ["words"], include=folder / "tasks", batch_size=4)
    assert (score.task, score.metric, score.samples, score.fewshot) == ("words", "acc", 11, 0)
    assert score.value == pytest.approx(accuracy(language.model, language.tokenizer, folder))
    assert score.stderr > 0
    (part,) = evaluate_tasks(language, ["words"], include=folder / "tasks", limit=5)
    assert part.samples == 5


def test_the_command_prints_perplexity_and_scores(harness, folder, monkeypatch, capsys):
    language = load_language_model(folder / "dense")
    expected = accuracy(language.model, language.tokenizer, folder)
    options = ["--text", "test.txt", "--window", 32, "--tasks", "words", "--include", "tasks"]
    record = json.loads(command(monkeypatch, capsys, "eval", "dense", *options, "--json").out)
    assert record["perplexity"] > 1
    assert record["tasks"][0]["value"] == pytest.approx(expected)
    out = command(monkeypatch, capsys, "eval", "dense", "--tasks", "words", "--include", "tasks", "--limit", 4).out
    assert out.startswith("words: acc ")
    assert "on 4 examples, 0 solved before each" in out
    assert len(out.splitlines()) == 1


def test_tasks_that_cannot_be_read_name_the_remedy(harness, folder):
    language = load_language_model(folder / "dense")
    with pytest.raises(ArgumentError, match="has no task 'other', but remote, words.*Without --include"):
        evaluate_tasks(language, ["words", "other"], include=folder / "tasks")
    with pytest.raises(ArgumentError, match="there is no such folder"):
        evaluate_tasks(language, ["words"], include=folder / "nowhere")
    with pytest.raises(ArgumentError, match="no task is named"):
        evaluate_tasks(language, [], include=folder / "tasks")
    with pytest.raises(CorpusError, match="the data of remote cannot be read.*dataset_path: json"):
        evaluate_tasks(language, ["remote"], include=folder / "tasks")
    (folder / "words.jsonl").unlink()
    with pytest.raises(CorpusError, match="relative to the working directory"):
        evaluate_tasks(language, ["words"], include=folder / "tasks")


def test_what_the_harness_cannot_evaluate_is_told(harness, folder):
    language = load_language_model(folder / "dense")
    task = json.loads((folder / "tasks" / "words.yaml").read_text())
    (folder / "tasks" / "words.yaml").write_text(json.dumps(task | {"doc_to_text": "{{nothing.at.all}}"}))
    with pytest.raises(CorpusError, match="nothing.*check the fields of their YAML"):
        evaluate_tasks(language, ["words"], include=folder / "tasks")
    language.tokenizer.eos_token = None
    with pytest.raises(ArgumentError, match="end-of-text token"):
        evaluate_tasks(language, ["words"], include=folder / "tasks")


@pytest.mark.refused_in("lm-evaluation-harness", "tasks that need a hub where there is none")
def test_tasks_of_a_hub_that_is_not_there_name_the_remedy(harness, folder):
    language = load_language_model(folder / "dense")
    with pytest.raises(CorpusError, match="give --include with a folder of YAML tasks.*HF_HUB_OFFLINE"):
        evaluate_tasks(language, ["arc_easy"])
    with pytest.raises(ArgumentError, match="similar names: .*arc_easy"):
        evaluate_tasks(language, ["arc_eazy"])


def test_a_missing_package_is_named_before_the_model_is_read(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependencyError, match=r"mpochain\[eval\]"):
        tasks.require_harness()
    error = command(monkeypatch, capsys, "eval", "dense", "--tasks", "words", code=1).err
    assert "pip install 'mpochain[eval]'" in error
    assert "reading" not in error


def test_further_texts_are_measured(folder, monkeypatch, capsys):
    (folder / "other.txt").write_text("one two three four " * 60)
    both = ["--text", "test.txt", "--also", "other.txt", "--window", 32]
    record = json.loads(command(monkeypatch, capsys, "eval", "dense", *both, "--json").out)
    alone = json.loads(
        command(monkeypatch, capsys, "eval", "dense", "--text", "other.txt", "--window", 32, "--json").out
    )
    assert record["text"] == "test.txt"
    assert record["also"][0]["text"] == "other.txt"
    assert record["also"][0]["loss"] == alone["loss"]
    assert "also" not in alone
    lines = command(monkeypatch, capsys, "eval", "dense", *both).out.splitlines()
    assert [line.split(": perplexity")[0] for line in lines] == ["test.txt", "other.txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --text FILE, --tasks NAME,... or both"),
        (["--also", "test.txt"], "there is nothing to measure"),
        (["--tasks", "words", "--also", "test.txt"], "give --text too"),
        (["--text", "test.txt", "--limit", 3], "--limit is for tasks"),
        (["--text", "test.txt", "--also", "none.txt"], "cannot read the text none.txt"),
    ],
)
def test_options_that_contradict_are_refused(folder, monkeypatch, capsys, options, words):
    assert words in command(monkeypatch, capsys, "eval", "dense", *options, code=2).err
