"""Resampling along pixel rows and columns, numpy only: bilinear to finer pixels, area average to coarser
ones; classes are those of the nearest pixel.

GDAL's warper does the same arithmetic, but has another rule for each kind of mask (nodata, alpha, NaN, a
value known only from a STAC item) and may average an overview made with nearest neighbour. Here one mask
counts, and a pixel's value is a function of its place alone, so reading in other windows gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
Valid = npt.NDArray[np.bool_]
Read = Callable[[int, int, int, int], tuple[Values, Valid]]  # of a raster: first row and column, height, width

STEP = 2.0**20  # weights are whole multiples of 1 / STEP, so that they add up to exactly 1 in float32


@dataclass(frozen=True)
class PixelAxis:
    """Where a grid's pixels lie in a raster, along one axis: i covers start + i * step and the next step."""

    start: float  # in the raster's pixels, from its first pixel's outer edge
    step: float  # in the raster's pixels; below 1 where the grid is finer
    size: int  # the raster's pixels

    def aligned(self, length: int) -> bool:
        """Whether the first ``length`` grid pixels are the raster's own, to a hundredth of a pixel."""
        drift = abs(self.step - 1) * length
        return drift < 0.01 and abs(self.start - round(self.start)) < 0.01

    def taps(
        self, first: int, count: int, *, nearest: bool = False
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """The raster's pixels that make up grid pixels first ... first + count - 1, and their weights.

        Returns:
            indices and weights, both (count, taps). Indices beyond the raster are moved to its edge; the
            weights of a row add up to 1.
        """
        if nearest:
            return self.nearest(first, count)[0][:, None], np.ones((count, 1), np.float32)
        places = first + np.arange(count, dtype=np.float64)
        if self.step <= 1:
            centre = self.start + (places + 0.5) * self.step - 0.5
            index = np.floor(centre)[:, None] + np.arange(2)
            weights = 1 - np.abs(centre[:, None] - index)
        else:
            left = self.start + places * self.step
            index = np.floor(left)[:, None] + np.arange(int(np.ceil(self.step)) + 1)
            overlap = np.minimum(index + 1, left[:, None] + self.step) - np.maximum(index, left[:, None])
            weights = np.clip(overlap, 0, 1) / self.step
        weights = np.round(weights * STEP) / STEP
        largest = weights.argmax(axis=1)
        weights[np.arange(count), largest] += 1 - weights.sum(axis=1)
        return np.clip(index, 0, self.size - 1).astype(np.intp), weights.astype(np.float32)

    def nearest(self, first: int, count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """The raster's pixel that holds the centre of each grid pixel, and whether there is one at all.

        Indices beyond the raster are moved to its edge. A centre on an edge between two pixels takes the second.
        """
        centre = self.start + (first + np.arange(count, dtype=np.float64) + 0.5) * self.step
        index = np.floor(centre + 1e-6).astype(np.intp)
        return np.clip(index, 0, self.size - 1), (index >= 0) & (index < self.size)


@dataclass(frozen=True)
class Parallel:
    """How a grid is read from a raster of the same CRS; ``direct``: its pixels are the raster's own."""

    rows: PixelAxis
    columns: PixelAxis
    direct: bool
    nearest: bool

    @property
    def way(self) -> str:
        """The resampling, in words."""
        return "nearest" if self.nearest else "bilinear" if self.columns.step <= 1 else "area average"

    def read(self, window: tuple[int, int, int, int], read: Read) -> tuple[Values, Valid]:
        """A window of the grid, see :func:`read_through`."""
        if not self.direct:
            return read_through(self.rows, self.columns, window, read, nearest=self.nearest)
        row, column, height, width = window
        return read(row + round(self.rows.start), column + round(self.columns.start), height, width)


def read_through(
    rows: PixelAxis, columns: PixelAxis, window: tuple[int, int, int, int], read: Read, *, nearest: bool = False
) -> tuple[Values, Valid]:
    """A window of a grid, resampled from the raster's pixels that it needs.

    Args:
        rows: where the grid's rows lie in the raster.
        columns: the same for its columns.
        window: first row and column in the grid, height and width.
        read: gives values and validity (n, height, width) of the raster for such a window of its own, values 0 where
            invalid.
        nearest: the nearest pixel's value, as of classes, of which there is no mean.

    Returns:
        as :func:`resample`.
    """
    row, column, height, width = window
    row_taps, row_weights = rows.taps(row, height, nearest=nearest)
    column_taps, column_weights = columns.taps(column, width, nearest=nearest)
    top, left = int(row_taps.min()), int(column_taps.min())
    values, valid = read(top, left, int(row_taps.max()) - top + 1, int(column_taps.max()) - left + 1)
    return resample(values, valid, (row_taps - top, row_weights), (column_taps - left, column_weights))


def resample(
    values: Values,
    valid: Valid,
    rows: tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]],
    columns: tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]],
) -> tuple[Values, Valid]:
    """Weighted means of valid pixels only.

    Args:
        values: (n, height, width), 0 where invalid.
        valid: the same shape.
        rows: indices into the height and weights, as :meth:`PixelAxis.taps` gives them (less the first row read).
        columns: the same for the width.

    Returns:
        values and validity (n, len(rows), len(columns)). A pixel is valid where valid pixels hold at least
        half of the weight; it is 0 elsewhere.
    """
    total = _weigh(_weigh(values, rows, axis=1), columns, axis=2)
    if valid.all():  # weights add up to exactly 1, so this short cut changes no bit
        return total, np.ones(total.shape, dtype=bool)
    weight = _weigh(_weigh(valid.astype(np.float32), rows, axis=1), columns, axis=2)
    enough = weight >= 0.5
    return np.divide(total, weight, out=np.zeros_like(total), where=enough), enough


def _weigh(values: Values, taps: tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]], axis: int) -> Values:
    index, weights = taps
    shape = (-1, 1) if axis == 1 else (1, -1)
    total = values.take(index[:, 0], axis=axis) * weights[:, 0].reshape(shape)
    for tap in range(1, index.shape[1]):
        total += values.take(index[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return total
