"""Imports point down the layers, deferred ones too; torch and opt_einsum stay where they belong."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mpochain

ROOT = Path(mpochain.__file__).parent

_VALUES = {"errors", "spec", "shapes", "arrays", "linalg", "decomposition", "algebra", "chain", "factorization"}
_LAYERS = _VALUES | {"validation", "wording", "quantization", "architectures", "planning", "execution", "nn", "surgery"}

# Layer -> layers it may import. docs/decisions/ says where this differs from the first design.
ALLOWED = {
    "errors": set(),
    "wording": set(),
    "validation": {"errors"},
    "architectures": set(),
    "system": {"errors"},
    "spec": {"errors"},
    "shapes": {"errors", "spec"},
    "arrays": {"errors"},
    "distributed": {"errors"},
    "linalg": {"errors", "arrays"},
    "decomposition": {"errors", "spec", "shapes", "arrays", "linalg"},
    "algebra": {"errors", "spec", "arrays", "decomposition"},
    "chain": {"errors", "spec", "arrays", "decomposition", "algebra"},
    "factorization": {"errors", "spec", "arrays", "chain", "decomposition"},
    "quantization": {"errors", "wording", "arrays", "linalg", "decomposition"},
    "planning": {"wording", "errors", "system", "spec", "arrays"},
    "execution": {"errors", "system", "spec", "planning"},
    "nn": _VALUES | {"wording", "quantization", "validation", "architectures", "planning", "execution", "distributed"},
    "surgery": {"wording", "architectures", "errors", "planning", "distributed", "nn", "spec"},
    "train": {
        "spec",
        "shapes",
        "wording",
        "architectures",
        "errors",
        "validation",
        "system",
        "execution",
        "distributed",
        "nn",
        "surgery",
    },
    "units": {"wording", "errors", "system"},
    "report": {"errors", "system", "spec"},
    "checkpoint": {
        "wording",
        "architectures",
        "errors",
        "system",
        "spec",
        "quantization",
        "distributed",
        "nn",
        "surgery",
    },
    "compression": _LAYERS | {"system", "report", "checkpoint", "distributed"},
    "language": {"wording", "architectures", "errors", "system", "distributed", "nn", "surgery", "checkpoint"},
    "workflows": {
        "wording",
        "architectures",
        "errors",
        "validation",
        "system",
        "units",
        "quantization",
        "distributed",
        "execution",
        "nn",
        "surgery",
        "train",
        "report",
        "compression",
        "checkpoint",
        "language",
    },
    "integrations": {
        "architectures",
        "errors",
        "system",
        "execution",
        "distributed",
        "nn",
        "surgery",
        "train",
        "checkpoint",
    },
    "jobs": {"workflows"},
    "__main__": {"cli"},
    "cli": _LAYERS
    | {"system", "train", "report", "compression", "checkpoint", "language", "workflows", "integrations"},
    "__init__": {
        "architectures",
        "integrations",
        "errors",
        "spec",
        "shapes",
        "chain",
        "factorization",
        "system",
        "linalg",
        "decomposition",
        "quantization",
        "planning",
        "execution",
        "nn",
        "surgery",
        "units",
        "report",
        "compression",
        "checkpoint",
        "language",
        "workflows",
        "train",
        "cli",
    },
}
TORCH = {
    "distributed",
    "quantization",
    "checkpoint",
    "execution",
    "integrations",
    "nn",
    "surgery",
    "train",
    "compression",
    "language",
    "workflows",
    "cli",
}
OPT_EINSUM = {"planning"}
# Files that import modules by name: a method outside of the package is named in a recipe, and extensions by options.
BY_NAME = {"__init__.py", "compression/methods/table.py", "system/extensions.py"}
# Only the top may take the package as a whole, through which every layer could be reached.
WHOLE = {"cli"}


def _imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                names.append("an import by name")
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "mpochain":
                names += [f"mpochain.{alias.name}" for alias in node.names]
            else:
                names.append(node.module)
    return names


def violations(root: Path) -> list[str]:
    errors = []
    for file in sorted(root.rglob("*.py")):
        layer = file.relative_to(root).parts[0].removesuffix(".py")
        if layer not in ALLOWED:
            errors.append(f"{layer} is in no layer")
            continue
        for name in _imported(ast.parse(file.read_text())):
            head, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if name == "an import by name" and file.relative_to(root).as_posix() not in BY_NAME:
                errors.append(f"{layer} imports by name")
            if name == "mpochain" and not target and layer not in WHOLE:
                errors.append(f"{layer} imports the whole package")
            if head == "mpochain" and target and target != layer and target not in ALLOWED[layer]:
                errors.append(f"{layer} imports mpochain.{target}")
            if "torch" in name.split(".") and layer not in TORCH:
                errors.append(f"{layer} imports torch")
            if head == "opt_einsum" and layer not in OPT_EINSUM:
                errors.append(f"{layer} imports opt_einsum")
    return errors


def test_imports_point_down():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("place", "line", "message"),
    [
        ("spec.py", "from mpochain.chain import MPOChain", "spec imports mpochain.chain"),
        ("planning/cost.py", "def f():\n    import torch", "planning imports torch"),
        ("decomposition/tt_svd.py", "from mpochain import nn", "decomposition imports mpochain.nn"),
        ("chain.py", "def f():\n    from mpochain.planning import plan", "chain imports mpochain.planning"),
        ("helpers.py", "import math", "helpers is in no layer"),
        ("spec.py", "import mpochain", "spec imports the whole package"),
        ("planning/plan.py", "import array_api_compat.torch", "planning imports torch"),
        ("planning/plan.py", "import importlib\nt = importlib.import_module('torch')", "planning imports by name"),
        ("nn/linear.py", "t = __import__('mpochain.cli')", "nn imports by name"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path, place, line, message):
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line)
    assert violations(tmp_path) == [message]


def importing_triton(root: Path) -> list[str]:
    """The files that import Triton, or the module of its functions, when they are imported."""
    files = []
    for file in sorted(root.rglob("*.py")):
        names = [name for node in ast.parse(file.read_text()).body for name in _imported_at_once(node)]
        if any(name.partition(".")[0] == "triton" or name.endswith(".triton_functions") for name in names):
            files.append(file.relative_to(root).as_posix())
    return files


def _imported_at_once(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return []
    return _imported(node)


def test_triton_is_imported_at_the_first_launch_alone(tmp_path):
    assert importing_triton(ROOT) == ["execution/kernels/triton_functions.py"]
    (tmp_path / "a.py").write_text("if True:\n    import triton.language as tl")
    (tmp_path / "b.py").write_text("def f():\n    import triton")
    (tmp_path / "c.py").write_text("from mpochain.execution.kernels.triton_functions import chain_sweep")
    assert importing_triton(tmp_path) == ["a.py", "c.py"]


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, mpochain, numpy as np\n"
        "W = np.ones((4, 4)); c = mpochain.decompose(W, out_dims=(2, 2), in_dims=(2, 2))\n"
        "mpochain.plan(c.spec, 3)(np.ones((3, 4)), *c.cores)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert callable(mpochain.decompose) and callable(mpochain.plan)\n"
        "mpochain.MPOLinear; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# With the module of model families, which users name as they name a subpackage.
# Former names are found by their own import alone, which warns.
FORMER = {"jobs"}
SUBPACKAGES = sorted({"architectures", *(folder.parent.name for folder in ROOT.glob("*/__init__.py"))} - FORMER)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fresh processes by fork, as importing torch takes seconds")
def test_every_subpackage_is_an_attribute_whatever_was_imported_before():
    code = (
        "import os, sys, torch, mpochain\n"
        "for name in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os._exit(getattr(mpochain, name).__name__ != f'mpochain.{name}')\n"
        "    assert os.waitpid(child, 0)[1] == 0, name\n"
    )
    subprocess.run([sys.executable, "-c", code, *SUBPACKAGES], check=True)


def test_lazy_subpackages_and_names_are_complete():
    assert sorted(mpochain._SUBPACKAGES) == SUBPACKAGES
    assert set(SUBPACKAGES) <= set(dir(mpochain))
    assert set(mpochain._LAZY_NAMES) <= set(mpochain.__all__)
    assert {value.partition(".")[0] for value in mpochain._LAZY_NAMES.values()} <= set(SUBPACKAGES)


def test_every_public_name_resolves():
    for name in mpochain.__all__:
        assert getattr(mpochain, name) is not None
    assert set(mpochain.__all__) <= set(dir(mpochain))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mpochain.nonsense  # noqa: B018


# Layers whose type nobody outside of nn/ asks for: what differs between them the layer says itself.
CONCRETE = {
    "EntangledEmbedding",
    "InterpolativeLinear",
    "LinearChain",
    "MPOEmbedding",
    "MPOLinear",
    "PermutedLinear",
    "RowLinear",
    "SumLinear",
    "TokenTrainEmbedding",
}


def type_questions(source: str) -> list[str]:
    """The concrete layers that calls of ``isinstance`` and ``issubclass`` ask for."""
    asked = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node.args[1])}
            asked += sorted(names & CONCRETE)
    return asked


def test_the_type_of_a_concrete_layer_is_asked_in_nn_alone():
    found = {
        str(file.relative_to(ROOT)): asked
        for file in ROOT.rglob("*.py")
        if file.relative_to(ROOT).parts[0] != "nn" and (asked := type_questions(file.read_text()))
    }
    assert not found
    assert type_questions("isinstance(x, A | mpo.nn.MPOLinear) or issubclass(y, (SumLinear, B))") == [
        "MPOLinear",
        "SumLinear",
    ]


# Files that are long for a reason; any other of over 300 lines holds a second idea.
LONG = {
    "architectures.py": "one table of data",
    "nn/linear.py": "one class, most of it the docstrings of its constructors",
}


def test_long_files_have_a_reason():
    long = {str(file.relative_to(ROOT)) for file in ROOT.rglob("*.py") if len(file.read_text().splitlines()) > 300}
    assert long <= set(LONG)
