"""From pixels to features, a row of tiles at a time.

Held in memory are one row of tiles of the map and one batch of tiles of the input, whatever the raster's
height. Neither the result nor the counts depend on how the reads are grouped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.geo.output import Thumbnail
from eo_zoo.geo.scene import Scene
from eo_zoo.geo.tiles import TileGrid, WindowGrid
from eo_zoo.sensors import Statistics

Encode = Callable[[Tensor], np.ndarray]


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
        self.valid += valid.sum(axis=(1, 2))
        if self._range is not None:
            outside = (values < self._range[0]) | (values > self._range[1])
            self.clipped += (outside & valid).sum(axis=(1, 2))
        if self.thumbnail is not None:
            self.thumbnail.add(row, col, values, valid)

    def shares(self, bands: Sequence[str]) -> dict[str, float]:
        """Clipped share of each band's valid values; empty where normalisation clips nothing."""
        if self._range is None:
            return {}
        shares = self.clipped / np.maximum(self.valid, 1)
        return {band: round(float(share), 6) for band, share in zip(bands, shares, strict=True)}


# ---- streaming ----


@dataclass(frozen=True)
class Batch:
    """Neighbouring tiles of one row of tiles: their pixels in one piece, and where they lie."""

    row: int  # index of the row of tiles
    cols: range  # indices of the tiles along it
    values: np.ndarray  # float32 (bands, tile, span)
    valid: np.ndarray  # bool, same shape


def batches(scene: Scene, grid: TileGrid, batch_size: int, tally: Tally) -> Iterator[Batch]:
    """All tiles, from top to bottom and left to right, at most ``batch_size`` of a row at a time."""
    patch, starts = grid.patch, grid.cols.starts
    for row, top in enumerate(grid.rows.starts):
        for first in range(0, len(starts), batch_size):
            cols = range(first, min(first + batch_size, len(starts)))
            left = starts[first]
            span = (starts[cols[-1]] - left) * patch + grid.tile
            values, valid = scene.read(top * patch, left * patch, grid.tile, span)
            bottom, right = grid.rows.own(row)[1], grid.cols.own(cols[-1])[1]
            own = np.s_[:, : (bottom - top) * patch, : (right - left) * patch]
            tally.add(top * patch, left * patch, values[own], valid[own])
            yield Batch(row, cols, values, valid)


def encode_tiles(
    batch: Batch, grid: TileGrid, statistics: Statistics, encode: Encode
) -> Iterator[tuple[int, np.ndarray]]:
    """Index along the row and features of every tile of the batch that has a valid pixel."""
    first = grid.cols.starts[batch.cols[0]]
    offsets = {index: (grid.cols.starts[index] - first) * grid.patch for index in batch.cols}
    filled = {i: at for i, at in offsets.items() if batch.valid[:, :, at : at + grid.tile].any()}
    if not filled:
        return
    x = normalised(batch.values, batch.valid, statistics)
    tiles = torch.stack([x[:, :, at : at + grid.tile] for at in filled.values()])
    yield from zip(filled, encode(tiles), strict=True)


def normalised(values: np.ndarray, valid: np.ndarray, statistics: Statistics) -> Tensor:
    """Pixels (bands, rows, columns) as the model takes them, float32."""
    x = sensors.normalize(torch.from_numpy(values), statistics)
    # Missing pixels become the mean, after scaling: whatever lies under nodata cannot reach the model.
    return torch.where(torch.from_numpy(valid), x, 0.0).float()


def cell_counts(valid: np.ndarray, patch: int) -> np.ndarray:
    """Valid values in each cell over the bands: pixels (bands, rows, columns) to cells (rows, columns)."""
    bands, height, width = valid.shape
    cells = valid.reshape(bands, height // patch, patch, width // patch, patch)
    return cells.sum(axis=(0, 2, 4), dtype=np.int64)


def map_strips(
    scene: Scene,
    grid: TileGrid,
    statistics: Statistics,
    encode: Encode,
    channels: int,
    *,
    batch_size: int,
    min_valid: float,
    tally: Tally,
    tick: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """The blended map from top to bottom: float32 strips (channels, rows, columns), NaN where nodata.

    Args:
        scene: pixels in the statistics' units.
        grid: tiles of ``scene``.
        statistics: in the order of the scene's bands.
        encode: normalised tiles (n, bands, tile, tile) to features (n, channels, cells, cells).
        channels: features of a cell.
        batch_size: tiles encoded together, at most.
        min_valid: share of a cell's values, over pixels and bands, that must be valid; pixels beyond the
            raster are not. A cell without any valid value is always NaN.
        tally: counts the input.
        tick: called with the number of tiles done.
    """
    size, width = grid.rows.tile, max(grid.cols.cells, grid.cols.tile)
    needed = _needed(min_valid, len(scene.bands), grid.patch)
    sums = np.zeros((channels, size, width), np.float32)
    counts = np.zeros((size, width), np.int64)
    for batch in batches(scene, grid, batch_size, tally):
        left = grid.cols.starts[batch.cols[0]]
        here = cell_counts(batch.valid, grid.patch)
        counts[:, left : left + here.shape[1]] = here
        down = grid.rows.weights(batch.row)[:, None]
        for index, features in encode_tiles(batch, grid, statistics, encode):
            start = grid.cols.starts[index]
            sums[:, :, start : start + size] += features * (down * grid.cols.weights(index))
        tick(len(batch.cols))
        if batch.cols[-1] + 1 < len(grid.cols.starts):
            continue
        top, bottom = grid.rows.own(batch.row)
        done = bottom - top
        strip = sums[:, :done, : grid.cols.cells].copy()
        yield _masked(strip, counts[:done, : grid.cols.cells] < needed)
        # The next row of tiles starts where this one's own rows end.
        sums[:, : size - done] = sums[:, done:].copy()
        sums[:, size - done :] = 0


def window_strips(
    scene: Scene,
    grid: WindowGrid,
    statistics: Statistics,
    encode: Encode,
    channels: int,
    *,
    batch_size: int,
    min_valid: float,
    tally: Tally,
    tick: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """A value of each window for its cell, from top to bottom: as ``map_strips``, without blending.

    Args:
        encode: normalised windows (n, bands, tile, tile) to vectors (n, channels).
    """
    stride = grid.tile - grid.overlap
    needed = _needed(min_valid, len(scene.bands), stride)
    line = np.zeros((channels, len(grid.cols.starts)), np.float32)
    for batch in batches(scene, grid, batch_size, tally):
        rows = np.flatnonzero(grid.rows.windows == batch.row)
        if batch.cols[0] == 0:
            counts = np.zeros((len(rows), grid.shape[1]), np.int64)
        cols = np.flatnonzero(np.isin(grid.cols.windows, batch.cols))
        # The cells of these windows lie side by side inside them, except where the raster ends in a cell.
        top, left = rows[0] * stride - grid.rows.starts[batch.row], cols[0] * stride - grid.cols.starts[batch.cols[0]]
        cells = batch.valid[:, top:, left:][:, : len(rows) * stride, : len(cols) * stride]
        beyond = len(rows) * stride - cells.shape[1], len(cols) * stride - cells.shape[2]
        counts[:, cols] = cell_counts(np.pad(cells, ((0, 0), (0, beyond[0]), (0, beyond[1]))), stride)
        for index, vector in encode_tiles(batch, grid, statistics, encode):
            line[:, index] = vector
        tick(len(batch.cols))
        if batch.cols[-1] + 1 == len(grid.cols.starts):
            strip = np.repeat(line[:, None, grid.cols.windows], len(rows), axis=1)
            yield _masked(strip, counts < needed)


def _needed(min_valid: float, bands: int, cell: int) -> int:
    """Valid values that a cell of ``cell`` pixels a side needs, at least one."""
    return max(math.ceil(min_valid * bands * cell**2 - 1e-6), 1)  # less that product's rounding


def _masked(strip: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The strip (channels, rows, columns) with NaN where ``missing``; what is there has to be finite."""
    if not np.isfinite(strip[:, ~missing]).all():
        raise InputError(
            "the model gave infinite or undefined features; float16 often overflows: use dtype bfloat16 or float32"
        )
    strip[:, missing] = np.nan
    return strip


def pooled_vector(
    scene: Scene,
    grid: TileGrid,
    statistics: Statistics,
    encode: Encode,
    *,
    batch_size: int,
    tally: Tally,
    tick: Callable[[int], None],
) -> np.ndarray | None:
    """Mean of the tiles' vectors, weighted by the valid values of their own pixels; None if there are none.

    Args:
        encode: normalised tiles (n, bands, tile, tile) to vectors (n, channels).
    """
    total: np.ndarray | float = 0.0
    weight = 0
    for batch in batches(scene, grid, batch_size, tally):
        first = grid.cols.starts[batch.cols[0]]
        top, bottom = grid.rows.own(batch.row)
        for index, vector in encode_tiles(batch, grid, statistics, encode):
            left, right = (grid.patch * (cell - first) for cell in grid.cols.own(index))
            own = int(batch.valid[:, : (bottom - top) * grid.patch, left:right].sum())
            total = total + own * vector.astype(np.float64)
            weight += own
        tick(len(batch.cols))
    return np.asarray(total / weight, np.float32) if weight else None
