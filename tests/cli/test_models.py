"""The commands for language models as a new user meets them: plan, compress, eval, inspect, convert."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from texts import prose
from tiny import write_model

from mpochain.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "dense")
    (folder / "valid.txt").write_text(prose(6000, seed=1), encoding="utf-8")
    (folder / "test.txt").write_text(prose(3000, seed=2), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        "model: dense\nbudget: 0.7\ncalibration: {text: valid.txt, window: 32, windows: 6}\n"
        "evaluation: {text: test.txt, window: 32, windows: 5}\n",
        encoding="utf-8",
    )
    return folder


class Done:
    def __init__(self, returncode, stdout, stderr):
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """The command in this process, which has imported everything already."""

    def call(*arguments, code=0):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["mpochain", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        found = capsys.readouterr()
        done = Done(left.value.code or 0, found.out, found.err)
        assert done.returncode == code, done.stderr
        return done

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
    planned = run("plan", "--recipe", "recipe.yaml", "--json")
    record = json.loads(planned.stdout)
    assert len(record["layers"]) == 14
    assert record["parameters_after"] <= 0.7 * record["parameters_before"]
    assert "gradients of 14 layers" in planned.stderr

    made = run_process(folder, "compress", "--recipe", "recipe.yaml", "--out", "small", "--ignore", "re:.*o_proj")
    assert re.search(r"12 layers, [0-9.]+% of [0-9,]+ parameters", made.stdout)
    assert re.search(r"perplexity: [0-9.]+ before, [0-9.]+ after", made.stdout)
    assert "compressed / dense" in made.stdout
    assert made.stdout.splitlines()[-3:] == ["small", "small/report.json", "small/report.html"]
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

    found = json.loads(run("eval", "small", "--text", "test.txt", "--window", 32, "--windows", 5, "--json").stdout)
    assert found["perplexity"] == pytest.approx(report["perplexity"]["after"]["perplexity"], rel=1e-5)
    assert run("convert", "small", "--out", "plain").stdout == "plain\n"
    line = run("eval", "plain", "--text", "test.txt", "--window", 32, "--windows", 5).stdout
    assert line == (
        f"perplexity {found['perplexity']:.3f} ({found['loss']:.4f} nats per token) on 155 tokens, 5 windows of 32, "
        "stride 32\n"
    )


def test_what_needs_no_data_and_a_dry_run(folder, run):
    done = run("compress", "dense", "--budget", "50%", "--method", "svd", "--dry-run")
    assert "14 layers" in done.stdout
    assert not (folder / "out").exists()
    done = run("compress", "dense", "--budget", 0.5, "--method", "tt_svd", "--out", "chains", "--no-speed", "--json")
    record = json.loads(done.stdout)
    assert (record["folder"], record["speed"], record["perplexity"]) == (
        "chains",
        None,
        {"before": None, "after": None},
    )
    assert record["compression"]["frontier"] == []
    assert "bonds" in run("inspect", "chains").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "--budget", "0.5", "--out", "o"], "command line: no model is named"),
        (["compress", "dense", "--out", "o"], "no budget is given"),
        (["compress", "dense", "--budget", "0.5"], "--out FOLDER"),
        (["compress", "dense", "--budget", "0.5", "--out", "o"], "needs calibration="),
        (["compress", "dense", "--budget", "0.5", "--out", "dense"], "holds the model itself"),
        (["compress", "dense", "--budget", "1.5", "--method", "svd", "--out", "o"], "out of range"),
        (["compress", "dense", "--budget", "0.5", "--method", "magic", "--out", "o"], "there is no method 'magic'"),
        (["compress", "dense", "--budget", "0.5", "--calibration-windows", "3", "--out", "o"], "calibration.text"),
        (["plan", "dense", "--budget", "0.5", "--method", "svd", "--target", "q_prj"], "nearest names are"),
        (["plan", "./nowhere", "--budget", "0.5", "--method", "svd"], "cannot read a language model"),
        (["plan", "--recipe", "none.yaml"], "cannot read the recipe none.yaml"),
        (["eval", "dense", "--text", "none.txt"], "cannot read the text none.txt"),
        (["eval", "dense", "--text", "test.txt"], "longer than the 64"),
        (["inspect", "dense"], "no checkpoint of a compressed model"),
        (["inspect", "nowhere"], "cannot be read"),
        (["convert", "dense", "--out", "dense"], "is the model itself"),
    ],
)
def test_wrong_usage_is_one_line(folder, run, arguments, message):
    done = run(*arguments, code=1)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (folder / "o" / "config.json").exists()


def test_a_damaged_checkpoint_is_told(run, tmp_path):
    run("compress", "dense", "--budget", 0.5, "--method", "svd", "--out", tmp_path / "small", "--no-speed")
    tensors = next((tmp_path / "small").glob("model-*.safetensors"))
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    assert "DAMAGED" in run("inspect", tmp_path / "small", code=1).stdout
    assert "is damaged" in run("eval", tmp_path / "small", "--text", "test.txt", code=1).stderr
    again = run("plan", tmp_path / "small", "--budget", 0.5, code=1)
    assert "is damaged" in again.stderr
