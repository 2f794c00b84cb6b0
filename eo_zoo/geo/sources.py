"""Which band lies where: raster files and folders of them, opened once, their bands found by name.

Never by position alone. A name is what the user gives, a band's description or tag, or a part of the file's
name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from eo_zoo.errors import InputError
from eo_zoo.geo.names import LEFT_OUT, cloud_kind, given_bands, match, match_file_name
from eo_zoo.sensors import get_sensor, resolve

SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt")
NAME_TAGS = ("long_name", "band_name", "name", "common_name")  # of a band, by xarray, ENVI and STAC habit
GDAL_ERRORS = (RasterioError, CPLE_BaseError)
PRODUCT = re.compile(r"S2[A-D]_MSIL[12][AC]_\d{8}T\d{6}_N(\d\d)(\d\d)_")  # holds the processing baseline
REMOTE_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}  # no listing of a web folder for side files


@dataclass(frozen=True)
class BandSource:
    """One band in one file. ``scale``, ``offset``, ``nodata`` are a STAC item's; the file's own go first."""

    band: str  # canonical name
    path: str  # as GDAL opens it
    label: str  # as the user knows it: a file name or an asset's key
    index: int = 1  # in the file, from 1
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    count: int | None = None  # bands that the item says the file has
    masked: bool = True  # by the file's alpha band, if it has one


@dataclass
class Found:
    """What a source turned out to hold."""

    sensor: str
    sources: list[BandSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    baseline: str = ""  # of Sentinel-2 processing ("04.00"), where an offset may still have to be applied
    clouds: dict[str, BandSource] = field(default_factory=dict)  # masks by their kind, see names.cloud_kind


class Files:
    """Raster files, each opened once; closed with ``stack``."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: dict[str, DatasetReader] = {}

    def open(self, path: str | Path) -> DatasetReader:
        """The opened file.

        Raises:
            InputError: missing, unreadable, or not a raster.
        """
        name = str(path)
        if name not in self._open:
            remote = name.startswith("/vsicurl/")
            if "://" in name and not remote:
                raise InputError(
                    f"{name}: addresses of this kind cannot be read here; use an item with https or local hrefs"
                )
            if not name.startswith("/vsi") and not Path(name).is_file():
                raise InputError(f"{name}: {'not a file' if Path(name).exists() else 'no such file'}")
            try:
                with rasterio.Env(**(REMOTE_OPTIONS if remote else {})), warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said later, as an error
                    self._open[name] = self._stack.enter_context(rasterio.open(name))
            except (*GDAL_ERRORS, OSError) as error:
                raise InputError(f"{name}: not a raster that can be read ({error})") from error
        return self._open[name]


def alpha_band(dataset: DatasetReader) -> int | None:
    """Number of the band that is a mask by its colour interpretation."""
    colours = list(dataset.colorinterp)
    return colours.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colours else None


def data_bands(dataset: DatasetReader) -> list[int]:
    """Numbers of the bands that hold data, from 1."""
    return [i for i, colour in enumerate(dataset.colorinterp, start=1) if colour != ColorInterp.alpha]


def _description(dataset: DatasetReader, index: int) -> str | None:
    tags = {key.lower(): value for key, value in dataset.tags(index).items()}
    texts = [dataset.descriptions[index - 1], *(tags.get(key) for key in NAME_TAGS)]
    return next((text for text in texts if text), None)


def described(dataset: DatasetReader, index: int, sensor: str) -> str | None:
    """The band that a description or tag in the file names, or None."""
    try:
        return match(_description(dataset, index), sensor)
    except InputError as error:
        raise InputError(f"{Path(dataset.name).name}, band {index}: {error}") from error


def _alpha_has_name(dataset: DatasetReader, sensor: str) -> bool:
    """Whether the band that is alpha by its colour interpretation is one of the sensor's by its description."""
    alpha = alpha_band(dataset)
    with suppress(InputError):  # a name that may be several bands' is none here
        return alpha is not None and described(dataset, alpha, sensor) is not None
    return False


# ---- one file ----


def from_file(files: Files, path: str, sensor: str, bands: Sequence[str] | None, *, stated: bool) -> Found:
    """The bands of one raster file; ``stated``: that it is of this sensor is not just assumed.

    Raises:
        InputError: it cannot be read, its bands have no names, or ``bands`` are not as many as it has.
    """
    dataset = files.open(path)
    label, indices = path.partition("?")[0].rstrip("/").rpartition("/")[2], data_bands(dataset)
    found = Found(sensor)
    # GDAL calls the fourth band of many files alpha by its place alone; a name given for it says what it is
    given = bands is not None and len(indices) < len(bands) == dataset.count
    alpha_is_data = given or _alpha_has_name(dataset, sensor)
    if alpha_is_data:
        indices = list(range(1, dataset.count + 1))
    if not indices:
        raise InputError(f"{label}: holds no image of its own, but parts; convert the one wanted to GeoTIFF")
    if len(indices) < dataset.count:
        found.notes.append(f"{label}: band {alpha_band(dataset)} is alpha, used as mask")
    said: Sequence[str | None] = []
    try:
        said = [described(dataset, index, sensor) for index in indices]
    except InputError:
        if bands is None:  # else the names are given, and what the file says matters no more
            raise
    if bands is not None:
        names = _named(bands, len(indices), label, sensor, found, said)
    elif any(said):
        names = list(said)
        unnamed = {i: _description(dataset, i) for i, n in zip(indices, said, strict=True) if not n}
        others = [title or f"band {i}" for i, title in unnamed.items() if not cloud_kind(title)]
        if others:
            found.notes.append(f"{label}: not used, as not a band of {sensor}: {', '.join(others)}")
    elif len(indices) == 1 and (name := match_file_name(Path(label), sensor)):
        names = [name]
        found.notes.append(f"{label}: taken as {name} by its file name")
    elif get_sensor(sensor).name == "RGB" and (colours := _colours(dataset, indices)):
        names = list(colours)
        found.notes.append(f"{label}: bands named by the file's colour interpretation: {', '.join(colours)}")
    elif stated and len(indices) == 1 == len(get_sensor(sensor).bands):
        names = list(get_sensor(sensor).band_names)
    else:
        raise InputError(_nameless(dataset, label, indices, sensor))
    titles: Sequence[str | None] = bands or [_description(dataset, i) for i in indices]
    for i, text in zip(indices, titles, strict=True):
        if kind := cloud_kind(text):
            found.clouds[kind] = BandSource(kind, str(path), f"{label} band {i}", i)
    pairs = [(name, index) for name, index in zip(names, indices, strict=True) if name]
    taken = next((name for name, index in pairs if index == alpha_band(dataset)), None)
    if taken:
        found.notes.append(
            f"{label}: band {alpha_band(dataset)} is marked as alpha and taken as {taken}, as it is named; if it is a "
            "mask, give - for its name"
        )
    elif alpha_is_data:
        found.notes.append(f"{label}: band {alpha_band(dataset)} is alpha, used as mask")
    found.sources = [BandSource(name, str(path), label, i, masked=taken is None) for name, i in pairs]
    listed = [name for name, _ in pairs]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise InputError(f"{label}: band given twice: {', '.join(twice)}; give --bands with one name for each")
    return found


def _named(
    bands: Sequence[str], count: int, label: str, sensor: str, found: Found, said: Sequence[str | None]
) -> list[str | None]:
    if len(bands) != count:
        raise InputError(
            f"{label} has {count} band{'s' * (count != 1)}, but --bands names {len(bands)} "
            f"({', '.join(bands)}); give one name for each, in the file's order"
        )
    given = iter(given_bands(bands, sensor))
    names = [None if band == LEFT_OUT or cloud_kind(band) else next(given) for band in bands]
    # said is empty where the file's own descriptions could not be read
    wrong = [f"{name} ({other})" for name, other in zip(names, said, strict=False) if name and other and other != name]
    if wrong:
        found.warnings.append(f"{label}: --bands differs from the file's own descriptions: {', '.join(wrong)}")
    return names


def _colours(dataset: DatasetReader, indices: Iterable[int]) -> tuple[str, ...]:
    colours = [dataset.colorinterp[index - 1].name for index in indices]
    if sorted(colours) != ["blue", "green", "red"]:
        return ()
    return tuple(resolve(colour, "RGB") for colour in colours)


def _nameless(dataset: DatasetReader, label: str, indices: Collection[int], sensor: str) -> str:
    texts = [text for index in indices if (text := _description(dataset, index))]
    found = f" that {sensor} knows (found: {', '.join(texts)})" if texts else ""
    # no list as long as the file: it would be copied, and be wrong
    names = ", ".join(band.sensor_name for band in get_sensor(sensor).bands[:3])
    if len(indices) == 1 == len(get_sensor(sensor).bands):
        return f"{label}: its band carries no name{found}; give --sensor {sensor} if it is from there, else its sensor"
    if len(indices) == 1:
        return (
            f"{label}: neither its band's description nor its file name holds a band of {sensor}{found}; "
            f"give --bands with its name (one of {names}, ...), or --sensor"
        )
    return (
        f"{label}: its {len(indices)} bands carry no names{found}; give --bands with {len(indices)} names, "
        f"in the file's order (of {names}, ..., or - for one that is not to be used), or --sensor"
    )


# ---- a folder, or files side by side ----


def from_folder(files: Files, folder: Path, sensor: str) -> Found:
    """The bands of a folder of single-band files, or of its subfolders R10m, R20m, R60m.

    Of two files for one band the one with finer pixels is taken.

    Raises:
        InputError: no rasters, none with a band's name, or two files of equal resolution for a band.
    """
    paths = rasters(folder)
    if not paths:
        raise InputError(
            f"{folder}: no rasters in this folder (looked for *{', *'.join(SUFFIXES)}); "
            "give the folder that holds the band files"
        )
    return _from_band_files(files, paths, sensor, folder)


def from_files(files: Files, paths: Sequence[Path], sensor: str, bands: Sequence[str] | None, *, stated: bool) -> Found:
    """The bands of files that belong together: one with all bands, or one for each; and cloud masks beside them.

    Raises:
        InputError: as :func:`from_file` and :func:`from_folder`.
    """
    images = [path for path in paths if not cloud_kind(path.stem)]
    if len(images) != 1:
        return _from_band_files(files, paths, sensor, Path(paths[0]).parent)
    found = from_file(files, str(images[0]), sensor, bands, stated=stated)
    found.baseline = baseline_of(str(images[0].absolute()))
    for path in paths:
        if path not in images:
            _add_clouds(found, path)
    return found


def baseline_of(path: str) -> str:
    """The processing baseline of Sentinel-2 ("04.00") that a product's name, or a path with one, holds, or ""."""
    product = PRODUCT.search(path)
    return f"{product[1]}.{product[2]}" if product else ""


def _add_clouds(found: Found, path: Path) -> bool:
    """Whether this is a cloud mask by its name; of several of one kind the first counts."""
    kind = cloud_kind(path.stem)
    if kind:
        found.clouds.setdefault(kind, BandSource(kind, str(path), path.name))
    return kind is not None


def _from_band_files(files: Files, paths: Sequence[Path], sensor: str, folder: Path) -> Found:
    found = Found(sensor, baseline=baseline_of(str(paths[0].absolute())))
    chosen: dict[str, tuple[float, Path]] = {}
    unused = []
    for path in paths:
        if _add_clouds(found, path):
            continue
        dataset = files.open(path)
        band = _band_of_file(dataset, path, found) if len(data_bands(dataset)) == 1 else None
        if band is None:
            unused.append(path.name)
            continue
        size = abs(dataset.transform.determinant)
        if band not in chosen:
            chosen[band] = (size, path)
            continue
        other_size, other = chosen[band]
        if size == other_size:
            raise InputError(f"{folder}: band given twice: {band} is in {other.name} and {path.name}; remove one")
        if size < other_size:
            chosen[band] = (size, path)
        finer, coarser = (path, other) if size < other_size else (other, path)
        found.notes.append(f"{band}: {finer.name} used, as finer than {coarser.name}")
    if unused:
        found.notes.append(f"not used, as not one band of {sensor}: {', '.join(unused)}")
    if not chosen:
        raise InputError(
            f"{folder}: no file here is one band of {sensor} by its description or name (found: "
            f"{', '.join(unused)}); name them by band (e.g. {get_sensor(sensor).bands[0].sensor_name}.tif), "
            "or give --sensor, or one multi-band file itself"
        )
    # files of one name may lie in R10m and R20m
    found.sources = [
        BandSource(band, str(path), f"{path.parent.name}/{path.name}") for band, (_, path) in chosen.items()
    ]
    return found


def _band_of_file(dataset: DatasetReader, path: Path, found: Found) -> str | None:
    by_description = described(dataset, 1, found.sensor)
    by_name = match_file_name(path, found.sensor)
    if by_description and by_name and by_description != by_name:
        found.warnings.append(
            f"{path.name}: named {by_name}, but described as {by_description} inside; the latter counts"
        )
    return by_description or by_name


def rasters(folder: Path) -> list[Path]:
    """Rasters of a folder; of a Sentinel-2 product (.SAFE) those of its IMG_DATA."""
    images = sorted(folder.glob("GRANULE/*/IMG_DATA"))
    if len(images) > 1:
        raise InputError(f"{folder}: holds {len(images)} granules; give one of the GRANULE/*/IMG_DATA folders")
    folder = images[0] if images else folder
    try:
        entries = [*folder.iterdir(), *folder.glob("R[0-9][0-9]m/*")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return sorted(path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file())
