"""Chains with a user-defined spec for each layer, by TT-SVD or fitted to calibration data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from mpochain.chain import MPOChain
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.statistics.damping import DAMPING
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import errors_between, weights_of
from mpochain.compression.target import Target
from mpochain.decomposition import calibrated
from mpochain.errors import ArgumentError, SpecError
from mpochain.factorization import decompose
from mpochain.nn import MPOLinear
from mpochain.spec import ChainSpec

__all__ = ["Chains"]

_REGULAR_EXPRESSION = "re:"

# Recipes give a spec as plain data.
_Spec = Annotated[
    ChainSpec, BeforeValidator(lambda spec: ChainSpec.from_dict(spec) if isinstance(spec, dict) else spec)
]


class Chains(Method):
    """One chain per layer, with the spec given for the layer; :func:`mpochain.compress` takes no budget.

    Without data, each chain is the TT-SVD of its weight (Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011)). With data,
    the fit is weighted by the second moments of the inputs and, for layers with at most as many outputs as inputs, by
    those of the gradients of the loss with respect to the outputs, see :func:`mpochain.decomposition.calibrated`. A
    layer that would not become smaller stays dense; the report shows it.

    Args:
        settings: see :class:`Chains.Settings`.
        values: fields of the settings.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        >>> specs = {"0": mpo.ChainSpec((8, 8), (8, 8), 4), "re:2": mpo.ChainSpec((4, 4), (8, 8), 4)}
        >>> report = mpo.compress(model, None, method=Chains(specs=specs))
        >>> [layer.parameters_after for layer in report.layers], str(model[2].spec)
        ([512, 256], '16x64 (4,4)|(8,8) bonds (4), 256 parameters')
    """

    class Settings(MethodSettings):
        """Settings of :class:`Chains`."""

        specs: dict[str, _Spec] = Field(
            min_length=1,
            description="the spec of each layer, keyed by its name or by re: and a regular expression that matches the "
            "full name; an exact name takes priority, then the first expression that matches",
        )
        calibrated: bool = Field(False, description="fit the chains to calibration data; not for embeddings")
        iterations: int = Field(40, ge=1, description="iterations of the fit to calibration data")

        @field_validator("specs")
        @classmethod
        def _expressions_are_valid(cls, specs: dict[str, ChainSpec]) -> dict[str, ChainSpec]:
            for pattern in specs:
                if pattern.startswith(_REGULAR_EXPRESSION):
                    try:
                        re.compile(pattern.removeprefix(_REGULAR_EXPRESSION))
                    except re.error as error:
                        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
            return specs

    settings: Settings
    settled = True

    def __init__(self, settings: Settings | None = None, /, **values: object) -> None:
        super().__init__(settings, **values)
        self.name = "calibrated_chains" if self.settings.calibrated else "chains"
        self.needs = "gradients" if self.settings.calibrated else "nothing"
        self.embeddings = not self.settings.calibrated

    def needs_inputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return self.settings.calibrated

    def check(self, targets: Mapping[str, Target], budget: float | str | None) -> None:  # noqa: ARG002  # of the protocol
        """Refuse layers without a spec, specs without a layer, and specs whose shape is not their layer's.

        Raises:
            ArgumentError: a layer has no spec, or a spec matches no layer; the message names it.
            SpecError: the shape of a spec is not its layer's; the message names the layer.
        """
        used = set()
        for name, target in targets.items():
            pattern = self._pattern(name)
            if pattern is None:
                raise ArgumentError(f"{name} has no spec; add one to specs=, or leave the layer out with ignore=")
            used.add(pattern)
            spec = self.settings.specs[pattern]
            if spec.shape != target.shape:
                out, in_ = target.shape
                raise SpecError(f"{name} is a {out}x{in_} matrix, but its spec is {spec}; give a spec of its shape")
        if unused := [pattern for pattern in self.settings.specs if pattern not in used]:
            raise ArgumentError(f"specs= has {unused[0]!r}, which is the spec of no layer here; leave it out")

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        pattern = self._pattern(target.name)
        assert pattern is not None, "check() was called"
        spec = self.settings.specs[pattern]
        costs = Costs.of(target, [spec.parameters], [target.chain_macs(spec)])
        reason = None
        if spec.parameters >= target.parameters:
            costs = costs[:0]
            reason = f"its chain would have {spec.parameters:,} parameters, the weight has {target.parameters:,}"
        return Choices.of(target, costs, None, lambda _: self._built(target, moments, spec), reason=reason)

    def _built(self, target: Target, moments: Moments | None, spec: ChainSpec) -> Built:
        if moments is None or not self.settings.calibrated:
            chain = decompose(target.weight, spec, name=target.name)
            return Built(MPOLinear.from_chains(chain, target.bias))
        inputs, outputs = weights_of(moments, damping=DAMPING)
        if spec.out_features > spec.in_features:
            # The moments of the gradients are on the smaller side, here the inputs, where no fit uses them.
            moments, outputs = replace(moments, gradients=None), None
        fit = calibrated(
            target.weight,
            spec,
            inputs,
            outputs,
            iterations=self.settings.iterations,
            precision="float32",
            name=target.name,
        )
        layer = MPOLinear.from_chains(MPOChain(fit.terms[0], spec), target.bias)
        return Built(layer, errors_between(target.weight, moments, layer.weight))

    def _pattern(self, name: str) -> str | None:
        """Key of the layer's spec in the settings; None if no key matches."""
        if name in self.settings.specs:
            return name
        expressions = (key for key in self.settings.specs if key.startswith(_REGULAR_EXPRESSION))
        return next((key for key in expressions if re.fullmatch(key.removeprefix(_REGULAR_EXPRESSION), name)), None)
