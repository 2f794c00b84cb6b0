"""Time series in one file: HDF5, NetCDF and Zarr through xarray, which reads only the window asked for.

One library for all: it knows the CF conventions (dates, scale and offset, the grid mapping), and reads plain HDF5
through h5netcdf too, so TreeSatAI's files need no reader of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eo_zoo.errors import InputError
from eo_zoo.geo.bands import Valid, Values
from eo_zoo.geo.clouds import Clouds
from eo_zoo.geo.cubefile import ROLES, Layer, contents, open_file
from eo_zoo.geo.cubegrid import Place, grid_of
from eo_zoo.geo.grid import Grid
from eo_zoo.geo.request import Request
from eo_zoo.geo.resample import read_through
from eo_zoo.geo.scene import NEW_BASELINE, new_baseline
from eo_zoo.values import Conversion, impossible

if TYPE_CHECKING:
    import xarray

LOADED = 64 * 2**20  # bytes; a smaller variable is read once, as each of its chunks may reach over many windows
NODATA = ("_FillValue", "missing_value", "nodata")  # attributes that hold the value of missing pixels


class Pixels:
    """The stored pixels of layers of one file that share time, y and x.

    Args:
        layers: one a band.
        times: places of the dates along time, in the order wanted.
        grid: of the pixels.
        northward: rows are stored from south to north.
        nodata: what means missing, instead of what the layers' attributes say.
        clouds: the mask's kind and layer, and the rule.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        times: Sequence[int],
        grid: Grid,
        northward: bool,
        nodata: float | None,
        clouds: tuple[str, Layer, Clouds] | None,
    ) -> None:
        self.grid = grid
        self._times, self._northward, self._clouds = list(times), northward, clouds
        self._nodata = [_nodata(layer.array, nodata) for layer in layers]
        self._layers: dict[str, tuple[xarray.DataArray, list[int | None], list[int]]] = {}
        for i, layer in enumerate(layers):
            _, places, targets = self._layers.setdefault(str(layer.array.name), (_plain(layer), [], []))
            places.append(layer.place)
            targets.append(i)
        self._mask = _plain(clouds[1]) if clouds else None

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Values, Valid]:
        """A window inside the grid: float32 and bool, both (times x bands, height, width), 0 where invalid.

        Raises:
            InputError: a valid pixel is infinite, or the file is corrupt.
        """
        values = np.zeros((len(self._times), len(self._nodata), height, width), np.float32)
        valid = np.ones(values.shape, bool)
        for name, (array, places, targets) in self._layers.items():
            stored = self._stored(array, places, row, col, height, width)
            for i, target in enumerate(targets):
                band, nodata = stored[:, i], self._nodata[target]
                known = ~np.isnan(band) if band.dtype.kind == "f" else np.ones(band.shape, bool)
                if nodata is not None:
                    known &= band != nodata
                with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
                    values[:, target] = np.where(known, band, 0)
                valid[:, target] = known
            if not np.isfinite(values).all():
                raise InputError(f"{name}: holds infinite values near row {row}, column {col}; mark such pixels as NaN")
        if self._clouds is not None and self._mask is not None:
            kind, layer, rule = self._clouds
            clear = rule.clear(kind, self._stored(self._mask, [layer.place], row, col, height, width))
            values[~np.broadcast_to(clear, values.shape)] = 0
            valid &= clear
        return values.reshape(-1, height, width), valid.reshape(-1, height, width)

    def _stored(
        self, array: xarray.DataArray, places: Sequence[int | None], row: int, col: int, height: int, width: int
    ) -> npt.NDArray[Any]:
        """(times, places, height, width)."""
        rows = slice(row, row + height)
        if self._northward:
            rows = slice(self.grid.height - row - height, self.grid.height - row)
        part: dict[str, Any] = {"time": _indices(self._times), "y": rows, "x": slice(col, col + width)}
        if "band" in array.dims:
            part["band"] = _indices([place for place in places if place is not None])
        try:
            found = array.isel(part).load()
        except (OSError, RuntimeError, ValueError) as error:  # of HDF5 and of the codecs
            raise InputError(
                f"{array.name}: cannot be read at row {row}, column {col} ({error}); the file may be corrupt"
            ) from error
        found = found if "band" in found.dims else found.expand_dims("band")
        values = found.transpose(*ROLES).values
        return values[:, :, ::-1] if self._northward else values


def _plain(layer: Layer) -> xarray.DataArray:
    """The variable with roles as names of its dimensions, and nothing else."""
    array = layer.array.drop_vars(layer.array.coords).rename({dim: role for role, dim in layer.dims.items()})
    return array.load() if array.nbytes <= LOADED else array


def _indices(places: Sequence[int]) -> slice | list[int]:
    """Consecutive places as a slice, which every format reads at once."""
    first, last = places[0], places[-1]
    return slice(first, last + 1) if list(places) == list(range(first, last + 1)) else list(places)


def _nodata(array: xarray.DataArray, said: float | None) -> float | None:
    """The value of missing pixels; None without one, or if it is NaN, which always is."""
    values = [said, *(array.attrs.get(key) for key in NODATA)]
    value = next((float(np.asarray(value).ravel()[0]) for value in values if value is not None), None)
    return None if value is None or np.isnan(value) else value


class Cube:
    """What :class:`eo_zoo.geo.series.Series` reads where one file holds all dates.

    ``ways`` say which conversion belongs to which dates and bands, bool (dates, bands).
    """

    def __init__(
        self,
        pixels: Pixels,
        bands: Sequence[str],
        dates: Sequence[date],
        ways: Mapping[Conversion, Valid],
        units: str,
        warnings: list[str],
        grid: Grid | None = None,
    ) -> None:
        self.grid = grid or pixels.grid
        self.bands, self.dates, self.warnings = tuple(bands), tuple(dates), warnings
        self._pixels, self._ways, self._units = pixels, ways, units
        self._first_row, self._first_col, self._covered = self.grid.within(pixels.grid)

    def on(self, grid: Grid) -> Cube:
        """The same on other pixels."""
        return Cube(self._pixels, self.bands, self.dates, self._ways, self._units, self.warnings, grid)

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Values, Valid]:
        """As :meth:`eo_zoo.geo.series.Series.read`, of ``bands``."""
        values = np.zeros((len(self.dates), len(self.bands), height, width), np.float32)
        valid = np.zeros(values.shape, bool)
        window, inside = self._covered.clip(row - self._first_row, col - self._first_col, height, width)
        if 0 not in window[2:]:
            part, mask = (array.reshape(*values.shape[:2], *window[2:]) for array in self._planes(window))
            for way, where in self._ways.items():
                converted = way.apply(part[where])
                part[where] = np.where(np.isnan(converted), np.float32(0), converted)
                lost = np.zeros(mask.shape, bool)
                lost[where] = mask[where] & np.isnan(converted)
                self._warn([bool(lost[:, place].any()) for place in range(len(self.bands))])
                mask &= ~lost
            values[:, :, *inside], valid[:, :, *inside] = np.where(mask, part, np.float32(0)), mask
        return values, valid

    def _planes(self, window: tuple[int, int, int, int]) -> tuple[Values, Valid]:
        rows, columns = self._covered.axes(self._pixels.grid)
        if rows.aligned(self._covered.height) and columns.aligned(self._covered.width):
            row, col, height, width = window
            return self._pixels.read(row + round(rows.start), col + round(columns.start), height, width)
        return read_through(rows, columns, window, self._pixels.read)

    def _warn(self, lost: Sequence[bool]) -> None:
        for band, has_lost in zip(self.bands, lost, strict=True):
            sentence = impossible(band, self._units)
            if has_lost and sentence not in self.warnings:
                self.warnings.append(sentence)


def open_cube(
    path: str, variable: str | None, request: Request, place: Place, gsd: float | None, stack: ExitStack
) -> Cube:
    """A file's series.

    Args:
        path: the file, or the folder of a Zarr store.
        variable: to be read; needed where several would do.
        request: what is wanted of it.
        place: see :func:`eo_zoo.geo.cubegrid.grid_of`, as ``gsd``.
        gsd: metres per pixel where the file does not say.
        stack: gets the open file.

    Raises:
        InputError: the file, or what is asked of it, cannot be used.
        MissingExtra: the library that reads such files is not installed.
    """
    label, notes = Path(path).name, request.notes
    found = contents(
        open_file(path, stack), label, sensor=request.sensor, variable=variable, bands=request.names, notes=notes
    )
    missing = [band for band in request.bands if band not in found.bands]
    if missing:
        raise InputError(f"{label}: no {', '.join(missing)}; there are {', '.join(found.bands)}")
    layers = [found.bands[band] for band in request.bands]
    dims = found.layer.dims["y"], found.layer.dims["x"]
    grid, northward = grid_of(found.data, found.layer.array, dims, place, gsd, notes)
    days = set(request.choose(found.dates))
    times = sorted((day, time) for time, day in enumerate(found.dates) if day in days)
    chosen = request.clouds.choose(found.clouds, label)
    if chosen:
        kind, mask = chosen
        notes.append(request.clouds.note(kind, str(mask.array.name)))
    elif found.clouds:
        notes.append(f"cloud masks not used: {', '.join(str(layer.array.name) for layer in found.clouds.values())}")
    clouds = (*chosen, request.clouds) if chosen else None
    pixels = Pixels(layers, [time for _, time in times], grid, northward, request.nodata, clouds)
    baselines = [found.baselines[time] for _, time in times]
    ways = _ways(label, layers, request, found.units, baselines)
    return Cube(pixels, request.bands, [day for day, _ in times], ways, request.target_units, request.warnings)


def _ways(
    label: str, layers: Sequence[Layer], request: Request, units: str | None, baselines: Sequence[str]
) -> dict[Conversion, Valid]:
    """Which conversion belongs to which dates and bands: the bands' scale and offset, the dates' baseline."""
    ways: dict[Conversion, Valid] = {}
    for place, (band, layer) in enumerate(zip(request.bands, layers, strict=True)):
        scale, offset = (layer.array.attrs.get(key) for key in ("scale_factor", "add_offset"))
        for baseline in dict.fromkeys(baselines):
            try:
                way = request.conversion(layer.array.dtype, scale, offset, units, baseline)
            except InputError as error:
                raise InputError(f"{label}, band {band}: {error}") from error
            where = ways.setdefault(way, np.zeros((len(baselines), len(layers)), bool))
            where[[other == baseline for other in baselines], place] = True
    said: dict[str, list[str]] = {}
    for way, where in ways.items():
        bands = [band for place, band in enumerate(request.bands) if where[:, place].any()]
        said.setdefault(way.note, []).extend(bands)
    for note, bands in said.items():
        request.notes.append(f"{'all bands' if len(bands) == len(layers) else ', '.join(bands)}: {note}")
    late = [text for text in baselines if text and float(text) >= NEW_BASELINE]
    if late and not any(way.add for way in ways) and request.boa_offset is None:
        request.warnings.append(new_baseline(late[0]))
    return ways
