"""The commands of README.md, run one after the other as they stand, on a model and texts small enough for tests."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from texts import prose
from tiny import write_model

from mpochain.cli import main

README = Path(__file__).parents[2] / "README.md"


def commands():
    """Commands of the block that compresses a language model."""
    (block,) = re.findall(r"```sh\n(mpochain compress.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_the_commands_of_the_readme_run_as_they_stand(tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "model", layers=1)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    (tmp_path / "valid.txt").write_text(prose(70_000, seed=1), encoding="utf-8")
    (tmp_path / "test.txt").write_text(prose(6_000, seed=2), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = commands()
    assert [words[1] for words in lines] == ["compress", "compress", "finetune", "eval", "inspect", "convert"]
    for words in lines:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, f"{words}: {capsys.readouterr().err}"
    assert (tmp_path / "plain" / "model.safetensors").exists()
