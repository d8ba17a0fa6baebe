"""Refinement: blocks trained on the dense blocks' outputs, kept where the held-out error falls."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from perceptrons import perceptron, rows, same
from torch import nn

import mpochain as mpo
from mpochain.compression import Refinement, Rtn
from mpochain.compression.blocks import stack_refinement
from mpochain.compression.blocks.calls import block_calls
from mpochain.compression.blocks.hidden_states import HiddenStates
from mpochain.compression.blocks.output_metrics import metric_factors
from mpochain.compression.blocks.stacks import stacks
from mpochain.compression.blocks.training import BlockExample, relative_error, train_block
from mpochain.errors import ArgumentError, CheckpointError, NonFiniteError
from mpochain.nn.layer import CompressedLayer


def windows(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (2, 24), generator=generator) for _ in range(count)]


def llama(**options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        initializer_range=0.3,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


FAST = Refinement(epochs=2, learning_rate=3e-3)


@pytest.fixture(scope="module")
def transformer():
    """The dense model, the compressed one, and the refined one with its report."""
    dense, held_out = llama(), windows(3, seed=2)
    dense.model.layers[1].input_layernorm.weight.requires_grad_(False)
    compressed, refined = copy.deepcopy(dense), copy.deepcopy(dense)
    mpo.compress(compressed, 0.4, calibration=windows(8), held_out=held_out)
    report = mpo.compress(refined, 0.4, calibration=windows(8), held_out=held_out, refine=FAST)
    return dense, compressed, refined, report


class TestTransformer:
    def test_outputs_come_nearer_on_fresh_data(self, transformer):
        dense, compressed, refined, report = transformer
        fresh = torch.cat(windows(6, seed=5))
        with torch.no_grad():
            wanted, before, after = (model.model(fresh).last_hidden_state for model in (dense, compressed, refined))
        assert (after - wanted).square().sum() < (before - wanted).square().sum()
        assert [block.name for block in report.refined] == ["model.layers.0", "model.layers.1"]
        assert all(block.after < block.before and block.epochs for block in report.refined)
        assert all(block.seconds > 0 for block in report.refined)
        assert "refined 2 of 2 blocks" in report.summary(200)
        assert report.as_dict()["refined"][0]["before"] == report.refined[0].before

    def test_only_parameters_of_the_blocks_change(self, transformer):
        _, compressed, refined, report = transformer
        before, after = dict(compressed.named_parameters()), dict(refined.named_parameters())
        assert before.keys() == after.keys()
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        assert changed == {
            name
            for name in after
            if name.startswith("model.layers.") and name != "model.layers.1.input_layernorm.weight"
        }
        assert sum(block.parameters for block in report.refined) == sum(after[name].numel() for name in changed)

    def test_the_state_of_the_model_stays(self, transformer):
        dense, compressed, refined, _ = transformer
        assert refined.training is compressed.training is dense.training
        for (name, parameter), other in zip(refined.named_parameters(), compressed.parameters(), strict=True):
            assert parameter.requires_grad is other.requires_grad, name
            assert parameter.grad is None
        assert refined.config.use_cache

    def test_the_comparison_on_held_out_data_is_with_the_dense_model(self, transformer):
        dense, _, refined, report = transformer
        with torch.no_grad():
            log_p, log_q = (
                torch.cat([model(batch).logits for batch in windows(3, seed=2)]).log_softmax(-1)
                for model in (dense, refined)
            )
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        assert report.held_out.held_out == pytest.approx(float(divergence), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype):
    model = llama().to(dtype)
    report = mpo.compress(model, 0.6, calibration=windows(5), held_out=windows(2, seed=2), refine=FAST)
    assert all(block.after <= block.before for block in report.refined)
    assert report.refined[-1].after < 0.99 * report.refined[-1].before
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(windows(1)[0]).logits.isfinite().all()


def test_masked_positions_do_not_count():
    """What stands at masked positions changes nothing."""

    def refined(padding):
        model, batches = llama(), []
        for tokens in windows(4):
            mask = torch.ones_like(tokens)
            mask[:, 18:] = 0
            tokens[:, 18:] = padding
            batches.append({"input_ids": tokens, "attention_mask": mask})
        report = mpo.compress(model, 0.6, calibration=batches, method="svd", refine=FAST)
        return [block.after for block in report.refined]

    assert refined(7) == pytest.approx(refined(31), rel=1e-4)


def test_shared_parameters_stay():
    torch.manual_seed(0)
    norm = nn.LayerNorm(16)
    model = nn.Sequential(*(nn.Sequential(norm, nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(2)))
    own = nn.LayerNorm(16)
    model[1].insert(1, own)
    model.register_buffer("view", own.bias.detach()[:3])
    values = [norm.weight.clone(), norm.bias.clone(), own.bias.clone()]
    report = mpo.compress(model, 0.5, calibration=rows(4), refine=FAST)
    assert all(block.epochs for block in report.refined)
    assert all(map(torch.equal, values, [norm.weight, norm.bias, own.bias]))
    assert not torch.equal(own.weight, torch.ones(16))


def test_a_block_that_gains_nothing_stays_to_the_bit():
    plain, model = perceptron(), perceptron()
    mpo.compress(plain, 0.5, calibration=rows(4))
    report = mpo.compress(model, 0.5, calibration=rows(4), refine=Refinement(learning_rate=1e4, epochs=1))
    assert all(block.epochs == 0 and block.after == block.before for block in report.refined)
    assert same(model, plain)
    assert "refined 0 of 3 blocks" in str(report)


def test_methods_without_data_can_be_refined():
    model = perceptron()
    report = mpo.compress(model, 0.5, calibration=rows(4), method="svd", refine=True)
    assert len(report.refined) == 3
    assert all(block.after <= block.before for block in report.refined)


class TestCodes:
    def compressed(self, **settings):
        model = perceptron()
        refine = Refinement(epochs=4, learning_rate=3e-3, **settings)
        return model, mpo.compress(model, None, calibration=rows(8), method=Rtn(bits=2, group=8), refine=refine)

    def test_codes_and_scales_are_trained(self):
        plain = perceptron()
        mpo.compress(plain, None, method=Rtn(bits=2, group=8))
        scales, _ = self.compressed(codes=False)
        model, report = self.compressed()
        assert all(block.epochs for block in report.refined)
        assert report.refined[0].parameters == sum(layer.numel() for layer in scales[0].parameters()) + 16 * 24
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert model[0].weight_scale.dtype == torch.float16
        assert torch.equal(scales[0].weight_packed, plain[0].weight_packed)
        assert not torch.equal(scales[0].weight_scale, plain[0].weight_scale)
        assert not torch.equal(model[0].weight_packed, plain[0].weight_packed)
        fresh = rows(1, seed=9)[0]
        errors = [float((one(fresh) - perceptron()(fresh)).detach().square().mean()) for one in (model, scales, plain)]
        assert errors == sorted(errors)

    def test_an_interrupted_run_keeps_its_codes(self, tmp_path):
        expected, _ = self.compressed()
        model = perceptron()
        arguments = {"calibration": rows(8), "method": Rtn(bits=2, group=8), "checkpoint": tmp_path}
        for _ in range(2):
            model = perceptron()
            mpo.compress(model, None, refine=Refinement(epochs=4, learning_rate=3e-3), **arguments)
        assert same(model, expected)


def test_after_sequential_correction():
    report = mpo.compress(perceptron(), 0.5, calibration=rows(4), sequential=True, refine=FAST)
    assert any(block.epochs for block in report.refined)


def test_an_encoder_and_a_decoder_are_both_refined():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        initializer_factor=3.0,
    )
    model = transformers.T5ForConditionalGeneration(config)
    batches = [{"input_ids": tokens, "decoder_input_ids": tokens.flip(1)} for tokens in windows(4)]
    report = mpo.compress(model, 0.5, calibration=batches, refine=FAST)
    assert [block.name for block in report.refined] == ["encoder.block.0", "decoder.block.0"]
    assert all(block.after <= block.before for block in report.refined)
    assert any(block.epochs for block in report.refined)


def test_a_dry_run_refines_nothing():
    model, before = perceptron(), perceptron()
    assert mpo.compress(model, 0.5, calibration=rows(4), refine=True, dry_run=True).refined == ()
    assert same(model, before)


def cut_at(monkeypatch, number):
    """Interrupt the training of the block of this number."""
    calls, trained = [], stack_refinement.train_block

    def cut(*arguments, **named):
        calls.append(named["label"])
        if len(calls) == number:
            raise KeyboardInterrupt
        return trained(*arguments, **named)

    monkeypatch.setattr(stack_refinement, "train_block", cut)
    return calls


def test_a_refinement_goes_on_where_it_was_interrupted(monkeypatch, tmp_path):
    """Equal calls give equal bits, interrupted or not."""
    expected, model, resumed = perceptron(), perceptron(), perceptron()
    report = mpo.compress(expected, 0.5, calibration=rows(4), refine=FAST)
    with monkeypatch.context() as patch:
        cut_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            mpo.compress(model, 0.5, calibration=rows(4), refine=FAST, checkpoint=tmp_path)
    assert same(model, perceptron())
    calls = cut_at(monkeypatch, 9)
    again = mpo.compress(resumed, 0.5, calibration=rows(4), refine=FAST, checkpoint=tmp_path)
    assert calls == ["4"]
    assert same(resumed, expected)
    assert [block.after for block in again.refined] == [block.after for block in report.refined]
    with pytest.raises(CheckpointError, match="refine was"):
        mpo.compress(perceptron(), 0.5, calibration=rows(4), refine=True, checkpoint=tmp_path)


def test_a_damaged_block_is_trained_again(tmp_path):
    expected, resumed = perceptron(), perceptron()
    mpo.compress(expected, 0.5, calibration=rows(4), refine=FAST, checkpoint=tmp_path)
    for file in (tmp_path / "blocks").glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-3] ^= 4
        file.write_bytes(content)
    mpo.compress(resumed, 0.5, calibration=rows(4), refine=FAST, checkpoint=tmp_path)
    assert same(resumed, expected)


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        return self.blocks[2](self.blocks[1](x + self.blocks[0](x)))


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (perceptron(), {"calibration": rows(1)}, "got 1 batch; divide calibration= into two"),
        (perceptron(), {"calibration": None, "method": "svd"}, "refine=True needs calibration= batches"),
        (perceptron(), {"refine": 3}, "refine is True, False or"),
        (perceptron().requires_grad_(False), {}, r"call model.requires_grad_\(True\)"),
        (Skips(), {}, "refine=True needs blocks whose input is the output of the block before"),
        (nn.ModuleDict({"x": nn.Linear(16, 8)}), {}, "refine=True needs a model with its blocks in"),
        (nn.Sequential(*[nn.Linear(16, 16)] * 2), {}, "refine=True needs a separate module for each block"),
    ],
)
def test_what_cannot_be_refined_is_refused_before_any_work(monkeypatch, model, arguments, message):
    monkeypatch.setattr(
        "mpochain.compression.layer_choices.gather_every", lambda *_, **__: pytest.fail("work was done")
    )
    before = copy.deepcopy(model)
    with pytest.raises(ArgumentError, match=message):
        mpo.compress(model, 0.5, **{"calibration": rows(4), "refine": True, **arguments})
    assert same(model, before)


def test_masks_that_leave_nothing_to_hold_out_are_refused():
    batch = {"input_ids": windows(1)[0], "attention_mask": torch.ones(2, 24)}
    masked = {**batch, "attention_mask": torch.zeros(2, 24)}
    model, before = llama(), llama()
    with pytest.raises(ArgumentError, match="some to train on and some held out"):
        mpo.compress(model, 0.5, calibration=[batch, batch], held_out=[masked], method="svd", refine=True)
    assert same(model, before)
    assert not any(isinstance(module, CompressedLayer) for module in model.modules())


class TestTraining:
    def test_of_outputs_that_are_not_finite(self):
        layer = nn.Linear(2, 2)
        example = BlockExample(lambda block: block(torch.ones(3, 2)) * torch.inf, torch.ones(3, 2), None)
        with pytest.raises(NonFiniteError, match="layers.0: its outputs on held-out data"):
            train_block(layer, {}, lambda _: example, 1, lambda: iter([example]), FAST, seed=0, label="layers.0")

    def test_a_diverged_step_is_not_taken(self):
        layer = nn.Linear(2, 2).requires_grad_(False)
        before = copy.deepcopy(layer)
        good = BlockExample(lambda block: block(torch.ones(3, 2)), torch.ones(3, 2), None)
        bad = BlockExample(lambda block: block(torch.full((3, 2), torch.inf)), torch.ones(3, 2), None)
        outcome = train_block(
            layer, dict(layer.named_parameters()), lambda _: bad, 2, lambda: iter([good]), FAST, seed=0
        )
        assert outcome.epochs == 0
        assert same(layer, before)

    def test_the_error_is_relative_in_each_row_that_counts(self):
        target = torch.tensor([[3.0, 4.0], [0.0, 0.0], [100.0, 0.0], [1.0, 1.0]])
        output = target * 1.5
        kept = torch.tensor([True, False, True, False])
        assert float(relative_error(output, target, kept)) == pytest.approx(0.25)
        assert float(relative_error(output, target)) == pytest.approx(0.25 * 3 / 4)
        assert float(relative_error(output, torch.zeros_like(target))) == 0.0
        factor = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        assert float(relative_error(output, target, kept, factor)) == pytest.approx((0.36 + 1) / 2)


def test_metrics_are_the_moments_of_gradients_with_respect_to_outputs():
    model, batches = perceptron().requires_grad_(False), rows(3)

    def loss(output):
        return (output**3).sum()

    blocks = list(model)
    calls = [block_calls(model, blocks, batch) for batch in batches]
    factors = metric_factors(model, blocks, list(zip(batches, calls, strict=True)), loss)
    for number in range(len(blocks)):
        output = model[: number + 1](torch.cat(batches)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(model[number + 1 :](output)), output)
        moments = gradient.T @ gradient
        moments /= moments.diagonal().mean()
        expected = (moments + 0.1 * torch.eye(len(moments))) / 1.1
        torch.testing.assert_close(factors[number] @ factors[number].T, expected, rtol=1e-3, atol=1e-4)
    assert metric_factors(model, blocks, list(zip(batches, calls, strict=True)), lambda y: y.sum() * 0) == [None] * 5


def test_a_given_loss_decides_which_outputs_matter():
    """Only the first of eight outputs changes the loss, so that it gains more than without weights."""

    def error(gradients):
        model, fresh = perceptron(), rows(1, seed=9)[0]
        expected = model(fresh)
        mpo.compress(
            model,
            0.3,
            calibration=rows(8),
            method="svd",
            loss=lambda y: 10 * y[:, 0].sin().sum(),
            refine=Refinement(epochs=8, learning_rate=1e-2, gradients=gradients),
        )
        return float((model(fresh) - expected)[:, 0].square().mean().detach())

    assert error(True) < error(False)


def test_stacks_are_disjoint_and_in_order():
    model = nn.ModuleDict(
        {
            "first": nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)),
            "second": nn.ModuleList([nn.Identity(), nn.Linear(2, 2)]),
        }
    )
    linears = {module for module in model.modules() if isinstance(module, nn.Linear)}
    chosen = stacks(model, linears)
    assert [(stack.name, stack.first, stack.last) for stack in chosen] == [("first", 0, 2), ("second", 1, 2)]
    assert chosen[1].name_of(0) == "second.1"


@pytest.mark.parametrize("room", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_hidden_states_on_disk_equal_those_in_memory(room, dtype):
    first = [torch.arange(6).reshape(2, 3).to(dtype), torch.zeros(0, 3, dtype=dtype)]
    states = HiddenStates(first, room=room)
    assert states.on_disk is (room == 0)
    assert all(torch.equal(states[k], first[k]) for k in range(2))
    states[0] = first[0] + 1
    assert torch.equal(states[0], first[0] + 1)
    states[0] = torch.ones(4, 1)
    assert torch.equal(states[0], torch.ones(4, 1))
    states.close()
    assert len(states) == 0
