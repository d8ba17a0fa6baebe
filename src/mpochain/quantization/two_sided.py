"""Rounding of a matrix with feedback of the error along its inputs and along its outputs.

The error ``E = W - Q`` of a matrix is weighted by the second moments of the inputs ``H`` and of the gradients with
respect to the outputs ``G``, as ``tr(G E H E^T)``. With the unit triangles ``A`` of ``G`` and ``B`` of ``H``, see
:mod:`mpochain.quantization.triangle`, this is

    sum_ij a_i b_j (A E B^T)_ij^2,

and the term of an entry holds only the entries that are neither below it nor to its right. If each term is made as
small as the entries before it allow, entry ``(i, j)`` of ``W + A E B^T - E`` is rounded. It is the nearest-plane
algorithm for the Kronecker product of both moments. The idea of both sides is that of arXiv 2505.22988.

With ``D = E B^T`` the correction has two parts. Column ``j`` becomes ``c_j = w_j - sum_{k<j} (B^-1)_jk d_k`` as in
:mod:`mpochain.quantization.input_feedback`, and entry ``i`` of it is rounded as ``c_ij + sum_{k<i} A_ik d_kj``, where
``d = c - q``. The matrix is divided into tiles. Tiles on an antidiagonal do not depend on each other and are rounded
together, see :mod:`mpochain.quantization.tiles`; between tiles the corrections are matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpochain.quantization.codes import Quantized
from mpochain.quantization.grid import checked_matrix, group_grid
from mpochain.quantization.scheme import Scheme
from mpochain.quantization.tiles import Tiles
from mpochain.quantization.tiling import Tiling, diagonal_blocks
from mpochain.quantization.triangle import InputFactor, OutputFactor, Triangle, input_triangle, output_triangle

__all__ = ["two_sided"]


def two_sided(
    matrix: Tensor,
    scheme: Scheme,
    inputs: Tensor | Triangle | None,
    outputs: Tensor | Triangle | None,
    *,
    name: str = "the matrix",
) -> Quantized:
    """Round a matrix with feedback of the error along its inputs and along its outputs.

    The grid of a group is searched when its first column is reached, for the weights as corrected until then.

    Args:
        matrix: ``W (out, in)``, any float type.
        scheme: bits, group and symmetry.
        inputs: ``H (in, in)``, second moments of the inputs, up to a factor; 1 % of their mean diagonal is added to the
            diagonal. A :class:`Triangle` has its own damping, and serves several roundings. None for equal weights.
        outputs: ``G (out, out)``, second moments of the gradients with respect to the outputs, up to a factor; their
            mean diagonal is added to the diagonal. Or a triangle, or None.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: entries that are too large or too small for float16 scales.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.
        ShapeError: moments that do not fit the matrix.

    Example:
        >>> from mpochain.quantization import input_feedback
        >>> random = torch.Generator().manual_seed(0)
        >>> W, x, g = (torch.randn(size, generator=random) for size in ((32, 48), (48, 48), (32, 32)))
        >>> H, G = x @ x.T, Triangle.of(g @ g.T, damping=0.1)
        >>> def error(short):
        ...     E = W - short.dequantized()
        ...     return float(torch.trace(G.moments.float() @ E @ H @ E.T))
        >>> round(error(two_sided(W, Scheme(3), H, G)) / error(input_feedback(W, Scheme(3), H)), 1)
        0.6
    """
    matrix32 = checked_matrix(matrix, scheme, name)
    rows, columns = matrix32.shape
    by_inputs = input_triangle(inputs, columns, name, matrix32.device).of_inputs(scheme.group)
    by_outputs = output_triangle(outputs, rows, name, matrix32.device).of_outputs()
    return _Rounding(matrix32, scheme, by_outputs, by_inputs).result()


class _Rounding:
    """The state of one call; matrices are in the order and padding of the tiles."""

    def __init__(self, matrix: Tensor, scheme: Scheme, outputs: OutputFactor, inputs: InputFactor) -> None:
        rows, columns = matrix.shape
        tiling = self._tiling = Tiling((rows, columns), scheme, outputs, inputs)
        self._scheme = scheme
        self._corrected = tiling.spread(matrix)  # c
        self._from_rows = torch.zeros_like(self._corrected)  # A d - d, of the bands above
        self._codes = torch.zeros_like(self._corrected)
        self._unit = tiling.spread_rows(outputs.unit)
        self._inverse = tiling.spread_columns(inputs.inverse)
        self._terms = tiling.spread_columns(inputs.terms)
        self._within_columns = diagonal_blocks(self._unit, tiling.height).tril(-1)
        self._within_rows = diagonal_blocks(self._inverse, tiling.width).triu(1).neg()  # reversed in both axes
        self._scales = matrix.new_ones(tiling.bands, scheme.groups(columns), tiling.height)
        self._zeros = torch.full_like(self._scales, float(scheme.middle_code))
        self._groups = torch.tensor(tiling.strips, device=matrix.device)
        count = min(tiling.bands, len(tiling.strips))
        self._tiles = Tiles(count, tiling.height, tiling.width, scheme.largest_code, matrix.device)

    def result(self) -> Quantized:
        """Round all tiles, one antidiagonal of them at a time."""
        tiling = self._tiling
        strips = len(tiling.strips)
        for antidiagonal in range(tiling.bands + strips - 1):
            bands = range(max(0, antidiagonal - strips + 1), min(antidiagonal + 1, tiling.bands))
            places = [(band, antidiagonal - band) for band in bands]
            self._search_grids(places)
            self._round(places)
        scales = tiling.gathered_rows(self._scales).to(torch.float16)
        zeros = None if self._scheme.symmetric else tiling.gathered_rows(self._zeros).to(torch.uint8)
        return Quantized(tiling.gathered(self._codes).to(torch.uint8), scales, zeros, self._scheme)

    def _search_grids(self, places: list[tuple[int, int]]) -> None:
        """Search the grids of groups whose first strip is about to be rounded; those of as many strips at once."""
        tiling = self._tiling
        by_strips: dict[int, list[tuple[int, int, int]]] = {}
        for band, strip in places:
            group = tiling.strips[strip]
            if strip == 0 or tiling.strips[strip - 1] != group:
                by_strips.setdefault(tiling.strips_of_group[group], []).append((band, strip, group))
        for count, starts in by_strips.items():
            values, weights = [], []
            for band, strip, _ in starts:
                place = tiling.band(band), tiling.strip(strip, count)
                values.append(self._corrected[place] + self._from_rows[place])
                weights.append(self._terms[place[1]].expand(tiling.height, -1))
            scales, zeros = group_grid(torch.cat(values), self._scheme, torch.cat(weights))
            for row, (band, _, group) in enumerate(starts):
                self._scales[band, group] = scales[tiling.band(row)]
                self._zeros[band, group] = zeros[tiling.band(row)]

    def _round(self, places: list[tuple[int, int]]) -> None:
        tiling, tiles, count = self._tiling, self._tiles, len(places)
        bands, strips = torch.tensor(places, device=self._scales.device).unbind(1)
        scales = self._scales[bands, self._groups[strips]][:, :, None]
        zeros = self._zeros[bands, self._groups[strips]][:, :, None]
        tiles.columns[:count] = tiling.by_tile(self._corrected)[bands, strips] / scales + zeros
        tiles.rows[:count] = tiling.by_tile(self._from_rows)[bands, strips] / scales
        tiles.within_columns[:count] = self._within_columns[bands] * (scales.mT / scales)
        tiles.within_rows[:count] = self._within_rows[strips]
        tiles.round(count)
        tiling.by_tile(self._codes)[bands, strips] = tiles.codes[:count]
        differences = tiles.differences[:count] * scales
        for (band, strip), difference in zip(places, differences, strict=True):
            rows, columns = tiling.band(band), tiling.strip(strip)
            self._corrected[rows, columns.stop :].addmm_(difference, self._inverse[columns.stop :, columns].T, alpha=-1)
            self._from_rows[rows.stop :, columns].addmm_(self._unit[rows.stop :, rows], difference)
