"""Sequential compression: layers that write the hidden states make up for the drift that earlier ones caused."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from perceptrons import same
from torch import nn
from torch.nn import functional as F

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOError
from mpochain.compression.blocks import stack_correction
from mpochain.compression.blocks.calls import block_calls
from mpochain.compression.blocks.correction import Drift, moments_after
from mpochain.compression.blocks.writers import states_after, writers_of
from mpochain.compression.building import Builder
from mpochain.compression.layer_record import NONE_CORRECTED
from mpochain.compression.selection import dense_layers
from mpochain.compression.statistics.moments import Moments
from mpochain.errors import ArgumentError
from mpochain.surgery.calls import without_cache


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


def rows(count, size=200, width=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, width, generator=generator) for _ in range(count)]


def tokens(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (2, 16), generator=generator) for _ in range(count)]


class Residual(nn.Module):
    """A residual block whose first branch writes through attention over the rows, the second through an MLP."""

    def __init__(self, way="plain", width=12):
        super().__init__()
        self.norm, self.way = nn.LayerNorm(width), way
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        a = self.out(torch.softmax(x @ x.transpose(-1, -2), -1) @ self.value(x))
        if self.way == "parallel":
            return x + a + self.down(F.gelu(self.up(self.norm(x))))
        if self.way == "post-norm":
            x = self.norm(x + a)
            return self.norm(x + self.down(F.gelu(self.up(x))))
        x = x + (0.2 * a if self.way == "scaled" else a)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm(x)))), training=self.training)


def residual_stack(way="plain", blocks=3):
    torch.manual_seed(0)
    model = nn.Sequential(*(Residual(way) for _ in range(blocks)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


class TestWriters:
    def found(self, model, blocks, batch):
        layers = dense_layers(model)
        names = {layer: name for name, layer in layers.items()}
        with torch.no_grad(), without_cache(model):
            calls = block_calls(model, blocks, batch)
            hidden = calls[0].hidden
            writers = writers_of(blocks[0], calls[0], hidden, set(names))
            return {names[writer.layer]: writer for writer in writers}, calls[0], hidden

    @pytest.mark.parametrize(
        ("way", "expected"),
        [
            ("plain", {"0.out": 1.0, "0.down": 1.0}),
            ("scaled", {"0.out": 0.2, "0.down": 1.0}),
            ("parallel", {"0.out": 1.0, "0.down": 1.0}),
            ("post-norm", {}),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_of_a_residual_block(self, way, expected, dtype):
        model = residual_stack(way).to(dtype)
        batch = torch.randn(2, 9, 12, dtype=dtype)
        writers, call, hidden = self.found(model, list(model), batch)
        assert {name: writer.factor for name, writer in writers.items()} == pytest.approx(expected, rel=0.02)
        if expected and dtype is torch.float32:
            block = model[0]
            with torch.no_grad():
                a = block.out(torch.softmax(batch @ batch.mT, -1) @ block.value(batch))
                states = states_after(block, call, hidden, writers["0.out"])
            torch.testing.assert_close(states, batch + expected["0.out"] * a)
            assert torch.equal(states_after(block, call, hidden, writers["0.down"]), block(batch))

    @pytest.mark.parametrize(
        ("family", "options", "expected"),
        [
            ("Llama", {}, ["self_attn.o_proj", "mlp.down_proj"]),
            ("GPTNeoX", {"use_parallel_residual": True}, ["attention.dense", "mlp.dense_4h_to_h"]),
            ("Gemma2", {"head_dim": 8, "layer_types": ["full_attention"]}, []),  # normalised before they are added
            ("Mixtral", {"num_local_experts": 2}, ["self_attn.o_proj"]),
        ],
    )
    def test_of_language_models(self, family, options, expected):
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(
            vocab_size=40,
            hidden_size=24,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=3,
            num_key_value_heads=3,
            initializer_range=0.3,
            **options,
        )
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        blocks = model.gpt_neox.layers if family == "GPTNeoX" else model.model.layers
        writers, _, _ = self.found(model, list(blocks), tokens(1)[0])
        assert [name.split(".", 3)[-1] for name in writers] == expected

    def test_of_gpt2_through_its_dropout(self):
        model = gpt2()
        writers, _, _ = self.found(model, list(model.transformer.h), tokens(1)[0])
        assert list(writers) == ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"]


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.01, 10.0), st.integers(0, 2**16))
def test_the_correction_is_least_squares_drawn_to_the_weight(out, in_, ridge, seed):
    generator = torch.Generator().manual_seed(seed)
    x, missing = (torch.randn(60, size, generator=generator) for size in (in_, out))
    drift = Drift()
    drift.add(x[:20], missing[:20])
    drift.add(x[20:], missing[20:])
    change = drift.change(ridge).float()
    penalty = ridge * float(x.square().sum()) / 60 / in_

    def damped(change):
        return float((missing - x @ change.T).square().sum() / 60 + penalty * change.square().sum())

    assert damped(change) <= damped(torch.zeros(out, in_)) * (1 + 1e-5)
    for _ in range(3):
        other = change + 1e-2 * torch.randn(out, in_, generator=generator)
        assert damped(change) <= damped(other) + 1e-6


def test_a_drift_of_masked_rows_and_of_no_power():
    x, missing = torch.randn(6, 3), torch.randn(6, 2)
    masked, plain, empty = Drift(), Drift(), Drift()
    masked.add(x, missing, torch.tensor([True] * 4 + [False] * 2))
    plain.add(x[:4], missing[:4])
    torch.testing.assert_close(masked.change(0.1), plain.change(0.1))
    empty.add(torch.zeros(6, 3), missing)
    assert empty.change(0.1) is None


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_moments_of_a_corrected_weight(shape):
    out, in_ = shape
    x, g = torch.randn(50, in_), torch.randn(50, out)
    weight, G = torch.randn(shape), g.T @ g / 50
    own = x.T @ x / 50
    aside = Moments(torch.eye(min(shape)), G if out <= in_ else torch.eye(in_), 1.0, 1.0, 50, own, G)
    result = moments_after(weight, replace(aside, held_out=aside), own, 4 * own)
    y = x @ weight.T if out <= in_ else x
    back = g if out <= in_ else g @ weight
    torch.testing.assert_close(result.activations, y.T @ y / 50, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.gradients, back.T @ back / 50, rtol=1e-4, atol=1e-5)
    assert result.inputs is own
    torch.testing.assert_close(result.held_out.activations, 4 * result.activations)
    torch.testing.assert_close(result.held_out.gradients, result.gradients)
    assert moments_after(weight, aside, own, own).held_out is None


def block_errors(model, plain, dense, batch):
    """Squared errors of the outputs of each block of two compressed models."""
    errors = []
    with torch.no_grad():
        wanted, near, far = batch, batch, batch
        for block, own, other in zip(dense, model, plain, strict=True):
            wanted, near, far = block(wanted), own(near), other(far)
            errors.append(tuple(float((states - wanted).square().mean()) for states in (near, far)))
    return errors


@pytest.mark.parametrize(
    ("method", "budget", "way"),
    [
        ("interpolative", 0.5, "plain"),
        ("svd_llm", 0.5, "parallel"),
        ("auto", "5 bits", "scaled"),
        ("gptq", "5 bits", "plain"),
    ],
)
def test_the_held_out_error_of_the_blocks_falls(method, budget, way):
    dense = residual_stack(way, 2)
    plain, model = copy.deepcopy(dense), copy.deepcopy(dense)
    batches = [batch.view(10, 20, 12) for batch in rows(6, width=12)]
    held_out = [batch.view(10, 20, 12) for batch in rows(3, width=12, seed=5)]
    expected = mpo.compress(plain, budget, calibration=batches, method=method)
    report = mpo.compress(model, budget, calibration=batches, held_out=held_out, method=method, sequential=True)
    assert report.bytes_after <= report.allowed_bytes
    assert [layer.bytes_after for layer in report.layers] == [layer.bytes_after for layer in expected.layers]
    writers = [layer for layer in report.layers if layer.mixing is not None]
    assert {layer.name.split(".")[1] for layer in writers} <= {"out", "down"}
    assert any(layer.mixing for layer in writers)
    for layer in writers:
        assert layer.block_error < layer.block_error_uncorrected if layer.mixing else layer.ridge is None
    # Layers that write nothing are those of the plain compression.
    assert all(
        torch.equal(one.up(one.norm.bias), other.up(other.norm.bias)) for one, other in zip(model, plain, strict=True)
    )
    last_near, last_far = block_errors(model, plain, dense, torch.cat(held_out))[-1]
    assert last_near < last_far
    assert "corrected" in report.table()
    assert "corrected by" in report.table().splitlines()[0]
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter.is_floating_point())


@pytest.mark.parametrize("method", ["interpolative", "svd_llm"])
def test_the_outputs_of_plain_layers_come_nearer(method):
    """Layers that a block consists of are corrected too, without a state that they add to."""
    batches, fresh = rows(3), rows(1, 400, seed=2)[0]
    expected = perceptron()(fresh).detach()

    def error(sequential):
        model = perceptron()
        report = mpo.compress(model, 0.5, calibration=batches, method=method, sequential=sequential)
        assert report.bytes_after <= report.allowed_bytes
        assert sum(record.output_error for record in report.layers) > 0
        assert all(parameter.requires_grad for parameter in model.parameters())
        return float((model(fresh).detach() - expected).square().mean())

    assert error(True) < error(False)


@pytest.mark.parametrize(("method", "budget"), [("interpolative", 0.5), ("gptq", "5 bits")])
def test_without_mixing_nothing_is_corrected_to_the_bit(monkeypatch, method, budget):
    monkeypatch.setattr(stack_correction, "_MIXINGS", (0.0,))
    plain, model = residual_stack(blocks=2), residual_stack(blocks=2)
    batches = rows(3, width=12)
    mpo.compress(plain, budget, calibration=batches, method=method)
    report = mpo.compress(model, budget, calibration=batches, method=method, sequential=True)
    assert same(model, plain)
    assert {layer.mixing for layer in report.layers} <= {0.0, None}


def test_a_correction_that_hurts_after_rounding_is_left_out(monkeypatch):
    proposal = Builder.corrected_proposal

    def worse(self, name, weight, *inputs):
        return proposal(self, name, -weight, *inputs)

    monkeypatch.setattr(Builder, "corrected_proposal", worse)
    plain, model = residual_stack(blocks=2), residual_stack(blocks=2)
    batches = rows(3, width=12)
    mpo.compress(plain, 0.5, calibration=batches, method="svd_llm")
    mpo.compress(model, 0.5, calibration=batches, method="svd_llm", sequential=True)
    assert same(model, plain)


def test_models_without_such_layers_are_compressed_as_they_are(caplog):
    plain, model = residual_stack("post-norm", 2), residual_stack("post-norm", 2)
    batches = rows(3, width=12)
    mpo.compress(plain, 0.5, calibration=batches)
    with caplog.at_level(logging.WARNING, "mpochain"):
        report = mpo.compress(model, 0.5, calibration=batches, sequential=True)
    assert same(model, plain)
    assert NONE_CORRECTED in caplog.text
    assert NONE_CORRECTED in report.table()


def test_a_transformer_and_its_layers_of_no_block():
    batches, held_out = tokens(8), tokens(4, seed=3)
    plain, model, dense = gpt2(), gpt2(), gpt2()
    mpo.compress(plain, 0.6, calibration=batches, method="svd_llm")
    mpo.compress(model, 0.6, calibration=batches, method="svd_llm", held_out=held_out, sequential=True)
    assert model.config.use_cache
    with torch.no_grad():
        wanted, near, far = (m.transformer(torch.cat(held_out)).last_hidden_state for m in (dense, model, plain))
    assert (near - wanted).square().mean() < (far - wanted).square().mean()
    model = gpt2(tie_word_embeddings=False)
    report = mpo.compress(model, 0.6, calibration=batches, targets=list(dense_layers(model)), sequential=True)
    assert report.layers[-1].name == "lm_head"
    assert isinstance(model.lm_head, InterpolativeLinear)
    assert not model.training


def test_masked_rows_do_not_count():
    batches = tokens(4)
    padded = [
        {
            "input_ids": torch.cat([batch, torch.full((2, 5), 7)], 1),
            "attention_mask": torch.cat([torch.ones(2, 16), torch.zeros(2, 5)], 1).long(),
        }
        for batch in batches
    ]
    records = []
    for data in (batches, padded):
        model = gpt2()
        report = mpo.compress(model, 0.6, calibration=data, sequential=True, method="svd_llm")
        records.append([layer.block_error for layer in report.layers if layer.mixing is not None])
    assert len(records[0]) == 6
    assert records[1] == pytest.approx(records[0], rel=0.02)


def test_sums_are_fitted_in_sequence_too():
    model, batches = perceptron(), rows(2)
    expected = model(batches[0]).detach()
    report = mpo.compress(model, 0.6, calibration=batches, method="search", sequential=True)
    assert report.bytes_after <= report.allowed_bytes
    assert float((model(batches[0]).detach() - expected).norm() / expected.norm()) < 0.5


def test_all_kept_is_all_unchanged():
    model, batches = perceptron(), rows(2, 50)
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


def test_whatever_fails_leaves_the_model_as_it_was(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Identity())
    model[1] = Fails(model)
    layers = list(model.modules())
    with pytest.raises(RuntimeError, match="failed"):
        mpo.compress(model, 0.5, calibration=[torch.randn(40, 8)] * 2, sequential=True)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))
    model = residual_stack()
    layers = list(model.modules())
    report = mpo.compress(model, 0.5, calibration=rows(2, width=12), sequential=True, dry_run=True)
    assert any(layer.form != "dense" for layer in report.layers)
    assert any(layer.mixing for layer in report.layers)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))
    keep = Builder.keep

    def cut(self, name, *rest):
        if name == "1.out":
            raise KeyboardInterrupt
        return keep(self, name, *rest)

    monkeypatch.setattr(Builder, "keep", cut)
    with pytest.raises(KeyboardInterrupt):
        mpo.compress(model, 0.5, calibration=rows(2, width=12), sequential=True)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))


@pytest.mark.parametrize(("last", "method"), [("0.up", "svd_llm"), ("1.out", "interpolative")])
def test_a_compression_goes_on_where_it_was_interrupted(monkeypatch, tmp_path, last, method):
    """Equal calls give equal bits, interrupted or not."""
    expected, model, resumed = (residual_stack(blocks=2) for _ in range(3))
    options = {"calibration": rows(3, width=12), "method": method, "sequential": True}
    report = mpo.compress(expected, 0.5, **options)
    keep, kept = Builder.keep, []

    def cut(self, name, *rest):
        kept.append(name)
        if name == last and len(kept) < 100:
            raise KeyboardInterrupt
        return keep(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "keep", cut)
        with pytest.raises(KeyboardInterrupt):
            mpo.compress(model, 0.5, **options, checkpoint=tmp_path)
    assert same(model, residual_stack(blocks=2))
    before = len(kept)
    kept.extend([""] * 100)
    with monkeypatch.context() as patch:
        patch.setattr(Builder, "keep", cut)
        again = mpo.compress(resumed, 0.5, **options, checkpoint=tmp_path)
    assert len(kept) == 100 + 8 + 1
    assert before <= 8
    assert same(resumed, expected)
    assert again.layers == report.layers


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
        (nn.Sequential(nn.Linear(8, 8)), "got 1 batch; divide calibration= into two"),
    ],
)
def test_models_and_data_that_cannot_be_corrected_are_refused_before_any_work(monkeypatch, model, message):
    monkeypatch.setattr(
        "mpochain.compression.layer_choices.gather_every", lambda *_, **__: pytest.fail("work was done")
    )
    layers = list(model.modules())
    with pytest.raises(ArgumentError, match=message):
        mpo.compress(model, 0.5, calibration=[torch.randn(40, 8)], sequential=True)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))
    with pytest.raises(MPOError, match="does not use"):
        mpo.compress(model, 0.5, method="svd", sequential=True)
