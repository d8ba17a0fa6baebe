"""The wheel: what is in it, and that it works in an environment with nothing else than its metadata require.

The versions are those of constraints.txt; pyproject.toml allows older ones, which no test has run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mpochain

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

WORK = """
import sys
import mpochain as mpo

assert "torch" not in sys.modules, "import mpochain must not import torch"
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
x = torch.randn(50, 32)
report = mpo.compress(model, 0.6, calibration=[x])
assert report.parameters_after <= 0.6 * report.parameters_before
mpo.save(model, "folder")
with torch.device("meta"):
    empty = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
loaded = mpo.load("folder", empty)
torch.testing.assert_close(loaded(x), model(x))
print(mpo.__file__, torch.__version__)
"""


def run(command, **options):
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-4000:]
    return outcome.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)])
    (file,) = folder.glob("*.whl")
    return file


def test_it_holds_the_package_alone_in_less_than_a_megabyte(wheel):
    assert wheel.stat().st_size < 1_000_000
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"mpochain", f"mpochain-{mpochain.__version__}.dist-info"}
    assert {"mpochain/py.typed", "mpochain/nn/layer.py"} <= set(names)
    assert {Path(name).suffix for name in names if name.startswith("mpochain/")} == {".py", ".typed", ".yaml"}
    here = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src/mpochain").rglob("*.py")}
    assert here == {name for name in names if name.endswith(".py")}


def test_its_metadata_say_what_the_project_says(wheel):
    archive = zipfile.ZipFile(wheel)
    (file,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = archive.read(file).decode()
    assert f"Version: {mpochain.__version__}\n" in metadata
    assert "License-Expression: MIT" in metadata
    # A URL or classifier that nobody can check is worse than none.
    assert "Project-URL" not in metadata
    assert {python for python in ("3.11", "3.12", "3.13") if f"Python :: {python}" in metadata} == {
        "3.11",
        "3.12",
        "3.13",
    }


def requirements():
    """Names of the distributions that mpochain requires, and those require in turn."""
    names = {}
    wanted = [("mpochain", frozenset())]
    while wanted:
        name, extras = wanted.pop()
        if extras <= names.get(name, frozenset()) and name in names:
            continue
        names[name] = names.get(name, frozenset()) | extras
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            contexts = [{"extra": extra} for extra in ("", *extras)]
            if requirement.marker is None or any(requirement.marker.evaluate(context) for context in contexts):
                wanted.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return set(names) - {"mpochain"}


@pytest.fixture
def environment(tmp_path, wheel):
    """An environment with the wheel and what its metadata require, taken from this one by links; nothing else."""
    folder = tmp_path / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run([*pip, "install", "--quiet", "--no-compile", "--no-deps", "--no-index", str(wheel)])
    for name in requirements():
        found = distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(found.locate_file(top)).resolve())
    return python


def test_it_works_in_an_environment_of_its_requirements_alone(environment, tmp_path):
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    where, torch_version = run([str(environment), "-c", WORK], cwd=tmp_path, env=clean).split()
    assert Path(where).resolve().is_relative_to(tmp_path.resolve())
    assert torch_version.partition("+")[0] == version("torch").partition("+")[0]
    said = run([str(environment), "-m", "mpochain", "--version"], cwd=tmp_path, env=clean)
    assert said == f"mpochain {mpochain.__version__}\n"
    outcome = subprocess.run(
        [str(environment), "-c", "import transformers"], env=clean, capture_output=True, check=False
    )
    assert outcome.returncode != 0, "the environment has more than the wheel requires"


def test_every_version_is_the_same():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == mpochain.__version__ == PROJECT["version"]
