"""Kernels: the ways to run a schedule in torch, one per file, and the table of them.

``KERNELS`` is what layers choose among when they make a plan. A kernel is added by a file here and a line in the
table, or from outside by ``KERNELS[kernel.name] = kernel``; layers take it into account in the plans that they make
from then on (:func:`mpochain.set_execution` has a layer make its plans anew). Of kernels that are predicted to be
equally fast, the first of the table is chosen.

``mpochain.execution.kernels.onednn`` is beneath them: a context that has another library compute the large products
that they call.
"""

from mpochain.execution.kernels.autograd import Autograd
from mpochain.execution.kernels.compiled import Compiled
from mpochain.execution.kernels.dense import Dense
from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.kernels.panels import Panels
from mpochain.execution.kernels.portable import Portable
from mpochain.execution.kernels.tiled import Tiled

__all__ = ["KERNELS", "Kernel"]

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel for kernel in (Panels(), Dense(), Autograd(), Tiled(), Compiled(), Portable())
}
