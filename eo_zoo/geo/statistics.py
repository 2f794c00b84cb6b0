"""Mean and standard deviation of rasters at hand, in the form that ``stats=`` and ``--stats`` take."""

from __future__ import annotations

import glob
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.files import replacing
from eo_zoo.geo.bands import Valid, Values
from eo_zoo.geo.checks import one_of, writable
from eo_zoo.geo.inputs import by_key, check_keys, open_input, orders_of
from eo_zoo.geo.job import Log, Report
from eo_zoo.geo.opening import Source, source_name
from eo_zoo.geo.scene import Scene, open_scene
from eo_zoo.geo.series import Series
from eo_zoo.geo.sources import SUFFIXES, Files, data_bands
from eo_zoo.models.anysat_inputs import INPUTS
from eo_zoo.presets import Preset, get_preset
from eo_zoo.progress import progress_bar
from eo_zoo.sensors import Statistics, get_sensor
from eo_zoo.version import __version__

BYTES = 16 * 2**20  # of values that are read at a time
SAMPLES = 2**20  # values a band that percentiles are taken of
CLIP = (1, 99)  # per cent

Sources = Source | Sequence[Source]


@dataclass(eq=False)
class Moments:
    """Number, mean and squared deviations of each band's valid values, added up part by part in float64.

    After Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    bands: int
    count: npt.NDArray[np.int64] = field(init=False)
    mean: npt.NDArray[np.float64] = field(init=False)
    squares: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.count = np.zeros(self.bands, np.int64)
        self.mean, self.squares = np.zeros(self.bands), np.zeros(self.bands)

    def add(self, values: npt.NDArray[np.floating], valid: Valid) -> None:
        """Add (bands, n) values."""
        values = values.astype(np.float64)
        count = valid.sum(axis=1)
        mean = values.sum(axis=1, where=valid) / np.maximum(count, 1)
        squares = np.square(values - mean[:, None]).sum(axis=1, where=valid)
        total = self.count + count
        share, shift = count / np.maximum(total, 1), mean - self.mean
        self.squares += squares + shift**2 * self.count * share
        self.mean += shift * share
        self.count = total

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Of all values, which are taken as the population."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


@dataclass(frozen=True)
class Group:
    """Rasters of one input or sensor, which share one set of statistics."""

    name: str  # the input's, else the sensor's
    sensor: str
    units: str  # of the statistics
    sources: list[Source]
    open: Callable[[Source], AbstractContextManager[Scene | Series]]
    bands: tuple[str, ...] | None = None  # that each has to give; None: those of the first


def raster_statistics(
    sources: Sources | Mapping[str, Sources],
    out: str | Path | None = None,
    *,
    sensor: str | None = None,
    preset: str | Preset | None = None,
    target_units: str | None = None,
    clip: bool = False,
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    units: str | Mapping[str, str] | None = None,
    boa_offset: float | Mapping[str, float] | None = None,
    nodata: float | Mapping[str, float] | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    report: Report | None = None,
    **series: Any,
) -> dict[str, Statistics]:
    """Mean and standard deviation of each band over all valid pixels of rasters, and all dates of series.

    Args:
        sources: images of one sensor (a file, a folder of band files, a STAC item, or a list of these); or for a model
            of several inputs these by input, ``{"aerial": "tiles/*.tif", "s2": "series/"}``: of an image input also a
            folder of multi-band files, of a series what ``open_series`` takes, and of both a pattern.
        out: a .json file for the result, which ``stats=`` and ``--stats`` take: for images of one sensor an object of
            one set, for inputs one of sets by input.
        sensor: of images of one sensor, whose band names are meant; must be given.
        preset: a data set (see ``eo_zoo.presets``) in whose units the statistics of inputs are.
        target_units: of the statistics of one sensor or input; those of the preset, else the sensor's usual ones.
        clip: also the 1st and 99th percentile, of a sample of the values, between which they are clipped before mean
            and standard deviation are taken: as SMARTIES was trained, and robust to a few odd values. AnySat and MaRS
            were trained without.
        bands: names of the images' bands in order, where files do not hold them; as of ``open_scene``. Like the
            next three of several inputs by input.
        units: what the stored numbers are.
        boa_offset: added to digital numbers.
        nodata: stored value that means missing.
        overwrite: replace an existing output.
        progress: show a bar on stderr; on a terminal only if not given.
        report: called with ("note" or "warning", sentence); they are logged if not given.
        **series: how time series are read: ``date_pattern``, ``start``, ``end``, ``max_dates``, ``masks``,
            ``scl_invalid`` and ``max_probability``, as of ``open_series``.

    Returns:
        Statistics by input, or of images of one sensor by its name.

    Raises:
        InputError: a raster cannot be used, lacks a band, or a band holds no valid value or one value only.
        DownloadError: a STAC item on the web cannot be fetched.
    """
    if not sources:
        raise InputError("there are no rasters: give at least one")
    path = writable("the output", out, (".json",), overwrite)
    if target_units is not None:
        one_of("target_units", target_units, sensors.UNITS)
    options = {"bands": bands, "units": units, "boa_offset": boa_offset, "nodata": nodata}
    series = {name: value for name, value in series.items() if value is not None}
    if isinstance(sources, Mapping) and not _is_item(sources):
        if sensor is not None:
            raise InputError(f"sensor '{sensor}' is given, but inputs by name have their own: leave it out")
        preset = get_preset(preset) if isinstance(preset, str) else preset
        groups = _by_input(sources, preset, target_units, options, series)
    elif series:
        raise InputError(f"{', '.join(series)}: only for time series, and the images are none")
    elif preset is not None:
        raise InputError("a preset is for inputs by name: give these, as --input aerial=FILES")
    elif sensor is None:
        raise InputError(f"the images' sensor is not known: give one of {', '.join(sensors.list_sensors())}")
    else:
        groups = [_of_sensor(sources, get_sensor(sensor).name, target_units, options)]
    log, stem, bar = Log(report), path.stem if path else "custom", sys.stderr.isatty() if progress is None else progress
    found = {
        group.name: _computed(group, stem if sensor else f"{stem}/{group.name}", clip, bar, log) for group in groups
    }
    if path is not None:
        sets = {name: own.to_dict() for name, own in found.items()}
        with replacing(path) as part:
            part.write_text(json.dumps(sets if sensor is None else sets.popitem()[1], indent=2) + "\n")
    return found


# ---- what there is ----


def _is_item(source: Mapping[str, Any]) -> bool:
    return "stac_version" in source or source.get("type") in ("Feature", "FeatureCollection")


def _of_sensor(sources: Sources, sensor: str, target_units: str | None, options: Mapping[str, Any]) -> Group:
    for key, value in options.items():
        if isinstance(value, Mapping):
            raise InputError(f"{key} is given by input, but the images have none: give it alone")
    units = target_units or get_sensor(sensor).units
    accepts = {band.name for band in get_sensor(sensor).bands}
    accepts |= {sensors.resolve(name, sensor) for name in options["bands"] or () if name != "-"}
    opened = partial(open_scene, default_sensor=sensor, sensor=sensor, accepts=accepts, target_units=units, **options)
    return Group(sensor, sensor, units, _listed(sources), opened)


def _by_input(
    sources: Mapping[str, Sources],
    preset: Preset | None,
    target_units: str | None,
    options: Mapping[str, Any],
    series: Mapping[str, Any],
) -> list[Group]:
    keys = list(sources)
    check_keys(keys, series)
    if target_units is not None and len(keys) > 1:
        raise InputError(f"target_units is for one input, and {', '.join(keys)} are given: run it for each")
    orders, own = orders_of(keys, preset), by_key(options, keys)
    groups = []
    for key in keys:
        sensor = sensors.sensor_of(INPUTS[key].order)
        units = target_units or (preset.inputs[key].units if preset else None) or get_sensor(sensor).units
        opened = partial(
            open_input, key, order=orders[key], target_units=units, preset=preset, place="anywhere", **own[key]
        )
        if INPUTS[key].series:
            groups.append(Group(key, sensor, units, _listed(sources[key]), partial(opened, series=series), orders[key]))
        else:
            images = [image for source in _listed(sources[key]) for image in _images(source)]
            groups.append(Group(key, sensor, units, images, opened, orders[key]))
    return groups


def _listed(sources: Sources) -> list[Source]:
    """All sources, patterns replaced by what they match."""
    listed: list[Source] = []
    for source in [sources] if isinstance(sources, str | Path | Mapping) else sources:
        pattern = str(source)
        if isinstance(source, Mapping) or not glob.has_magic(pattern) or Path(pattern).exists() or "://" in pattern:
            listed.append(source)
        elif matches := sorted(glob.glob(pattern)):
            listed += matches
        else:
            raise InputError(f"{pattern}: nothing matches this pattern")
    return listed


def _images(source: Source) -> list[Source]:
    """A folder of multi-band files is so many images; one of single bands is one image, as everything else."""
    if isinstance(source, Mapping) or not Path(source).is_dir():
        return [source]
    files = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in SUFFIXES)
    several = [path for path in files if _count(path) > 1]
    return list(several) if len(several) == len(files) and files else [source]


def _count(path: Path) -> int:
    with ExitStack() as stack:
        return len(data_bands(Files(stack).open(path)))


# ---- the numbers ----


def _computed(group: Group, name: str, clip: bool, progress: bool, log: Log) -> Statistics:
    bands, windows, samples = _look(group, SAMPLES // len(group.sources) if clip else 0, log)
    moments, limits = Moments(len(bands)), {}
    if clip:
        low, high = np.array([np.percentile(sample, CLIP) if len(sample) else (0, 0) for sample in samples]).T
        _check_spread(group, bands, [len(sample) for sample in samples], low, high - low, "from the 1st to the 99th %")
        limits = {"p1": tuple(low.tolist()), "p99": tuple(high.tolist())}
    with progress_bar(f"{group.name}:", windows, progress) as advance:
        for source in group.sources:
            with group.open(source) as raster:
                for values, valid in _parts(raster, bands):
                    if clip:
                        values = ((values - low[:, None]) / (high - low)[:, None]).clip(0, 1)
                    moments.add(values, valid)
                    advance(1)
                _warn(group, raster, log)  # of what only reading tells
    _check_spread(group, bands, moments.count, moments.mean, moments.std)
    said = f"eo_zoo {__version__}; rasters: {len(group.sources)}; valid values: {moments.count.min():,} a band or more"
    mean, std = (tuple(numbers.tolist()) for numbers in (moments.mean, moments.std))
    return Statistics(name, group.sensor, group.units, bands, mean, std, **limits, source=said)


def _look(group: Group, samples: int, log: Log) -> tuple[tuple[str, ...], int, list[Values]]:
    """Open every raster before the long part: the bands, the number of windows, and samples of each band's values."""
    bands, windows = group.bands, 0
    taken: list[list[Values]] = []
    for source in group.sources:
        with group.open(source) as raster:
            for text in raster.notes if source is group.sources[0] else []:  # the others' are alike
                log.note(f"{group.name}: {text}")
            bands = bands or raster.bands
            if missing := [band for band in bands if band not in raster.bands]:
                raise InputError(
                    f"{source_name(source)} has no {', '.join(missing)}, which the statistics of {group.name} need "
                    f"({', '.join(bands)}); it has {', '.join(raster.bands)}"
                )
            windows += len(_windows(raster))
            if samples:
                found = raster.sample()
                taken.append([found[band][:: -(-len(found[band]) // samples) or 1] for band in bands])
            _warn(group, raster, log)
    return bands or (), windows, [np.concatenate(parts) for parts in zip(*taken, strict=True)]


def _warn(group: Group, raster: Scene | Series, log: Log) -> None:
    for text in (f"{group.name}: {text}" for text in raster.warnings):
        if text not in log.warnings:
            log.warn(text)


def _windows(raster: Scene | Series) -> list[tuple[int, int, int, int]]:
    """Row, column, height and width of squares that cover it and hold no more than ``BYTES``."""
    dates = len(raster.dates) if isinstance(raster, Series) else 1
    side = max(1, math.isqrt(BYTES // (4 * len(raster.bands) * dates)))
    side = side // 512 * 512 or side  # files are stored in blocks of that size, or half of it
    height, width = raster.grid.height, raster.grid.width
    return [
        (row, column, min(side, height - row), min(side, width - column))
        for row in range(0, height, side)
        for column in range(0, width, side)
    ]


def _parts(raster: Scene | Series, bands: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values and validity (bands, n), window by window."""
    index = [raster.bands.index(band) for band in bands]

    def flat(x: np.ndarray) -> np.ndarray:
        """Of (bands, height, width), or of a series (dates, bands, height, width)."""
        return np.moveaxis(x, -3, 0).reshape(x.shape[-3], -1)[index]

    for window in _windows(raster):
        values, valid = raster.read(*window)
        yield flat(values), flat(valid)


def _check_spread(
    group: Group, bands: Sequence[str], counts: Any, values: Any, spreads: Any, where: str = "everywhere"
) -> None:
    for band, count, value, spread in zip(bands, counts, values, spreads, strict=True):
        if not count:
            raise InputError(
                f"{group.name}: {band} has no valid value in {len(group.sources)} rasters; check the nodata value"
            )
        if not spread > 1e-7 * abs(value):  # float32 tells no finer differences
            raise InputError(
                f"{group.name}: {band} is {value:g} {where}, so that nothing can be scaled by it; leave it out (- for "
                "its name), or give rasters in which it varies"
            )
