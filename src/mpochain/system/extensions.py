"""Code of other packages: import of their layers, methods and kernels, and their errors."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points

from mpochain.errors import ArgumentError, ExtensionError, MPOError

__all__ = ["GROUP", "errors_named", "import_extensions", "imported_extensions"]

# Group of entry points whose modules the command line imports before a command.
GROUP = "mpochain.extensions"

_imported: list[str] = []


@contextmanager
def errors_named(what: str) -> Iterator[None]:
    """Raise errors of foreign code as an MPOError that says where they come from, with the cause chained.

    Args:
        what: the code and what it works on, such as ``"method 'mine', layer up"``.

    Raises:
        ExtensionError: the code within the context raised something that is no MPOError. Running out of memory, Ctrl-C
            and the end of the program pass through.

    Example:
        >>> with errors_named("method 'mine', layer up"):
        ...     [][0]
        Traceback (most recent call last):
        ...
        mpochain.errors.ExtensionError: method 'mine', layer up: IndexError: list index out of range
    """
    try:
        yield
    except (MPOError, MemoryError):
        raise
    except Exception as error:
        raise ExtensionError(f"{what}: {type(error).__name__}: {_first_line(error)}") from error


def import_extensions(modules: Iterable[str] = (), *, installed: bool = False) -> None:
    """Import modules that add layers, methods or kernels to the tables of the library.

    Args:
        modules: names as for ``import``. Importing runs their code.
        installed: whether to import the modules that installed packages name as entry points, see :data:`GROUP`.

    Raises:
        ArgumentError: a module cannot be imported; the message names it.

    Example:
        >>> import_extensions(["jsno"])
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: cannot import 'jsno' (ModuleNotFoundError: No module named 'jsno'); ...
    """
    points = {point.value.partition(":")[0]: point.name for point in entry_points(group=GROUP)} if installed else {}
    for module in [*points, *modules]:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module raises while it runs
            origin = f", which the installed package of {points[module]!r} names" if module in points else ""
            raise ArgumentError(
                f"cannot import {module!r}{origin} ({type(error).__name__}: {_first_line(error)}); install its "
                "package, or add its folder to PYTHONPATH"
            ) from error
        if module not in _imported:
            _imported.append(module)


def imported_extensions() -> tuple[str, ...]:
    """Names of the modules that :func:`import_extensions` has imported, for processes started by this one."""
    return tuple(_imported)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
