"""Selection of layers, and budgets as users write them."""

from __future__ import annotations

import pytest
from torch import nn

from mpochain import MPOError
from mpochain.compression import Target, select
from mpochain.compression.budget import byte_budget
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
        byte_budget(budget, opened(net))


def test_budgets_are_bytes_of_layers_of_any_types(net):
    net.down.half()
    weights = [target.weight for target in opened(net).values()]
    assert {weight.element_size() for weight in weights} == {2, 4}
    assert byte_budget("1kB", opened(net)) == 1000
    assert byte_budget("1KiB of layers", opened(net), outside=99) == 1024
    assert byte_budget("1kB", opened(net), outside=99) == 901
    assert byte_budget("50%", opened(net)) == sum(weight.numel() * weight.element_size() for weight in weights) // 2
    assert byte_budget("3.5 bits", opened(net)) == int(3.5 * sum(weight.numel() for weight in weights) / 8)
    assert byte_budget(" 3bits per weight", {"left": Target.open("left", net.left)}) == net.left.weight.numel() * 3 // 8
