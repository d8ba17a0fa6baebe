"""PicoGPT's linears as chains in place of dense weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from mpochain.errors import SpecError
from mpochain.nn import MPOLinear
from mpochain.spec import ChainSpec
from studies.picogpt.design import Design
from studies.picogpt.model import PicoGPT, linears

__all__ = ["decompose_linears", "replace_linears", "require_decomposable"]


def decompose_linears(model: PicoGPT, design: Design | int) -> PicoGPT:
    """A new PicoGPT in which every linear of a dense one is its TT-SVD; the given model is left as it is.

    Args:
        model: a dense one.
        design: the chains, or the bond of chains with the paper's sites.

    Raises:
        SpecError: a model that has chains already, a design of another width, or one without chains.

    Example:
        >>> from studies.picogpt import build
        >>> dense = build(seed=0)
        >>> chains = decompose_linears(dense, 8)
        >>> sum(p.numel() for p in chains.parameters())
        79168
    """
    wanted = design if isinstance(design, Design) else Design("paper", design)
    return replace_linears(model, wanted, lambda name, linear, spec: MPOLinear.from_linear(linear, spec, name=name))


def replace_linears(model: PicoGPT, design: Design, make: Callable[[str, nn.Linear, ChainSpec], MPOLinear]) -> PicoGPT:
    """A new PicoGPT in which every linear of a dense one is made into a chain; the given model is left as it is.

    Args:
        model: a dense one.
        design: the chains.
        make: from the name of a linear, the linear and its spec to the layer in its place.

    Raises:
        SpecError: a model that has chains already, a design of another width, or one without chains.

    Example:
        >>> from studies.picogpt import build
        >>> def drawn(name, linear, spec):
        ...     return MPOLinear(linear.in_features, linear.out_features, spec=spec, bias=linear.bias is not None)
        >>> str(replace_linears(build(seed=0), Design("paper", 8), drawn).design)
        'χ=8'
    """
    require_decomposable(model, design)
    result = copy.deepcopy(model)
    names = {module: name for name, module in result.named_modules()}
    for parent, attribute, linear in linears(result):
        spec = design.spec(linear.out_features, linear.in_features)
        assert spec is not None
        setattr(parent, attribute, make(names[linear], linear, spec))
    result.design = design
    return result


def require_decomposable(model: PicoGPT, design: Design) -> None:
    """Nothing, where a model can be decomposed into a design.

    Raises:
        SpecError: a model that has chains already, a design of another width, or one without chains.

    Example:
        >>> from studies.picogpt import build
        >>> require_decomposable(build(seed=0), Design("paper", 8))
    """
    if model.design.family != "dense":
        raise SpecError(f"a decomposition needs a dense model, got one whose linears are {model.design}")
    if design.width != model.design.width:
        raise SpecError(f"a model of width {model.design.width} cannot be decomposed into one of width {design.width}")
    if design.family == "dense":
        raise SpecError("a decomposition needs a design with chains, got a dense one")
