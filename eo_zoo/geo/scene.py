"""A raster of any form as one array of named bands: one pixel grid, one unit, one validity mask."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import rasterio
from rasterio.enums import MaskFlags

from eo_zoo.errors import InputError
from eo_zoo.geo.bands import BandReader, Valid, Values, read_bands
from eo_zoo.geo.clouds import CloudBand, Clouds
from eo_zoo.geo.grid import Grid, common_grid, name_of
from eo_zoo.geo.names import given_bands
from eo_zoo.geo.sources import SUFFIXES, BandSource, Files, Found, from_file, from_files, from_folder
from eo_zoo.geo.stac import from_item, is_remote, read_item
from eo_zoo.sensors import get_sensor
from eo_zoo.values import impossible

__all__ = ["Grid", "Scene", "open_scene"]

# GDAL's block cache is a share of the machine's memory by default; what is read here is read once or twice
GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_CACHEMAX": 256 * 2**20,
    "GDAL_HTTP_CONNECTTIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_TIME": 60,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
}
NEW_BASELINE = 4.0  # of Sentinel-2 processing: from here on, dn are stored with 1000 added


class Opened:
    """What holds files open; a context manager that closes them."""

    _stack: ExitStack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        self._stack.close()


class Scene(Opened):
    """An opened raster; a context manager that closes its files.

    Attributes:
        grid: the pixels that :meth:`read` counts in.
        bands: canonical names, in the order of :meth:`read`.
        sensor: whose bands they are; of scenes side by side both, with a comma, as ``units``.
        units: of the values, one of ``eo_zoo.sensors.UNITS``.
        notes: every choice and conversion made, a sentence each.
        warnings: what may be wrong, a sentence each. Reading may add to it: values that have no dB.
    """

    def __init__(
        self,
        grid: Grid,
        bands: Sequence[BandReader],
        found: Found,
        units: str,
        stack: ExitStack | None = None,
    ) -> None:
        self.grid = grid
        self.bands = tuple(band.name for band in bands)
        self.sensor = found.sensor
        self.units = units
        self.notes = found.notes
        self.warnings = found.warnings
        self._bands = bands
        self._stack = stack or ExitStack()

    @property
    def files(self) -> int:
        """How many files its bands are read from."""
        return len({band.dataset.name for band in self._bands})

    @property
    def masked(self) -> bool:
        """Whether a cloud mask makes pixels invalid."""
        return any(band.clouds for band in self._bands)

    @property
    def ways(self) -> tuple[str, ...]:
        """How its bands come to its pixels, in words, each once; none where they are the files' own."""
        return tuple(dict.fromkeys(band.place.way for band in self._bands if not band.place.direct))

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Values, Valid]:
        """A window, which may reach beyond the grid. A pixel is the same whatever window it is read through.

        Args:
            row: of the window's first pixel in the grid; may be negative, as ``col``.
            col: its column.
            height: of the window in pixels.
            width: of the window in pixels.

        Returns:
            values, float32 (C, height, width) in ``units``; and validity, bool of the same shape. Values are
            0 where invalid: nodata, masked, NaN, no dB, or beyond the grid.

        Raises:
            InputError: a valid pixel is infinite, or a file is corrupt.
        """
        values = np.zeros((len(self._bands), height, width), dtype=np.float32)
        valid = np.zeros(values.shape, dtype=bool)
        window, inside = self.grid.clip(row, col, height, width)
        if 0 in window[2:]:
            return values, valid
        with rasterio.Env(**GDAL_OPTIONS):
            for places in self._together():
                bands = [self._bands[place] for place in places]
                part, mask = read_bands(bands, *window)
                for i, (place, band) in enumerate(zip(places, bands, strict=True)):
                    converted = band.conversion.apply(part[i])
                    possible = mask[i] & ~np.isnan(converted)
                    if band.conversion.function and possible.sum() < mask[i].sum():
                        self._warn_impossible(band.name)
                    values[(place, *inside)] = np.where(possible, converted, np.float32(0))
                    valid[(place, *inside)] = possible
        return values, valid

    def sample(self, windows: int = 9, size: int = 256) -> dict[str, Values]:
        """Valid values of each band, 1-D, from square windows of ``size`` pixels at fixed, evenly spread
        places.

        A scene no larger than the windows together is read whole.
        """
        return samples(self.read, self.grid, self.bands, windows, size)

    def on(self, grid: Grid, bands: Sequence[str] | None = None) -> Scene:
        """The same on other pixels, resampled as bands of a scene are; the files stay with this one.

        Args:
            grid: the pixels wanted; they may reach beyond the files, and have another CRS.
            bands: canonical names in the order wanted, repeats allowed; None for all.
        """
        there = {band.name: band for band in self._bands}
        chosen = self._bands if bands is None else [there[band] for band in bands]
        found = Found(self.sensor, warnings=self.warnings)  # reading adds to them
        return Scene(grid, [band.on(grid) for band in chosen], found, self.units)

    def beside(self, other: Scene) -> Scene:
        """The bands of this scene and then of another, on this one's pixels, as far as both reach.

        The other's are resampled as bands of one scene are; the files stay with the two scenes.

        Raises:
            InputError: the CRS differ, or there is no common area.
        """
        if self.grid.crs != other.grid.crs:
            raise InputError(
                f"the inputs have different CRS: {self.sensor} {name_of(self.grid.crs)}, {other.sensor} "
                f"{name_of(other.grid.crs)}; warp them to one with gdalwarp -t_srs"
            )
        (left, bottom, right, top), (west, south, east, north) = self.grid.bounds, other.grid.bounds
        box = max(left, west), max(bottom, south), min(right, east), min(top, north)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise InputError(
                f"the inputs cover no common area: {self.sensor} {self.grid.bounds}; {other.sensor} {other.grid.bounds}"
            )
        found, grid = Found(f"{self.sensor}, {other.sensor}"), self.grid.window(box)
        if grid != self.grid:
            found.notes.append("the inputs cover different areas: only the common part is used")
        bands = [band.on(grid) for band in (*self._bands, *other._bands)]
        if not all(band.place.direct for band in bands[len(self._bands) :]):
            found.notes.append(f"{other.sensor}: resampled to the pixels of {self.sensor}")
        return Scene(grid, bands, found, f"{self.units}, {other.units}")

    def _together(self) -> list[list[int]]:
        """Places of bands that are read in one call: those of one file and data type (a VRT may mix them)."""
        files: dict[tuple[str, str], list[int]] = {}
        for place, band in enumerate(self._bands):
            files.setdefault((band.dataset.name, band.dataset.dtypes[band.number - 1]), []).append(place)
        return list(files.values())

    def _warn_impossible(self, band: str) -> None:
        sentence = impossible(band, self.units)
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def samples(
    read: Callable[[int, int, int, int], tuple[Values, Valid]],
    grid: Grid,
    bands: Sequence[str],
    windows: int,
    size: int,
) -> dict[str, Values]:
    """See :meth:`Scene.sample`; ``read`` gives values and validity (..., C, height, width)."""
    across = math.isqrt(max(windows, 1) - 1) + 1
    rows, columns = (_spread(length, across, size) for length in (grid.height, grid.width))
    parts: dict[str, list[Values]] = {band: [] for band in bands}
    for row, height in rows:
        for column, width in columns:
            values, valid = read(row, column, height, width)
            for band, found in parts.items():
                i = bands.index(band)
                found.append(values[..., i, :, :][valid[..., i, :, :]])
    return {band: np.concatenate(found) for band, found in parts.items()}


def _spread(length: int, count: int, size: int) -> list[tuple[int, int]]:
    """(first, length) of ``count`` stretches of ``size``, or the whole where they would cover it."""
    if length <= count * size:
        return [(0, length)]
    return [(round((i + 0.5) * length / count - size / 2), size) for i in range(count)]


# ---- opening ----


def open_scene(
    source: str | Path | Sequence[Path] | Mapping[str, Any],
    *,
    default_sensor: str,
    accepts: Collection[str],
    target_units: str,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    bbox: Sequence[float] | None = None,
    bbox_crs: str | None = None,
    resolution: float | None = None,
    units: str | None = None,
    boa_offset: float | None = None,
    nodata: float | None = None,
    clouds: Clouds | None = None,
) -> Scene:
    """Open a raster, a folder of band files or a STAC item as one scene.

    Bands on other grids are resampled: bilinear to finer pixels, area average to coarser ones, valid pixels
    only; classes are those of the nearest pixel.

    Args:
        source: a file, a folder, an http(s) address, a STAC item (file, address or its JSON as a dict), or a list of
            files that belong together.
        default_sensor: whose band names are meant where neither ``sensor`` nor the source says.
        accepts: canonical names of the bands that the model takes; others are left out, with a note.
        target_units: of the values wanted, one of ``eo_zoo.sensors.UNITS``.
        sensor: whose band names are meant; a STAC item's platform must agree.
        bands: names: for one file those of its bands, in its order, "-" for one that is not to be used; for folders
            and items the ones to use, in the order wanted. Without it, bands come in the sensor's order.
        bbox: minx, miny, maxx, maxy; the scene is cut to the pixels that touch it.
        bbox_crs: of ``bbox``, e.g. "EPSG:4326"; None for the scene's own.
        resolution: pixel side in units of the CRS; None for the finest band's.
        units: what the stored numbers are; None for what the metadata say, else the target's.
        boa_offset: see :func:`eo_zoo.values.conversion`.
        nodata: stored value that means missing, instead of what the files declare.
        clouds: how cloud masks found beside the bands make pixels invalid; None to leave them aside.

    Raises:
        InputError: the source, or what is asked of it, cannot be used; the message says why and what to do.
        DownloadError: an item on the web cannot be fetched.
    """
    with ExitStack() as stack, rasterio.Env(**GDAL_OPTIONS):
        files = Files(stack)
        found = _find(files, source, sensor, default_sensor, bands)
        sources = _selected(found, accepts, bands)
        datasets = {source.label: files.open(source.path) for source in sources}
        grid = common_grid(datasets, resolution, found.notes)
        if bbox is not None:
            grid = grid.window(bbox, bbox_crs)
        readers = [
            BandReader.of(
                source,
                datasets[source.label],
                grid,
                sensor=found.sensor,
                target_units=target_units,
                units=units,
                boa_offset=boa_offset,
                nodata=nodata,
            )
            for source in sources
        ]
        if mask := _clouds(files, found, clouds or Clouds("off"), grid):
            readers = [replace(reader, clouds=mask) for reader in readers]
        _tell(found, readers, grid, boa_offset)
        return Scene(grid, readers, found, target_units, stack.pop_all())


def _find(
    files: Files,
    source: str | Path | Sequence[Path] | Mapping[str, Any],
    sensor: str | None,
    default_sensor: str,
    bands: Sequence[str] | None,
) -> Found:
    if isinstance(source, Mapping):
        return from_item(source, None, sensor=sensor, default_sensor=default_sensor)
    if not isinstance(source, str | Path):
        name = get_sensor(sensor or default_sensor).name
        return from_files(files, source, name, bands, stated=sensor is not None)
    text = str(source)
    suffix = Path(urlsplit(text).path if is_remote(text) else text).suffix.lower()
    # the address of an item of a STAC API ends in its id, without a suffix
    if suffix in (".json", ".geojson") or (is_remote(text) and suffix not in SUFFIXES):
        return from_item(read_item(text), text, sensor=sensor, default_sensor=default_sensor)
    name = get_sensor(sensor or default_sensor).name
    if is_remote(text):
        return from_file(files, f"/vsicurl/{text}", name, bands, stated=sensor is not None)
    if Path(text).is_dir():
        return from_folder(files, Path(text), name)
    return from_file(files, text, name, bands, stated=sensor is not None)


def _selected(found: Found, accepts: Collection[str], bands: Sequence[str] | None) -> list[BandSource]:
    """The sources to read: ``bands`` in their order, else all that the model takes, in the sensor's order."""
    there = {source.band: source for source in found.sources}
    order = list(get_sensor(found.sensor).band_names)
    wanted = sorted(there, key=lambda band: order.index(band) if band in order else len(order))
    if bands is not None:
        wanted = list(given_bands(bands, found.sensor))
        missing = [band for band in wanted if band not in there]
        if missing:
            raise InputError(f"--bands: {', '.join(missing)} not found; there are {', '.join(there)}")
    left_out = [band for band in wanted if band not in accepts]
    if len(left_out) == len(wanted):
        raise InputError(
            f"the model takes none of the bands found ({', '.join(wanted)}); it takes "
            f"{', '.join(sorted(accepts))}; is --sensor right?"
        )
    if left_out:
        found.notes.append(f"left out, as the model does not take them: {', '.join(left_out)}")
    if found.sensor == "S2" and "short_wave_infrared_2" in there:
        found.warnings.append("B10 is there, which only L1C has, but the values are taken as L2A: --sensor S2-L1C?")
    return [there[band] for band in wanted if band in accepts]


def _clouds(files: Files, found: Found, rule: Clouds, grid: Grid) -> CloudBand | None:
    """The cloud mask to use, if there is one."""
    chosen = rule.choose(found.clouds, found.sources[0].label)
    if chosen is None:
        if found.clouds:
            found.notes.append(f"cloud masks not used: {', '.join(source.label for source in found.clouds.values())}")
        return None
    kind, source = chosen
    dataset = files.open(source.path)
    own = common_grid({source.label: dataset}, None, [])
    if own.crs != grid.crs:
        raise InputError(
            f"{source.label}: the cloud mask is in {name_of(own.crs)}, the bands in {name_of(grid.crs)}; warp it with "
            "gdalwarp -t_srs, or choose masks 'off'"
        )
    found.notes.append(rule.note(kind, source.label))
    return CloudBand(source.label, dataset, own, source.index, kind, rule)


def _tell(found: Found, bands: Sequence[BandReader], grid: Grid, boa_offset: float | None) -> None:
    """Put what was decided about values and pixels into notes."""
    said: dict[str, list[str]] = {}
    silent = []
    for band in bands:
        said.setdefault(band.conversion.note, []).append(band.name)
        if not band.place.direct:
            said.setdefault(f"resampled to pixels of {grid.transform.a:g} ({band.place.way})", []).append(band.name)
        if band.nodata not in (None, band.dataset.nodatavals[band.number - 1]) and not np.isnan(band.nodata):
            said.setdefault(f"nodata {band.nodata:g}, as the file does not say", []).append(band.name)
        elif band.nodata is None and band.dataset.mask_flag_enums[band.number - 1] == [MaskFlags.all_valid]:
            silent.append(band.name)
    if silent and get_sensor(found.sensor).units == "dn":
        said["no nodata declared: zeros count as values; say --nodata 0 if they do not"] = silent
    for note, names in said.items():
        found.notes.append(f"{'all bands' if len(names) == len(bands) else ', '.join(names)}: {note}")
    known = re.fullmatch(r"\d+(\.\d+)?", found.baseline)
    shifted = boa_offset is not None or any(band.conversion.add for band in bands)
    if known and float(found.baseline) >= NEW_BASELINE and not shifted:
        found.warnings.append(new_baseline(found.baseline))


def new_baseline(baseline: str) -> str:
    """The warning about dn that may be shifted."""
    return (
        f"Sentinel-2 processing baseline {baseline}: from 04.00 on, dn are stored with 1000 added, "
        "and nothing here says that it was taken off; pass --boa-offset -1000, or 0 if it was"
    )
