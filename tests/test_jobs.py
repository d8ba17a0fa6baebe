"""Jobs for clusters in the guide: their syntax, and that the command in them exists."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mpochain.cli.app import app

JOBS = Path(__file__).parents[1] / "docs" / "guides" / "jobs"


def of_slurm():
    text = (JOBS / "compress.slurm").read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("srun"))
    return shlex.split(line)[1:]


def of_kubernetes():
    *_, job = yaml.safe_load_all((JOBS / "compress.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return [*container["command"], *container["args"]]


def test_the_script_is_valid():
    subprocess.run(["bash", "-n", str(JOBS / "compress.slurm")], check=True)


def test_the_pods_find_each_other_and_their_volume():
    service, job = yaml.safe_load_all((JOBS / "compress.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:29500" in pod["containers"][0]["args"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("arguments", [of_slurm(), of_kubernetes()], ids=["slurm", "kubernetes"])
def test_the_commands_exist(arguments):
    from torch.distributed.run import get_args_parser

    assert arguments[0] == "torchrun"
    parsed = get_args_parser().parse_args([word.replace("$SLURM_JOB_NUM_NODES", "2") for word in arguments[1:]])
    assert parsed.module
    assert parsed.training_script == "mpochain"
    name, *options = parsed.training_script_args
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for option in (word.partition("=")[0] for word in options if word.startswith("--")):
        assert option in shown, option
