"""Torch kernels that run a schedule, one per file, and the table of them.

Layers choose a kernel from ``KERNELS`` when they make a plan. To add a kernel, add a file here and a line to the table,
or from outside, set ``KERNELS[kernel.name] = kernel``. Layers consider it in plans that they make from then on
(:func:`mpochain.set_execution` makes a layer plan again). Among kernels with equal predicted times, the first in the
table is chosen.

``mpochain.execution.kernels.onednn`` works below the kernels: a context in which oneDNN computes large products.
"""

from mpochain.execution.kernels.autograd import Autograd
from mpochain.execution.kernels.compiled import Compiled
from mpochain.execution.kernels.dense import Dense
from mpochain.execution.kernels.fused import Fused
from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.kernels.panels import Panels
from mpochain.execution.kernels.portable import Portable
from mpochain.execution.kernels.tiled import Tiled

__all__ = ["KERNELS", "Kernel"]

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel for kernel in (Panels(), Dense(), Autograd(), Tiled(), Compiled(), Portable(), Fused())
}
