"""Where the pixels of an xarray cube lie: CRS and coordinates as CF, GDAL, rioxarray, stackstac and odc write them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from eo_zoo.errors import InputError
from eo_zoo.geo.grid import Grid

if TYPE_CHECKING:
    import xarray

Place = Grid | Literal["anywhere"] | None  # of an image on the same ground; or asked for values and dates alone
CRS_KEYS = ("crs_wkt", "spatial_ref", "proj:code", "proj:epsg", "epsg_code", "epsg", "crs", "_CRS")
UNEVEN = 0.1  # of a pixel; degrees in float32 are off by that much


def grid_of(
    data: xarray.Dataset,
    array: xarray.DataArray,
    dims: tuple[str, str],
    place: Place,
    gsd: float | None,
    notes: list[str],
) -> tuple[Grid, bool]:
    """The pixels of a variable, and whether its rows are stored from south to north.

    Args:
        data: the file.
        array: the variable.
        dims: names of its dimensions y and x.
        place: the grid of an image that it covers, where the file does not say; or "anywhere".
        gsd: metres per pixel, where the file does not say.
        notes: gets a sentence where the place is not the file's own.

    Raises:
        InputError: no place, coordinates that are no regular grid, or another extent than that of ``place``.
    """
    name = str(array.name)
    height, width = (array.sizes[dim] for dim in dims)
    y, x = (_axis(name, array, dim) for dim in dims)
    crs = _crs(name, data, array, dims)
    if crs is None:
        return _placed(name, height, width, place, gsd, notes), False
    t = None if y and x else _geotransform(data, array)
    if t is not None:
        return Grid(crs, t, width, height), False
    if y is None or x is None:
        raise InputError(f"{name}: has a CRS, but no coordinates along {' and '.join(dims)}; add pixel centres")
    if x[1] < 0:
        raise InputError(f"{name}: its columns run from east to west; sort them (sortby('{dims[1]}'))")
    (first, down), (left, across) = y, x
    north = first if down < 0 else first + (height - 1) * down
    down = abs(down)
    return Grid(crs, Affine(across, 0, left - across / 2, 0, -down, north + down / 2), width, height), y[1] > 0


def _axis(name: str, array: xarray.DataArray, dim: str) -> tuple[float, float] | None:
    """First centre and step of a dimension's coordinate; None without one, or of a single pixel."""
    if dim not in array.coords or array.sizes[dim] < 2:
        return None
    values = np.asarray(array.coords[dim].values)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise InputError(f"{name}: its coordinate {dim} does not hold numbers; expected those of pixel centres")
    values = values.astype(np.float64)
    step = (values[-1] - values[0]) / (len(values) - 1)
    even = values[0] + step * np.arange(len(values))
    if step == 0 or np.abs(values - even).max() > UNEVEN * abs(step):
        raise InputError(f"{name}: its coordinate {dim} is not evenly spaced, so its pixels are no grid; regrid it")
    return float(values[0]), float(step)


# ---- CRS ----


def _mappings(data: xarray.Dataset, array: xarray.DataArray) -> Iterator[dict[str, Any]]:
    """Attributes that may hold the CRS: the grid mapping's, the variable's, the file's, and scalar coordinates."""
    stated = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping"))
    for key in (stated, "spatial_ref", "crs"):
        if key in data.variables:
            yield dict(data.variables[key].attrs)
    yield dict(array.attrs)
    yield dict(data.attrs)
    for key in ("proj:code", "proj:epsg", "epsg"):
        if key in data.variables and data.variables[key].ndim == 0:
            yield {key: data.variables[key].values.item()}


def _crs(name: str, data: xarray.Dataset, array: xarray.DataArray, dims: tuple[str, str]) -> CRS | None:
    for attributes in _mappings(data, array):
        for key in CRS_KEYS:
            value = attributes.get(key)
            if isinstance(value, dict):  # GDAL's Zarr
                value = value.get("wkt")
            if value is None or value == "":
                continue
            try:
                crs = CRS.from_user_input(int(value) if isinstance(value, np.integer) else value)
            except (RasterioError, CPLE_BaseError, ValueError) as error:
                raise InputError(f"{name}: its CRS '{str(value)[:60]}' ({key}) cannot be used ({error})") from error
            if not (crs.is_projected or crs.is_geographic):
                raise InputError(f"{name}: its CRS is local, not of the Earth; assign the right one")
            return crs
    units = [str(array.coords[dim].attrs.get("units", "")) if dim in array.coords else "" for dim in dims]
    # CF: latitude and longitude without a grid mapping are geographic; the ellipsoid is not told
    if units[0].startswith("degree") and units[1].startswith("degree"):
        return CRS.from_epsg(4326)
    return None


def _geotransform(data: xarray.Dataset, array: xarray.DataArray) -> Affine | None:
    """GDAL's six numbers, of a single pixel or of files without coordinates."""
    for attributes in _mappings(data, array):
        if "GeoTransform" in attributes:
            try:
                t = Affine.from_gdal(*(float(number) for number in str(attributes["GeoTransform"]).split()))
            except (TypeError, ValueError):
                return None
            return t if t.b == t.d == 0 and t.a > 0 > t.e else None
    return None


# ---- a place from elsewhere ----


def _placed(name: str, height: int, width: int, place: Place, gsd: float | None, notes: list[str]) -> Grid:
    if place is None:
        raise InputError(
            f"{name}: has no CRS, so its place is unknown; give an image that covers the same ground beside it, or "
            "write the CRS into the file (rioxarray: .rio.write_crs)"
        )
    if isinstance(place, str):
        return Grid(CRS(), Affine(gsd or 1, 0, 0, 0, -(gsd or 1), 0), width, height)
    if gsd is None:
        raise InputError(f"{name}: has no CRS, so the size of its pixels must be given: gsd, in metres")
    if place.crs.is_geographic:
        raise InputError(f"{name}: can only be placed on an image in a projected CRS; warp that with gdalwarp -t_srs")
    pixel = gsd / place.crs.linear_units_factor[1]
    left, bottom, right, top = place.bounds
    across, down = width * pixel, height * pixel
    if max(abs(right - left - across), abs(top - bottom - down)) > pixel:
        raise InputError(
            f"{name}: has no CRS and does not cover the image beside it: {width} x {height} pixels of {gsd:g} m are "
            f"{across:g} x {down:g}, the image is {right - left:.6g} x {top - bottom:.6g}; expected the same to within "
            "a pixel"
        )
    notes.append(
        f"{name}: no CRS in the file, centred on the image beside it ({across:g} x {down:g} on {right - left:.6g} x "
        f"{top - bottom:.6g}), the first row taken as north"
    )
    # to whole pixels of the image, so that neither needs resampling for the other
    t = place.transform
    left += round((right - left - across) / 2 / t.a) * t.a
    top += round((top - bottom - down) / 2 / -t.e) * t.e
    return Grid(place.crs, Affine(pixel, 0, left, 0, -pixel, top), width, height)
