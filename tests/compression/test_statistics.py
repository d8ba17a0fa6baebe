"""Moments of layers on calibration data, and the loss whose gradients weight them."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import collect_moments
from mpochain.compression.selection import dense_layers
from mpochain.compression.statistics.moments import Moments, moment_bytes
from mpochain.compression.statistics.projections import errors_between
from mpochain.compression.statistics.sampled_loss import SampledLoss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_sampled_loss_is_cross_entropy_to_labels_it_draws(dtype):
    logits = torch.randn(2, 5, 7, dtype=dtype, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    flat = logits.detach().reshape(-1, 7).float()
    drawn = torch.multinomial(flat.softmax(-1), 1, generator=torch.Generator().manual_seed(4)).squeeze(1)
    leaf = flat.clone().requires_grad_()
    expected = nn.functional.cross_entropy(leaf, drawn, reduction="sum")
    (2 * expected).backward()
    loss = SampledLoss(4)(logits)
    (2 * loss).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        logits.grad.reshape(-1, 7).float(), leaf.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5
    )


def test_they_are_the_moments(net, batches):
    layers = dense_layers(net)
    moments = collect_moments(net, layers, batches, loss=SampledLoss(3))
    x = net.embedding(torch.cat(batches)).detach().reshape(-1, 12)
    torch.testing.assert_close(moments["left"].activations, x.T @ x / len(x))
    assert moments["left"].activations is moments["right"].activations, "the same input is kept once"
    assert moments["left"].rows == 3 * 4 * 9
    assert moments["left"].input_power == pytest.approx(float(x.square().mean()), rel=1e-5)

    loss, outputs, gradients, below = SampledLoss(3), [], [], []
    for batch in batches:
        x = net.embedding(batch).detach()
        left = net.left(x).detach().requires_grad_()
        y = net.down(torch.relu(left) * net.right(x))
        y.retain_grad()
        loss(net.head(x + y)).backward()
        outputs.append((y.detach() - net.down.bias).reshape(-1, 12))
        gradients.append(y.grad.reshape(-1, 12))
        below.append(left.grad.reshape(-1, 20) @ net.left.weight.detach())
    for name, kind, rows in (
        ("down", "activations", outputs),
        ("down", "gradients", gradients),
        ("left", "gradients", below),
    ):
        rows = torch.cat(rows)
        torch.testing.assert_close(getattr(moments[name], kind), rows.T @ rows / len(rows), rtol=1e-3, atol=1e-6)
    power = float(torch.cat(gradients).square().mean())
    assert moments["down"].gradient_power == pytest.approx(power, rel=1e-4)


def test_inputs_of_layers_whose_outputs_would_be_enough(net, batches):
    layers = dense_layers(net)
    moments = collect_moments(net, layers, batches, loss=SampledLoss(3))
    more = collect_moments(net, layers, batches, loss=SampledLoss(3), inputs=["down"])
    with torch.no_grad():
        x = net.embedding(torch.cat(batches))
        x = (torch.relu(net.left(x)) * net.right(x)).reshape(-1, 20)
    torch.testing.assert_close(more["down"].inputs, x.T @ x / len(x))
    assert moments["down"].inputs is None
    for name in layers:
        torch.testing.assert_close(more[name].activations, moments[name].activations)
        torch.testing.assert_close(more[name].gradients, moments[name].gradients)
    assert moment_bytes(layers, gradients=True, inputs=["down"]) == 4 * (4 * 12**2 + 12**2 + 20**2)


def test_gradients_of_outputs_where_those_of_the_inputs_would_be_enough(net, batches):
    layers = dense_layers(net)
    moments = collect_moments(net, layers, batches, loss=SampledLoss(3))
    more = collect_moments(net, layers, batches, loss=SampledLoss(3), outputs=["left", "down"])
    assert moments["left"].output_gradients is None
    loss, gradients = SampledLoss(3), []
    for batch in batches:
        x = net.embedding(batch).detach()
        left = net.left(x).detach().requires_grad_()
        y = net.down(torch.relu(left) * net.right(x))
        loss(net.head(x + y)).backward()
        gradients.append(left.grad.reshape(-1, 20))
    rows = torch.cat(gradients)
    torch.testing.assert_close(more["left"].output_gradients, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-7)
    assert more["down"].output_gradients is more["down"].gradients, "the outputs are its smaller side"
    for name in layers:
        torch.testing.assert_close(more[name].gradients, moments[name].gradients, rtol=1e-4, atol=1e-7)
        assert more[name].gradient_power == moments[name].gradient_power
    assert moment_bytes(layers, gradients=True, outputs=["left", "down"]) == 4 * (6 * 12**2 + 20**2)


def test_blocks_that_are_computed_twice_are_counted_once(monkeypatch):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=24, n_layer=3, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    batches = [torch.randint(40, (2, 16)) for _ in range(2)]
    layers = dense_layers(model)
    blocks = [block for block in model.modules() if isinstance(block, transformers.models.gpt2.modeling_gpt2.GPT2Block)]
    calls = []
    blocks[0].attn.c_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    moments = collect_moments(model, layers, batches, loss=SampledLoss(0))
    assert len(calls) == 4, "once forward and once more for the gradients of each batch"
    assert all("forward" not in vars(block) for block in blocks)
    assert model.config.use_cache
    monkeypatch.setattr("mpochain.compression.statistics.recompute.is_block", lambda *_: False)
    expected = collect_moments(model, layers, batches, loss=SampledLoss(0))
    assert len(calls) == 6
    for name in layers:
        assert moments[name].rows == expected[name].rows == 64
        torch.testing.assert_close(moments[name].activations, expected[name].activations)
        torch.testing.assert_close(moments[name].gradients, expected[name].gradients)


def test_the_model_stays_as_it_was(net, batches):
    net.train()
    net.left.eval()
    net.down.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    collect_moments(net, dense_layers(net), batches, loss=SampledLoss(0))
    assert net.training
    assert not net.left.training
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["down.weight"]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_nan_names_the_layer(net, batches):
    with torch.no_grad():
        net.left.weight[0, 0] = float("nan")
    with pytest.raises(MPOError, match="batch 1: the inputs of down contain NaN"):
        collect_moments(net, dense_layers(net), batches)


def test_layers_that_no_gradient_reaches(net, batches):
    with pytest.raises(MPOError, match="left has no moments: no gradient of the loss reached it"):
        collect_moments(net, dense_layers(net), batches, loss=lambda y: y.detach().requires_grad_().sum())


def test_layers_that_no_batch_reaches(net, batches):
    with pytest.raises(MPOError, match="spare has no moments: no calibration batch reached it"):
        collect_moments(net, {"spare": nn.Linear(2, 2)}, batches)
    with pytest.raises(MPOError, match="at least one batch"):
        collect_moments(net, dense_layers(net), [])
    with pytest.raises(MPOError, match="a calibration batch must be a tensor"):
        collect_moments(net, dense_layers(net), ["text"])


@pytest.mark.parametrize(("out", "in_"), [(6, 4), (4, 6), (5, 5)])
def test_errors_between_have_a_loss_where_the_gradients_are_of_the_outputs(out, in_):
    generator = torch.Generator().manual_seed(0)
    weight, other = torch.randn(2, out, in_, generator=generator)
    x, g = torch.randn(50, in_, generator=generator), torch.randn(50, out, generator=generator)
    inputs = x.T @ x / 50
    if out <= in_:
        activations, gradients = weight @ inputs @ weight.T, g.T @ g / 50
    else:
        activations, gradients = inputs, weight.T @ (g.T @ g / 50) @ weight
    moments = Moments(activations, gradients, 1.0, 1.0, 50, inputs)
    errors = errors_between(weight, moments, other)
    full = Moments(activations, gradients, 1.0, 1.0, 50, inputs, g.T @ g / 50)
    assert errors_between(weight, full, other).loss == pytest.approx(
        float((g @ (weight - other) @ x.T).square().mean()) / 2, rel=1e-4
    )
    wrong, right = x @ (weight - other).T, x @ weight.T
    assert errors.output == pytest.approx(float(wrong.norm() / right.norm()), rel=1e-4)
    if out > in_:
        assert errors.loss is None
    else:
        difference = weight - other
        expected = float(torch.trace((g.T @ g / 50) @ difference @ inputs @ difference.T)) / 2
        assert errors.loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("batch", "described"),
    [
        (torch.zeros(5, 12), r"\(5, 12\) float32: mat1 and mat2 shapes"),
        (torch.zeros(5, 16).double(), r"\(5, 16\) float64: "),
        ({"x": torch.zeros(5, 16)}, r"x=\(5, 16\) float32: .*unexpected keyword argument 'x'"),
        ((torch.zeros(5, 16), 3), r"\(5, 16\) float32, int: .*takes 2 positional arguments"),
    ],
)
def test_a_batch_that_the_model_cannot_be_called_with_is_described(batch, described):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    with pytest.raises(MPOError, match=f"Sequential cannot be called with a calibration batch of {described}.*; give"):
        mpo.compress(model, 0.5, calibration=[batch])
