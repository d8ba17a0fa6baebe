"""torchrun starts the processes again when one is killed, and they go on from the last state."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")

# Read by the interpreter when it starts: kills the second process once, as soon as enough files of a kind exist.
_KILLER = """
import glob, os, signal, threading, time

def wait():
    while not os.path.exists({flag!r}):
        if len(glob.glob({pattern!r})) >= {count}:
            open({flag!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.005)

if os.environ.get("RANK") == "1":
    threading.Thread(target=wait, daemon=True).start()
"""


def restarted(files, tmp_path, pattern, count, arguments, *, restarts=1):
    """Run a command in two processes of torchrun, of which the second is killed once; returns the finished process."""
    flag = tmp_path / "killed"
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(
        _KILLER.format(flag=str(flag), pattern=str(tmp_path / "out" / pattern), count=count)
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        str(restarts),
        "--standalone",
    ]
    paths = [str(killer), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command += ["-m", "mpochain", *arguments, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=files, env=environment, capture_output=True, text=True, timeout=300)
    assert flag.exists(), done.stderr
    return done


def alone(files, tmp_path, arguments):
    command = [sys.executable, "-m", "mpochain", *arguments, "--out", str(tmp_path / "alone")]
    subprocess.run(command, cwd=files, check=True, capture_output=True, timeout=300)
    return tmp_path / "alone"


COMPRESS = ["compress", "dense", "--budget", "0.7", "--calibration", "valid.txt", "--window", "32"]
COMPRESS += ["--calibration-windows", "9", "--no-time"]


@pytest.mark.parametrize(
    ("options", "pattern", "count"),
    [([], "unfinished/layers/*.safetensors", 2), (["--stream"], "unfinished/hidden/gradients-1/*.safetensors", 3)],
    ids=["whole", "stream"],
)
def test_a_compression_goes_on_after_a_restart(files, tmp_path, options, pattern, count):
    done = restarted(files, tmp_path, pattern, count, [*COMPRESS, *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("layers with") == 1
    forms = [
        [layer["form"] for layer in json.loads((folder / "report.json").read_text())["compression"]["layers"]]
        for folder in (tmp_path / "out", alone(files, tmp_path, COMPRESS))
    ]
    assert forms[0] == forms[1]
    assert not (tmp_path / "out" / "unfinished").exists()


def test_without_restarts_the_run_ends_and_the_same_command_goes_on(files, tmp_path):
    pattern = "unfinished/layers/*.safetensors"
    done = restarted(files, tmp_path, pattern, 2, COMPRESS, restarts=0)
    assert done.returncode != 0
    assert not (tmp_path / "out" / "config.json").exists(), "no half model"
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob(pattern)}
    assert before
    single = [sys.executable, "-m", "mpochain", *COMPRESS, "--out", str(tmp_path / "out")]
    again = subprocess.run(single, cwd=files, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "config.json").exists()
