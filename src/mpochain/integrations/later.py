"""Functions that are called once a module of another library is imported, so that nobody waits for its import.

``import mpochain`` imports this file, so it imports no more of the standard library than is there already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["after_import"]


def after_import(module: str, call: Callable[[], object]) -> None:
    """Call a function at once if a module is imported already, else right after its first import.

    A function that cannot import what it needs, as the other library is too old or too new for it, leaves a warning, so
    that the other library itself can still be imported.

    Args:
        module: full name of the module.
        call: the function.

    Example:
        >>> after_import("sys", lambda: print("imported"))
        imported
    """
    if getattr(sys.modules.get(module), "__spec__", None) is None or _is_half_imported(module):
        sys.meta_path.insert(0, _Finder(module, call))
    else:
        _attempt(module, call)


def _is_half_imported(module: str) -> bool:
    """Whether a module is just being imported, by code that then imports this library."""
    return bool(getattr(sys.modules[module].__spec__, "_initializing", False))


def _attempt(module: str, call: Callable[[], object]) -> None:
    try:
        call()
    except ImportError as error:
        import logging

        logging.getLogger(__name__).warning(
            "mpochain does not know this version of %s: %s", module.partition(".")[0], error
        )


class _Finder:
    """Finds one module, as the other finders do, and lets its loader call a function afterwards."""

    def __init__(self, module: str, call: Callable[[], object]) -> None:
        self._module, self._call = module, call

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  # the signature of finders
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        from importlib.util import find_spec

        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                execute(module)
                _attempt(fullname, self._call)

            loader.exec_module = exec_module
        return spec
