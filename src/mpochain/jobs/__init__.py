"""Former name of :mod:`mpochain.workflows`, whose modules it finds; removed in the next release."""

import warnings

from mpochain import workflows
from mpochain.workflows import *  # noqa: F403  # the same names

__all__ = workflows.__all__
# Modules of this package are those of the other.
__path__ = workflows.__path__

warnings.warn("mpochain.jobs is now mpochain.workflows; import that", DeprecationWarning, stacklevel=2)
