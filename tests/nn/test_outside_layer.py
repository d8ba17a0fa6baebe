"""A layer defined outside of the package, of integer codes: checkpoints, reports and edits of models know it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import mpochain as mpo
from mpochain.checkpoint import contents
from mpochain.errors import ArgumentError, CheckpointError
from mpochain.nn import LAYERS, CompressedLayer, MatrixEntry


class CodesEntry(MatrixEntry):
    kind: Literal["codes"] = "codes"
    bias: bool


class CodesLinear(CompressedLayer):
    """Rows as int8 codes times a scale."""

    kind = "codes"
    Entry = CodesEntry

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.scale = nn.Parameter(torch.ones(out_features))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)

    @property
    def weight(self) -> Tensor:
        return self.codes.to(self.scale.dtype) * self.scale[:, None]

    def compact(self, x: Tensor) -> Tensor:
        y = (x @ self.codes.to(x.dtype).T) * self.scale
        return y if self.bias is None else y + self.bias

    def macs(self) -> int:
        return self.in_features * self.out_features

    def entry(self) -> CodesEntry:
        return CodesEntry(out_features=self.out_features, in_features=self.in_features, bias=self.bias is not None)

    @classmethod
    def from_entry(cls, entry: CodesEntry) -> CodesLinear:
        with torch.device("meta"):
            return cls(entry.in_features, entry.out_features, entry.bias)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = CodesLinear(6, 4)
    layer.codes.random_(-127, 128)
    return layer


@pytest.fixture
def known():
    LAYERS[CodesLinear.kind] = CodesLinear
    yield
    del LAYERS[CodesLinear.kind]


def architecture():
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(6, 4))


def test_integer_codes_are_parameters_and_bytes(layer):
    numbers = layer.numbers()
    assert numbers.parameters == 24 + 4
    assert numbers.bytes == 24 + 4 * 4


def test_a_checkpoint_holds_it(layer, known, tmp_path):
    model = nn.Sequential(layer)
    x = torch.randn(5, 6)
    mpo.save(model, tmp_path)
    loaded = mpo.load(tmp_path, architecture())
    assert isinstance(loaded[0], CodesLinear)
    assert loaded[0].codes.dtype == torch.int8
    torch.testing.assert_close(loaded(x), model(x))
    (stored,) = contents(tmp_path).layers
    assert (stored.parameters, stored.bytes, stored.form) == (28, 40, "codes")
    dense = mpo.to_dense(model)
    torch.testing.assert_close(dense(x), loaded(x))


def test_kept_matrices_and_execution(layer):
    model, x = nn.Sequential(layer), torch.randn(5, 6)
    expected = model(x)
    assert mpo.set_execution(model, cache=True) == 1
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        layer.scale.mul_(2)
        torch.testing.assert_close(model(x) - layer.bias, 2 * (expected - layer.bias))


def test_an_unknown_layer_is_refused_before_and_after(layer, tmp_path):
    with pytest.raises(ArgumentError, match=r"LAYERS\['codes'\] = CodesLinear"):
        mpo.save(nn.Sequential(layer), tmp_path / "never")
    assert not (tmp_path / "never").exists()
    LAYERS["codes"] = CodesLinear
    try:
        mpo.save(nn.Sequential(layer), tmp_path)
    finally:
        del LAYERS["codes"]
    with pytest.raises(CheckpointError, match=r"kind 'codes' is no known layer.*mpochain\.nn\.LAYERS"):
        mpo.load(tmp_path, architecture())
