"""Names in the package: no variable, argument or attribute is called by a word that says nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import mpochain

ROOT = Path(mpochain.__file__).parent

# For a thing that has a name: a layer, its cores, a float64 copy of its weight, an identity, ...
EMPTY = {"each", "found", "given", "made", "some", "whole", "wide"}


def empty_names(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Examples in docstrings are code too.
            lines = [line.strip()[4:] for line in node.value.splitlines() if line.strip().startswith((">>> ", "... "))]
            for line in lines:
                try:
                    names |= empty_names(line)
                except SyntaxError:  # a part of a longer statement
                    continue
    return names & EMPTY


def test_no_name_is_empty():
    by_file = {
        str(file.relative_to(ROOT)): names for file in ROOT.rglob("*.py") if (names := empty_names(file.read_text()))
    }
    assert not {file: names for file, names in by_file.items() if names}


def test_what_is_an_empty_name():
    assert empty_names("for each in layers: made = f(each)\nx.wide = 1\nlambda given: given") == {
        "each",
        "given",
        "made",
        "wide",
    }
    assert empty_names('"""A docstring.\n\n>>> found = 1\n"""') == {"found"}
    assert not empty_names("layer = f(each, wide=2)")
