"""A compression method defined outside of the package, with settings, in every place that takes a method."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import METHODS, Built, Choices, Costs, Method, MethodSettings, method_named
from mpochain.errors import ArgumentError, ExtensionError

PATH = f"{__name__}:LeadingRows"


class LeadingRows(Method):
    """Low rank from some rows of the weight: the rows with the largest norm, or the first ones, span the row space."""

    class Settings(MethodSettings):
        rule: Literal["largest", "first"] = Field("largest", description="which rows span the row space")
        most: int = Field(1000, ge=1, description="largest rank that is offered")

    settings: Settings
    embeddings = True

    def check(self, targets, budget):
        for name, target in targets.items():
            if min(target.shape) < 2:
                raise MPOError(f"{name}: one row or column has no smaller rank")

    def prepare(self, target, moments):
        out, in_ = target.shape
        weight64 = target.weight.double()
        norms = weight64.square().sum(1)
        order = norms.argsort(descending=True) if self.settings.rule == "largest" else torch.arange(out)
        ranks = np.arange(1, self.settings.most + 1)
        ranks = ranks[ranks * (out + in_) < out * in_]

        def factors(rank):
            basis = torch.linalg.qr(weight64[order[:rank]].T).Q
            return weight64 @ basis, basis.T

        def errors():
            lost = [float((weight64 - left @ right).square().sum()) for left, right in map(factors, ranks.tolist())]
            return np.array(lost), float(norms.sum())

        def build(choice):
            spec = mpo.shapes.low_rank(out, in_, int(ranks[choice]))
            left, right = (factor.to(target.weight.dtype) for factor in factors(int(ranks[choice])))
            cores = left.reshape(spec.core_shapes[0]), right.reshape(spec.core_shapes[1])
            return Built(mpo.MPOLinear.from_chains(mpo.MPOChain(cores, spec), target.bias))

        costs = Costs.of(target, ranks * (out + in_), ranks * (out + in_))
        return Choices.of(target, costs, errors, build, unit="squared norm of the weight")


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16))


@pytest.mark.parametrize(
    "method", [LeadingRows(), LeadingRows(rule="first"), LeadingRows(LeadingRows.Settings(most=3)), PATH]
)
def test_it_compresses_and_reports_under_its_name(method):
    model = model_of()
    report = mpo.compress(model, 0.6, method=method)
    assert report.method == "leading_rows"
    assert report.parameters_after <= 0.6 * report.parameters_before
    compressed = [record for record in report.layers if record.form != "dense"]
    assert compressed
    for record in compressed:
        assert 0 < record.weight_error < 1
        assert record.parameters_after == sum(p.numel() for p in model.get_submodule(record.name).cores[0])
    assert report.frontier, "its errors are known, so other budgets are predicted"


def test_settings_change_the_result():
    errors = {}
    for rule in ("largest", "first"):
        with torch.no_grad():
            model = model_of()
            model[0].weight *= torch.linspace(0.01, 2, 32)[:, None]  # the first rows are the smallest
        report = mpo.compress(model, 0.6, targets=["0"], method=LeadingRows(rule=rule))
        errors[rule] = report.layers[0].weight_error
    assert errors["largest"] < errors["first"]


def test_error_budgets_dry_runs_and_embeddings():
    report = mpo.compress(model_of(), "60% error", method=PATH)
    assert all(record.weight_error <= 0.6 + 1e-5 for record in report.layers)
    model = nn.Sequential(nn.Embedding(40, 12), nn.Linear(12, 4))
    before = repr(model)
    mpo.compress(model, 0.6, method=LeadingRows(), targets=["Embedding"], dry_run=True)
    assert repr(model) == before
    mpo.compress(model, 0.6, method=LeadingRows(), targets=["Embedding"])
    assert isinstance(model[0], mpo.MPOEmbedding)


def test_its_own_check_is_asked_before_any_work():
    with pytest.raises(MPOError, match="0: one row or column"):
        mpo.compress(nn.Sequential(nn.Linear(1, 8)), 0.6, method=LeadingRows())


class Wrong(LeadingRows):
    """Builds what it should not."""

    def prepare(self, target, moments):
        honest = super().prepare(target, moments)
        costs = Costs(honest.costs.parameters // 2, honest.costs.bytes // 2, honest.costs.macs, target.element_size)
        if self.settings.rule == "first":
            return Choices.of(target, honest.costs[:-1], None, lambda _: Built(nn.Linear(24, 32)))
        return Choices.of(target, costs[:-1], honest.errors[:-1], honest.build)


def test_what_it_builds_is_checked():
    model = model_of()
    layers = list(model.modules())
    with pytest.raises(MPOError, match=r"built a Linear for 0; expected a subclass of mpochain.nn.CompressedLayer"):
        mpo.compress(model, 0.6, method=Wrong(rule="first"))
    with pytest.raises(MPOError, match="method 'wrong', layer 0: it announced wrong costs"):
        mpo.compress(model, 0.6, method=Wrong())
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))


def test_a_recipe_names_it():
    from mpochain.workflows import Recipe
    from mpochain.workflows.groups import compress_stage
    from mpochain.workflows.recipe import Group, Stage

    assert Recipe(model="gpt2", method=PATH, budget=0.5).method == PATH
    stage = Stage(name="first", groups=(Group(targets=("0",), budget=0.5, method=PATH),))
    model = model_of()
    (record,) = compress_stage(stage, model)
    assert record["parameters_after"] <= 0.5 * 24 * 32
    assert isinstance(model[0], mpo.MPOLinear)


def test_named_with_settings():
    method = method_named(PATH, {"rule": "first", "most": 2})
    assert (type(method).__name__, method.settings.rule, method.settings.most) == ("LeadingRows", "first", 2)
    assert repr(method.with_settings(most=5)) == "LeadingRows(rule='first', most=5)"
    built_in = method_named("permuted_kronecker", {"terms": 2})
    assert built_in.settings.permuted
    assert built_in.settled
    assert METHODS["permuted_kronecker"].settings.terms is None, "the table is not changed"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("magic", None, "there is no method 'magic'; there are interpolative.* or package.module:ClassName"),
        ("interpolativ", None, "did you mean 'interpolative'"),
        (3, None, "method must be a name or an instance of Method, got int"),
        ("nowhere.at.all:Thing", None, "cannot import 'nowhere.at.all'"),
        (f"{__name__}:Nothing", None, "has no 'Nothing'"),
        (f"{__name__}:model_of", None, "expected a subclass of mpochain.compression.Method"),
        (":Thing", None, "expected package.module:ClassName"),
        ("module:", None, "expected package.module:ClassName"),
        (PATH, {"colour": 1}, "colour: there is no such setting; there are most and rule"),
        (PATH, {"most": 0}, "most: Input should be greater than or equal to 1, got 0"),
        ("svd", {"rank": 3}, "rank: there is no such setting; there is only weighted"),
        ("search", {"rank": 3}, "rank: there is no such setting; there are none"),
        ("kronecker", {"factors": [(1, 2), (1, 2)]}, "give terms=1, or one factor"),
    ],
)
def test_names_and_settings_that_do_not_fit(name, settings, message):
    with pytest.raises(MPOError, match=message):
        method_named(name, settings)


def test_settings_are_given_in_one_way():
    with pytest.raises(MPOError, match="got both"):
        LeadingRows(LeadingRows.Settings(), most=3)
    with pytest.raises(MPOError, match="takes settings of type LeadingRows.Settings"):
        LeadingRows(METHODS["svd"].settings)
    with pytest.raises(MPOError, match="got the class LeadingRows; give an instance"):
        mpo.compress(model_of(), 0.5, method=LeadingRows)


class FixedRank(Method):
    """Low rank by SVD, one rank for every layer."""

    settled = True

    class Settings(MethodSettings):
        rank: int = Field(description="of every layer")

    def prepare(self, target, moments):
        spec = mpo.shapes.low_rank(*target.shape, self.settings.rank)
        costs = Costs.of(target, [spec.parameters], [spec.macs()])
        return Choices.of(target, costs, None, lambda _: self.result(target, spec))

    def result(self, target, spec):
        return Built(mpo.MPOLinear.from_chains(mpo.decompose(target.weight, spec), target.bias))


class NothingPrepared(FixedRank):
    def prepare(self, target, moments):
        return None


class BareLayer(FixedRank):
    def result(self, target, spec):
        return super().result(target, spec).layer


class OtherShape(FixedRank):
    def result(self, target, spec):
        return Built(mpo.MPOLinear(7, target.shape[0], max_bond=1))


class NeedsData(FixedRank):
    needs = "data"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (NothingPrepared, "prepare of method 'nothing_prepared' returned a NoneType for 0; expected .*Choices"),
        (BareLayer, r"built an MPOLinear for 0; expected Built\(layer\)"),
        (OtherShape, r"of shape \(32, 7\) for 0; expected \(32, 24\)"),
        (NeedsData, "NeedsData.needs is 'data'; expected one of nothing, inputs, gradients"),
    ],
)
def test_a_method_that_breaks_the_protocol_is_named(method, message):
    with pytest.raises(ArgumentError, match=message):
        mpo.compress(model_of(), None, method=method(rank=2))


def test_settings_that_make_layers_larger_are_named_as_the_cause():
    with pytest.raises(ArgumentError, match="'fixed_rank' makes 0 larger than the dense layer.*choose settings"):
        mpo.compress(model_of(), None, method=FixedRank(rank=100))


def test_a_misspelt_setting_is_named_before_the_missing_one():
    with pytest.raises(ArgumentError, match="FixedRank: rnak: there is no such setting; did you mean 'rank'"):
        FixedRank(rnak=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mpo.compress("gpt2", 0.5, method="svd"), "model must be a torch.nn.Module, got str"),
        (lambda: mpo.compress(model_of(), 0.5, calibration=5), "list of batches, got one int"),
        (lambda: mpo.save("folder", model_of()), "model must be a torch.nn.Module, got str"),
        (lambda: mpo.load("folder", "gpt2"), "model must be a torch.nn.Module, got str"),
        (lambda: mpo.to_dense(None), "model must be a torch.nn.Module, got NoneType"),
        (lambda: mpo.finetune("small", []), "model must be a torch.nn.Module, got str"),
        (lambda: mpo.finetune(model_of(), [], teacher="gpt2"), "teacher must be a torch.nn.Module, got str"),
        (lambda: mpo.finetune(model_of(), [], config={"steps": 1}), "FinetuneConfig, got dict"),
    ],
)
def test_arguments_of_another_kind_are_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


class Failing(FixedRank):
    """Raises where its setting says."""

    settled = False

    class Settings(MethodSettings):
        rank: int = 1
        place: str

    def fail(self, place):
        if self.settings.place == place:
            return [][0]
        return None

    def check(self, targets, budget):
        self.fail("check")

    def needs_inputs(self, shape):
        return bool(self.fail("needs"))

    def prepare(self, target, moments):
        self.fail("prepare")
        choices = super().prepare(target, moments)
        return Choices.of(target, choices.costs[:-1], self.errors, choices.build, unit="none")

    def errors(self):
        self.fail("errors")
        return np.array([0.5]), 1.0

    def result(self, target, spec):
        self.fail("build")
        return super().result(target, spec)


@pytest.mark.parametrize("place", ["check", "prepare", "errors", "build"])
def test_what_it_raises_names_it_and_the_layer(place):
    model = model_of()
    layer = "check of the layers" if place == "check" else "layer 0"
    with pytest.raises(ExtensionError, match=f"method 'failing', {layer}: IndexError: list index out of") as raised:
        mpo.compress(model, 0.6, method=Failing(place=place))
    assert isinstance(raised.value.__cause__, IndexError)
    assert isinstance(model[0], nn.Linear)


def test_statistics_that_it_asks_for_name_it():
    class Asking(Failing):
        needs = "inputs"

    with pytest.raises(ExtensionError, match="method 'asking', layer 0: IndexError"):
        mpo.compress(model_of(), 0.6, method=Asking(place="needs"), calibration=[torch.randn(4, 24)])


class Understating(FixedRank):
    """Announces half of what the second layer stores, which the first layer makes up for."""

    def prepare(self, target, moments):
        honest = super().prepare(target, moments)
        share = 2 if target.name == "2" else 1
        costs = Costs.of(target, honest.costs.parameters[:-1] // share, honest.costs.macs[:-1])
        return Choices.of(target, costs, None, honest.build)


def test_costs_are_checked_layer_by_layer():
    with pytest.raises(ExtensionError, match=r"'understating', layer 2: it announced wrong costs, 48 parameters where"):
        mpo.compress(model_of(), None, method=Understating(rank=2))
