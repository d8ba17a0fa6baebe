"""Low rank beside a chain, where it is better."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import METHODS, Moments, Search, Target
from mpochain.compression.statistics.projections import errors_between
from mpochain.decomposition import weighted_low_rank


class TestSearch:
    """Low rank beside a chain, where it is better."""

    @staticmethod
    def layer(out, in_, seed):
        """A weight that low rank alone stands for badly, and the moments of some inputs and gradients."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        chain = mpo.MPOLinear(in_, out, spec=mpo.shapes.skewed(out, in_, 4, 2), bias=False).double()
        for core in chain.cores[0]:
            core.data.copy_(normal(*core.shape))
        weight = chain.weight.detach().float() + normal(out, 2) @ normal(2, in_) + 0.3 * normal(out, in_)
        x, g = normal(400, in_) * normal(in_).exp(), normal(400, out) * normal(out).exp()
        H, G = x.T @ x / 400, g.T @ g / 400
        powers = float(H.trace()) / in_, float(G.trace()) / out
        target = Target.open("up", nn.utils.skip_init(nn.Linear, in_, out))
        return replace(target, weight=weight), Moments(weight @ H @ weight.T, G, *powers, 400, H)

    @settings(max_examples=10)
    @given(st.sampled_from([(12, 24), (16, 24), (24, 40)]), st.integers(0, 2**16), st.integers(0, 2**16))
    def test_it_is_never_worse_than_whitened_svd_of_equal_size(self, shape, seed, choice):
        target, moments = self.layer(*shape, seed)
        choices = Search().prepare(target, moments)
        choice %= len(choices) - 1
        built = choices.build(choice)
        size = sum(p.numel() for name, p in built.layer.named_parameters() if "bias" not in name)
        assert size <= choices.costs.parameters[choice] < target.parameters
        G = moments.gradients.double() + 0.1 * moments.gradient_power * torch.eye(shape[0], dtype=torch.float64)
        closed = weighted_low_rank(target.weight, moments.inputs, G)
        difference = (target.weight - built.layer.weight.detach()).double()
        lost = float((G @ difference @ moments.inputs.double() * difference).sum())
        assert lost <= closed.errors[min(size // sum(shape), len(closed.squares))] * (1 + 1e-4)

    def test_a_sum_is_found_where_it_is_better(self):
        target, moments = self.layer(24, 40, 0)
        target = replace(target, bias=torch.arange(24.0))
        low, choices = METHODS["interpolative"].prepare(target, moments), Search().prepare(target, moments)
        built = [choices.build(choice) for choice in range(len(low) - 1, len(choices) - 1)]
        best = next(result for result in built if isinstance(result.layer, mpo.SumLinear))
        assert torch.equal(best.layer.bias, target.bias)
        difference = (target.weight - best.layer.weight.detach()).double()
        H, G = moments.inputs.double(), moments.gradients.double()
        assert best.errors.loss == pytest.approx(float((G @ difference @ H * difference).sum()) / 2)
        weight64 = target.weight.double()
        output = float(((difference @ H) * difference).sum() / ((weight64 @ H) * weight64).sum()) ** 0.5
        assert best.errors.output == pytest.approx(output)

    def test_a_model_with_such_a_layer(self, tmp_path):
        torch.manual_seed(0)
        weight = self.layer(24, 40, 0)[0].weight
        with torch.device("meta"):
            empty = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 7))
        model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 7))
        with torch.no_grad():
            model[0].weight.copy_(weight / 10)
        batches = [torch.randn(100, 40) for _ in range(3)]
        report = mpo.compress(model, 0.5, calibration=batches, method="search")
        assert isinstance(model[0], mpo.SumLinear), report.table()
        (record, _) = report.layers
        assert "interpolative + 24x40 (3,8)|(8,5)" in record.form
        assert record.macs_after == model[0].macs()
        assert mpo.set_execution(model, cache=True) == 1
        loaded = mpo.load(mpo.save(model, tmp_path), empty)
        assert torch.equal(loaded(batches[0]), loaded.train()(batches[0]))
        dense = mpo.to_dense(loaded)
        assert type(dense[0]) is nn.Linear
        torch.testing.assert_close(dense(batches[0]), model(batches[0]))

    def test_moments_of_one_side_are_not_enough(self):

        target, moments = self.layer(12, 24, 0)
        with pytest.raises(MPOError, match="the moments of the inputs are missing"):
            errors_between(target.weight, replace(moments, inputs=None), target.weight)
