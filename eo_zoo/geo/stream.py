"""From pixels to features, a row of tiles at a time.

Held in memory are one row of tiles of the map and one batch of tiles of the input, whatever the raster's
height. Neither the result nor the counts depend on how the reads are grouped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.geo.output import Thumbnail
from eo_zoo.geo.scene import Scene
from eo_zoo.geo.series import Series
from eo_zoo.geo.tiles import TileGrid, WindowGrid
from eo_zoo.sensors import Statistics

Encode = Callable[[Any], np.ndarray]  # what `Cells.tiles` gives, to features


class Tally:
    """Counts over the input, each pixel once: valid values, and those that normalisation clips."""

    def __init__(self, statistics: Statistics, thumbnail: Thumbnail | None = None) -> None:
        self.thumbnail = thumbnail
        self.valid = np.zeros(len(statistics.bands), np.int64)
        self.clipped = np.zeros(len(statistics.bands), np.int64)
        self._range: np.ndarray | None = None  # lowest and highest, (2, bands, 1, 1)
        if statistics.p1 is not None and statistics.p99 is not None:
            self._range = np.array([statistics.p1, statistics.p99], np.float32)[:, :, None, None]

    def add(self, row: int, col: int, values: np.ndarray, valid: np.ndarray) -> None:
        """Add pixels (bands, rows, columns) that lie at ``row``, ``col`` of the raster."""
        self.count(values, valid)
        if self.thumbnail is not None:
            self.thumbnail.add(row, col, values, valid)

    def count(self, values: np.ndarray, valid: np.ndarray) -> None:
        """Add pixels (bands, rows, columns) to the counts alone."""
        self.valid += valid.sum(axis=(1, 2))
        if self._range is not None:
            outside = (values < self._range[0]) | (values > self._range[1])
            self.clipped += (outside & valid).sum(axis=(1, 2))

    def shares(self, bands: Sequence[str]) -> dict[str, float]:
        """Clipped share of each band's valid values; empty where normalisation clips nothing."""
        if self._range is None:
            return {}
        shares = self.clipped / np.maximum(self.valid, 1)
        return {band: round(float(share), 6) for band, share in zip(bands, shares, strict=True)}


# ---- what tiles are cut from ----


class Cells(Protocol):
    """Neighbouring tiles of one row of tiles, in one piece."""

    @property
    def shares(self) -> np.ndarray:
        """Share of each cell's values that are valid: float64 (rows, columns)."""

    def tiles(self, starts: Sequence[int], size: int) -> Any:
        """The tiles that begin at these columns, ``size`` cells a side, normalised, in one batch."""


class Source(Protocol):
    """What a model is given, by the cells of its output: one scene, or several inputs of one area."""

    def read(self, top: int, left: int, height: int, width: int, own: tuple[int, int]) -> Cells:
        """A window, in cells; its first ``own`` rows and columns are counted as the source's."""


@dataclass(frozen=True)
class Opened:
    """An open input, what it is normalised by (bands in the input's order), and the counts over it."""

    scene: Scene | Series
    statistics: Statistics
    tally: Tally

    @property
    def total(self) -> int:
        """Values of the whole input, valid or not."""
        dates = len(self.scene.dates) if isinstance(self.scene, Series) else 1
        return self.scene.grid.height * self.scene.grid.width * len(self.scene.bands) * dates


@dataclass(frozen=True)
class Raster(Opened):
    """A scene whose cells are ``patch`` pixels a side."""

    scene: Scene
    patch: int = 1

    def read(self, top: int, left: int, height: int, width: int, own: tuple[int, int]) -> Pixels:
        """See ``Source``."""
        row, col = top * self.patch, left * self.patch
        pixels = self.window(row, col, height * self.patch, width * self.patch)
        part = np.s_[:, : own[0] * self.patch, : own[1] * self.patch]
        self.tally.add(row, col, pixels.values[part], pixels.valid[part])
        return pixels

    def window(self, row: int, col: int, height: int, width: int) -> Pixels:
        """Pixels of the scene, which are counted nowhere."""
        return Pixels(*self.scene.read(row, col, height, width), self.statistics, self.patch)


@dataclass(frozen=True)
class Pixels:
    """A window of a scene: float32 and bool (bands, rows, columns)."""

    values: np.ndarray
    valid: np.ndarray
    statistics: Statistics
    patch: int

    @cached_property
    def shares(self) -> np.ndarray:
        """See ``Cells``."""
        return cell_shares(self.valid, self.patch)

    def tiles(self, starts: Sequence[int], size: int) -> Tensor:
        """See ``Cells``: (n, bands, size, size), sizes in pixels."""
        x = normalised(self.values, self.valid, self.statistics)
        return torch.stack([x[:, :, at * self.patch : (at + size) * self.patch] for at in starts])


def normalised(values: np.ndarray, valid: np.ndarray, statistics: Statistics) -> Tensor:
    """Pixels (..., bands, rows, columns) as the model takes them, float32."""
    x = sensors.normalize(torch.from_numpy(values), statistics)
    # Missing pixels become the mean, after scaling: whatever lies under nodata cannot reach the model.
    return torch.where(torch.from_numpy(valid), x, 0.0).float()


def cell_shares(valid: np.ndarray, patch: int) -> np.ndarray:
    """Valid share of each cell's values: pixels (bands, rows, columns) to cells (rows, columns)."""
    bands, height, width = valid.shape
    cells = valid.reshape(bands, height // patch, patch, width // patch, patch)
    return cells.sum(axis=(0, 2, 4), dtype=np.int64) / (bands * patch**2)


# ---- streaming ----


@dataclass(frozen=True)
class Batch:
    """Neighbouring tiles of one row of tiles, and where they lie."""

    row: int  # index of the row of tiles
    cols: range  # indices of the tiles along it
    cells: Cells


def batches(source: Source, grid: TileGrid, batch_size: int) -> Iterator[Batch]:
    """All tiles, from top to bottom and left to right, at most ``batch_size`` of a row at a time."""
    starts, size = grid.cols.starts, grid.rows.tile
    for row, top in enumerate(grid.rows.starts):
        for first in range(0, len(starts), batch_size):
            cols = range(first, min(first + batch_size, len(starts)))
            left = starts[first]
            own = grid.rows.own(row)[1] - top, grid.cols.own(cols[-1])[1] - left
            yield Batch(row, cols, source.read(top, left, size, starts[cols[-1]] - left + size, own))


def encode_tiles(batch: Batch, grid: TileGrid, encode: Encode) -> Iterator[tuple[int, np.ndarray]]:
    """Index along the row and features of every tile of the batch that has a valid pixel."""
    first, size = grid.cols.starts[batch.cols[0]], grid.cols.tile
    offsets = {index: grid.cols.starts[index] - first for index in batch.cols}
    filled = {index: at for index, at in offsets.items() if batch.cells.shares[:, at : at + size].any()}
    if filled:
        yield from zip(filled, encode(batch.cells.tiles(list(filled.values()), size)), strict=True)


def map_strips(
    source: Source,
    grid: TileGrid,
    encode: Encode,
    channels: int,
    *,
    batch_size: int,
    min_valid: float,
    tick: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """The blended map from top to bottom: float32 strips (channels, rows, columns), NaN where nodata.

    Args:
        source: of which ``grid`` holds the tiles.
        grid: tiles of ``source``.
        encode: normalised tiles to features (n, channels, cells, cells).
        channels: features of a cell.
        batch_size: tiles encoded together, at most.
        min_valid: share of a cell's values, over pixels and bands, that must be valid; pixels beyond the
            raster are not. A cell without any valid value is always NaN.
        tick: called with the number of tiles done.
    """
    size, width = grid.rows.tile, grid.cols.span
    sums = np.zeros((channels, size, width), np.float32)
    shares = np.zeros((size, width))
    for batch in batches(source, grid, batch_size):
        left = grid.cols.starts[batch.cols[0]]
        here = batch.cells.shares
        shares[:, left : left + here.shape[1]] = here
        down = grid.rows.weights(batch.row)[:, None]
        for index, features in encode_tiles(batch, grid, encode):
            start = grid.cols.starts[index]
            sums[:, :, start : start + size] += features * (down * grid.cols.weights(index))
        tick(len(batch.cols))
        if batch.cols[-1] + 1 < len(grid.cols.starts):
            continue
        top, bottom = grid.rows.own(batch.row)
        done = bottom - top
        strip = sums[:, :done, : grid.cols.cells].copy()
        yield _masked(strip, shares[:done, : grid.cols.cells], min_valid)
        # The next row of tiles starts where this one's own rows end.
        sums[:, : size - done] = sums[:, done:].copy()
        sums[:, size - done :] = 0


def window_strips(
    source: Source,
    grid: WindowGrid,
    encode: Encode,
    channels: int,
    *,
    batch_size: int,
    min_valid: float,
    tick: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """A value of each window for its cell, from top to bottom: as ``map_strips``, without blending.

    Args:
        encode: normalised windows (n, bands, tile, tile) to vectors (n, channels).
    """
    stride = grid.tile - grid.overlap
    line = np.zeros((channels, len(grid.cols.starts)), np.float32)
    for batch in batches(source, grid, batch_size):
        rows = np.flatnonzero(grid.rows.windows == batch.row)
        if batch.cols[0] == 0:
            shares = np.zeros((len(rows), grid.shape[1]))
        cols = np.flatnonzero(np.isin(grid.cols.windows, batch.cols))
        # The cells of these windows lie side by side inside them, except where the raster ends in a cell.
        top, left = rows[0] * stride - grid.rows.starts[batch.row], cols[0] * stride - grid.cols.starts[batch.cols[0]]
        pixels = batch.cells.shares[top:, left:][: len(rows) * stride, : len(cols) * stride]
        beyond = len(rows) * stride - pixels.shape[0], len(cols) * stride - pixels.shape[1]
        pixels = np.pad(pixels, ((0, beyond[0]), (0, beyond[1])))
        shares[:, cols] = pixels.reshape(len(rows), stride, len(cols), stride).mean(axis=(1, 3))
        for index, vector in encode_tiles(batch, grid, encode):
            line[:, index] = vector
        tick(len(batch.cols))
        if batch.cols[-1] + 1 == len(grid.cols.starts):
            strip = np.repeat(line[:, None, grid.cols.windows], len(rows), axis=1)
            yield _masked(strip, shares, min_valid)


def lacking(shares: np.ndarray, min_valid: float) -> np.ndarray:
    """Which cells have less than the share of valid values that is asked for, or none at all."""
    return (shares <= 0) | (shares < min_valid - 1e-9)  # less the rounding of the shares


def _masked(strip: np.ndarray, shares: np.ndarray, min_valid: float) -> np.ndarray:
    """The strip (channels, rows, columns) with NaN where valid values lack; what is there has to be finite."""
    missing = lacking(shares, min_valid)
    if not np.isfinite(strip[:, ~missing]).all():
        raise InputError(
            "the model gave infinite or undefined features; float16 often overflows: use dtype bfloat16 or float32"
        )
    strip[:, missing] = np.nan
    return strip


def pooled_vector(
    source: Source, grid: TileGrid, encode: Encode, *, batch_size: int, tick: Callable[[int], None]
) -> np.ndarray | None:
    """Mean of the tiles' vectors, weighted by the valid share of their own cells; None if there are none.

    Args:
        encode: normalised tiles to vectors (n, channels).
    """
    total: np.ndarray | float = 0.0
    weight = 0.0
    for batch in batches(source, grid, batch_size):
        first = grid.cols.starts[batch.cols[0]]
        top, bottom = grid.rows.own(batch.row)
        for index, vector in encode_tiles(batch, grid, encode):
            left, right = (cell - first for cell in grid.cols.own(index))
            own = float(batch.cells.shares[: bottom - top, left:right].sum())
            total = total + own * vector.astype(np.float64)
            weight += own
        tick(len(batch.cols))
    return np.asarray(total / weight, np.float32) if weight else None
