"""Exceptions raised by mpochain, all of them subclasses of :class:`MPOError`."""


class MPOError(Exception):
    """Base class of all errors raised by mpochain."""


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


class CheckpointError(MPOError):
    """A checkpoint that is damaged, malicious, or for another model."""


class CorpusError(MPOError):
    """A text corpus or lexicon that is missing, altered, too short, or in an unknown format."""


class RecipeError(MPOError, ValueError):
    """A recipe that cannot be read, or requests something unavailable."""


class OutputError(MPOError):
    """An output file or folder that cannot be written."""


class ExtensionError(MPOError):
    """A method, layer or kernel of another package that raised an exception, which is the cause of this one."""


class MissingDependencyError(MPOError, ImportError):
    """An optional package that the called function needs and that is not installed."""
