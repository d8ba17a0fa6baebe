"""Registry of the compression methods by name, and import of methods from other packages."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from mpochain.compression.budget import bits_budget, size_budget
from mpochain.compression.methods.auto import Auto
from mpochain.compression.methods.balanced import Balanced
from mpochain.compression.methods.block_train import BlockTrain
from mpochain.compression.methods.entangled import Entangled
from mpochain.compression.methods.gptq import Gptq
from mpochain.compression.methods.interpolative import Interpolative
from mpochain.compression.methods.kronecker import Kronecker
from mpochain.compression.methods.low_rank import LowRank
from mpochain.compression.methods.method import Method
from mpochain.compression.methods.rtn import Rtn
from mpochain.compression.methods.search import Search
from mpochain.compression.methods.token_train import TokenTrain
from mpochain.errors import ArgumentError
from mpochain.system.extensions import errors_named

__all__ = ["METHODS", "default_method", "method_named", "method_of", "method_type"]

# Names on the command line, in recipes and in reports.
METHODS: dict[str, Method] = {
    "interpolative": Interpolative(),
    "auto": Auto(),
    "gptq": Gptq(),
    "rtn": Rtn(),
    "search": Search(),
    "svd_llm": LowRank(weighted=True),
    "svd": LowRank(weighted=False),
    "tt_svd": Balanced(),
    "block_train": BlockTrain(),
    "monarch": BlockTrain(calibrated=False),
    "kronecker": Kronecker(),
    "permuted_kronecker": Kronecker(permuted=True),
    "calibrated_kronecker": Kronecker(calibrated=True),
    "calibrated_permuted_kronecker": Kronecker(permuted=True, calibrated=True),
    "word2ket": Entangled(order=2, units="own"),
    "word2ketxs": Entangled(order=2),
    "token_train": TokenTrain(),
}


def default_method(budget: float | str | None) -> str:
    """Name of the method that a budget takes if none is named: ``"auto"`` for bytes and bits per weight.

    Example:
        >>> default_method("40MB"), default_method("3 bits"), default_method(0.6), default_method("5% error")
        ('auto', 'auto', 'interpolative', 'interpolative')
    """
    stored = budget is not None and (size_budget(budget) is not None or bits_budget(budget) is not None)
    return "auto" if stored else "interpolative"


def method_of(method: str | Method | None, budget: float | str | None) -> Method:
    """The method that an argument gives: an instance, a name, or None for the default of the budget.

    Raises:
        ArgumentError: see :func:`method_named`.
    """
    return method if isinstance(method, Method) else method_named(default_method(budget) if method is None else method)


def method_named(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Look up a compression method by name and apply settings.

    Args:
        name: a name in :data:`METHODS`; or ``"package.module:ClassName"`` of a :class:`Method` defined elsewhere.
            Importing that module runs its code, so read a recipe of unknown origin before you use it.
        settings: fields of the method's ``Settings`` that override those of the named method.

    Raises:
        ArgumentError: the name is unknown, the module cannot be imported, the class is not a :class:`Method`, or the
            settings are invalid.

    Example:
        >>> method_named("permuted_kronecker", {"terms": 1})
        Kronecker(permuted=True, terms=1)
        >>> method_named("mpochain.compression:Kronecker", {"terms": 1}).name
        'kronecker'
    """
    if not isinstance(name, str):
        raise ArgumentError(f"method must be a name or an instance of Method, got {_in_words(name)}")
    values = dict(settings or {})
    if ":" in name:
        with errors_named(f"method {name!r}"):
            return method_type(name)(**values)
    if name not in METHODS:
        nearest = difflib.get_close_matches(name, METHODS, n=1)
        guess = f", did you mean {nearest[0]!r}?" if nearest else ""
        raise ArgumentError(
            f"there is no method {name!r}{guess}; there are {', '.join(METHODS)}, or package.module:ClassName for a "
            "method of your own"
        )
    method = METHODS[name]
    return method.with_settings(**values) if values else method


def _in_words(method: object) -> str:
    if isinstance(method, type):
        return f"the class {method.__name__}; give an instance, {method.__name__}(...)"
    return type(method).__name__


def method_type(name: str) -> type[Method]:
    """The class of ``"package.module:ClassName"``, whose module is imported.

    Raises:
        ArgumentError: see :func:`method_named`.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise ArgumentError(f"method {name!r}: expected package.module:ClassName")
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever a module raises while it runs
        raise ArgumentError(
            f"method {name!r}: cannot import {module!r} ({error}); install its package, or add its folder to PYTHONPATH"
        ) from error
    method = getattr(imported, attribute, None)
    if method is None:
        raise ArgumentError(f"method {name!r}: the module {module!r} has no {attribute!r}")
    if not isinstance(method, type) or not issubclass(method, Method):
        raise ArgumentError(f"method {name!r}: expected a subclass of mpochain.compression.Method, got {method!r}")
    return method
