"""Tensors that change in place, are used again or are called in unusual ways: what counts is what a layer reads."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import mpochain as mpo
from mpochain.compression import collect_moments
from mpochain.compression.statistics.default_loss import DefaultLoss

SIZE, HIDDEN = 8, 12


class Block(nn.Module):
    """A residual block that computes the same in several ways."""

    def __init__(self, way):
        super().__init__()
        self.up, self.down, self.way = nn.Linear(SIZE, HIDDEN), nn.Linear(HIDDEN, SIZE), way

    def forward(self, x, mask=None):
        if self.way == "keyword":
            return x + self.down(input=torch.relu(self.up(input=x)))
        if self.way == "forward":
            return x + self.down.forward(torch.relu(self.up.forward(x)))
        if self.way == "in-place activation":
            return x + self.down(F.relu(self.up(x), inplace=True))
        y = self.down(torch.relu(self.up(x)))
        if self.way == "in place":
            x += y
        elif self.way == "through a view":
            x.view(-1)[:] += y.reshape(-1)
        elif self.way == "through data":
            x.data += y.detach()
        elif self.way == "a buffer":
            if not hasattr(self, "kept") or self.kept.shape != x.shape:
                self.kept = torch.empty_like(x)
            return x + self.kept.detach().copy_(y.detach()) + (y - y.detach())
        else:
            return x + y
        return x


class GradientCheckpointingLayer(Block):
    """Recomputed in calibration, by its name."""


def net(way, kind=Block):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, SIZE), *(kind(way) for _ in range(3)), nn.Linear(SIZE, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.5 / parameter.shape[1] ** 0.5)
    return model


def batches():
    return [torch.randn(40, SIZE, generator=torch.Generator().manual_seed(k)) for k in range(3)]


def moments_of(model, data, loss=DefaultLoss):
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return collect_moments(model, layers, data, loss=loss and loss(model), inputs=set(layers))


WAYS = ["in place", "through a view", "in-place activation", "keyword", "forward", "a buffer"]


@pytest.mark.parametrize("kind", [Block, GradientCheckpointingLayer])
@pytest.mark.parametrize("way", WAYS)
def test_moments_are_those_of_the_plain_model(way, kind):
    expected, moments = moments_of(net("plain"), batches()), moments_of(net(way, kind), batches())
    for name, layer in expected.items():
        assert moments[name].rows == layer.rows == 120
        torch.testing.assert_close(moments[name].inputs, layer.inputs)
        torch.testing.assert_close(moments[name].gradients, layer.gradients, rtol=1e-3, atol=1e-4)


def test_writes_that_torch_does_not_track():
    with torch.no_grad():
        expected, moments = (moments_of(net(way), batches(), None) for way in ("plain", "through data"))
    for name, layer in expected.items():
        torch.testing.assert_close(moments[name].inputs, layer.inputs)


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_an_input_that_only_changes_its_size(size):
    class Doubled(Sharing):
        def forward(self, x):
            y = self.one(x)
            return y + self.other(x.mul_(2))

    model, x = Doubled(), size * torch.randn(10, SIZE)
    moments = collect_moments(model, {"one": model.one, "other": model.other}, [x])
    torch.testing.assert_close(moments["other"].activations, 4 * moments["one"].activations)


@pytest.mark.parametrize("way", ["in place", "through a view", "keyword", "plain"])
def test_in_sequence_too(way):
    expected, model = net("plain"), net(way)
    report = mpo.compress(expected, 0.8, calibration=batches(), sequential=True)
    again = mpo.compress(model, 0.8, calibration=batches(), sequential=True)
    assert [layer.form for layer in again.layers] == [layer.form for layer in report.layers]
    for data in batches():
        torch.testing.assert_close(model(data.clone()), expected(data.clone()), rtol=1e-3, atol=1e-3)


def test_batches_stay_as_they_are_and_may_be_one_object():
    model = nn.Sequential(nn.ReLU(inplace=True), net("plain"))
    data = batches()
    before = [batch.clone() for batch in data]
    mpo.compress(model, 0.8, calibration=data)
    assert all(map(torch.equal, data, before))

    class Reused:
        """Yields one tensor again and again, with other numbers."""

        def __iter__(self):
            batch = torch.empty(40, SIZE)
            for numbers in batches():
                yield batch.copy_(numbers)

    expected, moments = moments_of(net("plain"), batches()), moments_of(net("plain"), Reused())
    for name, layer in expected.items():
        torch.testing.assert_close(moments[name].inputs, layer.inputs)
    one, several = net("plain"), net("plain")
    mpo.compress(one, 0.8, calibration=Reused(), sequential=True)
    mpo.compress(several, 0.8, calibration=batches(), sequential=True)
    torch.testing.assert_close(one(data[0]), several(data[0]))


class Sharing(nn.Module):
    """Two layers that read one input at times, and inputs of their own at other times."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(SIZE, HIDDEN), nn.Linear(SIZE, HIDDEN)

    def forward(self, x):
        y = self.one(x) + self.other(x)
        return y + self.one(2 * x) if len(x) % 2 else y + self.other(3 * x)


def test_layers_that_share_their_input_at_times():
    model = Sharing()
    x, odd = torch.randn(10, SIZE), torch.randn(7, SIZE)
    moments = collect_moments(model, {"one": model.one, "other": model.other}, [x, odd])
    for name, rows in {"one": (x, odd, 2 * odd), "other": (x, 3 * x, odd)}.items():
        read = torch.cat(rows)
        assert moments[name].rows == len(read)
        torch.testing.assert_close(moments[name].activations, read.T @ read / len(read))


def test_a_model_called_with_the_weight_alone():
    """Layers whose weight is used without a call stay dense, and the report says so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.TransformerEncoderLayer(SIZE, 2, HIDDEN, batch_first=True))
    report = mpo.compress(model, 0.9, calibration=[torch.randn(4, 9, SIZE)])
    assert "1.self_attn.out_proj" in {layer.name for layer in report.layers if layer.reason}


@pytest.mark.parametrize("method", ["interpolative", "svd"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_results_can_be_trained_whatever_the_mode(method, mode, tmp_path):
    with mode():
        data = batches()  # tensors of inference mode, as batches
        model = net("plain") if mode is torch.no_grad else None
    model = net("plain") if model is None else model
    for module in model.modules():
        module.requires_grad_(True)
    with mode():
        mpo.compress(model, 0.6, calibration=data, method=method)
        mpo.save(model, tmp_path)
        loaded = mpo.load(tmp_path, net("plain"))
        dense = mpo.to_dense(mpo.load(tmp_path, net("plain")))
    for result in (model, loaded, dense):
        optimizer = torch.optim.SGD(result.parameters(), lr=0.1)
        result(batches()[0]).sum().backward()
        optimizer.step()


def test_finetuning_in_inference_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), mpo.MPOLinear(8, 11, max_bond=2))
    windows = torch.arange(44).view(4, 11) % 11
    with torch.inference_mode():
        result = mpo.finetune(model, windows, config=mpo.FinetuneConfig(steps=5, batch_size=2, learning_rate=0.1))
        broken = nn.Sequential(nn.Embedding(11, 8), mpo.MPOLinear(8, 11, max_bond=2))
    assert result.losses[-1] < result.losses[0]
    with pytest.raises(mpo.MPOError, match="created under torch.inference_mode"):
        mpo.finetune(broken, windows, config=mpo.FinetuneConfig(steps=1, batch_size=2))
    with pytest.raises(mpo.MPOError, match="built or loaded under torch.inference_mode"):
        mpo.compress(nn.Sequential(broken, nn.Linear(11, 3)), 0.5, calibration=[windows])


@pytest.mark.parametrize(
    "layer",
    [
        mpo.MPOLinear(8, 8, max_bond=2),
        mpo.InterpolativeLinear(8, 8, 3),
        mpo.SumLinear([mpo.InterpolativeLinear(8, 8, 3), mpo.MPOLinear(8, 8, max_bond=1, bias=False)]),
        mpo.PermutedLinear(mpo.MPOLinear(8, 8, max_bond=2, bias=False), rows=torch.randperm(8)),
    ],
)
def test_compressed_layers_take_their_input_by_keyword(layer):
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(input=x), layer(x))
    table = mpo.MPOEmbedding(20, 8, max_bond=2)
    torch.testing.assert_close(table(input=torch.tensor([3])), table(torch.tensor([3])))


def tied(kind):
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(SIZE, SIZE) for name in ("a", "b", "c")})
    model["words"], model["head"] = nn.Embedding(20, SIZE), nn.Linear(SIZE, 20, bias=False)
    if kind == "one parameter":
        model["b"].weight = model["a"].weight
    elif kind == "one place in memory":
        model["b"].weight = nn.Parameter(model["a"].weight.data)
    elif kind == "three modules":
        model["b"].weight = model["c"].weight = model["a"].weight
    elif kind == "another module":
        model.own = model["a"].weight
    elif kind == "a bias":
        model["b"].bias = model["a"].bias
    return model


@pytest.mark.parametrize("kind", ["one parameter", "one place in memory", "three modules", "another module", "a bias"])
@pytest.mark.parametrize("targets", [None, ["Linear"], ["re:[abc]"]])
def test_shared_parameters_stay_shared_and_count_once(kind, targets):
    model, before = tied(kind), tied(kind)
    left_out = {"three modules": {"a", "b", "c"}, "another module": {"a"}}.get(kind, {"a", "b"})
    targets = targets if targets != ["re:[abc]"] or left_out != {"a", "b", "c"} else ["re:[abc]|head"]
    report = mpo.compress(model, 0.7, method="svd", targets=targets)
    assert {name for name, _ in report.shared} == left_out
    assert "it shares a parameter with" in report.table()
    for name in left_out:
        assert type(model[name]) is nn.Linear
    dense, now = (sum(p.numel() for p in other.parameters()) for other in (before, model))
    assert dense - now == report.parameters_before - report.parameters_after
    with pytest.raises(mpo.MPOError, match="a is named in targets=, but it shares a parameter with"):
        mpo.compress(tied(kind), 0.7, method="svd", targets=["a", "head"])


def test_a_module_at_two_places_by_either_name():
    for targets in (["first"], ["second"], ["Linear"], ["re:.*"]):
        model = nn.ModuleDict({"first": nn.Linear(SIZE, SIZE)})
        model["second"] = model["first"]
        report = mpo.compress(model, 0.8, method="svd", targets=targets)
        assert model["first"] is model["second"]
        assert [layer.name for layer in report.layers] == ["first"]
    model["last"] = nn.Linear(SIZE, SIZE)
    report = mpo.compress(model, 0.8, method="svd")
    assert [layer.name for layer in report.layers] == ["last"]


def test_three_modules_of_one_table():
    """T5: an embedding, its places in encoder and decoder, and the head."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, tie_word_embeddings=True
    )
    model = transformers.T5ForConditionalGeneration(config)
    report = mpo.compress(model, 0.7, method="svd", targets=["Linear"])
    assert "lm_head" in dict(report.shared)
    assert model.lm_head.weight is model.shared.weight
