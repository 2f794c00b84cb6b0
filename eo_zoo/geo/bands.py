"""Reading bands of one file onto a scene's grid: the file's own pixels, or resampled, with their validity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from eo_zoo.errors import InputError
from eo_zoo.geo.clouds import CloudBand
from eo_zoo.geo.grid import Grid, coincide, own_grid
from eo_zoo.geo.resample import Parallel, Valid, Values
from eo_zoo.geo.sources import GDAL_ERRORS, BandSource, alpha_band, data_bands
from eo_zoo.geo.warp import Warped
from eo_zoo.values import Conversion, conversion

__all__ = ["BandReader", "Valid", "Values", "read_bands"]


@dataclass(frozen=True)
class BandReader:
    """A band and how to read it: ``number`` is its place in the file, from 1.

    ``place`` says how the scene's grid is read from the file's pixels.
    ``clouds`` masks the file's pixels, before they are resampled, so that no cloud leaks into its neighbours.
    """

    name: str
    label: str
    dataset: DatasetReader
    number: int
    nodata: float | None
    alpha: int | None  # number of the band that masks this one
    conversion: Conversion
    place: Parallel | Warped
    clouds: CloudBand | None = None

    @staticmethod
    def of(
        source: BandSource,
        dataset: DatasetReader,
        grid: Grid,
        *,
        sensor: str,
        target_units: str,
        units: str | None,
        boa_offset: float | None,
        nodata: float | None = None,
    ) -> BandReader:
        """The reader of a source, of which the file's own scale, offset and nodata value go before an item's.

        ``nodata``, if given, goes before both.

        Raises:
            InputError: no conversion to the target's units, or a file with other bands than the item says.
        """
        numbers = data_bands(dataset)
        if source.count is not None and source.count != len(numbers):
            raise InputError(
                f"{source.label}: by the item it has {source.count} bands, but in {source.path} are "
                f"{len(numbers)}; correct the item"
            )
        number = numbers[source.index - 1] if source.count else source.index
        scale, offset = dataset.scales[number - 1], dataset.offsets[number - 1]
        if (scale, offset) == (1.0, 0.0):  # GDAL's way of saying that the file holds none
            scale, offset = source.scale, source.offset
        try:
            made = conversion(
                dataset.dtypes[number - 1],
                target_units=target_units,
                sensor=sensor,
                units=units,
                scale=scale,
                offset=offset,
                boa_offset=boa_offset,
            )
        except InputError as error:
            raise InputError(f"{source.label}, band {source.band}: {error}") from error
        declared = (nodata, dataset.nodatavals[number - 1], source.nodata)
        return BandReader(
            source.band,
            source.label,
            dataset,
            number,
            next((value for value in declared if value is not None), None),
            alpha_band(dataset) if source.masked else None,
            made,
            # classes have no mean
            _place(dataset, grid, nearest=target_units == "class"),
        )

    def on(self, grid: Grid) -> BandReader:
        """The same band on other pixels."""
        return replace(self, place=_place(self.dataset, grid, nearest=self.place.nearest))


def _place(dataset: DatasetReader, grid: Grid, *, nearest: bool) -> Parallel | Warped:
    own = own_grid(dataset)
    if not coincide(own, grid.crs):
        return Warped(grid, own, nearest)
    rows, columns = grid.axes(own)
    return Parallel(rows, columns, rows.aligned(grid.height) and columns.aligned(grid.width), nearest)


def read_bands(bands: Sequence[BandReader], row: int, column: int, height: int, width: int) -> tuple[Values, Valid]:
    """Stored values of bands of one file in a window inside the scene's grid, and their validity.

    Returns:
        float32 and bool, both (len(bands), height, width); values are 0 where invalid.

    Raises:
        InputError: a valid pixel is infinite, or the file is corrupt.
    """

    def stored(top: int, left: int, height: int, width: int) -> tuple[Values, Valid]:
        return _stored(bands, Window(left, top, width, height))

    return bands[0].place.read((row, column, height, width), stored)


def _stored(bands: Sequence[BandReader], window: Window) -> tuple[Values, Valid]:
    """A window of the file, before resampling and conversion."""
    dataset = bands[0].dataset
    try:
        stored = dataset.read([band.number for band in bands], window=window)
        valid = np.stack([_valid(band, values, window) for band, values in zip(bands, stored, strict=True)])
        if bands[0].alpha is not None:
            valid &= dataset.read(bands[0].alpha, window=window) > 0
        if bands[0].clouds is not None:
            valid &= bands[0].clouds.clear(dataset, window)
    except GDAL_ERRORS as error:
        raise InputError(
            f"{bands[0].label}: cannot be read at row {window.row_off}, column {window.col_off} ({error}); "
            "the file may be corrupt or incomplete"
        ) from error
    floating = stored.dtype.kind == "f"
    if floating:
        valid &= ~np.isnan(stored)
    stored[~valid] = 0
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        values = stored.astype(np.float32, copy=False)
    if floating and not np.isfinite(values).all():
        band, row, column = np.argwhere(~np.isfinite(values))[0]
        raise InputError(
            f"{bands[band].label}: band {bands[band].name} is infinite at row {window.row_off + row}, column "
            f"{window.col_off + column} of the file (from 0); mark such pixels as nodata"
        )
    return values, valid


def _valid(band: BandReader, stored: npt.NDArray[Any], window: Window) -> Valid:
    """By the declared nodata value and mask files; both must allow a pixel."""
    valid = np.ones(stored.shape, dtype=bool)
    nodata, flags = band.nodata, set(band.dataset.mask_flag_enums[band.number - 1])
    if nodata is not None and not math.isnan(nodata) and _fits(nodata, stored.dtype):
        with np.errstate(over="ignore"):  # float32 files may declare a double's lowest value
            valid &= stored != stored.dtype.type(nodata)
    if MaskFlags.alpha not in flags and flags - {MaskFlags.all_valid, MaskFlags.nodata}:
        valid &= band.dataset.read_masks(band.number, window=window) > 0
    return valid


def _fits(nodata: float, dtype: np.dtype[Any]) -> bool:
    """Whether a pixel of this type can hold the value at all (files declare -9999 for unsigned bands)."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(nodata).is_integer() and limits.min <= nodata <= limits.max
