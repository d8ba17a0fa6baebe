"""Whole models: what is chosen, what is measured, what is put in place."""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import METHODS, Curve, Target, allocate, collect_moments, select
from mpochain.compression.budget import parameter_budget
from mpochain.compression.methods import Search
from mpochain.compression.statistics.moments import Moments, moment_bytes
from mpochain.compression.statistics.sampled_loss import SampledLoss
from mpochain.compression.targets import dense_layers
from mpochain.decomposition import weighted_low_rank

# Those for embeddings alone have tests of their own.
LINEAR = [name for name, method in METHODS.items() if method.linear]


class Net(nn.Module):
    """Two layers with the same input, one after them, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 12)
        nn.init.normal_(self.embedding.weight, std=0.5)  # so that its predictions are far from certain
        self.left, self.right = nn.Linear(12, 20), nn.Linear(12, 20, bias=False)
        self.down = nn.Linear(20, 12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + self.down(torch.relu(self.left(x)) * self.right(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(11, (4, 9), generator=generator) for _ in range(3)]


@st.composite
def curves(draw):
    size = draw(st.integers(1, 5))
    costs = draw(st.lists(st.integers(0, 20), min_size=size, max_size=size))
    errors = draw(st.lists(st.floats(0, 100), min_size=size, max_size=size))
    return Curve(np.array(costs), np.array(errors))


class TestAllocation:
    @given(st.lists(curves(), min_size=1, max_size=4), st.integers(0, 80))
    def test_within_the_budget_and_best_for_what_it_costs(self, given_curves, budget):
        named = {str(k): curve for k, curve in enumerate(given_curves)}
        if sum(curve.costs.min() for curve in given_curves) > budget:
            with pytest.raises(MPOError, match="more than the budget"):
                allocate(named, budget)
            return
        chosen = allocate(named, budget)

        def total(values, choices):
            return sum(getattr(curve, values)[k] for curve, k in zip(given_curves, choices, strict=True))

        mine = [chosen[str(k)] for k in range(len(given_curves))]
        assert total("costs", mine) <= budget
        every = list(itertools.product(*(range(len(curve.costs)) for curve in given_curves)))
        best = min(total("errors", each) for each in every if total("costs", each) <= budget)
        # By how much the best of all may be better: one layer's largest step, the gap of Lagrange's choices.
        step = max(float(curve.errors.max() - curve.errors.min()) for curve in given_curves)
        assert total("errors", mine) <= best + step + 1e-9

    @given(st.lists(curves(), min_size=1, max_size=4), st.integers(0, 80))
    def test_nothing_that_still_fits_would_help(self, given_curves, budget):
        named = {str(k): curve for k, curve in enumerate(given_curves)}
        if sum(curve.costs.min() for curve in given_curves) > budget:
            return
        chosen = allocate(named, budget)
        left = budget - sum(curve.costs[chosen[name]] for name, curve in named.items())
        for name, curve in named.items():
            more = curve.costs - curve.costs[chosen[name]]
            assert not ((more <= left) & (more > 0) & (curve.errors < curve.errors[chosen[name]])).any()

    def test_wrong_curves(self):
        with pytest.raises(MPOError, match="as many costs as errors"):
            Curve(np.array([1, 2]), np.array([1.0]))
        with pytest.raises(MPOError, match="finite and not negative"):
            Curve(np.array([1]), np.array([np.nan]))
        with pytest.raises(MPOError, match="no layer"):
            allocate({}, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_sampled_loss_is_cross_entropy_to_labels_it_draws(dtype):
    logits = torch.randn(2, 5, 7, dtype=dtype, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    flat = logits.detach().reshape(-1, 7).float()
    drawn = torch.multinomial(flat.softmax(-1), 1, generator=torch.Generator().manual_seed(4)).squeeze(1)
    leaf = flat.clone().requires_grad_()
    expected = nn.functional.cross_entropy(leaf, drawn, reduction="sum")
    (2 * expected).backward()
    found = SampledLoss(4)(logits)
    (2 * found).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        logits.grad.reshape(-1, 7).float(), leaf.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5
    )


class TestTargets:
    def test_names_patterns_and_classes(self, net):
        assert list(select(net, ["down", "left"])) == ["left", "down"]
        assert list(select(net, [r"re:(le|ri).*"])) == ["left", "right"]
        assert list(select(net, ["Linear"], ignore=["right", "re:he.*"])) == ["left", "down"]
        assert list(select(nn.ModuleDict({"a": net}), ["Linear"], ignore=["a"])) == []

    def test_tied_heads_are_left_out_unless_named(self, net):
        assert list(dense_layers(net)) == ["left", "right", "down"]
        assert "head" in select(net, ["head"])

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            (["lefft"], "'lefft' matches no layer; the nearest names are left"),
            (["re:("], "is not a regular expression"),
            (["re:nothing.*"], "matches no layer"),
            (["embedding"], "'embedding' is a Embedding, which cannot be compressed"),
            ([3], "must hold names"),
        ],
    )
    def test_patterns_that_cannot_be_meant(self, net, targets, message):
        with pytest.raises(MPOError, match=message):
            select(net, targets)
        if targets != ["embedding"]:
            with pytest.raises(MPOError, match=message):
                select(net, ["Linear"], ignore=targets)


def opened(net):
    return {name: Target.open(name, layer) for name, layer in dense_layers(net).items()}


class TestBudget:
    @pytest.mark.parametrize("budget", [0, -0.5, 1.5, True, "lots", "120%", "5 apples", "x% error", None, float("nan")])
    def test_budgets_that_are_none(self, net, budget):
        with pytest.raises(MPOError, match="budget"):
            parameter_budget(budget, opened(net))

    def test_bytes_need_one_size(self, net):
        net.down.half()
        with pytest.raises(MPOError, match="one element size"):
            parameter_budget("1MB", opened(net))
        assert parameter_budget("1kB", {"left": Target.open("left", net.left)}) == 250
        assert parameter_budget("1KiB", {"down": Target.open("down", net.down)}) == 512


class TestMoments:
    def test_they_are_the_moments(self, net, batches):
        layers = dense_layers(net)
        found = collect_moments(net, layers, batches, loss=SampledLoss(3))
        x = net.embedding(torch.cat(batches)).detach().reshape(-1, 12)
        torch.testing.assert_close(found["left"].activations, x.T @ x / len(x))
        assert found["left"].activations is found["right"].activations, "the same input is kept once"
        assert found["left"].rows == 3 * 4 * 9
        assert found["left"].input_power == pytest.approx(float(x.square().mean()), rel=1e-5)

        loss, outputs, gradients, below = SampledLoss(3), [], [], []
        for batch in batches:
            read = net.embedding(batch).detach()
            left = net.left(read).detach().requires_grad_()
            y = net.down(torch.relu(left) * net.right(read))
            y.retain_grad()
            loss(net.head(read + y)).backward()
            outputs.append((y.detach() - net.down.bias).reshape(-1, 12))
            gradients.append(y.grad.reshape(-1, 12))
            below.append(left.grad.reshape(-1, 20) @ net.left.weight.detach())
        for name, kind, rows in (
            ("down", "activations", outputs),
            ("down", "gradients", gradients),
            ("left", "gradients", below),
        ):
            rows = torch.cat(rows)
            torch.testing.assert_close(getattr(found[name], kind), rows.T @ rows / len(rows), rtol=1e-3, atol=1e-6)
        power = float(torch.cat(gradients).square().mean())
        assert found["down"].gradient_power == pytest.approx(power, rel=1e-4)

    def test_inputs_of_layers_whose_outputs_would_be_enough(self, net, batches):
        layers = dense_layers(net)
        found = collect_moments(net, layers, batches, loss=SampledLoss(3))
        more = collect_moments(net, layers, batches, loss=SampledLoss(3), inputs=["down"])
        with torch.no_grad():
            x = net.embedding(torch.cat(batches))
            x = (torch.relu(net.left(x)) * net.right(x)).reshape(-1, 20)
        torch.testing.assert_close(more["down"].inputs, x.T @ x / len(x))
        assert found["down"].inputs is None
        for name in layers:
            torch.testing.assert_close(more[name].activations, found[name].activations)
            torch.testing.assert_close(more[name].gradients, found[name].gradients)
        assert moment_bytes(layers, gradients=True, inputs=["down"]) == 4 * (4 * 12**2 + 12**2 + 20**2)

    def test_blocks_that_are_computed_twice_are_counted_once(self, monkeypatch):
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=24, n_layer=3, n_head=2)
        model = transformers.GPT2LMHeadModel(config).eval()
        batches = [torch.randint(40, (2, 16)) for _ in range(2)]
        layers = dense_layers(model)
        blocks = [
            block for block in model.modules() if isinstance(block, transformers.models.gpt2.modeling_gpt2.GPT2Block)
        ]
        calls = []
        blocks[0].attn.c_attn.register_forward_pre_hook(lambda *_: calls.append(1))
        found = collect_moments(model, layers, batches, loss=SampledLoss(0))
        assert len(calls) == 4, "once forward and once more for the gradients of each batch"
        assert all("forward" not in vars(block) for block in blocks)
        assert model.config.use_cache
        monkeypatch.setattr("mpochain.compression.statistics.recompute.is_block", lambda *_: False)
        expected = collect_moments(model, layers, batches, loss=SampledLoss(0))
        assert len(calls) == 6
        for name in layers:
            assert found[name].rows == expected[name].rows == 64
            torch.testing.assert_close(found[name].activations, expected[name].activations)
            torch.testing.assert_close(found[name].gradients, expected[name].gradients)

    def test_the_model_stays_as_it_was(self, net, batches):
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

    def test_nan_names_the_layer(self, net, batches):
        with torch.no_grad():
            net.left.weight[0, 0] = float("nan")
        with pytest.raises(MPOError, match="batch 1: the inputs of down hold NaN"):
            collect_moments(net, dense_layers(net), batches)

    @pytest.mark.parametrize("method", ["interpolative", "svd_llm", "tt_svd"])
    def test_a_weight_of_nan_is_named(self, method, net, batches):
        with torch.no_grad():
            net.left.weight[0, 0] = float("nan")
        data = None if method == "tt_svd" else batches
        with pytest.raises(MPOError, match="left: the weight has NaN"):
            mpo.compress(net, 0.5, calibration=data, method=method)

    def test_the_error_that_a_budget_bounds_is_reported(self, net, batches):
        report = mpo.compress(net, "20% error", calibration=batches, dry_run=True)
        assert 0 < report.largest_error <= 0.2
        assert f"which the budget bounds: at most {report.largest_error:.4f}" in report.table()
        plain = mpo.compress(net, "70% error", method="svd")
        assert plain.largest_error == pytest.approx(max(layer.weight_error for layer in plain.layers))
        assert mpo.compress(nn.Sequential(nn.Linear(8, 8)), 0.5, method="svd").largest_error is None

    @pytest.mark.parametrize(
        ("model", "method", "reason"),
        [
            (nn.Linear(4, 4), "svd", "the model is itself a Linear"),
            (nn.Sequential(nn.Embedding(9, 4, max_norm=1.0)), "svd", "0: max_norm="),
            (nn.Sequential(mpo.MPOLinear(4, 4, max_bond=1)), "svd", "its layers are compressed already"),
            (nn.ModuleList([nn.Sequential(nn.Linear(4, 4))] * 2).append(nn.Embedding(4, 4)), "svd", None),
        ],
    )
    def test_why_there_is_nothing_to_compress(self, model, method, reason):
        if reason is None:
            model[2].weight = model[0][0].weight
            reason = "layers that are ignored or share their weight"
        targets = ["Embedding"] if "max_norm" in reason else None
        with pytest.raises(MPOError, match=f"there is no layer left to compress.*{reason}"):
            mpo.compress(model, 0.5, method=method, targets=targets)

    @pytest.mark.parametrize(
        "register",
        ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
    )
    def test_hooks_are_not_lost(self, register, net):
        handle = getattr(net.left, register)(lambda *_: None)
        with pytest.raises(MPOError, match="left has hooks, which would be lost"):
            mpo.compress(net, 0.5, method="svd")
        mpo.compress(net, 0.5, method="svd", ignore=["left"])
        handle.remove()
        mpo.compress(net, 0.5, method="svd")

    @pytest.mark.parametrize(("method", "kept"), [("tt_svd", False), ("svd", True)])
    def test_a_row_of_padding_that_is_no_more_zero_is_told(self, method, kept):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(40, 16, padding_idx=3), nn.Linear(16, 4))
        report = mpo.compress(model, 0.5, method=method, targets=["Embedding"])
        norm = model[0](torch.tensor([3])).norm().item()
        assert (norm == 0) is kept
        assert report.layers[0].padding == (None if kept else pytest.approx(norm))
        assert ("padding of 0: its row was zero" in report.table()) is not kept

    def test_data_of_nan_is_named(self):
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
        with pytest.raises(MPOError, match="batch 2: the inputs of 0 hold NaN"):
            mpo.compress(model, 0.5, calibration=[torch.ones(9, 12), torch.full((9, 12), float("nan"))])

    def test_a_model_that_predicts_nan_after_its_layers(self, net, batches):
        class Broken(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x):
                return self.net(x) * float("nan")

        with pytest.raises(MPOError, match="the model predicts NaN"):
            mpo.compress(Broken(), 0.5, calibration=batches)

    def test_layers_that_no_gradient_reaches(self, net, batches):
        with pytest.raises(MPOError, match="no gradient of the loss reached left"):
            collect_moments(net, dense_layers(net), batches, loss=lambda y: y.detach().requires_grad_().sum())

    def test_layers_that_no_batch_reaches(self, net, batches):
        with pytest.raises(MPOError, match="no calibration batch reached spare"):
            collect_moments(net, {"spare": nn.Linear(2, 2)}, batches)
        with pytest.raises(MPOError, match="at least one batch"):
            collect_moments(net, dense_layers(net), [])
        with pytest.raises(MPOError, match="a calibration batch is a tensor"):
            collect_moments(net, dense_layers(net), ["text"])


def outputs(model, batches):
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def divergence(model, other, batches):
    """Of the predictions of another model from those of the first: nats per token."""
    before, after = (outputs(each, batches).log_softmax(-1) for each in (model, other))
    return float((before.exp() * (before - after)).sum(-1).mean())


class TestCompress:
    @pytest.mark.parametrize("method", LINEAR)
    @pytest.mark.parametrize("budget", [0.8, 0.5])
    def test_the_budget_is_kept_and_the_records_are_true(self, net, batches, method, budget):
        weights = {name: layer.weight.detach().double() for name, layer in dense_layers(net).items()}
        with torch.no_grad():
            x = net.embedding(torch.cat(batches)).reshape(-1, 12)
            rows = {"left": x, "right": x, "down": torch.relu(net.left(x)) * net.right(x)}
        report = mpo.compress(net, budget, calibration=batches, method=method)
        assert [record.name for record in report.layers] == ["left", "right", "down"]
        assert report.parameters_before == 720
        assert report.parameters_after <= budget * 720
        assert sum(record.bytes_after for record in report.layers) <= budget * 720 * 4
        for record in report.layers:
            layer = net.get_submodule(record.name)
            dense = isinstance(layer, nn.Linear)
            assert dense is (record.form == "dense")
            if dense:
                continue
            own = sum(p.numel() for name, p in layer.named_parameters() if "bias" not in name)
            assert record.parameters_after == own
            assert record.parameters_after < record.parameters_before
            W = weights[record.name]
            difference = W - layer.weight.detach().double()
            assert record.weight_error == pytest.approx(float(difference.norm() / W.norm()), rel=1e-5)
            if method in ("svd_llm", "interpolative", "search"):
                seen = rows[record.name].double()
                error = float((seen @ difference.T).norm() / (seen @ W.T).norm())
                assert record.output_error == pytest.approx(error, rel=1e-3)
        assert torch.isfinite(outputs(net, batches)).all()
        assert json.loads(json.dumps(report.as_dict()))["parameters_after"] == report.parameters_after

    def test_the_default_is_nearer_than_what_was_published(self, net, batches):
        lost = {}
        for method in LINEAR:
            model = Net()
            model.load_state_dict(net.state_dict())
            mpo.compress(model, 0.6, calibration=batches, method=method)
            lost[method] = divergence(net, model, batches)
        assert lost["interpolative"] < lost["svd_llm"] < lost["svd"]

    def test_the_predicted_increase_is_that_of_the_loss(self, net, batches):
        """To second order, by the Kronecker-factored moments: within a factor of three for a small change."""
        report = mpo.compress(net, 0.9, calibration=batches, dry_run=True)
        (changed, *_) = [record for record in report.layers if record.form != "dense"]
        model = Net()
        model.load_state_dict(net.state_dict())
        mpo.compress(model, 0.9, calibration=batches, targets=[record.name for record in report.layers])
        predicted = sum(record.loss_increase for record in report.layers)
        assert changed.loss_increase > 0
        assert predicted / 3 < divergence(net, model, batches) < predicted * 3

    def test_a_dry_run_changes_nothing(self, net, batches):
        before = repr(net)
        dry = mpo.compress(net, 0.5, calibration=batches, dry_run=True)
        assert repr(net) == before
        assert dry.layers == mpo.compress(net, 0.5, calibration=batches).layers
        assert repr(net) != before

    @pytest.mark.parametrize("method", sorted(LINEAR))
    def test_an_error_that_each_layer_may_have(self, net, batches, method):
        reports = []
        # The orders of rows and columns are a seventh of these small layers, so a permuted sum saves nothing at 40 %.
        for error in (60 if "permuted" in method else 40, 10):
            torch.manual_seed(0)
            model = Net()
            reports.append(mpo.compress(model, f"{error}% error", calibration=batches, method=method))
            for layer in reports[-1].layers:
                if method in ("svd", "tt_svd", "kronecker", "permuted_kronecker"):
                    assert layer.weight_error <= error / 100 + 1e-6
                elif method == "svd_llm":
                    assert layer.output_error <= error / 100 + 1e-3
        assert reports[0].parameters_after < reports[1].parameters_after <= reports[1].parameters_before
        assert any(layer.form != "dense" for layer in reports[0].layers)

    def test_layers_that_become_slower_are_flagged(self):
        model = nn.Sequential(nn.Linear(64, 64))
        report = mpo.compress(model, 0.99, method="tt_svd")
        assert report.layers[0].macs_after > report.layers[0].macs_before
        assert "more multiply-adds than dense: 1 layers, 0 among them" in report.table()

    def test_the_whole_budget_leaves_all_dense(self, net, batches):
        report = mpo.compress(net, 1.0, calibration=batches)
        assert {record.form for record in report.layers} == {"dense"}
        assert type(net.left) is nn.Linear

    def test_the_table_says_what_was_left_out(self, net, batches):
        table = mpo.compress(net, "60%", calibration=batches, ignore=["right"]).table()
        assert "not looked at: right, 240 parameters" in table
        assert "not looked at: embedding, 132 parameters" in table
        assert "2 layers, " in table

    def test_a_layer_in_two_places_stays_one(self, batches):
        torch.manual_seed(0)
        shared = nn.Linear(12, 12)
        model = nn.Sequential(nn.Embedding(11, 12), shared, nn.ReLU(), shared, nn.Linear(12, 11))
        mpo.compress(model, 0.5, calibration=batches)
        assert model[1] is model[3] is not shared
        assert mpo.set_execution(model) == 2

    def test_frozen_and_evaluating_layers_stay_so(self, net, batches):
        net.left.requires_grad_(False)
        net.down.eval()
        mpo.compress(net, 0.4, calibration=batches, method="svd")
        assert not any(p.requires_grad for p in net.left.parameters())
        assert not net.down.training
        assert net.right.training

    def test_small_parts_of_the_statistics_at_a_time(self, net, batches, monkeypatch, tmp_path):
        from mpochain.compression.statistics import passes

        other = Net()
        other.load_state_dict(net.state_dict())
        report = mpo.compress(net, 0.5, calibration=batches)
        monkeypatch.setattr(passes, "_SHARE", 0.0)
        monkeypatch.setattr(passes, "_LEAST_BYTES", 1)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        said: list[int] = []
        with pytest.warns(DeprecationWarning, match="logging"):
            parts = mpo.compress(
                other, 0.5, calibration=batches, log=lambda _: said.append(len(list(tmp_path.glob("*/*"))))
            )
        assert len(said) == len(report.layers) + 1
        assert said[-1] == len(report.layers)  # the moments of each layer waited on the disk
        assert not list(tmp_path.iterdir())
        assert [record.form for record in parts.layers] == [record.form for record in report.layers]
        for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "magic"}, "there is no method 'magic'; there are interpolative"),
            ({"calibration": None}, "needs calibration= batches"),
            ({"calibration": iter([])}, "an iterator only once"),
            ({"calibration": torch.zeros(2, 2)}, "put it into a list"),
            ({"budget": 0.001}, "cost"),
            ({"budget": "120% error"}, "over 0 and under 100 percent"),
            ({"ignore": ["Linear"]}, "no layer left"),
            ({"method": "svd", "budget": 0.01}, "cannot be made as small as"),
        ],
    )
    def test_what_cannot_be_done(self, net, batches, arguments, message):
        with pytest.raises(MPOError, match=message):
            mpo.compress(net, **{"budget": 0.5, "calibration": batches, **arguments})

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_other_element_types(self, batches, dtype):
        torch.manual_seed(0)
        model = Net().to(dtype)
        report = mpo.compress(model, 0.6, calibration=batches)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert sum(record.bytes_after for record in report.layers) <= 0.6 * 720 * dtype.itemsize


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
        from mpochain.compression.statistics.low_rank import errors_between

        target, moments = self.layer(12, 24, 0)
        with pytest.raises(MPOError, match="of the smaller side alone"):
            errors_between(target.weight, replace(moments, inputs=None), target.weight)


def test_a_hugging_face_model():
    """GPT-2: Conv1D layers, one for q, k and v together, and a tied head."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=24, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    batches = [{"input_ids": torch.randint(50, (2, 16))} for _ in range(2)]
    before = model(**batches[0]).logits
    report = mpo.compress(model, 0.7, calibration=batches)
    assert [record.name.split(".")[-1] for record in report.layers] == ["c_attn", "c_proj", "c_fc", "c_proj"] * 2
    assert report.layers[0].shape == (72, 24)
    assert model.lm_head.weight is model.transformer.wte.weight, "the tie is kept"
    after = model(**batches[0]).logits
    assert after.shape == before.shape
    assert not torch.equal(after, before)
    assert model.generate(torch.zeros(1, 1, dtype=torch.long), max_new_tokens=3, do_sample=False).shape == (1, 4)
