"""Where the tiles of a raster lie, and with which weights they are blended. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eo_zoo.errors import InputError


@dataclass(frozen=True)
class Axis:
    """One direction of a raster, in cells: a cell is one patch of pixels and one pixel of the output.

    Args:
        cells: cells that cover the raster, the last one padded where the raster ends inside it.
        tile: cells a tile spans.
        overlap: cells two neighbouring tiles share; the last two may share more.
        unit: cells of which tile and overlap are multiples, and every tile's start too.
    """

    cells: int
    tile: int
    overlap: int
    unit: int = 1

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First cell of every tile: multiples of (tile - overlap), the last one shifted back to end with the
        raster's last unit. A raster smaller than a tile has one tile, which reaches beyond it.
        """
        last = max(-(-(self.cells - self.tile) // self.unit) * self.unit, 0)
        return (*range(0, last, self.tile - self.overlap), last)

    @property
    def span(self) -> int:
        """Cells that the tiles reach together: the raster's, or more."""
        return self.starts[-1] + self.tile

    def own(self, index: int) -> tuple[int, int]:
        """Cells ``[start, stop)`` that count for this tile alone: from its start to the next tile's start.

        Over all tiles these ranges cover every cell of the raster exactly once.
        """
        following = self.starts[index + 1] if index + 1 < len(self.starts) else self.cells
        return self.starts[index], following

    def weights(self, index: int) -> np.ndarray:
        """This tile's share in every cell it spans: float32 ``(tile,)``, in (0, 1], 1 in sum over the tiles.

        A cell's shares depend only on the tiles that cover it, so a crop that keeps those keeps the numbers.
        """
        start = self.starts[index]
        return (self._bell / self._total[start : start + self.tile]).astype(np.float32)

    @cached_property
    def _bell(self) -> np.ndarray:
        # Taken at cell centres, where the raised cosine is never zero: every cell has a defined mean.
        return np.sin(np.pi * (np.arange(self.tile) + 0.5) / self.tile) ** 2

    @cached_property
    def _total(self) -> np.ndarray:
        total = np.zeros(self.span)
        for start in self.starts:
            total[start : start + self.tile] += self._bell
        return total


class WindowAxis(Axis):
    """One direction of a raster of which every cell of (tile - overlap) pixels has a window of ``tile`` pixels.

    ``cells`` are pixels here, and at least one window. A window is centred on its cell, to half a pixel; at the
    raster's ends, where it would reach beyond, it is moved inside.
    """

    @cached_property
    def _centred(self) -> np.ndarray:
        stride = self.tile - self.overlap
        first = np.arange(-(-self.cells // stride)) * stride - (self.overlap + 1) // 2
        return np.clip(first, 0, self.cells - self.tile)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of every window."""
        return tuple(np.unique(self._centred).tolist())

    @cached_property
    def windows(self) -> np.ndarray:
        """Index of the window of every cell; cells at the raster's ends may share one."""
        return np.searchsorted(self.starts, self._centred)


@dataclass(frozen=True)
class TileGrid:
    """The tiles that cover a raster from its top-left pixel. All arguments are pixels.

    Args:
        height: of the raster.
        width: of the raster.
        patch: side of one output cell.
        tile: side of one tile, a multiple of ``patch``.
        overlap: shared by neighbouring tiles, a multiple of ``patch`` and less than ``tile``.
        unit: cells; tile, overlap and the tiles' starts are multiples of it.

    Raises:
        InputError: the raster is smaller than one patch, or tile or overlap do not fit the patch.
    """

    height: int
    width: int
    patch: int
    tile: int
    overlap: int
    unit: int = 1

    def __post_init__(self) -> None:
        if min(self.height, self.width) < self.patch:
            raise InputError(
                f"the image is {self.width} x {self.height} pixels, smaller than one patch of the model "
                f"({self.patch} x {self.patch}); use a larger extent or a finer resolution"
            )
        if self.tile < self.patch or self.tile % self.patch:
            raise InputError(f"a tile of {self.tile} pixels is not a multiple of the patch, {self.patch} pixels")
        if not 0 <= self.overlap < self.tile or self.overlap % self.patch:
            raise InputError(
                f"an overlap of {self.overlap} pixels does not fit: expected a multiple of the patch "
                f"({self.patch}) from 0 to {self.tile - self.patch}"
            )

    @cached_property
    def rows(self) -> Axis:
        """Tiles from top to bottom."""
        return self._axis(self.height)

    @cached_property
    def cols(self) -> Axis:
        """Tiles from left to right."""
        return self._axis(self.width)

    def _axis(self, pixels: int) -> Axis:
        return Axis(-(-pixels // self.patch), self.tile // self.patch, self.overlap // self.patch, self.unit)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.rows.cells, self.cols.cells

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.cols.starts)


class WindowGrid(TileGrid):
    """The windows around the cells of a raster, a value each: cells of (tile - overlap) pixels; ``patch`` is 1."""

    @cached_property
    def rows(self) -> WindowAxis:
        """Windows from top to bottom."""
        return WindowAxis(self.height, self.tile, self.overlap)

    @cached_property
    def cols(self) -> WindowAxis:
        """Windows from left to right."""
        return WindowAxis(self.width, self.tile, self.overlap)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return len(self.rows.windows), len(self.cols.windows)


def default_overlap(tile: int, patch: int) -> int:
    """Half of the tile in whole patches or a little more, in pixels: every inner cell is then a blend of four tiles.

    With less, as with a quarter at half the work, the middle of a tile is its own alone, and steps show between tiles.
    """
    return min((tile // patch + 1) // 2, tile // patch - 1) * patch
