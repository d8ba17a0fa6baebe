"""Matrix factorisations for NumPy, PyTorch and JAX that survive a failure of LAPACK.

On rare finite matrices LAPACK's fast drivers do not converge, and GPU libraries fail on a few more. Each function here
tries the library's own routine, then the same routine on the matrix in float64 and with its largest entry near 1, and
then another algorithm. Only this package calls factorisations, so no caller meets the errors of a library.
"""

from mpochain.linalg.attempts import named
from mpochain.linalg.decompositions import eigh, pivoted_qr, qr, svd, svdvals
from mpochain.linalg.systems import cholesky, inverse, solve, solve_triangular

__all__ = [
    "cholesky",
    "eigh",
    "inverse",
    "named",
    "pivoted_qr",
    "qr",
    "solve",
    "solve_triangular",
    "svd",
    "svdvals",
]
