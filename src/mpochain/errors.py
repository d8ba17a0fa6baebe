"""Exceptions raised by mpochain, all of them subclasses of :class:`MPOError`."""


class MPOError(Exception):
    """Base of all errors raised by mpochain."""


class ArgumentError(MPOError, ValueError):
    """An argument whose value cannot be used: out of range, unknown, or in contradiction to another."""


class SpecError(ArgumentError):
    """Dims, bonds or a cutoff that describe no chain, or no chain of the matrix at hand."""


class ShapeError(MPOError, ValueError):
    """An array whose shape does not fit the chain, plan or layer that it was passed to."""


class DTypeError(MPOError, TypeError):
    """An array whose element type cannot be used, such as integer weights."""


class NonFiniteError(MPOError, ValueError):
    """NaN or infinite entries where finite numbers are required."""


class CheckpointError(MPOError):
    """A checkpoint file that is damaged, malicious, or of another model."""


class CorpusError(MPOError):
    """A text corpus or lexicon that is missing, altered, too short, or in an unknown format."""


class RecipeError(MPOError, ValueError):
    """A recipe that cannot be read, or that requests something unavailable."""


class OutputError(MPOError):
    """An output file or folder that cannot be written."""


class MissingDependencyError(MPOError, ImportError):
    """An optional package that the called function needs is not installed."""
