"""Products by oneDNN: equal to those of F.linear, forward and backward, and computed only where they are faster."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from mpochain import MPOLinear, shapes
from mpochain.execution.kernels import onednn
from mpochain.execution.kernels.onednn import OneDNNProducts, fast_products
from mpochain.train import TrainConfig, loop, train

LARGE, FEATURES = 1024, 128


def convolved(call) -> bool:
    """Whether a call computes its products as convolutions."""
    with profile() as seen:
        call()
    return any("convolution" in event.key for event in seen.key_averages())


def large(*lead, dtype=torch.float32):
    return torch.randn(*lead, FEATURES, dtype=dtype), torch.randn(FEATURES, FEATURES, dtype=dtype)


def gradients(x, weight, bias, grad):
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    y = F.linear(*leaves)
    return [y, *torch.autograd.grad(y, leaves, grad)]


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    in_=st.integers(1, 33),
    out=st.integers(1, 33),
    with_bias=st.booleans(),
    transposed=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_every_shape_is_that_of_f_linear(lead, in_, out, with_bias, transposed, threads, seed):
    torch.manual_seed(seed)
    x = torch.randn(*lead[:-1], in_, lead[-1]).mT if transposed else torch.randn(*lead, in_)
    weight = torch.randn(in_, out).t() if transposed else torch.randn(out, in_)
    bias = torch.randn(out) if with_bias else None
    grad = torch.randn(*lead, out)
    expected = gradients(x, weight, bias, grad)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch, OneDNNProducts():
            patch.setattr(onednn, "_LEAST_MACS", 0)
            patch.setattr(onednn, "_LEAST_ROWS", 0)
            patch.setattr(onednn, "_LEAST_OUTPUTS", 0)
            convolved_gradients = gradients(x, weight, bias, grad)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(convolved_gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert one.shape == other.shape
        assert one.dtype == other.dtype


@pytest.mark.parametrize("lead", [(LARGE,), (4, 256), (2, 2, 256)])
def test_many_float32_rows_are_convolved_forward_and_back(lead):
    x, weight = large(*lead)
    with OneDNNProducts():
        assert convolved(lambda: F.linear(x, weight))
        assert convolved(lambda: F.linear(input=x, weight=weight))
        assert convolved(lambda: nn.Linear(FEATURES, FEATURES)(x))
    y = F.linear(x, weight.requires_grad_())
    assert not convolved(lambda: y.sum().backward())
    with OneDNNProducts():
        y = F.linear(x, weight)
    assert convolved(lambda: y.sum().backward())
    assert not convolved(lambda: F.linear(x, weight))


def test_chains_that_are_rebuilt_are_convolved_and_the_same():
    layer = MPOLinear(FEATURES, FEATURES, max_bond=64)
    x = torch.randn(LARGE, FEATURES)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    with OneDNNProducts():
        assert convolved(lambda: layer(x))
        convolved_gradients = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for one, other in zip(convolved_gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


class _Named(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.linear(x.double(), w.double()),
        lambda x, w: F.linear(x.bfloat16(), w.bfloat16()),
        lambda x, w: F.linear(x[:255], w),
        lambda x, w: F.linear(x, w[:4]),
        lambda x, w: F.linear(x.repeat(40, 1), w[:7]),
        lambda x, w: F.linear(x, w, out=torch.empty(LARGE, FEATURES)),
        lambda x, w: F.linear(x, w.to_sparse()),
        lambda x, w: F.linear(x.as_subclass(_Named), w),
        lambda x, w: torch.func.vmap(lambda rows: F.linear(rows, w))(x.view(2, -1, FEATURES)),
        lambda x, w: x @ w,
    ],
    ids=[
        "float64",
        "bfloat16",
        "few rows",
        "few products",
        "few outputs",
        "out",
        "sparse",
        "subclass",
        "vmap",
        "another function",
    ],
)
def test_other_calls_are_unchanged(call):
    x, weight = large(LARGE)
    expected = call(x, weight)
    with OneDNNProducts():
        assert not convolved(lambda: call(x, weight))
        torch.testing.assert_close(call(x, weight), expected, rtol=0, atol=0)


def test_a_chain_of_low_rank_is_convolved_in_training():
    layer = MPOLinear(512, 512, spec=shapes.low_rank(512, 512, 64))
    x = torch.randn(LARGE, 512)
    assert not convolved(lambda: layer(x))
    with OneDNNProducts():
        assert convolved(lambda: layer(x))


@pytest.mark.parametrize("backward_within", [True, False])
def test_a_checkpoint_computes_its_second_forward_alike(backward_within):
    x, weight = large(LARGE)
    weight.requires_grad_()

    def twice(rows):
        return F.linear(F.linear(rows, weight).relu(), weight)

    expected = torch.autograd.grad(twice(x).square().sum(), weight)
    with OneDNNProducts():
        loss = checkpoint(twice, x, use_reentrant=False).square().sum()
        if backward_within:
            loss.backward()
    if not backward_within:
        loss.backward()
    torch.testing.assert_close(weight.grad, *expected, rtol=1e-3, atol=1e-3 * expected[0].abs().max().item())


def test_results_are_no_views():
    x, weight = large(LARGE)
    factor = torch.ones(FEATURES, requires_grad=True)
    with OneDNNProducts():
        with torch.no_grad():
            free = F.linear(x, weight)
        kept = F.linear(x, weight.requires_grad_())
    free.mul_(factor).sum().backward()
    assert factor.grad is not None
    assert kept.is_contiguous()
    assert not kept.detach_().requires_grad


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")  # of flags() itself
def test_onednn_switched_off_stays_off():
    x, weight = large(LARGE)
    with OneDNNProducts(), torch.backends.mkldnn.flags(enabled=False):
        assert not convolved(lambda: F.linear(x, weight))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_a_trace_is_of_no_number_of_rows():
    x, _ = large(LARGE)
    layer = nn.Linear(FEATURES, FEATURES, bias=False)
    with OneDNNProducts():
        traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(x[:1000]), layer(x[:1000]))


def test_training_is_within_it_and_later_calls_are_not(monkeypatch):
    monkeypatch.setattr(loop, "fast_products", OneDNNProducts)
    x, _ = large(LARGE)
    model = nn.Linear(FEATURES, FEATURES)
    seen = []

    def loss(model, batch):
        y = model(batch[0])
        seen.append(y.grad_fn.name())
        return y.square().mean()

    train(model, lambda *_: (x, x), loss, TrainConfig(steps=2, warmup_steps=0))
    assert seen == ["UnsafeViewBackward0"] * 2, "of a convolution, laid out as rows"
    assert model(x).grad_fn.name() == "AddmmBackward0"


def test_autocast_keeps_its_products():
    x, weight = large(LARGE)
    with OneDNNProducts(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not convolved(lambda: F.linear(x, weight))
        assert F.linear(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, w: F.linear(x),
        lambda x, w: F.linear(x, w, None, None),
        lambda x, w: F.linear(x, w, input=x),
        lambda x, w: F.linear(x, w[:, :-1]),
        lambda x, w: F.linear(x, w, torch.zeros(FEATURES + 1)),
        lambda x, w: F.linear(x, w, torch.zeros(FEATURES, dtype=torch.float64)),
    ],
)
def test_arguments_that_f_linear_refuses_have_its_message(wrong):
    x, weight = large(LARGE)
    with pytest.raises((RuntimeError, TypeError)) as plain:
        wrong(x, weight)
    with OneDNNProducts(), pytest.raises((RuntimeError, TypeError)) as within:
        wrong(x, weight)
    assert str(within.value) == str(plain.value)


@pytest.mark.parametrize(
    ("name", "mkl", "capability", "takes"),
    [
        ("AMD EPYC 9R14", True, "AVX512", True),
        ("Intel(R) Xeon(R) Processor", True, "AVX512", False),
        ("AMD EPYC 7R13", True, "AVX2", False),
        ("AMD EPYC 9R14", False, "AVX512", False),
        ("AMD64", True, "AVX512", False),
        ("AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", True, "AVX512", True),
    ],
)
def test_only_on_processors_where_onednn_is_known_to_be_faster(monkeypatch, name, mkl, capability, takes):
    monkeypatch.setattr(onednn, "processor", lambda: name)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert isinstance(fast_products(), OneDNNProducts) is takes
