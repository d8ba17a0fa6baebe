"""Kernels in Triton are compiled for NVIDIA GPUs, without one, and fit on them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("compile_for_gpus.py")
# Shared memory of a program on compute capability 8.0, which is less than that of 9.0.
MOST_SHARED = 163 * 1024


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_programs_fit_into_registers_and_shared_memory(tmp_path):
    # In the interpreter kernels are Python functions, which cannot be compiled.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "90"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    programs = [json.loads(line) for line in run.stdout.splitlines()]
    assert {program["kernel"] for program in programs} == {"two_products", "one_product", "chain_sweep"}
    for program in programs:
        assert program["shared"] <= MOST_SHARED, program
        assert program["registers"] <= 255, program
        # Triton 3.6 and 3.7 spill nothing, 3.9 two numbers of one kernel.
        assert program["spilled"] <= 8, program


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an NVIDIA GPU")
def test_the_check_on_a_gpu_is_refused_without_one(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
    command = [sys.executable, str(script), "--out", str(tmp_path / "gpu.json")]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("gpu-check needs an NVIDIA GPU that torch can use, and torch sees none")
    assert not list(tmp_path.iterdir())
