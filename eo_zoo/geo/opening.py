"""From a source and a model to an open scene with the statistics it is normalised by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from torch import nn

from eo_zoo import registry, sensors
from eo_zoo.errors import InputError
from eo_zoo.geo.job import Log
from eo_zoo.geo.scene import Scene, open_scene
from eo_zoo.sensors import Statistics
from eo_zoo.values import gsd_warning, plausibility
from eo_zoo.weights import Record

Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read: see ``open_scene`` for each; ``stats`` are the statistics it is normalised by."""

    sensor: str | None = None
    bands: Sequence[str] | None = None
    stats: str | Path | Statistics | None = None
    units: str | None = None
    boa_offset: float | None = None
    nodata: float | None = None
    bbox: Sequence[float] | None = None
    bbox_crs: str | None = None
    resolution: float | None = None


@contextlib.contextmanager
def opened(source: Source, model: str | nn.Module, reading: Reading, log: Log) -> Iterator[tuple[Scene, Statistics]]:
    """The scene, and the statistics of its bands in their order; what the user should know of both is told.

    Raises:
        InputError: the source, or what is asked of it, cannot be used, or there are no statistics for it.
        DownloadError: an item on the web cannot be fetched.
    """
    record = record_for(model)
    statistics = _statistics(record, reading)
    accepts = record.accepts if record else getattr(model, "bands", statistics.bands)
    with open_scene(
        source,
        default_sensor=statistics.sensor,
        accepts=[band for band in accepts if band in statistics.bands],
        target_units=statistics.units,
        sensor=reading.sensor,
        bands=reading.bands,
        bbox=reading.bbox,
        bbox_crs=reading.bbox_crs,
        resolution=reading.resolution,
        units=reading.units,
        boa_offset=reading.boa_offset,
        nodata=reading.nodata,
    ) as scene:
        if record and reading.stats is None:
            statistics = _of_scene(record, statistics, scene)
        statistics = statistics.select(scene.bands)
        _tell(scene, statistics, record, log)
        yield scene, statistics


def record_for(model: str | nn.Module) -> Record | None:
    """The record of a registered name, or the one that a module was configured by, if any."""
    return registry.get_record(model) if isinstance(model, str) else registry.record_of(model)


def check_bands(model: Any, bands: tuple[str, ...]) -> None:
    """Raise InputError if a module says that it was made for other bands."""
    own = getattr(model, "bands", None)
    if own is not None and tuple(own) != bands:
        raise InputError(
            f"the model was made for the bands {', '.join(own)}, the scene gives {', '.join(bands)}: "
            "create the model with bands= these, or choose bands of the scene"
        )


def is_several(source: object) -> TypeGuard[Mapping[str, Source]]:
    """Whether a source is a dict of sources by sensor or input, not a STAC item, which has a type and assets."""
    return isinstance(source, Mapping) and not {"type", "assets"} & set(source)


def source_name(source: Source | Mapping[str, Source]) -> str:
    """What an output may tell of its input: no folders, and no query, which may hold a signature."""
    if is_several(source):
        return ", ".join(f"{key}: {source_name(one)}" for key, one in source.items())
    if isinstance(source, Mapping):
        return str(source.get("id", "STAC item"))
    return str(source).partition("?")[0].rstrip("/").rpartition("/")[2]


def _statistics(record: Record | None, reading: Reading) -> Statistics:
    if isinstance(reading.stats, Statistics):
        return reading.stats
    if reading.stats is not None:
        return sensors.get_statistics(reading.stats)
    if record is None:
        raise InputError("the module's weights have no record, so its statistics are not known: give stats")
    return _recorded(record, sensors.get_sensor(reading.sensor).name if reading.sensor else record.sensors[0])


def _recorded(record: Record, sensor: str) -> Statistics:
    if sensor not in record.statistics:
        known, others = ", ".join(record.statistics), ", ".join(sensors.get_sensor(sensor).statistics)
        raise InputError(
            f"{record.name} has no statistics for sensor {sensor}, only for {known}: give stats, a JSON file or a "
            f"recorded set (for {sensor}: {others or 'none'})"
        )
    return sensors.get_statistics(record.statistics[sensor])


def _of_scene(record: Record, statistics: Statistics, scene: Scene) -> Statistics:
    """The record's statistics for the scene's sensor, where it says that it is not the assumed one."""
    if scene.sensor == statistics.sensor:
        return statistics
    found = _recorded(record, scene.sensor)
    if found.units != scene.units:
        raise InputError(f"the scene is of sensor {scene.sensor}: give sensor '{scene.sensor}'")
    return found


def _tell(scene: Scene, statistics: Statistics, record: Record | None, log: Log) -> None:
    """What the user should know before the long part begins."""
    for text in scene.notes:
        log.note(text)
    log.note(f"normalised with the statistics '{statistics.name}'")
    samples = scene.sample()  # before the scene's own warnings: reading adds to them
    for text in [*scene.warnings, *plausibility(samples, statistics)]:
        log.warn(text)
    if record and scene.sensor not in record.sensors:
        log.warn(f"{record.name} was not trained on {scene.sensor}, but on {', '.join(record.sensors)}")
    seen = record.gsd.get(scene.sensor) if record else None
    far = gsd_warning(scene.grid.gsd, seen) if seen else None
    if far:
        log.warn(far)
