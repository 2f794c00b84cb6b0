"""A time series of rasters of any form as one array of named bands and dates: one pixel grid, unit and mask.

Forms: a folder of dated files (``dated.py``), one HDF5, NetCDF or Zarr file (``cubes.py``), a STAC item collection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio

from eo_zoo.errors import InputError
from eo_zoo.geo.bands import Valid, Values
from eo_zoo.geo.clouds import SCL_INVALID, Clouds
from eo_zoo.geo.cubefile import is_cube
from eo_zoo.geo.cubegrid import Place
from eo_zoo.geo.cubes import open_cube
from eo_zoo.geo.dated import Image, dated_files, dated_items
from eo_zoo.geo.grid import Grid, coincide, name_of
from eo_zoo.geo.request import RATIOS, Request, as_date
from eo_zoo.geo.scene import GDAL_OPTIONS, Opened, Scene, open_scene, samples
from eo_zoo.geo.scenes import Scenes, open_scenes
from eo_zoo.geo.stac import is_remote, read_item
from eo_zoo.sensors import get_band, get_sensor, resolve_bands
from eo_zoo.values import reflective

__all__ = ["Series", "open_series"]


class Layers(Protocol):
    """Stored bands of all dates on a grid: what a series is made of."""

    grid: Grid
    bands: tuple[str, ...]
    dates: tuple[date, ...]

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Values, Valid]:
        """As :meth:`Series.read`, of the stored bands."""

    def on(self, grid: Grid) -> Layers:
        """The same on other pixels."""


class Series(Opened):
    """An opened time series; a context manager that closes its files.

    Attributes:
        grid: the pixels that :meth:`read` counts in.
        bands: canonical names, in the order of :meth:`read`.
        dates: ascending; a file that holds a day twice keeps both.
        sensor: whose bands they are.
        units: of the values, one of ``eo_zoo.sensors.UNITS``; ratios of bands have none.
        notes: every choice and conversion made, a sentence each.
        warnings: what may be wrong, a sentence each. Reading may add to it: values that have no dB.
    """

    def __init__(self, layers: Layers, bands: Sequence[str], request: Request, stack: ExitStack | None = None) -> None:
        self.grid = layers.grid
        self.bands = tuple(bands)
        self.dates = layers.dates
        self.sensor = request.sensor
        self.units = request.target_units
        self.notes = request.notes
        self.warnings = request.warnings
        self._layers, self._request = layers, request
        self._stack = stack or ExitStack()

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Values, Valid]:
        """A window of all dates, which may reach beyond the grid. A pixel is the same through every window.

        Args:
            row: of the window's first pixel in the grid; may be negative, as ``col``.
            col: its column.
            height: of the window in pixels.
            width: of the window in pixels.

        Returns:
            values, float32 (dates, bands, height, width) in ``units``; and validity, bool of the same shape. Values
            are 0 where invalid: nodata, masked, cloud, NaN, no dB, or beyond what a date covers.

        Raises:
            InputError: a valid pixel is infinite, or a file is corrupt.
        """
        values, valid = self._layers.read(row, col, height, width)
        stored = self._layers.bands
        if stored == self.bands:
            return values, valid
        shape = (len(self.dates), len(self.bands), height, width)
        found, known = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for place, band in enumerate(self.bands):
            of = [stored.index(name) for name in get_band(band).ratio_of or (band,)]
            known[:, place] = valid[:, of].all(axis=1)
            taken = self._request.combine(*(values[:, i] for i in of)) if len(of) == 2 else values[:, of[0]]
            found[:, place] = np.where(known[:, place], taken, np.float32(0))
        return found, known

    def on(self, grid: Grid) -> Series:
        """The same on other pixels of the same CRS, which may reach beyond; the files stay with this one.

        Bilinear to finer pixels, area average to coarser ones, of valid pixels only.

        Raises:
            InputError: another CRS.
        """
        if not coincide(grid, self.grid.crs):
            own = f"in {name_of(self.grid.crs)}" if self.grid.crs else "without a place"
            raise InputError(
                f"the series is {own}, the pixels wanted are in {name_of(grid.crs)}; warp it with gdalwarp -t_srs"
            )
        return Series(self._layers.on(grid), self.bands, self._request)

    def sample(self, windows: int = 4, size: int = 64) -> dict[str, Values]:
        """Valid values of each band over all dates, 1-D, from square windows at fixed, evenly spread places."""
        return samples(self.read, self.grid, self.bands, windows, size)


def open_series(
    source: str | Path | Mapping[str, Any],
    *,
    order: Sequence[str],
    sensor: str,
    target_units: str,
    place: Place = None,
    gsd: float | None = None,
    variable: str | None = None,
    bands: Sequence[str] | None = None,
    date_pattern: str | None = None,
    start: str | date | None = None,
    end: str | date | None = None,
    max_dates: int | None = None,
    masks: str = "auto",
    scl_invalid: Collection[int] = SCL_INVALID,
    max_probability: float = 50,
    units: str | None = None,
    boa_offset: float | None = None,
    nodata: float | None = None,
    ratio: str = "quotient",
) -> Series:
    """Open a time series of rasters; nothing but metadata is read yet, and later only the windows asked for.

    Args:
        source: a folder of dated files (a multi-band file or several band files a date, or a subfolder a date); an
            HDF5 (.h5, .hdf5), NetCDF (.nc) or Zarr (.zarr) file with the dimensions time, y, x, and band or a variable
            a band, or in TreeSatAI-TS's layout, with ``FILE::variable`` for one of several; or a STAC item collection
            (file, address or its JSON as a dict).
        order: bands wanted, any name of the sensor; repeats are fine, and ratios (``microwave_ratio``) are made.
        sensor: whose band names are meant.
        target_units: of the values wanted, one of ``eo_zoo.sensors.UNITS``.
        place: grid of an image that covers the same ground, for a file without CRS: the series is centred on it. Or
            "anywhere", for values and dates alone.
        gsd: metres per pixel of a file without CRS.
        variable: as ``FILE::variable``.
        bands: names of the stored bands in the order of the files, "-" for one that is not used, "SCL" or
            "cloud_probability" for a mask; for single-band files the ones to use. None for the files' own names.
        date_pattern: strptime form of the date in names, e.g. "%Y%j"; with it the names alone count.
        start: the first day wanted, ISO text or a date.
        end: the last.
        max_dates: at most so many, evenly thinned.
        masks: "auto", "scl", "probability" or "off", see :class:`eo_zoo.geo.clouds.Clouds`; radar needs none.
        scl_invalid: classes of Sentinel-2's SCL that are invalid.
        max_probability: cloud probability in per cent above which a pixel is invalid.
        units: what the stored numbers are; None for what the metadata say, else the target's.
        boa_offset: in dn, see :func:`eo_zoo.values.conversion`; not for dates of a known Sentinel-2 baseline before
            04.00, which store none.
        nodata: stored value that means missing, instead of what the files declare.
        ratio: how a ratio is made, "quotient" or, as some data sets do of dB, "difference".

    Raises:
        InputError: the source, or what is asked of it, cannot be used; the message says why and what to do.
        DownloadError: a collection or file on the web cannot be fetched.
        MissingExtra: xarray or what reads the file with it is not installed.
    """
    if max_dates is not None and max_dates < 1:
        raise InputError(f"max_dates is {max_dates}, expected 1 or more")
    if ratio not in RATIOS:
        raise InputError(f"ratio is {ratio!r}, expected {' or '.join(RATIOS)}")
    if not order:
        raise InputError("order names no band; give the bands wanted")
    wanted = resolve_bands(order, get_sensor(sensor).name)
    request = Request(
        sensor=get_sensor(sensor).name,
        bands=tuple(dict.fromkeys(name for band in wanted for name in get_band(band).ratio_of or (band,))),
        target_units=target_units,
        names=bands,
        start=as_date("start", start),
        end=as_date("end", end),
        max_dates=max_dates,
        clouds=Clouds(masks if reflective(sensor) else "off", tuple(scl_invalid), max_probability),
        units=units,
        boa_offset=boa_offset,
        nodata=nodata,
        ratio=ratio,
    )
    with ExitStack() as stack, rasterio.Env(**GDAL_OPTIONS):
        layers = _layers(source, variable, date_pattern, request, place, gsd, stack)
        computed = [band for band in dict.fromkeys(wanted) if get_band(band).ratio_of]
        for band in computed:
            sign = " / " if ratio == "quotient" else " - "
            request.notes.append(f"{band}: made as {sign.join(get_band(band).ratio_of)} in {target_units}")
        return Series(layers, wanted, request, stack.pop_all())


def _layers(
    source: str | Path | Mapping[str, Any],
    variable: str | None,
    pattern: str | None,
    request: Request,
    place: Place,
    gsd: float | None,
    stack: ExitStack,
) -> Layers:
    if isinstance(source, Mapping):
        return _of_images(dated_items(source, None, request.warnings), request, stack)
    path, _, named = str(source).partition("::")
    if is_cube(path):
        return open_cube(path, variable or named or None, request, place, gsd, stack)
    if named or variable:
        raise InputError(f"{path}: has no variables to choose from; only an HDF5, NetCDF or Zarr file has")
    if Path(path).is_dir():
        return _of_images(dated_files(Path(path), pattern, request.notes), request, stack)
    if is_remote(path) or Path(path).suffix.lower() in (".json", ".geojson"):
        return _of_images(dated_items(read_item(path), path, request.warnings), request, stack)
    what = "one file, not a series" if Path(path).exists() else "no such file or folder"
    raise InputError(
        f"{path}: {what}; expected a folder of dated rasters, an HDF5, NetCDF or Zarr file, or a STAC item collection"
    )


def _of_images(images: Sequence[Image], request: Request, stack: ExitStack) -> Scenes:
    chosen = set(request.choose([image.date for image in images]))
    images = sorted((image for image in images if image.date in chosen), key=lambda image: (image.date, image.label))
    openers: list[tuple[date, str, Callable[[], Scene]]] = [
        (
            image.date,
            image.label,
            partial(
                open_scene,
                image.source,
                default_sensor=request.sensor,
                accepts=request.bands,
                target_units=request.target_units,
                sensor=request.sensor,
                bands=request.names,
                units=request.units,
                boa_offset=request.offset(image.baseline),
                nodata=request.nodata,
                clouds=request.clouds,
            ),
        )
        for image in images
    ]
    return open_scenes(openers, request.bands, stack, request.notes, request.warnings)
