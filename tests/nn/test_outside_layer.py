"""A layer defined outside of the package, of integer codes: checkpoints, reports and edits of models know it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpochain as mpo
from mpochain import MPOLinear
from mpochain.checkpoint import contents
from mpochain.compression import Built, Choices, Costs, Method
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


def test_a_cached_matrix_follows_codes_in_buffers(layer):
    x, other = torch.randn(5, 6), CodesLinear(6, 4)
    other.load_state_dict(layer.state_dict())
    other.codes.neg_()
    layer.set_execution(cache=True)
    with torch.no_grad():
        layer(x)
        layer.codes[0, 0] = 5
        torch.testing.assert_close(layer(x), layer.compact(x))
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(x), other(x))


class FrozenCodes(CodesLinear):
    """Codes whose scale is no parameter either."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        del self.scale
        self.register_buffer("scale", torch.ones(out_features))


def test_a_layer_without_parameters():
    layer, x = FrozenCodes(6, 4), torch.randn(5, 6)
    layer.codes.random_(-127, 128)
    assert (layer.dtype, layer.device) == (torch.float32, torch.device("cpu"))
    assert layer.set_execution(cache=True).cache
    with torch.no_grad():
        for scale in (1.0, 0.5):
            layer.scale.fill_(scale)
            torch.testing.assert_close(layer(x), x @ (scale * layer.codes.float()).T)
        # A derivative with respect to a buffer goes past the cached matrix.
        _, tangent = torch.func.jvp(
            lambda scale: torch.func.functional_call(layer, {"scale": scale}, (x,)),
            (layer.scale,),
            (torch.ones(4),),
        )
    torch.testing.assert_close(tangent, x @ layer.codes.float().T)
    torch.testing.assert_close(layer.to_dense()(x), layer(x))


def test_a_tensor_with_two_names_counts_once(layer):
    layer.again, layer.scales = layer.codes, layer.scale
    assert layer.numbers() == CodesLinear(6, 4).numbers()


class Scaled(mpo.MPOLinear):
    """A chain times a number, without an entry of its own."""

    kind = "scaled"

    def __init__(self, *sizes: int, **options: object) -> None:
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.ones(()))


def test_an_entry_of_another_kind_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(LAYERS, "scaled", Scaled)
    with pytest.raises(ArgumentError, match="kind 'scaled', but its entry is of kind 'chains'.*Entry of its own"):
        mpo.save(nn.Sequential(Scaled(8, 8, max_bond=2)), tmp_path / "never")
    assert not (tmp_path / "never").exists()


class ToCodes(Method):
    """Rows as int8 codes times a scale, the largest code 127."""

    settled = True

    def prepare(self, target, moments):
        out, in_ = target.shape

        def build(choice):
            layer = CodesLinear(in_, out)
            scale = target.weight.abs().amax(1) / 127
            layer.load_state_dict(
                {"codes": (target.weight / scale[:, None]).round(), "scale": scale, "bias": target.bias}
            )
            return Built(layer)

        sizes = [np.array([size]) for size in (out * (in_ + 1), out * (in_ + 4), out * in_)]
        return Choices.of(target, Costs(*sizes, target.element_size), None, build)


def test_a_report_shows_the_bytes_of_codes():
    model = nn.Sequential(nn.Linear(6, 4))
    report = mpo.compress(model, None, method=ToCodes())
    assert report.layers[0].weight_error < 0.01
    assert "24 before, 28 after (116.7%)" in report.table()
    assert "bytes: 96 before, 40 after (13.33 bits per weight)" in report.table()


def test_what_a_checkpoint_would_lose_is_refused(tmp_path):
    class Scaled(MPOLinear):
        def compact(self, x):
            return 2 * super().compact(x)

    with pytest.raises(ArgumentError, match=r"Scaled, which would be loaded as MPOLinear.*kind of its own"):
        mpo.save(nn.Sequential(Scaled(6, 4, max_bond=2)), tmp_path)
    parametrised = MPOLinear(6, 4, max_bond=2)
    nn.utils.parametrize.register_parametrization(parametrised, "core_0_0", nn.Identity())
    with pytest.raises(ArgumentError, match="has parametrisations.*remove_parametrizations"):
        mpo.save(nn.Sequential(parametrised), tmp_path)
    assert not any(tmp_path.iterdir())
