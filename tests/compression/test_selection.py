"""Selection of layers, and budgets as users write them."""

from __future__ import annotations

import pytest
from torch import nn

from mpochain import MPOError
from mpochain.compression import Target, select
from mpochain.compression.budget import parameter_budget
from mpochain.compression.selection import dense_layers


def test_names_patterns_and_classes(net):
    assert list(select(net, ["down", "left"])) == ["left", "down"]
    assert list(select(net, [r"re:(le|ri).*"])) == ["left", "right"]
    assert list(select(net, ["Linear"], ignore=["right", "re:he.*"])) == ["left", "down"]
    assert list(select(nn.ModuleDict({"a": net}), ["Linear"], ignore=["a"])) == []


def test_tied_heads_are_left_out_unless_named(net):
    assert list(dense_layers(net)) == ["left", "right", "down"]
    assert "head" in select(net, ["head"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["lefft"], "'lefft' matches no layer; the nearest names are left"),
        (["re:("], "is not a regular expression"),
        (["re:nothing.*"], "matches no layer"),
        (["embedding"], "'embedding' is an Embedding, which cannot be compressed"),
        ([3], "must hold names"),
    ],
)
def test_patterns_that_cannot_be_meant(net, targets, message):
    with pytest.raises(MPOError, match=message):
        select(net, targets)
    if targets != ["embedding"]:
        with pytest.raises(MPOError, match=message):
            select(net, ["Linear"], ignore=targets)


def opened(net):
    return {name: Target.open(name, layer) for name, layer in dense_layers(net).items()}


@pytest.mark.parametrize("budget", [0, -0.5, 1.5, True, "lots", "120%", "5 apples", "x% error", None, float("nan")])
def test_budgets_that_are_none(net, budget):
    with pytest.raises(MPOError, match="budget"):
        parameter_budget(budget, opened(net))


def test_bytes_need_one_size(net):
    net.down.half()
    with pytest.raises(MPOError, match="one element size"):
        parameter_budget("1MB", opened(net))
    assert parameter_budget("1kB", {"left": Target.open("left", net.left)}) == 250
    assert parameter_budget("1KiB", {"down": Target.open("down", net.down)}) == 512
