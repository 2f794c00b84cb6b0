"""What an HDF5, NetCDF or Zarr file holds: its variables, their dimensions, dates and bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eo_zoo.errors import InputError, nearest, require
from eo_zoo.geo.dated import dates_in
from eo_zoo.geo.names import LEFT_OUT, cloud_kind, match
from eo_zoo.geo.sources import baseline_of

if TYPE_CHECKING:
    import xarray

ENGINES = {**dict.fromkeys((".nc", ".nc4", ".h5", ".hdf5"), "h5netcdf"), ".zarr": "zarr"}
ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")
ROLES = ("time", "band", "y", "x")
DIMENSIONS = {
    **dict.fromkeys(("time", "t", "date", "dates", "datetime"), "time"),
    **dict.fromkeys(("band", "bands", "channel", "channels", "spectral"), "band"),
    **dict.fromkeys(("y", "lat", "latitude", "northing"), "y"),
    **dict.fromkeys(("x", "lon", "longitude", "easting"), "x"),
}
BAND_NAMES = ("band_name", "long_name", "name", "common_name", "title")  # of a band dimension: coordinates, attributes


@dataclass(frozen=True)
class Facts:
    """What is known of a published data set whose files do not say it: dimensions are ``ROLES``, row 0 is north."""

    sensor: str
    bands: tuple[str, ...]
    units: str
    dates: str  # the variable with the products' names
    masks: str | None = None  # the variable with probabilities of snow and of clouds


# TreeSatAI-TS, by its card (huggingface.co/datasets/IGNF/TreeSatAI-Time-Series); units by the values: reflectance x
# 10000, and linear backscatter. Of a sensor's variables the first is taken where none is named.
KNOWN = {
    "sen-2-data": Facts(
        "S2",
        ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
        "dn",
        "sen-2-products",
        "sen-2-masks",
    ),
    "sen-1-asc-data": Facts("S1", ("VV", "VH"), "linear", "sen-1-asc-products"),
    "sen-1-des-data": Facts("S1", ("VV", "VH"), "linear", "sen-1-des-products"),
}
CLOUD = 1  # its place in TreeSatAI's masks, after snow


@dataclass
class Layer:
    """A band: ``place`` in the band dimension of a variable, None where the variable is the band."""

    array: xarray.DataArray
    dims: Mapping[str, str]  # role -> the variable's dimension
    place: int | None = None


@dataclass
class Contents:
    """What is to be read from a file."""

    data: xarray.Dataset
    bands: dict[str, Layer] = field(default_factory=dict)  # by canonical name
    clouds: dict[str, Layer] = field(default_factory=dict)  # by kind
    dates: list[date] = field(default_factory=list)  # as stored
    baselines: list[str] = field(default_factory=list)
    units: str | None = None

    @property
    def layer(self) -> Layer:
        """Any of the bands: they share dimensions."""
        return next(iter(self.bands.values()))


def is_cube(path: str) -> bool:
    """Whether a path is a store of this kind by its suffix, or a Zarr folder by what is in it."""
    return Path(path).suffix.lower() in ENGINES or any((Path(path) / name).is_file() for name in ZARR_FILES)


def open_file(path: str, stack: ExitStack) -> xarray.Dataset:
    """The file, of which nothing is read yet but names; numbers will be as stored, times decoded.

    Raises:
        InputError: missing, or not readable as what its suffix says.
        MissingExtra: xarray or what it needs for this format is not installed.
    """
    engine = ENGINES.get(Path(path).suffix.lower(), "zarr")
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; a cube is read from this machine, so download it first")
    if not Path(path).is_dir():
        with Path(path).open("rb") as file:
            if file.read(3) == b"CDF":
                raise InputError(f"{path}: NetCDF 3, which has no chunks; convert it with nccopy -k nc4")
    xarray, _ = require("xarray", "cubes"), require(engine, "cubes")
    options: dict[str, Any] = {"phony_dims": "access"} if engine == "h5netcdf" else {"consolidated": False}
    try:
        return stack.enter_context(
            xarray.open_dataset(path, engine=engine, mask_and_scale=False, decode_coords="all", **options)
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read with {engine} ({reason}); is it what its name says?") from error


def contents(
    data: xarray.Dataset,
    label: str,
    *,
    sensor: str,
    variable: str | None,
    bands: Sequence[str] | None,
    notes: list[str],
) -> Contents:
    """The bands of a sensor in a file, its dates and cloud masks.

    Args:
        data: as :func:`open_file` gives it.
        label: what messages call it.
        sensor: whose band names are meant.
        variable: to be read; needed where several would do.
        bands: names along the band dimension, "-" for one that is not used; None for those of the file.
        notes: gets the choices made.

    Raises:
        InputError: no or several such variables, bands without names, or no dates.
    """
    if variable is not None and variable not in data.variables:
        raise InputError(f"{label}: has no variable '{variable}'. {nearest(variable, map(str, data.data_vars))}")
    known = {name: facts for name, facts in KNOWN.items() if name in data and facts.dates in data}
    mine = [name for name, facts in known.items() if facts.sensor == sensor and variable in (None, name)]
    found = Contents(data)
    if mine:
        _known(found, label, mine, bands, sensor, notes)
    else:
        _named(found, label, variable, bands, sensor)
    return found


def _known(
    found: Contents, label: str, names: Sequence[str], bands: Sequence[str] | None, sensor: str, notes: list[str]
) -> None:
    """A data set whose layout is in ``KNOWN``."""
    name, facts = names[0], KNOWN[names[0]]
    others = f", not {', '.join(names[1:])}, which {label}::{names[1]} would be" if len(names) > 1 else ""
    notes.append(f"{label}: {name} as in TreeSatAI-TS: {', '.join(facts.bands)}, {facts.units}{others}")
    array = found.data[name]
    if array.ndim != len(ROLES):
        raise InputError(f"{label}: {name} has {array.ndim} dimensions, expected {len(ROLES)}: {', '.join(ROLES)}")
    dims = dict(zip(ROLES, map(str, array.dims), strict=True))
    _add_bands(found, label, array, dims, bands or facts.bands, sensor)
    _add_dates(found, label, facts.dates, dims["time"])
    if facts.masks in found.data and found.data[facts.masks].shape[1] > CLOUD:
        masks = found.data[facts.masks]
        found.clouds["probability"] = Layer(masks, dict(zip(ROLES, map(str, masks.dims), strict=True)), CLOUD)
    found.units = facts.units


def _named(found: Contents, label: str, variable: str | None, bands: Sequence[str] | None, sensor: str) -> None:
    """A file that names its dimensions: one variable with a band dimension, or a variable a band."""
    data = found.data
    roles = {str(name): _roles(array) for name, array in data.data_vars.items()}
    images = {name: dims for name, dims in roles.items() if {"time", "y", "x"} <= set(dims)}
    if not images:
        listed = "; ".join(f"{name} ({', '.join(map(str, data[name].dims))})" for name in roles)
        raise InputError(f"{label}: no variable has the dimensions time, y and x (found: {listed or 'no variables'})")
    if variable is not None and "band" not in images.get(variable, {}):
        listed = ", ".join(map(str, data[variable].dims))
        raise InputError(f"{label}: {variable} has the dimensions {listed or 'none'}, expected time, band, y and x")
    flat = {name: Layer(data[name], dims) for name, dims in images.items() if "band" not in dims}
    whole = variable or _only(label, [name for name in images if name not in flat], flat, sensor)
    if whole:
        array, dims = data[whole], images[whole]
        _add_bands(found, label, array, dims, bands or _labels(array, dims["band"], label), sensor)
    elif bands is not None:
        raise InputError(f"{label}: its bands are variables with names of their own; leave bands out")
    for name, layer in () if whole else flat.items():
        band = _match(name, sensor, label)
        if band in found.bands:
            raise InputError(f"{label}: band given twice: {band} is in {name} and {found.bands[band].array.name}")
        if band:
            found.bands[band] = layer
    for name, layer in flat.items():
        if (kind := cloud_kind(name)) and _same(layer, found.layer):
            found.clouds[kind] = layer
    if not all(_same(layer, found.layer) for layer in found.bands.values()):
        raise InputError(f"{label}: its bands have different times or pixels; bring them to one grid first")
    _add_dates(found, label, None, found.layer.dims["time"])


def _only(label: str, whole: Sequence[str], flat: Mapping[str, Layer], sensor: str) -> str | None:
    """The variable with a band dimension, or None where the others are bands; they must not both be there."""
    single = [name for name in flat if _match(name, sensor, label)]
    if len(whole) + bool(single) > 1:
        raise InputError(
            f"{label}: several variables could be meant ({', '.join([*whole, *single])}); choose one, as in "
            f"{label}::{whole[0]}"
        )
    if not whole and not single:
        raise InputError(f"{label}: no variable is a band of {sensor} (found: {', '.join(flat)})")
    return whole[0] if whole else None


def _same(layer: Layer, other: Layer) -> bool:
    return all(layer.dims[role] == other.dims[role] for role in ("time", "y", "x"))


def _roles(array: xarray.DataArray) -> dict[str, str]:
    """Role -> dimension, by its name or the CF attribute ``axis``; empty if one has no role, or two share one."""
    axes = {"T": "time", "Y": "y", "X": "x"}
    found = {}
    for dim in map(str, array.dims):
        axis = array.coords[dim].attrs.get("axis", "") if dim in array.coords else ""
        role = DIMENSIONS.get(dim.lower()) or axes.get(str(axis))
        if role is None or role in found:
            return {}
        found[role] = dim
    return found


# ---- bands ----


def _match(text: str, sensor: str, label: str) -> str | None:
    try:
        return match(text, sensor)
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


def _labels(array: xarray.DataArray, dim: str, label: str) -> list[str]:
    """Names along the band dimension: its own labels, coordinates beside it, or rioxarray's ``long_name``."""
    options = [array.coords[dim].values] if dim in array.coords else []
    for key in BAND_NAMES:
        options += [array.coords[key].values] if key in array.coords and array.coords[key].dims == (dim,) else []
        options += [array.attrs[key]] if isinstance(array.attrs.get(key), (list, tuple, np.ndarray)) else []
    for texts in options:
        if len(texts) == array.sizes[dim] and all(isinstance(text, (str, bytes)) for text in texts):
            return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    raise InputError(
        f"{label}: the {array.sizes[dim]} bands of {array.name} carry no names; give bands with one name for each, in "
        "the file's order (or - for one that is not to be used)"
    )


def _add_bands(
    found: Contents, label: str, array: xarray.DataArray, dims: Mapping[str, str], names: Sequence[str], sensor: str
) -> None:
    count = array.sizes[dims["band"]]
    if len(names) != count:
        raise InputError(
            f"{label}: {array.name} has {count} bands, but {len(names)} names are given ({', '.join(names)}); give one "
            "for each, in the file's order"
        )
    for place, name in enumerate(names):
        if kind := cloud_kind(name):
            found.clouds[kind] = Layer(array, dims, place)
        elif name != LEFT_OUT and (band := _match(name, sensor, label)):
            if band in found.bands:
                raise InputError(f"{label}: band given twice: {band}; give bands with one name for each")
            found.bands[band] = Layer(array, dims, place)
    if not found.bands:
        raise InputError(f"{label}: none of {', '.join(names)} is a band of {sensor}; is it of another sensor?")


# ---- dates ----


def _add_dates(found: Contents, label: str, variable: str | None, dim: str) -> None:
    """The dates along the time dimension: a variable's, else its coordinate, else those of the one that holds some."""
    data = found.data
    if variable is None:
        beside = [str(name) for name, array in data.variables.items() if array.dims == (dim,)]
        options = [dim] if dim in data.coords else [name for name in beside if _dates(data[name].values)]
        if len(options) != 1:
            raise InputError(
                f"{label}: {'several variables hold' if options else 'no variable holds'} dates along {dim} "
                f"({', '.join(options or beside) or 'none is there'}); give it a time coordinate"
            )
        variable = options[0]
    values = np.atleast_1d(data[variable].values)
    found.dates = _dates(values)
    if not found.dates or len(found.dates) != data.sizes[dim]:
        raise InputError(
            f"{label}: {variable} does not hold {data.sizes[dim]} dates (the first is {values.ravel()[0]!s}); expected "
            "times, ISO texts or names with a date in them"
        )
    found.baselines = [baseline_of(str(value)) if values.dtype.kind in "OUS" else "" for value in values]


def _dates(values: np.ndarray) -> list[date]:
    """Days of datetime64, cftime, texts that hold a date, or numbers like 20200219; empty unless all are."""
    if values.dtype.kind == "M":
        return [] if np.isnat(values).any() else values.astype("datetime64[D]").tolist()
    found = []
    for value in values.tolist():
        if hasattr(value, "dayofyr"):  # cftime's
            value = f"{value.year:04d}-{value.month:02d}-{value.day:02d}"
        days = dates_in(value.decode() if isinstance(value, bytes) else str(value))
        if not days:
            return []
        found.append(days[0])
    return found
