"""The layer: what it shares with nn.Linear, what it must survive, and what it must refuse."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys

import opt_einsum
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, specs
from torch import nn

from mpochain import ChainSpec, MPOChain, MPOError, MPOLinear, shapes
from mpochain.decomposition import core_std

TERMS = (shapes.low_rank(12, 10, 2), ChainSpec((3, 4), (2, 5), 3))
LAYERS = {
    "two sites": lambda **kw: MPOLinear(10, 12, out_dims=(3, 4), in_dims=(2, 5), max_bond=4, **kw),
    "three sites": lambda **kw: MPOLinear(12, 30, out_dims=(2, 3, 5), in_dims=(2, 2, 3), max_bond=3, **kw),
    "low rank": lambda **kw: MPOLinear(10, 12, spec=shapes.low_rank(12, 10, 3), **kw),
    "padded": lambda **kw: MPOLinear(11, 7, spec=ChainSpec((2, 4), (3, 4), 3, out_features=7, in_features=11), **kw),
    "two terms": lambda **kw: MPOLinear(10, 12, terms=TERMS, **kw),
    "one site": lambda **kw: MPOLinear(5, 4, spec=ChainSpec((4,), (5,)), **kw),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


class TestInitialisation:
    @pytest.mark.parametrize("sites", [1, 2, 3, 4])
    @pytest.mark.parametrize("max_bond", [2, 8, 30])
    def test_variance_is_that_of_nn_linear(self, sites, max_bond):
        torch.manual_seed(0)
        spec = ChainSpec(shapes.balanced(768, sites), shapes.balanced(512, sites), max_bond if sites > 1 else None)
        deviations = [MPOLinear(512, 768, spec=spec).weight.std().item() for _ in range(12)]
        expected = nn.Linear(512, 768).weight.std().item()
        # A chain's entries are dependent, so one draw's deviation scatters; the mean of squares does not.
        measured = math.sqrt(sum(d**2 for d in deviations) / len(deviations))
        assert measured == pytest.approx(expected, rel=0.25)

    def test_terms_share_the_variance(self):
        torch.manual_seed(0)
        terms = (shapes.low_rank(256, 256, 16), ChainSpec((16, 16), (16, 16), 8))
        deviations = [MPOLinear(256, 256, terms=terms).weight.std().item() for _ in range(8)]
        assert sum(deviations) / 8 == pytest.approx(1 / math.sqrt(3 * 256), rel=0.1)

    def test_bias_is_that_of_nn_linear(self):
        bias = MPOLinear(100, 4000, max_bond=2).bias
        assert bias.abs().max() <= 0.1
        assert bias.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)

    @given(specs(padding=False), st.floats(0.01, 2))
    def test_core_std_inverts_the_variance_of_the_product(self, spec, std):
        assert core_std(spec.bonds, std) ** (2 * spec.sites) * math.prod(spec.bonds) == pytest.approx(std**2)

    def test_the_seed_decides(self):
        torch.manual_seed(3)
        a = MPOLinear(8, 8, max_bond=2)
        torch.manual_seed(3)
        assert torch.equal(a.weight, MPOLinear(8, 8, max_bond=2).weight)


class TestFromLinear:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_full_bond_is_the_same_function(self, bias, dtype):
        dense = nn.Linear(24, 30, bias=bias, dtype=dtype)
        layer = MPOLinear.from_linear(dense)
        x = torch.randn(5, 24, dtype=dtype)
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.06}[dtype]
        torch.testing.assert_close(layer(x), dense(x), atol=tolerance, rtol=tolerance)
        assert (layer.bias is None) is not bias
        assert layer.weight.dtype == dtype

    def test_bias_is_exact_and_nothing_is_shared(self):
        dense = nn.Linear(24, 30)
        before = copy.deepcopy(dense.state_dict())
        layer = MPOLinear.from_linear(dense, max_bond=4)
        assert torch.equal(layer.bias, dense.bias)
        storages = {p.untyped_storage().data_ptr() for p in dense.parameters()}
        assert storages.isdisjoint(p.untyped_storage().data_ptr() for p in layer.parameters())
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        for name, value in dense.state_dict().items():
            assert torch.equal(value, before[name])

    def test_a_single_site_shares_nothing_either(self):
        dense = nn.Linear(4, 6)
        layer = MPOLinear.from_linear(dense, ChainSpec((6,), (4,)))
        with torch.no_grad():
            layer.cores[0][0].zero_()
        assert dense.weight.abs().sum() > 0

    def test_conv1d_of_hugging_face(self):
        from transformers.pytorch_utils import Conv1D

        conv = Conv1D(30, 24)
        nn.init.normal_(conv.bias)
        layer = MPOLinear.from_linear(conv, out_dims=(5, 6), in_dims=(4, 6))
        x = torch.randn(2, 3, 24)
        torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(layer.bias, conv.bias)

    def test_terms_and_cutoff(self):
        dense = nn.Linear(10, 12)
        two = MPOLinear.from_linear(dense, terms=TERMS)
        one = MPOLinear.from_linear(dense, TERMS[1])
        error = [(layer.weight - dense.weight).norm().item() for layer in (two, one)]
        assert error[0] < error[1]
        loose = MPOLinear.from_linear(dense, cutoff=0.3)
        assert (loose.weight - dense.weight).norm() <= 0.3001 * dense.weight.norm()
        with pytest.raises(MPOError, match="bonds of one chain"):
            MPOLinear.from_linear(dense, terms=TERMS, cutoff=0.1)

    def test_randomized(self):
        dense = nn.Linear(144, 144)
        layers = [MPOLinear.from_linear(dense, max_bond=8, method=m) for m in ("tt_svd", "randomized")]
        exact, fast = ((layer.weight - dense.weight).norm().item() for layer in layers)
        assert exact <= fast * (1 + 1e-6) <= 1.02 * exact

    def test_a_frozen_layer_stays_frozen(self):
        dense = nn.Linear(4, 6)
        dense.weight.requires_grad_(False)
        layer = MPOLinear.from_linear(dense, max_bond=2)
        assert [p.requires_grad for p in layer.parameters()] == [False, False, True]

    def test_a_prime_size_is_padded_not_blown_up(self):
        layer = MPOLinear(1009, 1013, max_bond=8)
        assert layer.spec.parameters < 40_000
        assert layer.spec.shape == (1013, 1009)
        assert "padded" in repr(layer)
        dense = nn.Linear(97, 101)
        x = torch.randn(3, 97)
        torch.testing.assert_close(MPOLinear.from_linear(dense)(x), dense(x), atol=1e-4, rtol=1e-4)

    def test_mode_dtype_and_device_are_kept(self):
        dense = nn.Linear(4, 4, dtype=torch.float64).eval()
        layer = MPOLinear.from_linear(dense)
        assert not layer.training
        assert layer.bias.dtype == torch.float64

    def test_there_and_back(self, layer):
        dense = layer.to_linear()
        x = torch.randn(4, layer.in_features)
        torch.testing.assert_close(dense(x), layer(x))
        assert torch.equal(dense.bias, layer.bias)
        assert dense.weight.data_ptr() not in {p.data_ptr() for p in layer.parameters()}

    @given(specs(max_sites=3), SEEDS)
    def test_chains_and_layers_are_the_same_matrix(self, spec, seed):
        torch.manual_seed(seed)
        layer = MPOLinear(spec.in_features, spec.out_features, spec=spec)
        (chain,) = layer.chains
        assert chain.spec == spec
        torch.testing.assert_close(chain.to_matrix(), layer.weight.detach())
        again = MPOLinear.from_chains(chain, layer.bias)
        torch.testing.assert_close(again.weight, layer.weight)


class TestAsAModule:
    def test_state_dict_is_strict_and_small(self, layer):
        other = copy.deepcopy(layer)
        for parameter in other.parameters():
            nn.init.normal_(parameter)
        other.load_state_dict(layer.state_dict(), strict=True)
        x = torch.randn(2, layer.in_features)
        torch.testing.assert_close(other(x), layer(x))
        state = layer.state_dict()
        assert sum(v.numel() for v in state.values()) == sum(s.parameters for s in layer.specs) + layer.out_features
        state.pop("bias")
        with pytest.raises(RuntimeError, match="Missing key"):
            other.load_state_dict(state)

    def test_copies_and_pickles(self, layer):
        x = torch.randn(3, layer.in_features)
        expected = layer(x)
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        copies = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False))
        for other in copies:
            torch.testing.assert_close(other(x), expected)
            assert other.specs == layer.specs
            assert {p.data_ptr() for p in other.parameters()}.isdisjoint(p.data_ptr() for p in layer.parameters())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_to_dtype(self, layer, dtype):
        x = torch.randn(3, layer.in_features)
        expected = layer(x)
        layer.to(dtype)
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)

    def test_to_device(self, layer):
        layer.to("meta")
        assert layer(torch.empty(3, layer.in_features, device="meta")).shape == (3, layer.out_features)

    def test_autocast(self, layer):
        x = torch.randn(3, layer.in_features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), layer(x), atol=0.1, rtol=0.1)

    def test_half_precision_gradients_under_autocast(self, layer):
        x = torch.randn(3, layer.in_features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x).sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())

    def test_precompile_makes_the_plans(self, layer, monkeypatch):
        assert layer.precompile((1, 3, 64)) is layer

        def fail(*args, **kwargs):
            raise AssertionError("a path was searched in forward")

        monkeypatch.setattr(opt_einsum, "contract_path", fail)
        for rows in (1, 3, 64):
            layer(torch.randn(rows, layer.in_features))
            with torch.no_grad():
                layer(torch.randn(rows, layer.in_features))
        with pytest.raises(MPOError, match="positive"):
            layer.precompile((0,))

    def test_printing(self, layer):
        assert f"{layer.in_features} -> {layer.out_features}" in repr(layer)
        assert str(layer.specs[0]) in repr(layer)

    def test_weight_norm_and_functional_call(self, layer):
        x = torch.randn(3, layer.in_features)
        doubled = {name: 2 * p if name == "core_0_0" else p for name, p in layer.named_parameters()}
        one = torch.func.functional_call(layer, doubled, x)
        (term,) = layer.chains[:1]
        torch.testing.assert_close(one, layer(x) + x @ term.to_matrix().T, atol=1e-5, rtol=1e-5)
        nn.utils.parametrizations.weight_norm(layer, "core_0_0")
        assert layer(x).shape == (3, layer.out_features)

    def test_vmap_and_jvp(self, layer):
        x = torch.randn(4, 3, layer.in_features)
        torch.testing.assert_close(torch.vmap(layer)(x), layer(x), atol=1e-5, rtol=1e-5)
        _, tangent = torch.func.jvp(layer, (x,), (x,))
        torch.testing.assert_close(tangent, layer(x) - layer(torch.zeros_like(x)), atol=1e-5, rtol=1e-5)

    def test_gradient_checkpointing(self, layer):
        x = torch.randn(3, layer.in_features, requires_grad=True)
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
        torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(3, -1), atol=1e-5, rtol=1e-5)


class TestCompilers:
    def test_compile(self, layer):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        for rows in (3, 5, 64):
            x = torch.randn(rows, 2, layer.in_features)
            torch.testing.assert_close(compiled(x), layer(x), atol=1e-5, rtol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "a new batch size must not compile again"
        x = torch.randn(7, 2, layer.in_features)
        ours = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
        theirs = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

    def test_export_keeps_the_batch_symbolic(self, layer):
        batch = torch.export.Dim.DYNAMIC
        program = torch.export.export(layer, (torch.randn(6, layer.in_features),), dynamic_shapes=({0: batch},))
        (placeholder,) = [n for n in program.graph.nodes if n.name == "input"]
        assert isinstance(placeholder.meta["val"].shape[0], torch.SymInt)
        module = program.module()
        for rows in (2, 33):
            x = torch.randn(rows, layer.in_features)
            torch.testing.assert_close(module(x), layer(x), atol=1e-5, rtol=1e-5)


class TestBadInput:
    def test_wrong_width(self, layer):
        with pytest.raises(MPOError, match=rf"got x of shape \(3, 99\); expected \(..., {layer.in_features}\)"):
            layer(torch.randn(3, 99))
        with pytest.raises(MPOError, match="MPOLinear"):
            layer(torch.tensor(1.0))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "needs max_bond="),
            ({"max_bond": 0}, "max_bond must hold positive"),
            ({"max_bond": 4, "out_dims": (3, 4)}, "out_dims= and in_dims= together"),
            (
                {"max_bond": 4, "out_dims": (3, 5), "in_dims": (2, 5)},
                r"make a \(15, 10\) matrix, but the layer is 10 -> 12",
            ),
            ({"max_bond": 4, "spec": TERMS[0]}, "give one of"),
            ({"terms": ()}, "at least one"),
            ({"terms": (3,)}, "expected a ChainSpec, got int"),
            ({"spec": "2x2"}, "expected a ChainSpec, got str"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(MPOError, match=message):
            MPOLinear(10, 12, **arguments)

    def test_bonds_are_clipped_and_it_shows(self):
        layer = MPOLinear(16, 16, max_bond=500)
        assert layer.spec.bonds == (16,)
        assert "clipped from (500)" in repr(layer)

    def test_from_linear(self):
        with pytest.raises(MPOError, match="blocks.2.w: expected torch.nn.Linear or Hugging Face Conv1D, got ReLU"):
            MPOLinear.from_linear(nn.ReLU(), name="blocks.2.w")
        spoiled = nn.Linear(4, 4)
        with torch.no_grad():
            spoiled.weight[0, 0] = float("nan")
            spoiled.weight[1, 0] = float("inf")
        with pytest.raises(MPOError, match="the weight of blocks.2.w .* 1 NaN and 1 infinite"):
            MPOLinear.from_linear(spoiled, name="blocks.2.w")
        quantised = nn.Linear(4, 4)
        quantised.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
        with pytest.raises(MPOError, match="element type torch.int8, expected one of float32"):
            MPOLinear.from_linear(quantised)

    def test_a_layer_with_a_forward_of_its_own_is_not_converted(self):
        class Scaled(nn.Linear):
            def forward(self, x):
                return 10 * super().forward(x)

        with pytest.raises(MPOError, match="Scaled has its own forward"):
            MPOLinear.from_linear(Scaled(4, 4))
        parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        x = torch.randn(2, 4)
        torch.testing.assert_close(MPOLinear.from_linear(parametrised)(x), parametrised(x), atol=1e-5, rtol=1e-5)

    def test_weights_without_numbers(self):
        for empty in (nn.LazyLinear(4), nn.Linear(4, 4, device="meta")):
            with pytest.raises(MPOError, match="has no values yet"):
                MPOLinear.from_linear(empty)

    def test_sites_beside_dims(self):
        for contradiction in ({"out_dims": (3, 4), "in_dims": (2, 5), "sites": 2}, {"spec": TERMS[0], "sites": 3}):
            with pytest.raises(MPOError, match="sites="):
                MPOLinear(10, 12, **contradiction)
        with pytest.raises(MPOError, match="in_features must be a positive integer, got -3"):
            MPOLinear(-3, 4, max_bond=2)

    def test_spec_of_a_sum(self):
        with pytest.raises(MPOError, match="sum of 2 chains"):
            _ = LAYERS["two terms"]().spec

    def test_from_chains(self):
        chain = MPOLinear(4, 4, max_bond=2).chains[0]
        with pytest.raises(MPOError, match=r"the bias must have shape \(4,\)"):
            MPOLinear.from_chains(chain, torch.zeros(5))
        with pytest.raises(MPOError, match="at least one chain"):
            MPOLinear.from_chains(())
        with pytest.raises(MPOError, match="chains of torch tensors"):
            MPOLinear.from_chains(MPOChain(tuple(core.numpy() for core in chain.cores)))


def test_a_layer_unpickled_in_a_new_process_works(tmp_path):
    layer = LAYERS["three sites"]()
    torch.save(layer, tmp_path / "layer.pt")
    code = (
        "import torch, sys\n"
        f"layer = torch.load({str(tmp_path / 'layer.pt')!r}, weights_only=False)\n"
        "print(tuple(layer(torch.ones(2, 12)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 30)"


@settings(max_examples=15)
@given(specs(max_sites=3, max_entries=400), SEEDS)
def test_gradcheck(spec, seed):
    torch.manual_seed(seed)
    layer = MPOLinear(spec.in_features, spec.out_features, spec=spec, dtype=torch.float64)
    x = torch.randn(3, spec.in_features, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(dict(layer.named_parameters()), values, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)
