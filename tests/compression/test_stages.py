"""Compression in stages: statistics from the model that was compressed to a larger budget before."""

from __future__ import annotations

import copy

import pytest
import torch
from perceptrons import perceptron, rows, same
from torch import nn

import mpochain as mpo
from mpochain.compression import collect_moments, layer_choices
from mpochain.compression.building import Builder
from mpochain.compression.statistics import passes
from mpochain.compression.statistics.collection import collect
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.errors import ArgumentError, CheckpointError
from mpochain.nn import CompressedLayer


def test_moments_are_those_of_the_dense_weight_in_the_compressed_model():
    dense, data = perceptron(), rows(2)
    compressed, smaller = copy.deepcopy(dense), copy.deepcopy(dense)
    mpo.compress(compressed, 0.5, calibration=data, targets=["2"])
    standing = compressed[2]
    with torch.no_grad():  # the same function by dense layers alone
        smaller[2].weight.copy_(standing.weight)
    layers = {name: dense.get_submodule(name) for name in ("0", "2", "4")}
    seen = {dense[0]: compressed[0], dense[2]: standing, dense[4]: compressed[4]}
    loss = DefaultLoss(compressed)
    moments = collect(
        compressed, layers, data, loss=loss, inputs=set(layers), outputs=set(layers), standing=seen
    ).moments
    expected = collect_moments(
        smaller,
        {name: smaller.get_submodule(name) for name in layers},
        data,
        loss=DefaultLoss(smaller),
        inputs=set(layers),
        outputs=set(layers),
    )
    for name, layer in layers.items():
        own, other = moments[name], expected[name]
        torch.testing.assert_close(own.inputs, other.inputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.output_gradients, other.output_gradients, rtol=1e-3, atol=1e-4)
        if layer.out_features <= layer.in_features:
            weight = layer.weight.detach()
            torch.testing.assert_close(own.activations, weight @ own.inputs @ weight.T, rtol=1e-4, atol=1e-5)


@pytest.fixture
def collected(monkeypatch):
    """Types of the layers in the model, at each collection of moments."""
    types, gather = [], layer_choices.gather_every

    def recorded(model, *arguments, **named):
        types.append([isinstance(layer, CompressedLayer) for layer in model if not isinstance(layer, nn.Tanh)])
        return gather(model, *arguments, **named)

    monkeypatch.setattr(layer_choices, "gather_every", recorded)
    return types


@pytest.mark.parametrize(
    ("budget", "stages", "method"),
    [
        (0.6, [0.8], "interpolative"),
        ("50%", (0.9, "2.9kB of layers"), "svd_llm"),
        ("5 bits", ["8 bits"], "gptq"),
        ("30% error", ["5% error", "10% error"], "interpolative"),
    ],
)
def test_each_stage_starts_from_the_dense_weights(collected, budget, stages, method):
    model, plain, data = perceptron(), perceptron(), rows(3)
    weights = copy.deepcopy(model)
    mpo.compress(plain, budget, calibration=data, method=method)
    collected.clear()
    report = mpo.compress(model, budget, calibration=data, method=method, stages=stages)
    assert [any(types) for types in collected] == [False] + [True] * len(stages)
    assert report.stages == tuple(stages)
    assert report.bytes_after <= report.allowed_bytes
    assert f"from the model compressed to {stages[-1]}" in report.table()
    assert not same(model, plain)
    for layer, dense in zip(model, weights, strict=True):
        if isinstance(layer, CompressedLayer):  # no error is added to that of a stage before
            near, far = ((other.weight - dense.weight).norm() for other in (layer, plain[list(model).index(layer)]))
            assert near <= 2 * far


def test_a_dry_run_and_failures_leave_the_model_as_it_was(monkeypatch, collected):
    model, data = perceptron(), rows(3)
    layers = list(model.modules())
    report = mpo.compress(model, 0.5, calibration=data, stages=[0.8], dry_run=True)
    assert len(collected) == 2
    assert report.bytes_after < report.bytes_before
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))

    def cut(model, *_, standing, **__):
        assert bool(standing) == any(isinstance(layer, CompressedLayer) for layer in model.modules())
        if standing:
            raise KeyboardInterrupt

    gather = layer_choices.gather_every
    monkeypatch.setattr(layer_choices, "gather_every", lambda *a, **k: cut(*a, **k) or gather(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        mpo.compress(model, 0.5, calibration=data, stages=[0.8])
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))


def test_with_sequential_correction_and_refinement():
    model, data = perceptron(), rows(4)
    report = mpo.compress(model, 0.5, calibration=data, stages=[0.8], sequential=True, refine=True)
    assert report.refined
    assert any(layer.mixing is not None for layer in report.layers)


@pytest.mark.parametrize(
    ("owner", "name", "number"), [(Builder, "keep", 2), (Builder, "keep", 5), (passes, "gather_moments", 2)]
)
def test_a_compression_goes_on_where_it_was_interrupted(monkeypatch, tmp_path, owner, name, number):
    """Equal calls give equal bits, interrupted in any stage or not."""
    expected, model, resumed = perceptron(), perceptron(), perceptron()
    options = {"calibration": rows(2), "method": "svd_llm", "stages": [0.8]}
    report = mpo.compress(expected, 0.5, **options)
    calls, function = [], getattr(owner, name)

    def counted(*arguments, **named):
        calls.append(name)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)
    with pytest.raises(KeyboardInterrupt):
        mpo.compress(model, 0.5, checkpoint=tmp_path, **options)
    assert same(model, perceptron())
    again = mpo.compress(resumed, 0.5, checkpoint=tmp_path, **options)
    assert len(calls) == (2 if name == "gather_moments" else 6) + 1  # nothing is done twice
    assert same(resumed, expected)
    assert again.layers == report.layers
    with pytest.raises(CheckpointError, match=r"stages was \[0.8\] and is now \[0.7\]"):
        mpo.compress(perceptron(), 0.5, checkpoint=tmp_path, **{**options, "stages": [0.7]})


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        (2, {}, r"a list of budgets, each larger than the next, such as \[0.9, 0.8\]; got 2"),
        ("0.9", {}, "a list of budgets"),
        ([0.9, 0.95], {}, "0.95 is not below 0.9 before it"),
        ([0.9, 0.9], {}, "0.9 is not below 0.9 before it"),
        ([0.4], {}, "0.5 is not below 0.4 before it"),
        ([1.0], {}, "1.0 allows all layers as they are"),
        (["ninety"], {}, "'ninety' is neither a share"),
        ([None], {}, "expected a share, a size, bits per weight or an error, got None"),
        (["2% error"], {}, "cannot be compared"),
        (["6% error"], {"budget": "5% error"}, "'5% error' is not below '6% error'"),
        ([0.9], {"budget": "5% error"}, "cannot be compared"),
        ([0.9], {"method": "svd"}, "method 'svd' uses none"),
        ([0.9], {"method": mpo.compression.Gptq(bits=4), "budget": None}, "needs a budget that follows"),
    ],
)
def test_stages_that_make_no_sense_are_refused_before_any_work(monkeypatch, stages, options, message):
    monkeypatch.setattr(layer_choices, "gather_every", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(ArgumentError, match=message):
        mpo.compress(perceptron(), **{"budget": 0.5, "calibration": rows(2), "stages": stages, **options})
