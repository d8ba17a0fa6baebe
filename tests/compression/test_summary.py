"""The report as people read it: layers by kind, in any width, in a notebook and as a data frame."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain.errors import MissingDependencyError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ModuleDict({"<b>": nn.Linear(1, 1)}), *(Block() for _ in range(3)))
    return mpo.compress(model, 0.5, method="svd", ignore=["0"])


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_layers_by_kind_fit_the_width(report, width):
    lines = report.summary(width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if line.startswith(("*.up", "*.down"))]
    assert [row[:2] for row in rows] == [["*.up", "3"], ["*.down", "3"]]
    assert max(map(len, report.table(80).splitlines()[:8])) <= 80


def test_print_and_repr(report):
    assert str(report) == report.summary(100)
    assert repr(report) == "CompressionReport(6 layers, 4,608 -> 2,304 parameters, method='svd', budget=0.5)"
    assert "whole model: 0.019 MB before, 0.01 MB after" in str(report)
    html = report._repr_html_()
    assert html.count("<tr>") == 7, "a row for every layer, and the titles"


def test_a_data_frame_needs_pandas(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        report.to_pandas()

    class Frame(list):
        def drop(self, columns):
            return Frame({key: value for key, value in row.items() if key != columns} for row in self)

        def set_index(self, name):
            return {row[name]: row for row in self}

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    frame = report.to_pandas()
    assert list(frame) == [layer.name for layer in report.layers]
    assert frame["1.up"]["parameters_after"] == report.layers[0].parameters_after
