"""Sequential compression: layers that correct the errors of those before them."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOError
from mpochain.compression.selection import dense_layers
from mpochain.compression.sequential import Pair, corrected
from mpochain.compression.statistics.moments import Moments


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10)
    )


def gpt2(**options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=24, n_layer=3, n_head=2, initializer_range=0.3, **options
    )
    return transformers.GPT2LMHeadModel(config).eval()


@given(st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 2**16))
def test_the_correction_is_least_squares_drawn_to_the_weight(out, in_, with_inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    W, x, noise = (torch.randn(*shape, generator=generator) for shape in ((out, in_), (60, in_), (60, in_)))
    own = x @ torch.randn(in_, in_, generator=generator) + 0.1 * noise
    y = x @ W.T
    activations = y.T @ y / 60 if out <= in_ else x.T @ x / 60
    moments = Moments(activations, torch.eye(min(out, in_)), 1.0, 1.0, 60, x.T @ x / 60 if with_inputs else None)
    correction = corrected(W, moments, Pair(x.T @ own / 60, own.T @ own / 60))
    rest = float((y - own @ correction.weight.T).square().sum() / 60)
    assert correction.rest == pytest.approx(rest, rel=1e-3, abs=1e-4)
    assert correction.power == pytest.approx(float(y.square().sum() / 60), rel=1e-4)
    assert correction.kept == pytest.approx(float((own @ correction.weight.T).square().sum() / 60), rel=1e-3, abs=1e-5)
    # The damped objective is no larger than without correction.
    ridge = 0.02 * float(own.square().sum()) / 60 / in_

    def damped(V):
        return float((y - own @ V.T).square().sum() / 60 + ridge * (W - V).square().sum())

    assert damped(correction.weight) <= damped(W) * (1 + 1e-4) + 1e-6
    change = 1e-2 * torch.randn(out, in_, generator=generator)
    assert damped(correction.weight) <= damped(correction.weight + change) + 1e-6
    rows = own @ correction.weight.T if out <= in_ else own
    torch.testing.assert_close(correction.moments.activations, rows.T @ rows / 60, rtol=1e-3, atol=1e-4)
    assert (correction.moments.inputs is not None) is with_inputs


@pytest.mark.parametrize("method", ["interpolative", "svd_llm"])
def test_the_outputs_come_nearer(method):
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(200, 16, generator=generator) for _ in range(3)]
    fresh = torch.randn(400, 16, generator=generator)
    expected = perceptron()(fresh).detach()

    def error(sequential):
        model = perceptron()
        report = mpo.compress(model, 0.5, calibration=batches, method=method, sequential=sequential)
        assert report.bytes_after <= report.allowed_bytes
        assert sum(record.output_error for record in report.layers) > 0
        assert all(parameter.requires_grad for parameter in model.parameters())
        return float((model(fresh).detach() - expected).square().mean())

    assert error(True) < error(False)


def test_a_transformer_and_its_layers_of_no_block():
    batches = [torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(k)) for k in range(4)]
    plain, model = gpt2(), gpt2()
    expected = plain(batches[0]).logits
    mpo.compress(plain, 0.6, calibration=batches)
    mpo.compress(model, 0.6, calibration=batches, sequential=True)
    assert model.config.use_cache
    near, far = (
        float((compressed(batches[0]).logits - expected).detach().square().mean()) for compressed in (model, plain)
    )
    assert near < far
    model = gpt2(tie_word_embeddings=False)
    report = mpo.compress(model, 0.6, calibration=batches, targets=list(dense_layers(model)), sequential=True)
    assert report.layers[-1].name == "lm_head"
    assert isinstance(model.lm_head, InterpolativeLinear)
    assert not model.training


def test_sums_are_fitted_in_sequence_too():
    model = perceptron()
    batches = [torch.randn(200, 16, generator=torch.Generator().manual_seed(1))]
    expected = model(batches[0]).detach()
    report = mpo.compress(model, 0.6, calibration=batches, method="search", sequential=True)
    assert report.bytes_after <= report.allowed_bytes
    assert float((model(batches[0]).detach() - expected).norm() / expected.norm()) < 0.5


def test_all_kept_is_all_unchanged():
    model, batches = perceptron(), [torch.randn(50, 16)]
    expected = model(batches[0])
    report = mpo.compress(model, 1.0, calibration=batches, sequential=True)
    assert [layer.form for layer in report.layers] == ["dense"] * 4
    assert torch.equal(model(batches[0]), expected)


class Fails(nn.Module):
    """A block that fails once the layer before it has been replaced."""

    def __init__(self, watched):
        super().__init__()
        self.watched = [watched]
        self.up = nn.Linear(8, 8)

    def forward(self, x):
        if isinstance(self.watched[0][0], InterpolativeLinear):
            raise RuntimeError("failed")
        return self.up(x)


def test_whatever_fails_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Identity())
    model[1] = Fails(model)
    layers = list(model.modules())
    with pytest.raises(RuntimeError, match="failed"):
        mpo.compress(model, 0.5, calibration=[torch.randn(40, 8)], sequential=True)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))
    model = perceptron()
    layers = list(model.modules())
    report = mpo.compress(model, 0.5, calibration=[torch.randn(40, 16)], sequential=True, dry_run=True)
    assert any(layer.form != "dense" for layer in report.layers)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        return self.blocks[2](self.blocks[1](x + self.blocks[0](x)))


class Lacks(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.down(self.up(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Lacks(), "blocks in one nn.ModuleList or nn.Sequential"),
        (Skips(), "whose input is the output of the block before"),
        (nn.Sequential(*[nn.Linear(8, 8)] * 2), "a separate module for each block"),
    ],
)
def test_models_that_are_no_row_of_blocks(model, message):
    layers = list(model.modules())
    with pytest.raises(MPOError, match=message):
        mpo.compress(model, 0.5, calibration=[torch.randn(40, 8)], sequential=True)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))
    with pytest.raises(MPOError, match="does not use"):
        mpo.compress(model, 0.5, method="svd", sequential=True)
