"""Frontier of quality against size: points, records that are kept, the page, and the model that stays dense."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from texts import prose
from tiny import write_model
from torch import nn

import mpochain as mpo
from mpochain.cli import main
from mpochain.compression import compressed_to_each
from mpochain.errors import ArgumentError
from mpochain.workflows import frontier as workflow
from mpochain.workflows.frontier_points import points_of
from mpochain.workflows.frontier_summary import summary


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))


@pytest.mark.parametrize("method", ["auto", "gptq", "rtn", "interpolative", "svd_llm"])
def test_each_budget_gives_what_a_compression_of_its_own_gives(net, method):
    data = [torch.randn(400, 48)]
    few = method in ("auto", "gptq", "rtn")
    budgets = ["6 bits", "4.5 bits"] if few else [0.8, 0.5]
    x, dense = torch.randn(5, 48), {name: value.clone() for name, value in net.state_dict().items()}
    results = []
    for report in compressed_to_each(net, budgets, calibration=data, method=method, seed=3):
        assert report.bytes_after <= report.allowed_bytes
        results.append((net(x).detach(), report.bytes_after))
    assert all(torch.equal(value, dense[name]) for name, value in net.state_dict().items()), "dense again"
    for budget, (output, size) in zip(budgets, results, strict=True):
        net.load_state_dict(dense)
        report = mpo.compress(net, budget, calibration=data, method=method, seed=3)
        assert report.bytes_after == size
        torch.testing.assert_close(net(x).detach(), output)
        mpo.to_dense(net)


def test_the_model_is_dense_again_when_the_caller_stops_or_fails(net):
    data = [torch.randn(400, 48)]
    for report in compressed_to_each(net, [0.8, 0.5], calibration=data):
        assert report.budget == 0.8
        break
    assert not any(isinstance(layer, mpo.nn.CompressedLayer) for layer in net.modules())
    reports = compressed_to_each(net, [0.8, 0.5], calibration=data)
    next(reports)
    with pytest.raises(ZeroDivisionError):
        reports.throw(ZeroDivisionError)
    assert not any(isinstance(layer, mpo.nn.CompressedLayer) for layer in net.modules())


def test_a_refined_model_follows_the_plain_one_of_its_budget():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.LayerNorm(48)) for _ in range(2)])
    with torch.no_grad():
        net[0][2].weight.mul_(1.5)
    data, x = [torch.randn(40, 48) for _ in range(16)], torch.randn(5, 48)
    dense = {name: value.clone() for name, value in net.state_dict().items()}
    outputs, flags = [], []
    for report in compressed_to_each(net, [0.8, 0.5], calibration=data, refine=[0.5]):
        outputs.append(net(x).detach())
        flags.append((report.budget, len(report.refined)))
    assert flags == [(0.8, 0), (0.5, 0), (0.5, 2)]
    assert not torch.equal(outputs[1], outputs[2])
    assert all(torch.equal(value, dense[name]) for name, value in net.state_dict().items()), "dense again, norms too"
    report = mpo.compress(net, 0.5, calibration=data, refine=True)
    assert [block.epochs > 0 for block in report.refined] == [True, True]
    torch.testing.assert_close(net(x).detach(), outputs[2])


def test_kept_statistics_are_those_of_the_weights_and_the_data(net, tmp_path):
    def ranks(data):
        (report,) = compressed_to_each(net, [0.5], calibration=data, moments=tmp_path)
        return [layer.loss_increase for layer in report.layers]

    one, other = [torch.randn(400, 48)], [torch.randn(400, 48) * torch.arange(48)]
    first = ranks(one)
    assert ranks(other) != pytest.approx(first, rel=1e-3)
    assert ranks(one) == first
    assert len(list(tmp_path.iterdir())) == 2
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert ranks(one) != pytest.approx(first, rel=1e-3)


def test_two_texts_of_one_name_are_refused(run, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test.txt").write_text(prose(3000, seed=4), encoding="utf-8")
    status, printed = run("--also", "other/test.txt")
    assert (status, "two texts have the same file name" in printed.err) == (2, True), printed.err


@pytest.mark.parametrize(
    ("budgets", "options", "message"),
    [
        ([], {}, "budgets is empty"),
        (["5% error"], {}, "limits an error"),
        ([0.5], {"method": mpo.compression.Rtn(bits=4)}, "leave no choice"),
        (["0.1 bits"], {}, "out of reach"),
        ([0.5], {"refine": [0.6]}, "refine names 0.6"),
    ],
)
def test_budgets_that_make_no_series(net, budgets, options, message):
    with pytest.raises(ArgumentError, match=message):
        next(compressed_to_each(net, budgets, calibration=[torch.randn(400, 48)], **options))


def test_uniform_methods_take_the_largest_bits_and_group_that_fit():
    points = {point.bits: dict(point.settings)["group"] for point in points_of(["gptq"], [8.5, 8.0, 4.5, 3.25, 2.0])}
    assert points == {8.5: 64, 8.0: 32, 4.5: 64, 3.25: 128}
    with pytest.raises(ArgumentError, match="above 0 and at most 16, got 20"):
        points_of(["auto"], [20])
    with pytest.raises(ArgumentError, match="compresses no linear layers"):
        points_of(["word2ket"], [4])


def test_a_summary_names_ties_and_sizes_at_which_another_method_is_better():
    points = [("auto", 8, 7.9, 2.0), ("rtn", 8, 8.0, 2.00001), ("auto", 5, 5.0, 2.5), ("rtn", 5, 4.2, 2.4)]
    points += [("auto", 3, 3.0, 3.5), ("auto", 2, 2.0, 7.0)]
    rows = [dict(zip(("method", "limit", "bits", "loss"), point, strict=True)) for point in points]
    assert summary(rows, "loss", "loss", ".2f") == (
        "Lowest loss within each limit: auto and rtn at 8 bits; rtn at 5 bits.",
        "The best method and the next one: at 8 bits auto 2.00 and rtn 2.00; at 5 bits rtn 2.40 (4.20 bits) and auto "
        "2.50.",
        "Only auto has a model within 3 bits (3.50) and 2 bits (7.00).",
    )
    assert summary(rows[:1], "loss", "loss") == ()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "model")
    (tmp_path / "valid.txt").write_text(prose(6000, seed=1), encoding="utf-8")
    (tmp_path / "test.txt").write_text(prose(3000, seed=2), encoding="utf-8")
    (tmp_path / "plays.txt").write_text(prose(3000, seed=3), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        command = "mpochain frontier model --out runs --calibration valid.txt --evaluate test.txt --also plays.txt"
        counts = "--window 32 --calibration-windows 6 --evaluate-windows 4 --method auto --method rtn --method svd_llm"
        monkeypatch.setattr(sys, "argv", [*command.split(), *counts.split(), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr()

    return run


def test_a_frontier_is_measured_kept_and_drawn(run, tmp_path, monkeypatch):
    status, printed = run("--sizes", "10,7")
    assert status == 0, printed.err
    assert printed.out.splitlines() == ["runs/frontier.md", "runs/frontier.html", "runs/figures/frontier.png"]
    records = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*.json")}
    assert set(records) == {"dense", "auto-10", "auto-7", "rtn-10", "rtn-7", "svd_llm-10", "svd_llm-7"}
    for record in records.values():
        assert set(record["perplexity"]) == {"test.txt", "plays.txt"}
        if record["name"] != "dense":
            assert record["layers"]["bits"] <= record["setting"]["bits"] * 1.001
    assert records["auto-10"]["predicted"] > 0
    assert not (tmp_path / "runs" / "moments").exists()
    page = (tmp_path / "runs" / "frontier.md").read_text()
    assert "Lowest perplexity within each limit:" in page
    assert f"{records['auto-7']['perplexity']['plays.txt']['perplexity']:#.4g}" in page
    # What finished is kept, and never mixed with another setting.
    monkeypatch.setattr(workflow, "read_inputs", lambda *_: pytest.fail("measured again"))
    assert run("--sizes", "10,7")[0] == 0
    status, printed = run("--sizes", "10", "--seed", "5")
    assert (status, "belongs to another model, text or setting" in printed.err) == (1, True)


def test_a_refined_point_is_measured_beside_the_plain_one_or_later(run, tmp_path):
    def records():
        return {file.stem: json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*.json")}

    only_auto = ["--sizes", "7", "--refine", "auto-7"]
    status, printed = run(*only_auto)
    assert status == 0, printed.err
    first = records()
    assert {"auto-7", "auto-7-refined", "rtn-7"} < set(first)
    plain, refined = first["auto-7"], first["auto-7-refined"]
    assert plain["layers"]["bytes"] == refined["layers"]["bytes"]
    assert plain["perplexity"] != refined["perplexity"]
    assert (plain["predicted"] > 0, refined["predicted"]) == (True, None)
    assert "| auto, refined |" in (tmp_path / "runs" / "frontier.md").read_text()
    (tmp_path / "runs" / "auto-7-refined.json").unlink()
    assert run(*only_auto)[0] == 0
    again = records()
    assert again["auto-7"] == plain, "kept"
    losses = [record["perplexity"]["test.txt"]["loss"] for record in (refined, again["auto-7-refined"])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--refine", "auto-9"], "there is no point 'auto-9' to refine; name one of auto-8"),
        (["--sizes", "4,x"], "--sizes takes numbers"),
        (["--sizes", "0"], "above 0"),
        (["--also", "valid.txt"], "valid.txt is the text that the model is calibrated on"),
        (["--also", "none.txt"], "there is no such file"),
        (["--method", "nonsense"], "there is no method 'nonsense'"),
    ],
)
def test_wrong_usage(run, arguments, message):
    status, printed = run(*arguments)
    assert (status, message in printed.err) == (2, True), printed.err
