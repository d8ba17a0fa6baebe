"""The command line names every compression method and its settings."""

from __future__ import annotations

import json
import re

import pytest
from tiny import write_model

from mpochain.compression import METHODS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    write_model(folder / "dense")
    return folder


def test_help_names_every_method(run):
    shown = re.findall(r"[a-z0-9_]+", run("compress", "--help").out)
    assert set(METHODS) <= set(shown)
    assert " plan " not in run("--help").out


def test_every_method_and_setting_is_listed(run):
    listed = json.loads(run("methods", "--json").out)
    assert list(listed) == list(METHODS)
    lines = run("methods").out
    for name, method in METHODS.items():
        assert listed[name]["summary"]
        assert set(listed[name]["settings"]) == set(type(method.settings).model_fields)
        assert all(setting["description"] for setting in listed[name]["settings"].values()), name
        assert f"\n{name}: " in f"\n{lines}"
    assert listed["permuted_kronecker"]["settings"]["permuted"]["value"] is True
    assert "--set terms=null" in run("methods", "kronecker").out


def test_settings_decide_the_layers(run):
    arguments = ["compress", "dense", "--dry-run", "--json", "--method", "kronecker", "--target", "re:.*up_proj"]
    record = json.loads(run(*arguments, "--set", "terms=2", "--set", "factors=[[2, 2]]").out)
    assert (record["method"], record["budget"]) == ("kronecker", None)
    # Two terms of a 20 x 12 and a 2 x 2 factor.
    assert {layer["parameters_after"] for layer in record["layers"]} == {2 * (20 * 12 + 4)}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--method", "kronecker", "--set", "terms=0"], 2, "terms: .* (on the command line --set)"),
        (["--method", "kronecker", "--set", "termz=1"], 2, "termz: there is no such setting"),
        (["--method", "magic"], 2, "there is no method 'magic'.* (on the command line --method)"),
        (["--set", "terms"], 2, "expected NAME=VALUE"),
        (["--set", "terms=[1"], 2, "the value is not valid YAML"),
        (["--method", "kronecker"], 2, "the budget is missing"),
        (["--budget", "0.5"], 2, "method interpolative needs calibration data.*--calibration"),
        (["--budget", "2"], 2, "out of range.* (on the command line --budget)"),
    ],
)
def test_errors_name_the_option(run, arguments, code, message):
    error = " ".join(run("compress", "dense", "--dry-run", *arguments, code=code).err.replace("│", " ").split())
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), error), error


def test_plan_is_a_former_name(run):
    arguments = ["dense", "--budget", 0.5, "--method", "svd", "--json"]
    former, current = run("plan", *arguments), run("compress", "--dry-run", *arguments)
    assert former.err.startswith("warning: mpochain plan is deprecated; use mpochain compress --dry-run\n")
    layers, same = (json.loads(captured.out)["layers"] for captured in (former, current))
    assert layers == same
    assert "--budget" in run("plan", "--help").out


def test_a_method_of_your_own_with_a_setting_that_must_be_set(run, folder, monkeypatch):
    (folder / "own_method.py").write_text(
        "from mpochain.compression import Method, MethodSettings\n"
        "class Own(Method):\n"
        "    class Settings(MethodSettings):\n"
        "        rank: int\n"
        "        seed: int = 3\n"
        "    def prepare(self, target, moments): ...\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    shown = run("methods", "own_method:Own").out
    assert "--set rank=VALUE (required)" in shown
    assert "--set seed=3" in shown
    assert "A way to compress" not in shown, "the base class's docstring says nothing of this method"
    settings = json.loads(run("methods", "own_method:Own", "--json").out)["own_method:Own"]["settings"]
    assert settings["rank"] == {"value": None, "required": True, "description": ""}
    assert not settings["seed"]["required"]
