"""The exception family. Every error the library raises on purpose is an :class:`MPOError`."""


class MPOError(Exception):
    """Base of all errors raised by mpochain."""


class ArgumentError(MPOError, ValueError):
    """An argument whose value cannot be used: out of range, unknown, or in contradiction to another."""


class SpecError(ArgumentError):
    """Dims, bonds or a cutoff that describe no chain, or not the chain of this matrix."""


class ShapeError(MPOError, ValueError):
    """An array whose shape does not fit the chain, plan or layer it was given to."""


class DTypeError(MPOError, TypeError):
    """An array whose element type cannot be used, such as integer weights."""


class NonFiniteError(MPOError, ValueError):
    """NaN or infinite entries where only finite numbers make sense."""


class CheckpointError(MPOError):
    """A checkpoint file that is damaged, hostile or of another model."""


class CorpusError(MPOError):
    """A text corpus or lexicon that is missing, altered, too short or in another form."""


class RecipeError(MPOError, ValueError):
    """A recipe that cannot be read, or that asks for what there is not."""


class OutputError(MPOError):
    """A place to write results to that cannot be written."""


class MissingDependencyError(MPOError, ImportError):
    """An optional package that the called function needs is not installed."""
