"""Reading a grid from a raster of another CRS.

PROJ is asked for the place of every single pixel. GDAL's warper asks for a few and interpolates between them, which
ones depends on the window; here a pixel is a function of its place alone, so reading in other windows gives the same
bits, and validity follows the one rule of ``resample``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.warp import transform, transform_bounds

from eo_zoo.errors import InputError
from eo_zoo.geo.grid import Bounds, Grid, coincide, name_of
from eo_zoo.geo.resample import Read, Valid, Values

Places = npt.NDArray[np.float64]

POINTS = 16  # a side of a pixel at most; more of them make no better mean
AT_A_TIME = 2**18  # points; the place of each takes some 200 bytes while it is looked for
SLACK = 0.05  # of a pixel: pixels of the two rasters that differ by less count as equally large


@dataclass(frozen=True)
class Warped:
    """How a grid is read from a raster of another CRS.

    As in one CRS, values are bilinear to finer pixels; a coarser one is the mean of such values at points spread
    evenly over it, at least one for each of the raster's pixels up to ``POINTS`` a side.
    """

    grid: Grid
    own: Grid  # the raster's pixels
    nearest: bool
    direct: ClassVar[bool] = False

    @property
    def way(self) -> str:
        """The resampling, in words."""
        return "nearest" if self.nearest else "bilinear" if self.points == (1, 1) else "area average"

    @cached_property
    def points(self) -> tuple[int, int]:
        """Points that are looked up in a pixel of the grid, down and across."""
        if self.nearest:
            return 1, 1
        row, column = self.grid.height // 2, self.grid.width // 2
        corners = np.array([row, row + 1, row], float), np.array([column, column, column + 1], float)
        places = np.stack(self._places(*corners))
        sides = np.abs(places[:, 1:] - places[:, :1]).max(axis=0)
        down, across = (min(max(math.ceil(side - SLACK), 1), POINTS) for side in sides)
        return down, across

    def read(self, window: tuple[int, int, int, int], read: Read) -> tuple[Values, Valid]:
        """A window of the grid from the raster's pixels that it needs.

        Args:
            window: first row and column in the grid, height and width.
            read: see :func:`eo_zoo.geo.resample.read_through`.

        Returns:
            values and validity (n, height, width). A pixel is valid where valid pixels hold at least half of the
            weight; it is 0 elsewhere, and where its points lie beyond the raster.

        Raises:
            InputError: the grid reaches where the raster's CRS has no coordinates.
        """
        row, column, height, width = window
        step = max(1, AT_A_TIME // (width * math.prod(self.points)))
        parts = [
            self._strip((row + first, column, min(step, height - first), width), read)
            for first in range(0, height, step)
        ]
        values, valid = zip(*parts, strict=True)
        return np.concatenate(values, axis=1), np.concatenate(valid, axis=1)

    def _strip(self, window: tuple[int, int, int, int], read: Read) -> tuple[Values, Valid]:
        row, column, height, width = window
        down, across = self.points
        rows, columns = np.meshgrid(
            row + (np.arange(height * down) + 0.5) / down,
            column + (np.arange(width * across) + 0.5) / across,
            indexing="ij",
        )
        total, weight = (
            x.reshape(-1, height, down, width, across).sum(axis=(2, 4)) / (down * across)
            for x in self._looked_up(*self._places(rows, columns), read)
        )
        enough = weight >= 0.5 - 1e-9  # less the rounding of sums
        return np.divide(total, weight, out=np.zeros_like(total), where=enough).astype(np.float32), enough

    def _looked_up(self, rows: Places, columns: Places, read: Read) -> tuple[Places, Places]:
        """Weighted sums of the valid values around places (height, width), and their weights; both (n, ...)."""
        beyond = (rows < 0) | (rows >= self.own.height) | (columns < 0) | (columns >= self.own.width)
        taps = [(np.floor(rows), np.floor(columns), np.ones_like(rows))]
        if not self.nearest:
            top, left = np.floor(rows - 0.5), np.floor(columns - 0.5)
            down, across = rows - 0.5 - top, columns - 0.5 - left
            taps = [
                (top + i, left + j, (down if i else 1 - down) * (across if j else 1 - across))
                for i in (0, 1)
                for j in (0, 1)
            ]
        # what lies beyond is moved to the edge, as in `PixelAxis.taps`
        placed = [
            (np.clip(r, 0, self.own.height - 1).astype(np.intp), np.clip(c, 0, self.own.width - 1).astype(np.intp))
            for r, c, _ in taps
        ]
        first = [min(int(tap[axis].min()) for tap in placed) for axis in (0, 1)]
        last = [max(int(tap[axis].max()) for tap in placed) for axis in (0, 1)]
        values, valid = read(first[0], first[1], last[0] - first[0] + 1, last[1] - first[1] + 1)
        total = np.zeros((len(values), *rows.shape))
        weight = np.zeros_like(total)
        for (r, c), (_, _, share) in zip(placed, taps, strict=True):
            place = np.s_[:, r - first[0], c - first[1]]
            known = np.where(beyond, 0, share) * valid[place]
            total += known * values[place]
            weight += known
        return total, weight

    def _places(self, rows: Places, columns: Places) -> tuple[Places, Places]:
        """Rows and columns of the grid, of any shape, as those of the raster; both from its outer edge."""
        t, own = self.grid.transform, self.own.transform
        try:
            x, y = transform(self.grid.crs, self.own.crs, (t.c + columns * t.a).ravel(), (t.f + rows * t.e).ravel())
        except (RasterioError, CPLE_BaseError) as error:
            raise InputError(_nowhere(self.grid, self.own, error)) from error
        east = np.reshape(x, rows.shape)
        if turn := _turn(self.own):
            middle = own.c + self.own.width / 2 * own.a
            east = middle + (east - middle + turn / 2) % turn - turn / 2
        return (np.reshape(y, rows.shape) - own.f) / own.e, (east - own.c) / own.a


def _turn(grid: Grid) -> float:
    """Once around the Earth along a grid's rows: longitudes may go on beyond the antimeridian; 0 on a map."""
    return math.tau / grid.crs.units_factor[1] if grid.crs.is_geographic else 0.0


def common_box(grid: Grid, other: Grid) -> Bounds | None:
    """The box, in the first one's CRS, around what two grids both cover, or None if there is nothing.

    Raises:
        InputError: one of them reaches where the other's CRS has no coordinates.
    """
    if coincide(other, grid.crs):
        return _overlap(grid.bounds, other.bounds)
    try:
        left, bottom, right, top = transform_bounds(grid.crs, other.crs, *grid.bounds)
        if turn := _turn(other):
            right += turn * (right < left)
            by = turn * round((sum(other.bounds[::2]) - left - right) / 2 / turn)
            left, right = left + by, right + by
        there = _overlap((left, bottom, right, top), other.bounds)
        return there and _overlap(grid.bounds, transform_bounds(other.crs, grid.crs, *there))
    except (RasterioError, CPLE_BaseError) as error:
        raise InputError(_nowhere(grid, other, error)) from error


def _overlap(one: Bounds, other: Bounds) -> Bounds | None:
    box = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    return box if box[0] < box[2] and box[1] < box[3] else None


def _nowhere(grid: Grid, other: Grid, error: Exception) -> str:
    return (
        f"not all of it has coordinates in both {name_of(grid.crs)} and {name_of(other.crs)} ({error}): warp it to the "
        "former with gdalwarp -t_srs"
    )
