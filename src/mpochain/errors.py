"""Exceptions raised by mpochain, all of them subclasses of :class:`MPOError`, and safe display of text from files."""

import json

# Line ends and tabs, and the marks that join letters of scripts such as Persian and the parts of emoji.
_SHOWN = "\n\t\u200c\u200d"
# Spaces of a fixed width, which Python does not count as printable.
_SPACES = frozenset("\u00a0\u1680\u202f\u205f\u3000") | {chr(code) for code in range(0x2000, 0x200B)}


def printable(text: str) -> str:
    r"""Escape the characters of a text that could control a terminal or change how the text around them looks.

    Names and texts that come from files are shown this way. The escapes are valid in JSON.

    Example:
        >>> print(printable("\x1b[31mred\nblue"))
        \u001b[31mred
        blue
    """
    return "".join(character if _is_shown(character) else json.dumps(character)[1:-1] for character in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in _SHOWN or character in _SPACES


class MPOError(Exception):
    """Base class of all errors raised by mpochain. Its message is escaped by :func:`printable`."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ArgumentError(MPOError, ValueError):
    """An argument with an invalid value: out of range, unknown, or contradicting another argument."""


class SpecError(ArgumentError):
    """Dims, bonds or a cutoff that describe no chain, or do not fit the matrix."""


class ShapeError(MPOError, ValueError):
    """An array whose shape does not fit the chain, plan or layer that received it."""


class DTypeError(MPOError, TypeError):
    """An array of an unsupported element type, such as integer weights, or an object of an unsupported type."""


class NonFiniteError(MPOError, ValueError):
    """NaN or infinite entries where finite numbers are required."""


class FactorizationError(MPOError, ArithmeticError):
    """A matrix factorisation (SVD, QR, eigenvalues) that failed with every routine."""


class CheckpointError(MPOError):
    """A checkpoint that is damaged, malicious, or for another model."""


class CorpusError(MPOError):
    """A text corpus or lexicon that is missing, altered, too short, or in an unknown format."""


class RecipeError(MPOError, ValueError):
    """A recipe that cannot be read, or requests something unavailable."""


class OutputError(MPOError):
    """An output file or folder that cannot be written."""


class ExportError(MPOError):
    """A model that cannot be written in the format of another program, or a written file that is not right."""


class ExtensionError(MPOError):
    """A method, layer or kernel of another package that raised an exception, which is the cause of this one."""


class MissingDependencyError(MPOError, ImportError):
    """An optional package that the called function needs and that is not installed."""
