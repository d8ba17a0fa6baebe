"""Distillation losses against plain torch: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mpochain import MPOError
from mpochain.execution.peak_memory import peak_bytes
from mpochain.surgery.calls import logits_of
from mpochain.train import losses
from mpochain.train.losses import captured, distillation_loss, hidden_loss, next_tokens
from mpochain.train.windows import Windows


def draw(rows, vocabulary, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, t = torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64).mul(3).to(dtype)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    return z.requires_grad_(), t, labels


def plain(z, t, labels, weight, temperature):
    """The chunked loss, in the functions of torch."""
    labelled = labels != -100
    z, t, labels = z[labelled], t[labelled], labels[labelled]
    divergence = F.kl_div(
        F.log_softmax(z / temperature, -1), F.log_softmax(t / temperature, -1), log_target=True, reduction="batchmean"
    )
    return (1 - weight) * F.cross_entropy(z, labels) + weight * temperature**2 * divergence


@given(
    rows=st.integers(1, 9),
    vocabulary=st.integers(1, 7),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.floats(0.2, 8),
    chunk=st.integers(1, 40),
    ignored=st.integers(0, 8),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_the_plain_loss(rows, vocabulary, weight, temperature, chunk, ignored, seed):
    z, t, labels = draw(rows, vocabulary, seed=seed)
    labels[: min(ignored, rows - 1)] = -100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_CHUNK", chunk)
        loss = distillation_loss(z, labels, t, weight=weight, temperature=temperature)
    (3 * loss).backward()
    got, z.grad = z.grad, None
    expected = plain(z, t, labels, weight, temperature)
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got, z.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_gradient_is_the_derivative(weight):
    z, t, labels = draw(4, 5)
    assert torch.autograd.gradcheck(lambda z: distillation_loss(z, labels, t, weight=weight, temperature=1.7), (z,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_logits_are_computed_in_float32(dtype):
    z, t, labels = draw(6, 50, dtype)
    loss = distillation_loss(z, labels, t, weight=0.5, temperature=2.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert z.grad.dtype == dtype
    z32 = z.detach().float().requires_grad_()
    expected = plain(z32, t.float(), labels, 0.5, 2.0)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(z.grad.float(), z32.grad, rtol=0.01, atol=1e-6)


def test_windows_are_flattened_and_ignored_positions_may_hold_anything():
    z, t, labels = draw(6, 5)
    z = z.detach().view(2, 3, 5)
    z[0, 1] = torch.nan
    z.requires_grad_()
    labels = labels.view(2, 3).clone()
    labels[0, 1] = -100
    distillation_loss(z, labels, t.view(2, 3, 5), weight=0.5).backward()
    assert z.grad.isfinite().all()
    assert not z.grad[0, 1].any()


@given(st.floats(0.1, 50), st.floats(-5, 5))
def test_equal_logits_do_not_diverge(temperature, shift):
    z, _, labels = draw(4, 9)
    loss = distillation_loss(z, labels, z.detach() + shift, temperature=temperature)
    loss.backward()
    assert abs(loss.item()) < 1e-10
    assert z.grad.abs().max() < 1e-10


def test_a_high_temperature_compares_the_logits_themselves():
    # Hinton et al., section 2.1: T^2 KL tends to |z - t|^2 / 2V for logits of mean zero.
    z, t, labels = draw(5, 7)
    z0, t0 = (logits - logits.mean(-1, keepdim=True) for logits in (z, t))
    loss = distillation_loss(z, labels, t, temperature=1e4)
    torch.testing.assert_close(loss, (z0 - t0).square().sum(-1).mean() / 14, rtol=1e-3, atol=0)


def test_a_low_temperature_compares_the_largest():
    z, t, labels = draw(5, 7)
    # T KL tends to the model's largest logit less its logit of the token that the teacher finds most likely.
    gap = z.max(-1).values - z.gather(1, t.argmax(-1)[:, None]).squeeze(1)
    loss = distillation_loss(z, labels, t, temperature=1e-3)
    torch.testing.assert_close(loss / 1e-3, gap.mean(), rtol=1e-3, atol=1e-3)


def test_only_one_array_of_the_size_of_the_logits_is_allocated():
    z, t, labels = draw(256, 4096, torch.float32)
    distillation_loss(z, labels, t, weight=0.5)  # torch allocates some memory in the first call only
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_CHUNK", 1 << 14)
        peak = peak_bytes(lambda: distillation_loss(z, labels, t, weight=0.5, temperature=2.0))
    assert peak < 1.2 * z.numel() * 4
    with torch.no_grad():
        assert peak_bytes(lambda: distillation_loss(z, labels, weight=0.0)) < 3 * z.numel() * 4


def test_bad_arguments_are_refused():
    z, t, labels = draw(4, 5)
    for change, message in [
        ({"weight": 1.5}, r"weight must be in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"labels": labels.float()}, "labels must be integers, got torch.float32"),
        ({"labels": labels[:3]}, r"labels \(3,\) do not match logits \(4, 5\)"),
        ({"teacher_logits": None}, "weight=1.0 needs teacher_logits"),
        (
            {"teacher_logits": t[:, :4]},
            r"teacher logits \(4, 4\) differ in shape",
        ),
        ({"labels": torch.full((4,), -100)}, "no position has a label"),
        ({"labels": labels + 5}, "labels must be below 5 or -100"),
        ({"labels": labels - 90}, "labels must be below 5 or -100"),
    ]:
        with pytest.raises(MPOError, match=message):
            distillation_loss(**{"logits": z, "labels": labels, "teacher_logits": t, **change})
    with pytest.raises(MPOError, match="expected logits .* got str"):
        logits_of("logits")
    with pytest.raises(MPOError, match="got tuple"):
        logits_of(())


def test_hidden_states_are_compared_at_each_scale_and_labelled_positions_only():
    t = torch.randn(2, 3, 8) * torch.tensor([1.0, 1000.0, 1e-3])[:, None]
    h = (t * 1.1).requires_grad_()
    labels = torch.tensor([[1, 2, 3], [4, 5, -100]])
    loss = hidden_loss(h, t, labels)
    torch.testing.assert_close(loss.item(), 0.01, rtol=1e-3, atol=0)
    loss.backward()
    assert not h.grad[1, 2].any()
    assert hidden_loss(t, t, labels) == 0
    assert hidden_loss(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), torch.tensor([[1]])) == 0
    with pytest.raises(MPOError, match=r"hidden states \(2, 3, 8\), teacher's hidden states \(2, 3, 4\)"):
        hidden_loss(t, t[..., :4], labels)
    with pytest.raises(MPOError, match="no position has a label"):
        hidden_loss(t, t, torch.full((2, 3), -100))


def test_labels_are_the_tokens_after():
    assert next_tokens(torch.tensor([[1, 2, 3], [4, -100, 6]])).tolist() == [[2, 3, -100], [-100, 6, -100]]


def test_outputs_are_captured_by_name():
    class Pair(nn.Module):
        def forward(self, x):
            return x + 1, "more"

    model = nn.Sequential(nn.Identity(), nn.Sequential(Pair()))
    with captured(model, ["0", "1.0"]) as outputs:
        model(torch.ones(2))
    assert outputs["0"].tolist() == [1, 1]
    assert outputs["1.0"].tolist() == [2, 2]
    assert not model[0]._forward_hooks
    with pytest.raises(MPOError, match="Sequential has no module '1.1'; similar names: 1.0"), captured(model, ["1.1"]):
        pass
    assert not model[0]._forward_hooks


@pytest.mark.parametrize("form", ["integers", "booleans", "floats", "added", "queries and keys"])
def test_padding_on_either_side_has_no_target_whatever_the_mask(form):
    kept = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    mask = {
        "integers": kept,
        "booleans": kept.bool(),
        "floats": kept.float(),
        "added": (1.0 - kept) * -1e9,
        "queries and keys": kept[:, None, None].bool().expand(-1, 1, 5, -1),
    }[form]
    tokens = torch.arange(10).view(2, 5)
    expected = torch.tensor([[-100, 2, 3, -100, -100], [6, 7, -100, -100, -100]])
    assert torch.equal(Windows.of({"input_ids": tokens, "attention_mask": mask}).labels, expected)
    assert torch.equal(Windows.of({"input_ids": tokens, "attention_mask": mask, "labels": tokens}).labels, expected)
