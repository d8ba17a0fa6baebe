"""Compression of small models: what is chosen, what is reported, and what takes the place of layers."""

from __future__ import annotations

import json
import logging
import tempfile

import pytest
import torch
import transformers
from tied_net import TiedNet
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import METHODS
from mpochain.compression.selection import dense_layers
from mpochain.nn import QuantizedLayer

# Methods that compress embeddings alone have tests of their own.
LINEAR = [name for name, method in METHODS.items() if method.linear]


def outputs(model, batches):
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def divergence(model, other, batches):
    """Of the predictions of another model from those of the first: nats per token."""
    before, after = (outputs(predictor, batches).log_softmax(-1) for predictor in (model, other))
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("budget", [0.8, 0.5])
def test_the_budget_is_kept_and_the_records_are_true(net, batches, method, budget):
    weights = {name: layer.weight.detach().double() for name, layer in dense_layers(net).items()}
    with torch.no_grad():
        x = net.embedding(torch.cat(batches)).reshape(-1, 12)
        rows = {"left": x, "right": x, "down": torch.relu(net.left(x)) * net.right(x)}
    report = mpo.compress(net, budget, calibration=batches, method=method)
    assert [record.name for record in report.layers] == ["left", "right", "down"]
    assert report.parameters_before == 720
    assert sum(record.bytes_after for record in report.layers) == report.bytes_after <= budget * 720 * 4
    assert METHODS[method].tensors > 4 or report.parameters_after <= budget * 720, "codes are numbers of fewer bytes"
    for record in report.layers:
        layer = net.get_submodule(record.name)
        dense = isinstance(layer, nn.Linear)
        assert dense is (record.form == "dense")
        if dense:
            continue
        own = {id(p): p for name, p in layer.state_dict(keep_vars=True).items() if "bias" not in name}.values()
        assert record.bytes_after == sum(p.nbytes for p in own) < record.bytes_before
        if not isinstance(layer, QuantizedLayer):
            assert record.parameters_after == sum(p.numel() for p in own if p.is_floating_point())
            assert record.parameters_after < record.parameters_before
        W = weights[record.name]
        difference = W - layer.weight.detach().double()
        assert record.weight_error == pytest.approx(float(difference.norm() / W.norm()), rel=1e-5)
        if method in ("svd_llm", "interpolative", "search", "gptq", "auto"):
            inputs = rows[record.name].double()
            error = float((inputs @ difference.T).norm() / (inputs @ W.T).norm())
            assert record.output_error == pytest.approx(error, rel=1e-3)
    assert torch.isfinite(outputs(net, batches)).all()
    assert json.loads(json.dumps(report.as_dict()))["parameters_after"] == report.parameters_after


def test_the_default_is_nearer_than_what_was_published(net, batches):
    lost = {}
    for method in LINEAR:
        model = TiedNet()
        model.load_state_dict(net.state_dict())
        mpo.compress(model, 0.6, calibration=batches, method=method)
        lost[method] = divergence(net, model, batches)
    assert lost["interpolative"] < lost["svd_llm"] < lost["svd"]


def test_the_predicted_increase_is_that_of_the_loss(net, batches):
    """To second order, by the Kronecker-factored moments: within a factor of three for a small change."""
    report = mpo.compress(net, 0.9, calibration=batches, dry_run=True)
    (changed, *_) = [record for record in report.layers if record.form != "dense"]
    model = TiedNet()
    model.load_state_dict(net.state_dict())
    mpo.compress(model, 0.9, calibration=batches, targets=[record.name for record in report.layers])
    predicted = sum(record.loss_increase for record in report.layers)
    assert changed.loss_increase > 0
    assert predicted / 3 < divergence(net, model, batches) < predicted * 3


def test_a_dry_run_changes_nothing(net, batches):
    before = repr(net)
    dry = mpo.compress(net, 0.5, calibration=batches, dry_run=True)
    assert repr(net) == before
    assert dry.layers == mpo.compress(net, 0.5, calibration=batches).layers
    assert repr(net) != before


@pytest.mark.parametrize("method", sorted(name for name in LINEAR if not METHODS[name].same_choice))
def test_an_error_that_each_layer_may_have(net, batches, method):
    reports = []
    # The orders of rows and columns are a seventh of these small layers, so a permuted sum saves nothing at 40 %.
    for error in (60 if "permuted" in method else 40, 10):
        torch.manual_seed(0)
        model = TiedNet()
        reports.append(mpo.compress(model, f"{error}% error", calibration=batches, method=method))
        for layer in reports[-1].layers:
            if method in ("svd", "tt_svd", "kronecker", "permuted_kronecker"):
                assert layer.weight_error <= error / 100 + 1e-6
            elif method == "svd_llm":
                assert layer.output_error <= error / 100 + 1e-3
    assert reports[0].bytes_after < reports[1].bytes_after <= reports[1].bytes_before
    assert any(layer.form != "dense" for layer in reports[0].layers)


@pytest.mark.parametrize("method", sorted(name for name in LINEAR if METHODS[name].same_choice))
def test_the_same_bits_for_all_layers_follow_from_no_error(net, batches, method):
    with pytest.raises(MPOError, match="give a budget as a share or a size instead of an error"):
        mpo.compress(net, "10% error", calibration=batches, method=method)


def test_layers_that_become_slower_are_flagged():
    model = nn.Sequential(nn.Linear(64, 64))
    report = mpo.compress(model, 0.99, method="tt_svd")
    assert report.layers[0].macs_after > report.layers[0].macs_before
    assert "more multiply-adds than dense: 1 layer, including 0" in report.table()


def test_the_whole_budget_leaves_all_dense(net, batches):
    report = mpo.compress(net, 1.0, calibration=batches)
    assert {record.form for record in report.layers} == {"dense"}
    assert type(net.left) is nn.Linear


def test_the_table_says_what_was_left_out(net, batches):
    table = mpo.compress(net, "60%", calibration=batches, ignore=["right"]).table()
    assert "not considered: right, 240 parameters" in table
    assert "not considered: embedding, 132 parameters" in table
    assert "2 layers, " in table


def test_a_layer_in_two_places_stays_one(batches):
    torch.manual_seed(0)
    shared = nn.Linear(12, 12)
    model = nn.Sequential(nn.Embedding(11, 12), shared, nn.ReLU(), shared, nn.Linear(12, 11))
    mpo.compress(model, 0.5, calibration=batches)
    assert model[1] is model[3] is not shared
    assert mpo.set_execution(model) == 2


def test_frozen_and_evaluating_layers_stay_so(net, batches):
    net.left.requires_grad_(False)
    net.down.eval()
    mpo.compress(net, 0.4, calibration=batches, method="svd")
    assert not any(p.requires_grad for p in net.left.parameters())
    assert not net.down.training
    assert net.right.training


def test_small_parts_of_the_statistics_at_a_time(net, batches, monkeypatch, tmp_path):
    from mpochain.compression.statistics import passes

    other = TiedNet()
    other.load_state_dict(net.state_dict())
    report = mpo.compress(net, 0.5, calibration=batches)
    monkeypatch.setattr(passes, "_SHARE", 0.0)
    monkeypatch.setattr(passes, "_LEAST_BYTES", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    counts: list[int] = []
    with pytest.warns(DeprecationWarning, match="logging"):
        parts = mpo.compress(
            other, 0.5, calibration=batches, log=lambda _: counts.append(len(list(tmp_path.glob("*/*"))))
        )
    # The moments of each layer waited on the disk.
    assert sorted(set(counts)) == list(range(len(report.layers) + 1))
    assert not list(tmp_path.iterdir())
    assert [record.form for record in parts.layers] == [record.form for record in report.layers]
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "there is no method 'magic'; there are interpolative"),
        ({"calibration": None}, "needs calibration= batches"),
        ({"calibration": iter([])}, "calibration is read several times, but got an iterator"),
        ({"calibration": torch.zeros(2, 2)}, "put it into a list"),
        (
            {"budget": 0.001},
            r"0.001 is out of reach.* method 'interpolative'; the smallest reachable is [\d.]+%.*Give at least",
        ),
        ({"budget": "120% error"}, "above 0 and below 100 percent"),
        ({"ignore": ["Linear"]}, "no layer left"),
        ({"method": "svd", "budget": 0.01}, "cannot be made as small as"),
    ],
)
def test_what_cannot_be_done(net, batches, arguments, message):
    with pytest.raises(MPOError, match=message):
        mpo.compress(net, **{"budget": 0.5, "calibration": batches, **arguments})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_element_types(batches, dtype):
    torch.manual_seed(0)
    model = TiedNet().to(dtype)
    report = mpo.compress(model, 0.6, calibration=batches)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert sum(record.bytes_after for record in report.layers) <= 0.6 * 720 * dtype.itemsize


@pytest.mark.parametrize("method", ["interpolative", "svd_llm", "tt_svd"])
def test_a_weight_of_nan_is_named(method, net, batches):
    with torch.no_grad():
        net.left.weight[0, 0] = float("nan")
    data = None if method == "tt_svd" else batches
    with pytest.raises(MPOError, match="left: the weight has NaN"):
        mpo.compress(net, 0.5, calibration=data, method=method)


def test_the_error_that_a_budget_bounds_is_reported(net, batches):
    report = mpo.compress(net, "20% error", calibration=batches, dry_run=True)
    assert 0 < report.largest_error <= 0.2
    assert f"that the budget bounds: at most {report.largest_error:.4f}" in report.table()
    plain = mpo.compress(net, "70% error", method="svd")
    assert plain.largest_error == pytest.approx(max(layer.weight_error for layer in plain.layers))
    assert mpo.compress(nn.Sequential(nn.Linear(8, 8)), 0.5, method="svd").largest_error is None


@pytest.mark.parametrize(
    ("model", "method", "reason"),
    [
        (nn.Linear(4, 4), "svd", "the model is itself a Linear"),
        (nn.Sequential(nn.Embedding(9, 4, max_norm=1.0)), "svd", "0: a chain has no max_norm="),
        (nn.Sequential(mpo.MPOLinear(4, 4, max_bond=1)), "svd", "its layers are already compressed"),
        (nn.ModuleList([nn.Sequential(nn.Linear(4, 4))] * 2).append(nn.Embedding(4, 4)), "svd", None),
    ],
)
def test_why_there_is_nothing_to_compress(model, method, reason):
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
def test_hooks_are_not_lost(register, net):
    handle = getattr(net.left, register)(lambda *_: None)
    with pytest.raises(MPOError, match="left has hooks, which its replacement would lose"):
        mpo.compress(net, 0.5, method="svd")
    mpo.compress(net, 0.5, method="svd", ignore=["left"])
    handle.remove()
    mpo.compress(net, 0.5, method="svd")


@pytest.mark.parametrize(("method", "kept"), [("tt_svd", False), ("svd", True)])
def test_a_row_of_padding_that_is_no_more_zero_is_told(method, kept):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 16, padding_idx=3), nn.Linear(16, 4))
    report = mpo.compress(model, 0.5, method=method, targets=["Embedding"])
    norm = model[0](torch.tensor([3])).norm().item()
    assert (norm == 0) is kept
    assert report.layers[0].padding == (None if kept else pytest.approx(norm))
    assert ("padding of 0: its row was zero" in report.table()) is not kept


def test_data_of_nan_is_named():
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    with pytest.raises(MPOError, match="batch 2: the inputs of 0 contain NaN"):
        mpo.compress(model, 0.5, calibration=[torch.ones(9, 12), torch.full((9, 12), float("nan"))])


def test_a_model_that_predicts_nan_after_its_layers(net, batches):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) * float("nan")

    with pytest.raises(MPOError, match="the model predicts NaN"):
        mpo.compress(Broken(), 0.5, calibration=batches)


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


def test_progress_is_logged(net, batches, caplog):
    with caplog.at_level(logging.INFO, logger="mpochain"):
        mpo.compress(net, 0.5, calibration=batches)
    assert "gradients of 3 layers, from left on" in caplog.messages
    assert "building 3 layers, from left on" in caplog.messages


def test_the_deprecated_log_is_called_and_leaves_the_logger_as_it_was(net, batches):
    library = logging.getLogger("mpochain")
    before = library.level, list(library.handlers)
    messages: list[str] = []
    with pytest.warns(DeprecationWarning, match=r"compress\(log=\) is deprecated"):
        mpo.compress(net, 0.5, calibration=batches, log=messages.append)
    assert messages[0].startswith("gradients of 3 layers")
    assert (library.level, list(library.handlers)) == before


def test_no_process_is_started(net, monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("a process was started"))
    report = mpo.compress(net, 0.5, method="svd")
    assert "commit" not in report.provenance
    assert report.provenance["threads"] >= 1


class Counted(mpo.compression.Interpolative):
    """Counts how often each layer is fitted."""

    def __init__(self):
        super().__init__()
        self.fits: list[str] = []

    def prepare(self, target, moments):
        self.fits.append(target.name)
        return super().prepare(target, moments)


def test_each_layer_is_fitted_once_and_again_only_where_memory_is_short(net, batches, monkeypatch):
    results = []
    for room in (1 << 20, 6000, 0):  # the moments take 2880 bytes, and each fit 2304
        monkeypatch.setattr("mpochain.compression.layer_choices.memory_for_statistics", lambda _, room=room: room)
        torch.manual_seed(0)
        model, method = TiedNet(), Counted()
        report = mpo.compress(model, 0.5, calibration=batches, method=method)
        results.append((method.fits, report.layers, outputs(model, batches)))
    names = ["left", "right", "down"]
    assert [fits for fits, _, _ in results] == [names, [*names, "right", "down"], names * 2]
    for _, layers, values in results[1:]:
        assert layers == results[0][1]
        assert torch.equal(values, results[0][2])


@pytest.mark.parametrize("method", ["interpolative", "svd", "svd_llm", "tt_svd", "kronecker", "rtn"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_entries_stay_as_they_are(method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.full, self.none = nn.Linear(24, 16), nn.Linear(24, 0)

        def forward(self, x):
            return torch.cat([self.full(x), self.none(x)], dim=-1)

    net, data = Net(), [torch.randn(200, 24)]
    none = net.none
    report = mpo.compress(net, 0.5, calibration=data, method=method)
    assert net.none is none
    assert [layer.name for layer in report.layers] == ["full"]
    assert "no entries" in dict(report.shared)["none"]
    with pytest.raises(MPOError, match="no entries"):
        mpo.compress(Net(), 0.5, calibration=data, method=method, targets=["none"])
