"""The contract of compressed layers: each of them is its dense form, however it is run, copied, edited or stored."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from contextlib import nullcontext

import pytest
import torch
from layers import NAMES, first_of_each_kind, first_trained, inputs_of, layer_named
from torch import nn

import mpochain as mpo
from mpochain.errors import ArgumentError, MPOError
from mpochain.nn import LAYERS, CompressedLayer
from mpochain.nn.kinds import layer_of
from mpochain.surgery.half_precision import in_float32

LEADS = {"row": (1,), "rows": (6,), "many rows": (130,), "none": (0,), "axes": (2, 1, 3), "scalar": ()}


@pytest.fixture(params=NAMES)
def layer(request):
    return layer_named(request.param)


def is_embedding(layer):
    return hasattr(layer, "num_embeddings")


def codes_of(layer):
    """Every quantised matrix of a layer."""
    codes = getattr(layer, "table", layer)
    codes = codes.codes() if hasattr(codes, "codes") else {}
    return list(codes.values()) if isinstance(codes, dict) else [codes]


def dense_output(layer, x):
    """By definition, from the dense matrix alone."""
    if is_embedding(layer):
        return nn.functional.embedding(x, layer.weight)
    return nn.functional.linear(x, layer.weight, layer.bias)


def test_every_kind_is_under_contract():
    assert {layer_named(name).kind for name in NAMES} == set(LAYERS)
    assert all(isinstance(layer_named(name), LAYERS[layer_named(name).kind]) for name in NAMES)


@pytest.mark.parametrize("lead", LEADS.values(), ids=LEADS)
@pytest.mark.parametrize("cache", [False, True])
def test_values_and_gradients_are_those_of_the_dense_form(layer, lead, cache):
    layer.set_execution(cache=cache)
    assert layer.cache is cache
    x = inputs_of(layer, lead)
    wanted = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    if not is_embedding(layer):
        wanted.append(x.requires_grad_())
    y, expected = layer(x), dense_output(layer, x)
    assert y.shape == (*lead, layer.in_features if is_embedding(layer) else layer.out_features)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = torch.autograd.grad((y * probe).sum(), wanted, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad((expected * probe).sum(), wanted, allow_unused=True, materialize_grads=True)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for _ in range(2):  # the second call may use what the first one kept
            torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)


def test_inputs_that_are_not_contiguous(layer):
    x = inputs_of(layer, (4, 6))
    views = [x.transpose(0, 1), x[:, ::2], x.flip(0), x[:1].expand(3, *x.shape[1:])]
    for view in views:
        torch.testing.assert_close(layer(view), dense_output(layer, view), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_narrower_types(layer, dtype, tolerance):
    expected = dense_output(layer, inputs_of(layer, (6,)))
    layer = layer.to(dtype)
    y = layer(inputs_of(layer, (6,), dtype))
    assert y.dtype == layer.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_a_conversion_there_and_back_drops_what_is_cached(layer):
    """It may leave tensors at their addresses with their versions, as this change of numbers does."""
    layer.set_execution(cache=True, autotune=False)
    x = inputs_of(layer, (6,))
    with torch.no_grad():
        for _ in range(3):
            before = layer(x)
        for tensor in [*layer.parameters(), *layer.buffers()]:
            if tensor.is_floating_point():
                tensor.data.mul_(2)
        layer.to("cpu")
        after = layer(x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, dense_output(layer, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", [False, True])
def test_autocast_gives_the_type_of_the_dense_form(layer, cache):
    layer = layer.float().set_execution(cache=cache)
    x = inputs_of(layer, (70,), torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), layer.to_dense()(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y.float(), expected.float(), rtol=0.1, atol=0.1 * expected.abs().max().item())
    with torch.no_grad():
        # What autocast computes in a narrower type is not kept for calls without it.
        torch.testing.assert_close(layer(x), dense_output(layer, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "cache"),
    # Whether a cached matrix is left out is decided by the kind, and compiling takes longer than all other tests.
    [(name, False) for name in NAMES] + [(name, True) for name in first_of_each_kind()],
    indirect=["layer"],
)
@pytest.mark.runs_in("torch.compile", "one graph, compact and cached", "every form")
def test_compiled_whole_it_is_the_same(layer, cache):
    torch._dynamo.reset()
    layer.set_execution(cache=cache)
    x = inputs_of(layer, (70,))
    with torch.no_grad() if cache else nullcontext():
        layer(x)  # a cached matrix is not part of the graph
        # The eager backend shows whether it is one graph; the other one, whether that can be differentiated.
        compiled = torch.compile(layer, fullgraph=True, backend="eager" if cache else "aot_eager")
        torch.testing.assert_close(compiled(x), dense_output(layer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cache", [False, True])
def test_traced_it_is_the_same_for_any_batch(layer, cache):
    layer.set_execution(cache=cache)
    with torch.no_grad():
        layer(inputs_of(layer, (70,)))
        traced = torch.jit.trace(nn.Sequential(layer), inputs_of(layer, (70,)), check_trace=False)
        for rows in (3, 70):
            x = inputs_of(layer, (rows,))
            torch.testing.assert_close(traced(x), dense_output(layer, x), rtol=1e-9, atol=1e-9)
        # The parameters are inputs of the graph, not constants.
        first_trained(layer).mul_(2)
        torch.testing.assert_close(traced(x), dense_output(layer, x), rtol=1e-9, atol=1e-9)


def test_it_is_one_call_in_a_graph_of_fx(layer):
    graph = torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = inputs_of(layer, (6,))
    torch.testing.assert_close(graph(x), layer(x).relu(), rtol=0, atol=0)
    with pytest.raises(ArgumentError, match=r"cannot be the traced model itself.*nn\.Sequential"):
        torch.fx.symbolic_trace(layer)


@pytest.mark.parametrize("cache", [False, True])
def test_mapped_over_batches_and_over_parameters_it_is_the_same(layer, cache):
    layer.set_execution(cache=cache)
    x = inputs_of(layer, (2, 6))
    with torch.no_grad():
        y = torch.func.vmap(layer)(x)
        torch.testing.assert_close(y, dense_output(layer, x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer(x), y, rtol=1e-9, atol=1e-9)  # nothing batched was kept
        other = copy.deepcopy(layer)
        first_trained(other).mul_(2)
        parameters, buffers = torch.func.stack_module_state([layer, other])

        def call(parameters, buffers, x):
            return torch.func.functional_call(layer, (parameters, buffers), (x,))

        ys = torch.func.vmap(call)(parameters, buffers, x)
        expected = torch.stack([dense_output(each, row) for each, row in zip((layer, other), x, strict=True)])
        torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-9)


def test_it_can_be_inspected(layer):
    assert list(inspect.signature(layer.forward).parameters) == ["input"]
    members = dict(inspect.getmembers(layer))
    assert members["in_features"] == layer.in_features


def test_exported_it_is_the_same_for_any_batch(layer):
    exported = torch.export.export(
        layer, (inputs_of(layer, (6,)),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module()
    for rows in (3, 70):
        x = inputs_of(layer, (rows,))
        torch.testing.assert_close(exported(x), dense_output(layer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_equal_and_apart(layer, copied):
    layer.set_execution(cache=True)
    x = inputs_of(layer, (5,))
    with torch.no_grad():
        y = layer(x)
        other = copied(layer)
        assert other.cache
        torch.testing.assert_close(other(x), y, rtol=0, atol=1e-12)
        for parameter in other.parameters():
            parameter.zero_()
        torch.testing.assert_close(layer(x), y, rtol=0, atol=1e-12)
        torch.testing.assert_close(other(x), dense_output(other, x))


def test_saved_by_torch_it_is_the_same(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = type(layer).from_entry(layer.entry()).to(layer.dtype).to_empty(device="cpu")
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.weight, layer.weight, rtol=0, atol=0)


def edits(layer):
    """Ways in which parameters change, each of which a kept matrix must notice."""
    parameter = first_trained(layer)

    def in_place():
        with torch.no_grad():
            parameter.mul_(1.5)

    def state_dict():
        layer.load_state_dict(
            {name: value * 0.5 for name, value in layer.state_dict().items() if value.is_floating_point()}, strict=False
        )

    def optimizer_step():
        with in_float32(layer):  # as the training loop does; AdamW divides by zero in float16
            optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
            with torch.enable_grad():
                layer(inputs_of(layer, (4,))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def replaced():
        for module in layer.modules():
            for name, value in list(module._parameters.items()):
                if value is parameter:
                    setattr(module, name, nn.Parameter(value.detach() + 0.25))

    return {"in place": in_place, "state dict": state_dict, "optimiser": optimizer_step, "replaced": replaced}


@pytest.mark.parametrize("edit", ["in place", "state dict", "optimiser", "replaced"])
def test_edits_are_seen(layer, edit):
    layer.set_execution(cache=True)
    x = inputs_of(layer, (5,))
    with torch.no_grad():
        before = layer(x)
        layer(x)
        edits(layer)[edit]()
        after, expected = layer(x), dense_output(layer, x)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before, after)


def test_the_entry_builds_the_layer_again_on_the_meta_device(layer):
    data = layer.entry().model_dump(mode="json")
    other = layer_of(data, layer.shape, "it")
    assert type(other) is type(layer)
    assert all(tensor.device.type == "meta" for tensor in other.state_dict().values())
    assert other.entry() == layer.entry()
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (layer, other)]
    assert shapes[0] == shapes[1]
    assert (other.bias is None) == (layer.bias is None)
    assert other.numbers().parameters == layer.numbers().parameters
    assert other.form() == layer.form()


def hostile(data):
    """The entry with one thing wrong, in every way."""
    yield "extra", {**data, "surprise": 1}
    yield "kind", {**data, "kind": "magic"}
    yield "missing", dict(list(data.items())[:-1])
    for key, value in data.items():
        if isinstance(value, bool):
            yield key, {**data, key: "perhaps"}
        elif isinstance(value, int):
            for wrong in (0 if key != "padding" else -1, -1, 1 << 40, 1.5, "7", True):
                yield key, {**data, key: wrong}
        elif isinstance(value, list) and value and isinstance(value[0], int):
            for wrong in ([], [0] * len(value), [1 << 40] * len(value), value * 20, "ab"):
                yield key, {**data, key: wrong}
        elif isinstance(value, dict):
            for _, inner in hostile(value):
                yield key, {**data, key: inner}
        elif isinstance(value, list):
            yield key, {**data, key: []}
            yield key, {**data, key: value * 20}
            for _, inner in hostile(value[0]):
                yield key, {**data, key: [inner, *value[1:]]}


def test_hostile_entries_are_refused_and_named(layer):
    data = layer.entry().model_dump(mode="json")
    for _, wrong in hostile(data):
        # A field may also be valid by itself and describe a layer of another shape.
        with pytest.raises(ArgumentError, match="^it"):
            layer_of(wrong, layer.shape, "it")
    for nonsense in (None, 7, [], "chains", {}):
        with pytest.raises(ArgumentError, match="kind"):
            layer_of(nonsense, None, "it")
    with pytest.raises(ArgumentError, match="is an? .* matrix"):
        layer_of(data, (layer.shape[0] + 1, layer.shape[1]), "it")


def test_numbers_are_those_of_the_tensors(layer):
    numbers = layer.numbers()
    tensors = {name: tensor for name, tensor in layer.state_dict().items() if not name.endswith("bias")}
    own = layer.own_types()
    floats = sum(tensor.numel() for name, tensor in tensors.items() if tensor.is_floating_point() and name not in own)
    quantised = sum(
        codes.codes.numel() + codes.scales.numel() + (0 if codes.zeros is None else codes.zeros.numel())
        for codes in codes_of(layer)
    )
    assert numbers.parameters == floats + quantised
    assert numbers.bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert numbers.macs == layer.macs()
    narrow = layer.to(torch.bfloat16).numbers()
    assert narrow.parameters == numbers.parameters
    assert numbers.bytes - narrow.bytes == 6 * floats


def test_index_buffers_are_named_and_valid(layer):
    state = layer.state_dict()
    indices = layer.indices()
    own = layer.own_types()
    assert {name for name, tensor in state.items() if not tensor.is_floating_point()} - set(own) == set(indices)
    assert {name: state[name].dtype for name in own} == own
    for name, index in indices.items():
        index.require_valid(name)
        assert index.values is not None
        with torch.no_grad():
            index.values.view(-1)[0] = index.size
        with pytest.raises(ArgumentError, match=name):
            index.require_valid(name)


def test_the_dense_form_shares_no_memory(layer):
    x = inputs_of(layer, (5,))
    dense = layer.to_dense()
    torch.testing.assert_close(dense(x), layer(x))
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
        assert layer(x).any()
    assert isinstance(dense, nn.Embedding if is_embedding(layer) else nn.Linear)


def test_what_edits_models_handles_it(layer, tmp_path):
    x = inputs_of(layer, (5,))
    model = nn.Sequential(layer)
    assert list(mpo.surgery.compressed_layers(model)) == ["0"]
    assert mpo.set_execution(model, cache=True) == 1
    scales = mpo.surgery.learning_rate_scales(model)
    assert set(scales) <= {name for name, _ in model.named_parameters()}
    assert all(0 < scale < math.inf for scale in scales.values())
    y = model(x)
    dense = layer.to_dense()
    with torch.device("meta"):
        empty = (
            nn.Embedding(*layer.shape) if is_embedding(layer) else nn.Linear(*layer.shape[::-1], layer.bias is not None)
        )
    loaded = mpo.load(mpo.save(model, tmp_path), nn.Sequential(empty))
    torch.testing.assert_close(loaded(x), y)
    torch.testing.assert_close(mpo.to_dense(model)[0].weight, dense.weight)


def test_wrong_inputs_are_refused(layer):
    wrong = torch.tensor([[0.5]]) if is_embedding(layer) else torch.zeros(3, layer.in_features + 1, dtype=torch.float64)
    with pytest.raises(MPOError, match=r"integers|expected \(\.\.\., \d+\)"):
        layer(wrong)


def test_the_deprecated_spelling_warns_and_names_the_new_one(layer):
    with pytest.warns(DeprecationWarning, match="use cache=True"):
        assert layer.set_execution(memory="fast").cache
    with pytest.warns(DeprecationWarning, match="use cache=False"):
        assert not layer.set_execution(memory="compact").cache
    with pytest.raises(ArgumentError, match="'slow'.*cache=True"):
        layer.set_execution(memory="slow")
    with pytest.raises(ArgumentError, match="contradict each other"):
        layer.set_execution(cache=True, memory="compact")
    with pytest.warns(DeprecationWarning, match="use cache"):
        assert layer.memory == "compact"


def test_it_prints_its_sizes(layer):
    assert isinstance(layer, CompressedLayer)
    assert str(layer.in_features) in repr(layer)
    assert layer.form()


def test_new_parameters_are_drawn(layer):
    before = layer.weight.detach().clone()
    torch.manual_seed(3)
    layer.reset_parameters()
    after = layer.weight.detach()
    assert not torch.allclose(after, before)
    assert after.isfinite().all()
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.testing.assert_close(layer.weight.detach(), after, rtol=0, atol=0)


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


def test_edits_below_a_parametrisation_are_seen(layer):
    layer.set_execution(cache=True)
    owner, name = next(
        (module, name)
        for module in layer.modules()
        for name, parameter in module._parameters.items()
        if parameter is first_trained(layer)
    )
    nn.utils.parametrize.register_parametrization(owner, name, Doubled())
    x = inputs_of(layer, (5,))
    with torch.no_grad():
        before = layer(x)
        torch.testing.assert_close(before, dense_output(layer, x), rtol=1e-9, atol=1e-9)
        owner.parametrizations[name].original.mul_(3)
        torch.testing.assert_close(layer(x), dense_output(layer, x), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(layer(x), before)
